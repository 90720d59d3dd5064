"""The kernel's virtual servers, beside ipvsadm and pyroute2."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from pyroute2 import IPVS, IPVSDest, IPVSService

from kproxy.core.objects import Family
from kproxy.core.servers import (
    MASQUERADE,
    MH_PORT,
    PERSISTENT,
    ROUTE,
    SH_FALLBACK,
    SH_PORT,
    TUNNEL,
    HeldReal,
    Order,
    Refused,
    Scheduling,
    Timeouts,
    Verb,
)
from kproxy.errors import NetlinkError
from kproxy.kernel import channel, command, netns
from kproxy.kernel.channel import Channel
from kproxy.kernel.ipvs import Ipvs, family_number, told

V4, V6 = Family.IPV4, Family.IPV6
VIPS = {V4: "10.0.0.1", V6: "fd00::1"}
PODS = {V4: "10.1.0.1", V6: "fd00:1::1"}
RR = Scheduling("rr")
BITS = {V4: 32, V6: 128}

NETLINK_GENERIC = 16

on_ipvs = pytest.mark.ipvs


@contextmanager
def fresh() -> Iterator[None]:
    """A namespace that has an address: without one IPv4 has no table of local routes, takes every
    address for a broadcast one, and IPVS refuses it (inet_addr_type)."""
    with netns.fresh():
        command.run(["ip", "link", "set", "lo", "up"])
        yield


@pytest.fixture(params=[V4, V6], ids=["ipv4", "ipv6"])
def ipvs(request: pytest.FixtureRequest) -> Iterator[Ipvs]:
    with fresh(), Ipvs(request.param) as made:
        yield made


def server(family: Family, number: int = 0, port: int = 80, protocol: int = 6) -> bytes:
    host = ipaddress.ip_address(VIPS[family]) + number
    return host.packed + port.to_bytes(2) + bytes((protocol,))


def real(family: Family, number: int = 0, port: int = 8080) -> bytes:
    return (ipaddress.ip_address(PODS[family]) + number).packed + port.to_bytes(2)


def adding(key: bytes, how: Scheduling = RR, reals: tuple[bytes, ...] = ()) -> list[Order]:
    orders = [Order(Verb.ADD_SERVER, key, scheduling=how)]
    return orders + [Order(Verb.ADD_REAL, key, each) for each in reals]


def tool(*args: str) -> str:
    return command.run(["ipvsadm", *args]).stdout.decode()


def place(family: Family, text: str, port: int) -> str:
    return f"{text}:{port}" if family is V4 else f"[{text}]:{port}"


SCHEDULINGS = [
    (Scheduling("rr"), "-s rr"),
    (Scheduling("wrr"), "-s wrr"),
    (Scheduling("lc"), "-s lc"),
    (Scheduling("wlc"), "-s wlc"),
    (Scheduling("lblc"), "-s lblc"),
    (Scheduling("lblcr"), "-s lblcr"),
    (Scheduling("dh"), "-s dh"),
    (Scheduling("sed"), "-s sed"),
    (Scheduling("nq"), "-s nq"),
    (Scheduling("sh", SH_PORT | SH_FALLBACK), "-s sh -b sh-fallback,sh-port"),
    (Scheduling("mh", MH_PORT), "-s mh -b mh-port"),
    (Scheduling("rr", PERSISTENT, 10800), "-s rr -p 10800"),
]


@on_ipvs
def test_what_is_ordered_is_held(ipvs: Ipvs) -> None:
    """Every scheduler, protocol and flag; as the dump says it, and as ipvsadm does."""
    family = ipvs.family
    orders, text = [], []
    for number, (how, options) in enumerate(SCHEDULINGS):
        protocol, letter = ((6, "-t"), (17, "-u"), (132, "--sctp-service"))[number % 3]
        key = server(family, number, protocol=protocol)
        reals = tuple(real(family, each) for each in range(number % 4))
        orders += adding(key, how, reals)
        vip = place(family, str(ipaddress.ip_address(VIPS[family]) + number), 80)
        text.append(f"-A {letter} {vip} {options}")
        for each in range(number % 4):
            pod = place(family, str(ipaddress.ip_address(PODS[family]) + each), 8080)
            text.append(f"-a {letter} {vip} -r {pod} -m -w 1")
    assert ipvs.send(orders) == []
    held = ipvs.dump()
    assert held.marks == ()
    assert len(held.servers) == len(SCHEDULINGS)
    for number, (how, _) in enumerate(SCHEDULINGS):
        got = held.servers[server(family, number, protocol=(6, 17, 132)[number % 3])]
        assert (got.scheduling, got.prefix) == (how, BITS[family])
        assert got.reals == {real(family, each): HeldReal(1) for each in range(number % 4)}
    said = {" ".join(line.split()) for line in tool("-S", "-n").splitlines()}
    assert said == set(text)


@on_ipvs
def test_pyroute2_agrees(ipvs: Ipvs) -> None:
    """What it lists of a server that was ordered here."""
    key = server(ipvs.family)
    ipvs.send(adding(key, Scheduling("sh", SH_PORT), (real(ipvs.family),)))
    with IPVS() as slow:
        (service,) = slow.service("dump")
        found = IPVSService.from_message(service)
        (dest,) = slow.dest("dump", service=found)
    described = service.get_attr("IPVS_CMD_ATTR_SERVICE")
    assert described.get_attr("IPVS_SVC_ATTR_ADDR") == VIPS[ipvs.family]
    assert described.get_attr("IPVS_SVC_ATTR_FLAGS")["flags"] & ~2 == SH_PORT
    described = dest.get_attr("IPVS_CMD_ATTR_DEST")
    assert described.get_attr("IPVS_DEST_ATTR_ADDR") == PODS[ipvs.family]
    assert described.get_attr("IPVS_DEST_ATTR_WEIGHT") == 1


@on_ipvs
def test_pyroute2_does_not_update() -> None:
    """Why its verbs are not used for changes: ``update`` sends the command that deletes."""
    with fresh(), Ipvs(V4) as ipvs:
        ipvs.send(adding(server(V4), reals=(real(V4), real(V4, 1))))
        with IPVS() as slow:
            service = IPVSService(addr=VIPS[V4], port=80, protocol=socket.IPPROTO_TCP)
            dest = IPVSDest(addr=PODS[V4], port=8080, weight=5, fwd_method=0)
            slow.dest("update", service=service, dest=dest)
        assert set(ipvs.dump().servers[server(V4)].reals) == {real(V4, 1)}


@on_ipvs
def test_changes_in_place(ipvs: Ipvs) -> None:
    """A virtual server that is set anew keeps its real ones; a flag that is not said is taken
    back; a real one gets its weight."""
    key, one, two = server(ipvs.family), real(ipvs.family), real(ipvs.family, 1)
    ipvs.send(adding(key, Scheduling("sh", SH_PORT | PERSISTENT, 60), (one, two)))
    orders = [
        Order(Verb.SET_SERVER, key, scheduling=Scheduling("wrr")),
        Order(Verb.SET_REAL, key, one, weight=0),
        Order(Verb.SET_REAL, key, two, weight=7),
    ]
    assert ipvs.send(orders) == []
    held = ipvs.dump().servers[key]
    assert held.scheduling == Scheduling("wrr")
    assert held.reals == {one: HeldReal(0), two: HeldReal(7)}
    assert ipvs.send([Order(Verb.REMOVE_REAL, key, one)]) == []
    assert set(ipvs.dump().servers[key].reals) == {two}
    assert ipvs.send([Order(Verb.REMOVE_SERVER, key)]) == []
    assert ipvs.dump().servers == {}


#: What is ordered of 10.0.0.1:80 (there, with 10.1.0.1:8080) and 10.0.0.2:80 (not there) -> errno,
#: words.
REFUSALS = [
    (Verb.ADD_SERVER, 0, None, errno.EEXIST, "cannot add tcp {}: it is there already"),
    (Verb.SET_SERVER, 1, None, errno.ESRCH, "cannot change tcp {}: there is no such virtual"),
    (Verb.REMOVE_SERVER, 1, None, errno.ESRCH, "cannot remove tcp {}: there is no such virtual"),
    (Verb.ADD_REAL, 0, 0, errno.EEXIST, "cannot add tcp {} → {}: it is there already"),
    (Verb.ADD_REAL, 1, 0, errno.ESRCH, "cannot add tcp {} → {}: there is no such virtual"),
    (Verb.SET_REAL, 0, 1, errno.ENOENT, "cannot change tcp {} → {}: there is no such real"),
    (Verb.REMOVE_REAL, 0, 1, errno.ENOENT, "cannot remove tcp {} → {}: there is no such real"),
]  # fmt: skip


@on_ipvs
def test_refusals_are_told_and_stop_nothing(ipvs: Ipvs) -> None:
    """Each with its order and errno, in their order; what stands between is carried out."""
    family = ipvs.family
    ipvs.send(adding(server(family), reals=(real(family),)))
    orders, expected, words = [], [], []
    for number, (verb, vip, pod, code, text) in enumerate(REFUSALS):
        key = b"" if pod is None else real(family, pod)
        bad = Order(verb, server(family, vip), key)
        orders += [*adding(server(family, 100 + number)), bad]
        expected.append(Refused(bad, code))
        names = [place(family, str(ipaddress.ip_address(VIPS[family]) + vip), 80)]
        if pod is not None:
            names.append(place(family, str(ipaddress.ip_address(PODS[family]) + pod), 8080))
        words.append(text.format(*names))
    refused = ipvs.send(orders)
    assert refused == expected
    assert [told(one)[: len(text)] for one, text in zip(refused, words)] == words
    assert len(ipvs.dump().servers) == 1 + len(REFUSALS)


@on_ipvs
@pytest.mark.parametrize("verb", [Verb.ADD_SERVER, Verb.SET_SERVER])
def test_a_scheduler_that_is_not_there(verb: Verb) -> None:
    """Named, with the module that would have it."""
    with fresh(), Ipvs(V4) as ipvs:
        ipvs.send(adding(server(V4, 1)))
        number = 0 if verb is Verb.ADD_SERVER else 1
        order = Order(verb, server(V4, number), scheduling=Scheduling("nonesuch"))
        (refused,) = ipvs.send([order])
        assert refused == (order, errno.ENOENT)
        assert "no scheduler nonesuch; try: modprobe ip_vs_nonesuch" in told(refused)


@on_ipvs
def test_thousands_of_orders(ipvs: Ipvs) -> None:
    """Many sends; when all of them are refused every one is told, and no answer is lost."""
    family = ipvs.family
    orders = []
    for number in range(300):
        reals = tuple(real(family, number * 10 + each) for each in range(10))
        orders += adding(server(family, number), reals=reals)
    assert ipvs.send(iter(orders)) == []
    held = ipvs.dump().servers
    assert (len(held), sum(len(each.reals) for each in held.values())) == (300, 3000)
    assert [one.order for one in ipvs.send(orders)] == orders
    assert ipvs.send([]) == []


@on_ipvs
def test_little_room_for_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are as small as the answers' room asks for: none is lost."""
    monkeypatch.setattr(channel, "_ROOM", 8192)
    orders = [order for number in range(300) for order in adding(server(V4, number))]
    with fresh(), Ipvs(V4) as ipvs:
        assert ipvs.send(orders) == []
        assert [one.order for one in ipvs.send(orders)] == orders
        assert len(ipvs.dump().servers) == 300


