"""Crafted flows of a scenario: which packets are sent, and where they may come out."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from kproxy.lab.scenario.build import NODE, WORLD
from kproxy.lab.scenario.schema import Flow, Verdict
from kproxy.lab.scenario.stage import Stage
from kproxy.lab.traffic.probe import probe_all
from kproxy.lab.traffic.wire import Outcome, Reach

#: Source ports of crafted packets, outside of what sockets are given by themselves.
_PORTS = range(10000, 30000)


def send_crafted(stage: Stage, flows: Sequence[Flow]) -> list[Outcome]:
    """One packet for each flow, all at once. A flow that ought to be dropped and was seen nowhere
    counts as silent only when its control flow was answered afterwards."""
    if not flows:
        return []
    # scapy takes 0.2 s to import: only runs that craft packets pay for it.
    from kproxy.lab.traffic.crafted import Crafted, Place, send_all

    ports = random.sample(_PORTS, len(flows))
    packets = [
        Crafted(
            stage.fd(stage.layout.sender(flow)),
            flow.source,
            flow.source_port or port,
            flow.to,
            flow.port,
            flow.proto,
            flow.flags or "S",
            awaited=flow.expect is not None and flow.expect.verdict is not Verdict.DROP,
        )
        for flow, port in zip(flows, ports, strict=True)
    ]
    endpoints = {one.address: stage.layout.homes[one.address] for one in stage.layout.endpoints}
    places = [
        Place(f"endpoint {address}", stage.fd(host))
        for address, host in endpoints.items()
        if host != NODE
    ]
    places.append(Place(WORLD, stage.fd(WORLD)))
    # A stray packet may be for a host that is no endpoint.
    strays = {stage.layout.homes.get(flow.to, WORLD) for flow in flows if flow.flags}
    strays -= {*endpoints.values(), WORLD, NODE}
    places += [Place(f"host {host}", stage.fd(host)) for host in sorted(strays)]
    senders = {stage.layout.sender(flow) for flow in flows} | {NODE}
    taken = {*endpoints.values(), *strays, WORLD} - {NODE}
    places += [
        Place(f"sender {host}", stage.fd(host), final=False) for host in sorted(senders - taken)
    ]
    outcomes = send_all(packets, places)
    return [_doubt(stage, flow, one) for flow, one in zip(flows, outcomes, strict=True)]


def _doubt(stage: Stage, flow: Flow, outcome: Outcome) -> Outcome:
    expects_silence = flow.expect is not None and flow.expect.verdict is Verdict.DROP
    if outcome.reach is not Reach.SILENCE or not expects_silence:
        return outcome
    (control,) = probe_all([stage.control(flow)])
    if control.reach is Reach.REACHED:
        return outcome
    return msgspec.structs.replace(
        outcome, reach=Reach.ERROR, detail=f"silence, but the control flow: {control}"
    )
