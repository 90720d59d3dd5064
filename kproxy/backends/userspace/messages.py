"""What two processes say to each other when one takes over; in which order, handover.py says."""

from __future__ import annotations

from msgspec.msgpack import Decoder

from kproxy.backends.userspace.estate import Estate, Figures, Words
from kproxy.core.objects import Family, Value

#: Another one means that the two cannot understand each other; new fields with defaults are none.
VERSION = 1


class Hello(Value, frozen=True, tag=True):
    """A successor wants to take over."""

    version: int


class Ask(Value, frozen=True, tag=True):
    """Somebody wants to know what the relays have counted, maybe of each endpoint as well."""

    endpoints: bool = False


class Told(Value, frozen=True, tag=True):
    """What they have counted, by family."""

    relays: tuple[Figures, ...]


class Refused(Value, frozen=True, tag=True):
    """There is nothing to be had, and why; ``by`` is the process that gets it instead."""

    why: str
    by: int = 0


class Part(Value, frozen=True, tag=True):
    """Part of what there is; its descriptors come with it."""

    estate: Estate


class Complete(Value, frozen=True, tag=True):
    """That was all of it."""


class Ready(Value, frozen=True, tag=True):
    """The successor can serve at once."""


class LastWords(Value, frozen=True, tag=True):
    """What is known of one service's clients; we take nothing more for it."""

    family: Family
    words: Words


class Parting(Value, frozen=True, tag=True):
    """That was all. The lock of the state directory comes with it, and then that of the network
    namespace where it is held."""


class Serving(Value, frozen=True, tag=True):
    """The successor serves."""


class Done(Value, frozen=True, tag=True):
    """Everything that two cannot have is free."""


FIRST: Decoder[Hello | Ask] = Decoder(Hello | Ask)
PARTS: Decoder[Part | Complete | Refused] = Decoder(Part | Complete | Refused)
LAST: Decoder[LastWords | Parting] = Decoder(LastWords | Parting)
READY, SERVING, DONE, TOLD = Decoder(Ready), Decoder(Serving), Decoder(Done), Decoder(Told)
