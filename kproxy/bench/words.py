"""What a comparison's figures are called and how they are written: words and units. Pure.

Terminal, pictures and report say the same thing the same way because they ask here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from kproxy.bench.results import Absent, Cost, Section, Unit

#: Subject -> what a reader who sees it for the first time is told.
SUBJECTS: Mapping[str, str] = {
    "direct": "the client speaks to the pod's own address; the node only routes. The floor",
    "direct again": "the same once more: how far it is from the first is the noise",
    "userspace": "a relay process accepts, and opens a second connection to the pod",
    "iptables-legacy": "DNAT by chains of rules, the tables of the kernel's older interface",
    "iptables-nft": "the same chains, loaded through nftables",
    "nftables": "DNAT by a constant number of rules and maps",
    "fastpath": "kproxy's own packet engine behind a TUN device",
    "ipvs": "the kernel's load balancer, a hash of virtual servers",
    "haproxy": "HAProxy as a layer-4 relay, as it comes",
    "nginx": "nginx' stream module as a layer-4 relay, as it comes",
    "nft-dnat": "one nft rule written by hand: what the kernel's DNAT costs, and no more",
    "ipvsadm": "one virtual server made by hand: what the kernel's IPVS costs, and no more",
    "relay": "kproxy's relay by itself, with no rule before it",
}

#: Group -> (title, what it asks).
GROUPS: Mapping[str, tuple[str, str]] = {
    "traffic": (
        "Traffic",
        "How much passes once a service is in force, and how long a request takes.",
    ),
    "first-packet": (
        "First packet",
        (
            "What a new connection pays for being looked up, and whether that grows with the "
            "number of services. Later packets of a connection are not looked up again."
        ),
    ),
    "programming": (
        "Programming",
        "How long it takes until what the objects say is in force in the kernel.",
    ),
    "survival": (
        "Survival",
        "What clients notice while the proxy, its rules, or the pods behind it are replaced.",
    ),
}

#: Term -> how to read it; in the order of the report's glossary.
GLOSSARY: Mapping[str, str] = {
    "round": (
        "All subjects are measured once, one right after the other, in an order that changes from "
        "round to round. What slows the whole machine down for a while hits all of them."
    ),
    "figure": "The median of a subject's figures over all rounds.",
    "ratio": (
        "A subject's figure divided by that of its base in the same round; the median of these "
        "over all rounds. The base is direct routing; for programming, which it has none of, it is "
        "an iptables mode. 0.75 of a rate is three quarters of it, 2.0 of a time is twice as long."
    ),
    "[low, high]": (
        "The 99.9 % interval of that median, by the sign test: in a thousand such intervals one "
        "may miss the true median. It assumes nothing about how figures scatter, and needs 11 "
        "rounds. When 1 lies within it no difference is shown, which does not mean that there is "
        "none."
    ),
    "noise floor": (
        "Direct routing is measured twice in each round. How far the ratio of the two may be from "
        "1 (95 %) is what this machine makes of two equals; a smaller difference means nothing "
        "here."
    ),
    "verdict": (
        "Faster or slower is said when the interval leaves 1 out and, where direct routing is the "
        "base, the ratio is beyond the noise floor. Otherwise: no difference shown; within the "
        "noise; too few rounds, which takes no side; failed."
    ),
    "failed": (
        "Requests went unanswered, or were answered wrongly. What fails quickly looks fast, so "
        "such a figure is never shown as speed."
    ),
    "silence, slowest": (
        "Of survival. New connections come at a steady rate, whatever becomes of the earlier ones. "
        "Silence is the longest time in which none of them ended well; slowest is the longest that "
        "one took which did. TCP sends a lost SYN again after a second: where the slowest took a "
        "second and the silence was short, some packets were lost while others passed."
    ),
    "rules of both": (
        "Of a mode switch: from the end of the new mode's first sync until the last of the old "
        "one's rules were gone, as the new daemon measured it. Meanwhile whichever translates a "
        "connection first has it; none is translated twice."
    ),
    "p50, p99": (
        "Half of the operations took no longer than p50, 99 of 100 no longer than p99: the first "
        "is what is usual, the second what a page that makes a hundred requests will meet."
    ),
    "CPU": (
        "Seconds of processor time: of the subject's own processes, and of all else but client and "
        "server, which is the kernel on the subject's behalf and whatever other work the machine "
        "had. Given for 10,000 operations or a gigabyte where the measure counts such, else for "
        "one turn."
    ),
    "memory": (
        "PSS of the subject's own processes, and what the kernel held more than without the "
        "subject."
    ),
}

#: Measure -> how it is taken; what is not here is explained by its title alone.
HOW: Mapping[str, str] = {
    "crr": "Many clients at once, each without a pause: connect, 64 bytes there, 64 back, close.",
    "rr": "64 bytes there and 64 back on connections that stay open.",
    "stream1": "One connection as fast as it goes, from the pod to the client.",
    "stream4": "Four connections as fast as they go, from the pod to the client.",
    "udp": "As fast as they can be sent from client to pod; counted are those that arrive.",
    "crr-p50": "One connection after the other, so this is what one of them takes by itself.",
    "crr-p99": "One connection after the other: 99 of 100 took no longer.",
    "connect-p50": (
        "One connection after the other: from connect(2) to an open connection. Before a relay it "
        "is the relay that answers, not the pod."
    ),
    "first-packet": (
        "The time of connect(2), one connection after the other, to the service that is looked up "
        "first and to the one that is looked up last; where services are not in a chain both are "
        "alike. In userspace mode it is the relay that answers."
    ),
    "cold-sync": (
        "From a finished plan to the kernel's last acknowledgement, in an empty network namespace."
    ),
    "one-change": "One sync that gives one service another endpoint.",
    "burst": "One sync that gives so many services another endpoint each.",
    "convergence": (
        "From the moment in which a manifest is replaced to the first good answer at a client: "
        "watching, reading, planning and writing are all in it. An endpoint moves, or a service is "
        "new."
    ),
    "restart": "A new process takes over from the old one.",
    "kill": "The process is killed (SIGKILL); a new one starts a second later.",
    "wipe": "Somebody else deletes all rules; the proxy has to notice and repair.",
    "rolling": "Pods behind the service give way to new ones, one by one.",
    "switch": "Another mode takes over while there is traffic; in each round the next one.",
}

#: Measure or event -> its name over a picture, where there is no room for its title.
SHORT: Mapping[str, str] = {
    "crr": "Short connections",
    "crr-p50": "A short connection, median",
    "crr-p99": "A short connection, 99th percentile",
    "connect-p50": "Connecting, median",
    "first-packet": "First packet",
    "rr": "Requests, kept open",
    "udp": "UDP datagrams",
    "stream1": "One stream",
    "stream4": "Four streams",
    "cold-sync": "All services, from nothing",
    "one-change": "One endpoint replaced",
    "burst": "1,000 services changed",
    "convergence": "From file to first good packet",
    "restart": "Restart",
    "kill": "kill −9",
    "wipe": "Rules wiped",
    "rolling": "Rolling update",
    "switch": "Mode switch",
}

#: Place of a point -> what it is.
PLACES: Mapping[str, str] = {
    "first": "the first service",
    "last": "the last service",
    "moved": "an endpoint moves",
    "new": "a new service",
}

#: Endings of the measures of survival -> what they say.
SURVIVAL: Mapping[str, str] = {
    "failed": "share of new connections that failed",
    "gap": "longest time in which nobody was answered",
    "slowest": "longest that a new connection took which was answered",
    "held": "share of open connections that lived on",
    "both": "time in which the rules of both modes stood",
}

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_SMALL = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))


def quantity(value: float, unit: Unit, digits: int = 3) -> str:
    """A figure for people: ``52.3 k/s``, ``1.84 Gbit/s``, ``14.2 µs``, ``97.6 MB``, ``2.1 %``."""
    if math.isnan(value) or math.isinf(value):
        return "–"
    if not value and unit == "s":
        return "0 s"
    if unit == "share":
        return f"{number(value * 100, digits)} %"
    table = _SMALL if unit == "s" and value < 1 else _PREFIXES
    if unit == "s" and value >= 1:
        return f"{number(value, digits)} s"
    for scale, prefix in table:
        # 999.6 is written as 1.00 of the next prefix, not as 1000.
        if round_to(value, digits) >= scale or scale == table[-1][0]:
            written = number(value / scale, digits)
            name = "/s" if unit == "1/s" else unit
            return f"{written} {prefix}{name}".rstrip()
    raise AssertionError("the last prefix takes all")


def number(value: float, digits: int = 3) -> str:
    """So many significant digits, no exponent, thousands apart: ``0.75``, ``14.2``, ``1,250``."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return "–"
    rounded = round_to(value, digits)
    after = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{after}f}"