@on_ipvs
def test_an_address_that_is_nobodys(ipvs: Ipvs) -> None:
    """A real server must have a unicast address."""
    pod = {V4: "224.0.0.1", V6: "ff02::1"}[ipvs.family]
    key = ipaddress.ip_address(pod).packed + (80).to_bytes(2)
    refused = ipvs.send(adding(server(ipvs.family), reals=(key,)))
    assert [one.errno for one in refused] == [errno.EINVAL]
    assert "no unicast" in told(refused[0])


@on_ipvs
@pytest.mark.parametrize("count", [1, 7, 600])
def test_some_servers_only(ipvs: Ipvs, count: int) -> None:
    """A few by netlink, many from the listing: the same is said; () of one that is not there."""
    family = ipvs.family
    keys = [server(family, number) for number in range(count)]
    other = server(family, 5000)
    ipvs.send(order for key in [*keys, other] for order in adding(key, reals=(real(family),)))
    absent = server(family, 6000)
    expected = {key: {real(family): HeldReal(1)} for key in keys}
    assert ipvs.reals([*keys, absent]) == {**expected, absent: {}}


@on_ipvs
def test_a_real_server_on_many_datagrams(ipvs: Ipvs) -> None:
    """One server's listing in several parts."""
    family, key = ipvs.family, server(ipvs.family)
    pods = tuple(real(family, number) for number in range(400))
    ipvs.send(adding(key, reals=pods))
    expected = dict.fromkeys(pods, HeldReal(1))
    assert ipvs.reals([key]) == {key: expected}
    assert ipvs.dump().servers[key].reals == expected


