"""``kproxy fastpath``: the packet engine by itself. ``replay`` runs a capture through it."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from kproxy import config_check, flags
from kproxy.cli.common import emit, output_option, table
from kproxy.config import Config
from kproxy.core.objects import Family
from kproxy.errors import SourceError, UsageError

if TYPE_CHECKING:
    from kproxy.backends.fastpath.replay import Replay, Step

#: Link types of captures (tcpdump.org/linktypes.html) -> bytes before the IP header.
LINKS = {1: 14, 101: 0, 113: 16, 276: 20}
_ETHERNET = 1
_SEED = "00" * 16


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """The packet engine of fastpath mode."""


@command.command()
@click.option(
    "--services",
    "services",
    required=True,
    multiple=True,
    metavar="FILE",
    help="Manifests of Services, EndpointSlices, Nodes; may be given several times.",
)
@click.option("--config", "config_file", metavar="FILE", help="KubeProxyConfiguration.")
@click.option("--node", "node", metavar="NAME", help="Node that the engine runs on.")
@click.option(
    "--address",
    "addresses",
    multiple=True,
    metavar="IP",
    help="Address of the node; those of its Node object when not given.",
)
@click.option("--seed", default=_SEED, metavar="HEX", help="Which endpoint a client gets.")
@click.option("-v", "--verbose", is_flag=True, help="A line for every packet.")
@output_option("json")
@click.argument("capture", type=click.Path(exists=True, dir_okay=False))
@click.argument("result", type=click.Path(dir_okay=False))
def replay(
    services: tuple[str, ...],
    config_file: str | None,
    node: str | None,
    addresses: tuple[str, ...],
    seed: str,
    verbose: bool,
    output: str | None,
    capture: str,
    result: str,
) -> None:
    """Run the packets of a pcap file through the engine, and write what comes out to another.

    Dropped packets are left out; answers go back with the link addresses exchanged. Times are the
    capture's.
    """
    config, _ = flags.load(config_file) if config_file else (Config(), ())
    config_check.check(config, where=config_file or "config")
    machine = _machine(config, services, node, addresses, _seed(seed))
    steps = _run(machine, capture, result, verbose=verbose and output is None)
    report = {
        "packets": steps,
        "codes": {code.name: count for code, count in sorted(machine.codes.items())},
        "reasons": {why.name: count for why, count in sorted(machine.reasons.items()) if why},
        "endpoints": [
            {"service": str(name), "endpoint": _place(place), **figures}
            for name, places in sorted(machine.services().items())
            for place, figures in sorted(places.items())
        ],
    }
    emit(report, output) if output else _tell(report)


def _seed(text: str) -> bytes:
    try:
        seed = bytes.fromhex(text)
    except ValueError:
        seed = b""
    if len(seed) != 16:
        raise UsageError("is no seed", where=f"--seed {text}", hint="give 32 hexadecimal digits")
    return seed


def _machine(
    config: Config,
    services: tuple[str, ...],
    node: str | None,
    addresses: tuple[str, ...],
    seed: bytes,
) -> Replay:
    """An engine with what the manifests say."""
    from kproxy.backends.fastpath.plan import node_table, plan_tables
    from kproxy.backends.fastpath.replay import Replay
    from kproxy.core.planner import Planner
    from kproxy.core.settings import node_settings
    from kproxy.core.tracker import Tracker
    from kproxy.core.twin.values import EngineSettings
    from kproxy.daemon import node_name
    from kproxy.sources.manifests import ManifestSource

    source, tracker = ManifestSource(services), Tracker()
    tracker.apply(source.load(to_end=True))
    for refusal in source.refusals:
        click.echo(f"kproxy: {refusal}", err=True)
    name = node or node_name(config)
    known = tracker.node(name)
    local = addresses or (known.addresses if known is not None else ())
    nodes, plans = [], []
    for family in Family:
        settings = node_settings(config, known, name, family, local)
        plans.append(plan_tables(Planner(family).plan(tracker, settings), None))
        nodes.append(node_table(settings, family, local, (49152, 65535)))
    # Nobody attacks a file: with a key of zeros the same capture always gives the same result.
    return Replay(EngineSettings(flow_key=bytes(16), seed=seed), nodes, plans)


def _run(machine: Replay, capture: str, result: str, *, verbose: bool) -> int:
    """Replay; returns how many packets went in."""
    from scapy.error import Scapy_Exception
    from scapy.utils import RawPcapReader, RawPcapWriter

    from kproxy.core.twin.values import Code

    try:
        reader: Any = RawPcapReader(capture)
    except Scapy_Exception as error:
        raise SourceError(str(error), where=capture, hint="give a pcap or pcapng file") from error
    link = getattr(reader, "linktype", _ETHERNET)
    if link not in LINKS:
        raise SourceError(
            f"has link type {link}", where=capture, hint=f"known are {', '.join(map(str, LINKS))}"
        )
    writer: Any = RawPcapWriter(result, linktype=link, nano=True)
    heads: list[bytes] = [b""]
    count = 0
    with reader, writer:
        writer.write_header(None)
        for step in machine.run(_packets(reader, LINKS[link], heads)):
            count = max(count, step.number)
            if verbose:
                click.echo(_line(step))
            if step.code in (Code.DROP, Code.STOLEN):
                continue
            head = (
                _turned(heads[-1]) if step.code is Code.REPLY and link == _ETHERNET else heads[-1]
            )
            sec, rest = divmod(step.time, 1_000_000_000)
            writer.write_packet(head + step.packet, sec=sec, usec=rest)
    return count


def _packets(reader: Any, skip: int, heads: list[bytes]) -> Iterator[tuple[int, bytes]]:
    """(nanoseconds, packet), while ``heads[-1]`` is the link header of the last one."""
    from scapy.utils import RawPcapNgReader

    nano = getattr(reader, "nano", False)
    for data, meta in reader:
        if isinstance(reader, RawPcapNgReader):
            ticks = meta.tshigh << 32 | meta.tslow
            time = ticks * 1_000_000_000 // meta.tsresol
        else:
            time = meta.sec * 1_000_000_000 + meta.usec * (1 if nano else 1000)
        heads[-1] = bytes(data[:skip])
        yield time, bytes(data[skip:])


def _turned(head: bytes) -> bytes:
    """An Ethernet header on its way back."""
    return head[6:12] + head[:6] + head[12:]


def _line(step: Step) -> str:
    """``12 FORWARD ns1/web 10.180.0.9:40000 > 10.180.0.1:8080 TCP``."""
    number = str(step.number) if step.number else "again"
    words = [number, step.code.name]
    if step.reason:
        words.append(step.reason.name)
    return " ".join([*words, str(step.service or "-"), _summary(step.packet)])


_NAMES = {6: "TCP", 17: "UDP", 132: "SCTP", 1: "ICMP", 58: "ICMPv6"}


def _summary(packet: bytes) -> str:
    from kproxy.core.twin.parse import Kind, parse

    found = parse(packet)
    if found.kind is Kind.BAD:
        return f"{len(packet)} bytes that are no packet"
    protocol = _NAMES.get(found.protocol, f"protocol {found.protocol}")
    ends = [ipaddress.ip_address(end) for end in (found.source, found.destination)]
    if found.kind is not Kind.PORTS:
        return f"{ends[0]} > {ends[1]} {protocol}"
    texts = (
        f"[{end}]:{port}" if end.version == 6 else f"{end}:{port}"
        for end, port in zip(ends, found.ports)
    )
    return f"{' > '.join(texts)} {protocol}"


def _place(place: bytes) -> str:
    address, port = ipaddress.ip_address(place[:-2]), int.from_bytes(place[-2:])
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


#: Columns of the table -> how a row gives it.
_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "service": lambda row: str(row["service"]),
    "endpoint": lambda row: str(row["endpoint"]),
    "flows": lambda row: str(row["flows"]),
    "in": lambda row: f"{row['packets_in']} packets, {row['bytes_in']} bytes",
    "out": lambda row: f"{row['packets_out']} packets, {row['bytes_out']} bytes",
}


def _tell(report: dict[str, Any]) -> None:
    codes: Iterable[str] = (f"{count} {name}" for name, count in report["codes"].items())
    click.echo(f"{report['packets']} packets in: {', '.join(codes) or 'nothing'}")
    if report["reasons"]:
        why = ", ".join(f"{count} {name}" for name, count in report["reasons"].items())
        click.echo(f"reasons: {why}")
    if report["endpoints"]:
        rows = ([cell(row) for cell in _COLUMNS.values()] for row in report["endpoints"])
        table(tuple(_COLUMNS), rows)