def round_to(value: float, digits: int) -> float:
    """To so many significant digits."""
    return float(f"{value:.{digits - 1}e}") if value else 0.0


def count(value: float) -> str:
    """A whole number with thousands apart: ``10,000``."""
    return f"{value:,.0f}"


def plural(amount: int, word: str) -> str:
    """``1 round``, ``12 rounds``."""
    return f"{count(amount)} {word}{'' if amount == 1 else 's'}"


def capital(text: str) -> str:
    """The same as the beginning of a sentence."""
    return text[:1].upper() + text[1:]


def listed(names: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *most, last = list(names) or [""]
    return f"{', '.join(most)} and {last}" if most else last


def duration(seconds: float) -> str:
    """``47 s``, ``3 min 20 s``, ``1 h 12 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def percent(level: float) -> str:
    """``99.9 %``."""
    return f"{level * 100:g} %"


def better(way: str) -> str:
    """``lower is better``."""
    return f"{way} is better"


def kernel_name(section: Section) -> str:
    """``Linux 6.18.5``, ``user-mode Linux 6.1.0``."""
    version = section.kernel.removeprefix("user-mode Linux").removeprefix("Linux").strip()
    return f"{'user-mode ' if section.name == 'uml' else ''}Linux {version}".strip()


def ordered(names: Iterable[str]) -> list[str]:
    """Subjects in the order of :data:`SUBJECTS`; strangers last."""
    places = {name: place for place, name in enumerate(SUBJECTS)}
    return sorted(names, key=lambda name: (places.get(name, len(places)), name))


def cost(spent: Cost, value: float, unit: Unit) -> tuple[float, float, str]:
    """CPU of a subject's own processes and of the kernel, in seconds, and what they bought."""
    done, bought = {
        "1/s": (value * spent.seconds / 1e4, "10,000 operations"),
        "bit/s": (value * spent.seconds / 8e9, "a gigabyte"),
    }.get(unit, (1.0, "a turn"))
    if done <= 0:
        done, bought = 1.0, "a turn"
    return spent.proxy / done, spent.kernel / done, bought


def missing(section: Section, measures: Iterable[str]) -> dict[str, list[Absent]]:
    """Who has no figure of some of these measures, with the reasons; ``measure`` "" is all."""
    wanted = set(measures)
    found: dict[str, list[Absent]] = {}
    for absent in section.absent:
        if not absent.measure or absent.measure in wanted:
            found.setdefault(absent.subject, []).append(absent)
    return found