@on_ipvs
def test_what_others_made_is_seen_as_it_is() -> None:
    """Other forwarding methods, a real server of the other family, masks, packet marks."""
    with fresh(), Ipvs(V4) as ipvs, Ipvs(V6) as six:
        tool("-A", "-t", "10.0.0.1:80", "-s", "rr", "-p", "60", "-M", "255.255.255.0")
        tool("-a", "-t", "10.0.0.1:80", "-r", "10.1.0.1:80", "-g", "-w", "70000")
        tool("-a", "-t", "10.0.0.1:80", "-r", "10.1.0.2:80", "-i")
        tool("-a", "-t", "10.0.0.1:80", "-r", "[fd00::9]:80", "-i")
        tool("-A", "-f", "7", "-s", "rr")
        tool("-a", "-f", "7", "-r", "10.1.0.1:0", "-m")
        tool("-A", "-t", "[fd00::1]:80", "-s", "rr", "-p", "60", "-M", "64")
        held = ipvs.dump()
        assert held.marks == (7,)
        assert set(held.servers) == {server(V4)}
        got = held.servers[server(V4)]
        assert (got.scheduling, got.prefix) == (Scheduling("rr", PERSISTENT, 60), 24)
        expected = {
            real(V4, 0, 80): HeldReal(70000, ROUTE),
            real(V4, 1, 80): HeldReal(1, TUNNEL),
            ipaddress.ip_address("fd00::9").packed + b"\0\x50": HeldReal(1, TUNNEL),
        }
        assert got.reals == expected
        assert ipvs.reals([server(V4)]) == {server(V4): expected}
        other = six.dump()
        assert (set(other.servers), other.marks) == ({server(V6)}, ())
        assert other.servers[server(V6)].prefix == 64


