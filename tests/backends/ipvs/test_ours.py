"""Which servers in a kernel are ours when no plan says so, and what cleanup leaves."""

from __future__ import annotations

import pytest

from kproxy.backends.fake_ipvs import FakeIpvs
from kproxy.backends.ipvs.apply import IpvsBackend
from kproxy.backends.ipvs.host import Machine
from kproxy.backends.ipvs.ours import ours
from kproxy.backends.ipvs.plan import server_key
from kproxy.backends.syncer import Syncer
from kproxy.core.objects import Family, Protocol
from kproxy.core.servers import Order, Verb
from tests.backends.iptables.plans import V4, V6, port, settings, snapshot

TCP, UDP, SCTP = Protocol

HOSTS = ("192.0.2.7", "2001:db8::7")
#: Members by set, for a node port of each protocol and one VIP.
PORT = (30777).to_bytes(2)
MEMBERS = {
    "KUBE-NODE-PORT-TCP": {PORT},
    "KUBE-NODE-PORT-SCTP-HASH": {server_key("192.0.2.7", 30777, SCTP)},
    "KUBE-EXTERNAL-IP": {server_key("198.51.100.1", 80, TCP)},
    "KUBE-6-NODE-PORT-LOCAL-UDP": {PORT},
    "KUBE-CLUSTER-IP": None,
}

#: (address, port, protocol, whether it is ours)
SERVERS = [
    ("192.0.2.7", 30777, TCP, True),
    ("10.77.0.1", 30777, TCP, False),
    ("192.0.2.7", 30778, TCP, False),
    ("192.0.2.7", 30777, UDP, False),
    ("192.0.2.7", 30777, SCTP, True),
    ("10.77.0.1", 30777, SCTP, False),
    ("198.51.100.1", 80, TCP, True),
    ("172.30.0.1", 443, TCP, True),
    ("2001:db8::7", 30777, UDP, True),
    ("2001:db8::8", 30777, UDP, False),
]


@pytest.mark.parametrize(("address", "number", "protocol", "whose"), SERVERS, ids=str)
def test_whose_a_server_is(address: str, number: int, protocol: Protocol, whose: bool) -> None:
    """Ours by its key, by its address on the device, or at a node port of this node."""
    key = server_key(address, number, protocol)
    family = V6 if ":" in address else V4
    bound = ("172.30.0.1", "fd00::1")
    assert list(ours([key], MEMBERS, bound, HOSTS, family)) == [key] * whose  # type: ignore[arg-type]


@pytest.mark.parametrize("family", [V4, V6])
def test_cleanup_leaves_other_programs_servers(family: Family) -> None:
    """Even one of the number of a node port, at an address that is none of the node's."""
    own, other = ("192.0.2.7", "10.77.0.1") if family is V4 else ("2001:db8::7", "fd77::1")
    door = FakeIpvs(family)
    door.hosts = (own,)
    backend = IpvsBackend(family, "nft", door=door, machine=Machine())
    node = settings(family, local_addresses=(own,))
    Syncer(backend).sync(snapshot(port("web", family, ways="cn"), family=family, settings_=node))
    assert server_key(own, 30080, TCP) in door.ipvs
    foreign = server_key(other, 30080, TCP)
    door.send([Order(Verb.ADD_SERVER, foreign)])
    backend.cleanup()
    assert set(door.ipvs) == {foreign}
    assert door.device is None
    assert door.sets == {}
