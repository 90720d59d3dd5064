"""Messages: what is packed is what the kernel holds, and its answers are read right."""

from __future__ import annotations

import errno
import struct
from contextlib import closing

import pytest

from kproxy.backends.nftables import wire
from kproxy.backends.nftables.door import NftDoor, Refused
from kproxy.backends.nftables.elements import (
    KINDS,
    address,
    bare,
    entry,
    number,
    port,
    protocol,
    taken_apart,
    text,
    unpack,
    way,
)
from kproxy.backends.nftables.render import frame_of
from kproxy.backends.nftables.rules import TABLE
from kproxy.backends.nftables.script import skeleton
from kproxy.core.objects import Family, Protocol
from tests.backends.iptables.plans import snapshot
from tests.contract.namespaces import scratch

_ADDRESS = {Family.IPV4: "172.30.0.1", Family.IPV6: "fd00:30::1"}


def slots(family: Family, count: int, *, first: int = 0) -> list[bytes]:
    """So many elements of one service port."""
    key = address(_ADDRESS[family]) + protocol(Protocol.TCP) + port(80)
    places = [address(_ADDRESS[family]) + port(each) for each in range(1, count + 1)]
    return [entry(key + number(first + slot), place) for slot, place in enumerate(places)]


def test_messages_hold_what_an_attribute_can() -> None:
    """Many elements are several messages; each knows which element the kernel points to."""
    records = slots(Family.IPV4, 3000)
    made = wire.batch(Family.IPV4, TABLE, wire.Change(added={"endpoints": records}))
    messages = [message for message in made.messages if message is not None]
    assert len(messages) > 1
    assert [one for message in messages for one in message.records] == records
    for message in messages:
        assert sum(map(len, message.records)) < 1 << 16
        size = len(message.records[0])
        assert message.at(message.first) == message.records[0]
        assert message.at(message.first + size - 1) == message.records[0]
        assert message.at(message.first + size) == message.records[1]
        assert message.at(message.first - 1) is None
        assert message.at(message.first + size * len(message.records)) is None


def test_what_goes_is_named_by_its_key() -> None:
    """Whatever somebody put beside it."""
    record = slots(Family.IPV4, 1)[0]
    made = wire.batch(Family.IPV4, TABLE, wire.Change(gone={"endpoints": [record]}))
    (message,) = (message for message in made.messages if message is not None)
    assert message.records == (bare(KINDS["endpoints"], record),)
    assert len(message.records[0]) < len(record)


@pytest.mark.parametrize("family", Family)
def test_elements_are_taken_apart(family: Family) -> None:
    """Key and data of those that look as ours do; others are left out."""
    kind, records = KINDS["endpoints"], slots(family, 3)
    found = taken_apart(kind, [*records, records[0] + bytes(4), b""], family)
    assert [entry(key, data) for key, data in found.items()] == records


def test_errors_say_where() -> None:
    """An acknowledgement, and a refusal with the offset of what is to blame."""
    fine = struct.pack("=IHHIIiIHHII", 36, 2, wire._CAPPED, 7, 0, 0, 16, 0, 0, 7, 0)
    assert list(wire.answers(fine)) == [wire.Answer(7, 0)]
    offset = struct.pack("=HHI", 8, 2, 68)
    body = struct.pack("=iIHHII", -errno.EEXIST, 16, 0, 0, 8, 0) + offset
    flags = wire._CAPPED | wire._TLVS
    refused = struct.pack("=IHHII", 16 + len(body), 2, flags, 8, 0) + body
    assert list(wire.answers(fine + refused)) == [
        wire.Answer(7, 0),
        wire.Answer(8, errno.EEXIST, 68),
    ]


@pytest.mark.kernel
@pytest.mark.parametrize("family", Family)
def test_the_kernel_holds_what_is_sent(family: Family) -> None:
    """More elements than one message has room for, in one transaction; some go, others come."""
    records = slots(family, 4000)
    with scratch(), closing(NftDoor(family)) as door:
        door.run(skeleton(frame_of(snapshot(family=family))))
        door.change(wire.Change(added={"endpoints": records}))
        assert door.members("endpoints") == set(records)
        fresh = [record[:-8] + slots(family, 3999)[-1][-8:] for record in records[:10]]
        door.change(wire.Change(gone={"endpoints": records[:20]}, added={"endpoints": fresh}))
        assert door.members("endpoints") == {*records[20:], *fresh}


@pytest.mark.kernel
@pytest.mark.parametrize("family", Family)
def test_a_refusal_names_the_element(family: Family) -> None:
    """The one among thousands, and nothing of the transaction is in force."""
    records = slots(family, 3000)
    clash = records[2500][:-8] + records[0][-8:]
    with scratch(), closing(NftDoor(family)) as door:
        door.run(skeleton(frame_of(snapshot(family=family))))
        door.change(wire.Change(added={"endpoints": [clash]}))
        with pytest.raises(Refused) as refused:
            door.change(wire.Change(added={"endpoints": records}))
        assert refused.value.record is not None
        assert (refused.value.code, refused.value.set_name) == (errno.EEXIST, "endpoints")
        said = text(unpack(KINDS["endpoints"], refused.value.record, family))
        assert said == text(unpack(KINDS["endpoints"], records[2500], family))
        assert door.members("endpoints") == {clash}


@pytest.mark.kernel
@pytest.mark.parametrize("family", Family)
def test_elements_that_lead_nowhere_are_refused(family: Family) -> None:
    """A verdict to a chain that is not there."""
    key = address(_ADDRESS[family]) + protocol(Protocol.UDP) + port(53)
    with scratch(), closing(NftDoor(family)) as door:
        door.run(skeleton(frame_of(snapshot(family=family))))
        with pytest.raises(Refused) as refused:
            door.change(wire.Change(added={"ways": [way(key, "inside-3")]}))
        assert refused.value.code == errno.ENOENT