@on_ipvs
def test_a_listing_that_others_change(ipvs: Ipvs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two listings one server goes and another comes: what is there then is told."""
    family = ipvs.family
    stays, goes, comes = (server(family, number) for number in range(3))
    ipvs.send(adding(stays, reals=(real(family),)) + adding(goes, reals=(real(family),)))

    def changed(*args: object) -> object:
        with Ipvs(family) as another:
            orders = [Order(Verb.REMOVE_SERVER, goes)]
            another.send(orders + adding(comes, Scheduling("sh", SH_PORT), (real(family, 7),)))
        monkeypatch.undo()
        return read(ipvs)

    read = Ipvs._listed
    monkeypatch.setattr(Ipvs, "_listed", changed)
    found = ipvs.dump().servers
    assert found.keys() == {stays, comes}
    assert found[comes].scheduling == Scheduling("sh", SH_PORT)
    assert found[comes].reals == {real(family, 7): HeldReal(1)}
    assert found[stays].reals == {real(family): HeldReal(1)}


@on_ipvs
def test_connections_are_counted() -> None:
    """A live one is active, also when its real server gets weight 0; a closed one is not."""
    with fresh(), ExitStack() as open_:
        ipvs = open_.enter_context(Ipvs(V4))
        command.run(["ip", "address", "add", "10.0.0.1/32", "dev", "lo"])
        command.run(["ip", "address", "add", "10.1.0.1/32", "dev", "lo"])
        key, pod = server(V4), real(V4)
        ipvs.send(adding(key, reals=(pod,)))
        listener = open_.enter_context(socket.create_server(("10.1.0.1", 8080)))
        client = open_.enter_context(
            socket.create_connection(("10.0.0.1", 80), 60, source_address=("10.0.0.1", 0))
        )
        server_end, _ = listener.accept()
        open_.enter_context(server_end)
        live = HeldReal(1, MASQUERADE, active=1)
        assert ipvs.dump().servers[key].reals == {pod: live} == ipvs.reals([key])[key]
        ipvs.send([Order(Verb.SET_REAL, key, pod, weight=0)])
        assert ipvs.reals([key])[key][pod] == HeldReal(0, MASQUERADE, active=1)
        client.sendall(b"still there")
        assert server_end.recv(99) == b"still there"
        client.shutdown(socket.SHUT_WR)
        assert server_end.recv(99) == b""
        server_end.close()
        assert client.recv(99) == b""
        gone = ipvs.reals([key])[key][pod]
        assert (gone.active, gone.inactive) == (0, 1)


@on_ipvs
def test_it_stays_in_its_namespace() -> None:
    """Orders, both kinds of listing and settings act where it was made, wherever the thread is."""
    with fresh():
        ipvs = Ipvs(V4)
    with ipvs, fresh(), Ipvs(V4) as elsewhere:
        ipvs.send(adding(server(V4), reals=(real(V4),)))
        ipvs.set_timeouts(Timeouts(tcp=1234))
        assert set(ipvs.dump().servers) == {server(V4)}
        assert elsewhere.dump().servers == {}
        assert elsewhere.timeouts().tcp != 1234


@on_ipvs
def test_timeouts() -> None:
    """Set one by one: 0 leaves what is there; too much is refused."""
    with fresh(), Ipvs(V4) as ipvs:
        ipvs.set_timeouts(Timeouts(100, 20, 30))
        assert ipvs.timeouts() == (100, 20, 30)
        ipvs.set_timeouts(Timeouts(udp=31))
        ipvs.set_timeouts(Timeouts())
        assert ipvs.timeouts() == (100, 20, 31)
        with pytest.raises(NetlinkError, match="time-outs"):
            ipvs.set_timeouts(Timeouts((1 << 31) - 1))
        assert ipvs.timeouts() == (100, 20, 31)


@on_ipvs
def test_version() -> None:
    """As /proc says it."""
    with fresh(), Ipvs(V4) as ipvs, open("/proc/thread-self/net/ip_vs") as listing:
        assert f"version {'.'.join(map(str, ipvs.version()))} " in listing.readline()


@pytest.mark.kernel
def test_a_kernel_without_it() -> None:
    """The error says which module to load."""
    with Channel(NETLINK_GENERIC, "generic netlink") as some:
        with pytest.raises(NetlinkError, match="this kernel has no KP_NONE") as caught:
            family_number(some, "KP_NONE", "kp_none")
        assert caught.value.errno == errno.ENOENT
        assert "modprobe kp_none" in caught.value.hint
        assert family_number(some, "nlctrl", "") == 16
