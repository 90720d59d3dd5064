"""Faults of pods of a lab that is up: brought about, ended, listed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from kproxy.core.objects import Value
from kproxy.errors import LabError
from kproxy.lab import conditions, pods, state
from kproxy.lab.conditions import FINE, Conditions
from kproxy.lab.faults import FORMS, Fault, Kind, added, loss_of, parse
from kproxy.lab.loss import lose
from kproxy.lab.model import LabState, Pod

#: Names that an error lists.
_LISTED = 12


class Standing(Value, frozen=True):
    """What one pod suffers from now."""

    pod: str
    faults: tuple[Fault, ...] = ()

    def __str__(self) -> str:
        return f"pod/{self.pod}: {', '.join(map(str, self.faults)) or 'no fault'}"


class Wish(Value, frozen=True):
    """What a command line asks for: which pods, and what shall befall them (nothing: only look)."""

    pods: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()


def understood(lab: LabState, words: Iterable[str]) -> Wish:
    """Names of pods and faults, in any order. LabError names the pods that exist, UsageError the
    way to write a fault."""
    known = [pod.name for pod in lab.pods]
    names: list[str] = []
    faults: list[Fault] = []
    for word in words:
        if word in known:
            names.append(word)
        elif word.partition("=")[0] in list(Kind):
            faults.append(parse(word))
        else:
            raise _unknown(lab, word, known)
    return Wish(tuple(dict.fromkeys(names)), tuple(faults))


def _unknown(lab: LabState, word: str, known: Sequence[str]) -> LabError:
    some = ", ".join(known[:_LISTED]) + (", …" if len(known) > _LISTED else "")
    return LabError(
        f"lab {lab.name} has no pod {word!r}",
        hint=f"pods: {some or 'none'}; faults: {', '.join(FORMS.values())}",
    )


def standing(lab: LabState, names: Iterable[str] = ()) -> tuple[Standing, ...]:
    """The faults of these pods, or of all that have any."""
    wanted = tuple(names)
    return tuple(
        Standing(pod.name, pod.faults)
        for pod in lab.pods
        if (pod.name in wanted if wanted else pod.faults)
    )


def inflict(lab: LabState, names: Sequence[str], faults: Sequence[Fault]) -> tuple[Standing, ...]:
    """In force when it returns; what these pods suffer from then.

    MachineError when this kernel cannot lose packets, before anything is changed.
    """
    _lose(lab, [pod for pod in lab.pods if pod.name in names], faults)

    def change(there: Conditions) -> Conditions:
        return {
            **there,
            **{
                name: msgspec.structs.replace(one, faults=added(one.faults, faults))
                for name in names
                for one in (there.get(name, FINE),)
            },
        }

    now = conditions.change(state.lab_dir(lab.name), change)
    pods.poke(lab.name)
    return tuple(Standing(name, now.get(name, FINE).faults) for name in names)


def _lose(lab: LabState, chosen: Iterable[Pod], faults: Sequence[Fault]) -> None:
    for pod in chosen:
        share = loss_of(added(pod.faults, faults))
        if share != loss_of(pod.faults):
            lose(lab.network, pod.name, share)
