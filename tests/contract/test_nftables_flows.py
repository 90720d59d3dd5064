"""nftables mode on the kernel: flows through a table that is made anew, and to many endpoints."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count

import pytest
from msgspec.structs import replace

from kproxy.backends.nftables.apply import NftablesBackend
from kproxy.backends.nftables.plan import CHOICE_ANNOTATION
from kproxy.backends.nftables.rules import ALWAYS, TABLE, WORD
from kproxy.backends.syncer import Syncer
from kproxy.core.objects import Family, Protocol
from kproxy.core.snapshot import Endpoint, EndpointSets, PortPlan
from kproxy.kernel import command
from tests.backends.iptables.plans import ADDRESSES
from tests.contract.test_backend import own, whole

pytestmark = pytest.mark.kernel

#: What others leave in the table that our chains cannot be taken away beneath; nft's commands.
FOREIGN = (
    "add map {t} theirs {{ type mark : verdict; }}; add element {t} theirs {{ 1 : goto services }}"
)
REBUILDS, SERVICES = 12, 400
#: Nothing on this way loses a datagram but rules that lead it elsewhere: so long to be sure.
LOST = 30.0
AF = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}


def wired(family: Family) -> None:
    """The endpoint is on this node; every other address lies behind a device that leads nowhere."""
    *_, node, pods, _ = ADDRESSES[family]
    length = 32 if family is Family.IPV4 else 128
    flag = f"-{family:d}"
    # Else the address is tentative for a while.
    sure = [] if family is Family.IPV4 else ["nodad"]
    for words in (
        ["link", "set", "lo", "up"],
        ["link", "add", "out", "type", "veth", "peer", "name", "nowhere"],
        ["link", "set", "nowhere", "up"],
        ["link", "set", "out", "up"],
        [flag, "address", "add", f"{pods[0]}/{length}", "dev", "lo", *sure],
        [flag, "address", "add", f"{node}/{length}", "dev", "out", *sure],
        [flag, "route", "add", "default", "dev", "out", "src", node],
    ):
        command.run(["ip", *words])


@contextmanager
def echoing(family: Family, kind: socket.SocketKind) -> Iterator[None]:
    """The endpoint, until the end."""
    place = ADDRESSES[family][4][0], 80
    with socket.socket(AF[family], kind) as server:
        server.bind(place)
        if kind is socket.SOCK_STREAM:
            server.listen()

        def serve() -> None:
            if kind is socket.SOCK_STREAM:
                server_, _ = server.accept()
                with server_:
                    while data := server_.recv(64):
                        server_.sendall(data)
                return
            while True:
                data, sender = server.recvfrom(64)
                if not data:
                    return
                server.sendto(data, sender)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            if kind is socket.SOCK_DGRAM:
                server.sendto(b"", place)
            thread.join()


def asked(family: Family, plan: PortPlan) -> bool | None:
    """Whether the first datagram of a new flow is answered; None: it was refused at once."""
    with socket.socket(AF[family], socket.SOCK_DGRAM) as client:
        client.settimeout(LOST)
        client.connect((plan.cluster_ip, plan.port))
        try:
            client.send(b"?")
            return client.recv(64) == b"?"
        except PermissionError:
            return None
        except (TimeoutError, ConnectionRefusedError):
            return False


@pytest.fixture
def syncer(nftables: NftablesBackend) -> Syncer:  # type: ignore[type-arg]
    wired(nftables.family)
    return Syncer(nftables)


def test_no_flow_is_lost_in_a_rebuild(
    nftables: NftablesBackend,
    syncer: Syncer,  # type: ignore[type-arg]
) -> None:
    """New flows one after the other and a kept connection, while the table is made anew again and
    again: none is led elsewhere, cut, or left without word.

    The kernel puts the new table's hooks before the old one's. A packet that is between the two
    when it turns from the old rules to the new ones meets none of both and is refused: one at most
    each time.
    """
    family = nftables.family
    stream = own(0, family, ways="c", pods=1)
    datagrams = own(SERVICES, family, ways="c", pods=1, protocol=Protocol.UDP)
    others = [own(number, family, ways="c", pods=3) for number in range(1, SERVICES)]
    now = whole(stream, datagrams, *others)
    syncer.sync(now)
    ended, flows = threading.Event(), count()
    answers: list[bool | None] = []

    def ask() -> None:
        while not ended.is_set():
            next(flows)
            answers.append(asked(family, datagrams))

    with echoing(family, socket.SOCK_DGRAM), echoing(family, socket.SOCK_STREAM):
        held = socket.create_connection((stream.cluster_ip, stream.port), timeout=LOST)
        asking = threading.Thread(target=ask)
        asking.start()
        try:
            for _ in range(REBUILDS):
                command.run(["nft", FOREIGN.format(t=f"{WORD[family]} {TABLE}")])
                syncer.forget()
                applied = syncer.sync(now)
                assert applied.foreign
                assert applied.transactions == 1
                held.sendall(b"!")
                assert held.recv(64) == b"!"
        finally:
            ended.set()
            asking.join()
            held.close()
    assert next(flows) > REBUILDS
    assert False not in answers
    assert answers.count(None) <= REBUILDS
    assert "theirs" not in command.run(["nft", "list", "ruleset"]).stdout.decode()


@pytest.mark.parametrize("choice", ["random", "hash"])
def test_many_endpoints_are_all_reached(
    nftables: NftablesBackend,
    syncer: Syncer,  # type: ignore[type-arg]
    choice: str,
) -> None:
    """More than chains look up themselves: by chance a flow comes to any of them, by the client's
    address always to the same one."""
    family = nftables.family
    address = ADDRESSES[family][4][0]
    plan = own(0, family, ways="c", pods=1, protocol=Protocol.UDP)
    ends = tuple(Endpoint(address, 9000 + each, local=True) for each in range(ALWAYS + 1))
    plan = replace(
        plan,
        endpoints=EndpointSets(cluster=ends, local=None, all=ends, has_any=True),
        annotations=((CHOICE_ANNOTATION, choice),),
    )
    syncer.sync(whole(plan))
    table = command.run(["nft", "list", "table", WORD[family], TABLE]).stdout.decode()
    assert f" mod {ALWAYS + 1} " in table
    found = set()
    with ExitStack() as stack:
        servers = []
        for end in ends:
            server = stack.enter_context(socket.socket(AF[family], socket.SOCK_DGRAM))
            server.bind((end.ip, end.port))
            servers.append(server)
        for _ in range(40 * len(ends)):
            with socket.socket(AF[family], socket.SOCK_DGRAM) as client:
                client.connect((plan.cluster_ip, plan.port))
                client.send(b"?")
            ready, _, _ = select.select(servers, [], [], LOST)
            assert len(ready) == 1
            assert ready[0].recv(64) == b"?"
            found.add(ready[0].getsockname()[1])
            if len(found) == len(ends):
                break
    assert len(found) == (len(ends) if choice == "random" else 1)
