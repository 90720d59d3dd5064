"""The door to conntrack, held against pyroute2 on this kernel's own table."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from pyroute2 import NFCTSocket

from kproxy.core.objects import Family
from kproxy.core.stale_flows import Flow
from kproxy.errors import NetlinkError
from kproxy.kernel import conntrack, netns
from kproxy.kernel.conntrack import Conntrack
from kproxy.kernel.ctnetlink import LAYOUTS, TUPLE_ORIG, TUPLE_REPLY, contents
from tests.kernel.entries import SCTP, TCP, UDP, Entry, put, split

pytestmark = pytest.mark.kernel

V4, V6 = Family.IPV4, Family.IPV6
VIP, OTHER_VIP, POD, CLIENT = "172.30.0.1:53", "172.30.0.2:54", "10.180.0.1:53", "10.0.0.9:4000"
VIP6, POD6, CLIENT6 = "[fd00:30::1]:53", "[fd00:10::1]:53", "[fd00:9::9]:4000"

#: Flows of every kind; those of UDP and of each family are what has to be listed.
ENTRIES = (
    Entry(CLIENT, VIP, POD),
    Entry("10.0.0.9:4001", VIP, POD, "192.168.0.2:61000"),
    Entry("10.0.0.9:4002", VIP, VIP),
    Entry("10.0.0.9:4003", OTHER_VIP, POD),
    Entry("10.0.0.9:4004", VIP, POD, zone=5),
    Entry(CLIENT, VIP, POD, protocol=TCP),
    Entry("[fd00:9::9]:4000", VIP6, POD6),
    Entry("[fd00:9::9]:4001", VIP6, POD6, "[2001:db8::2]:61000"),
    Entry("[fd00:9::9]:4002", VIP6, VIP6, zone=7),
    Entry("[fd00:9::9]:4000", VIP6, POD6, protocol=TCP),
)


@pytest.fixture(autouse=True)
def table() -> Iterator[None]:
    """The calling thread in a namespace of its own, with these entries in its table."""
    with netns.fresh():
        put(ENTRIES)
        yield


def expected(family: Family, entries: tuple[Entry, ...] = ENTRIES) -> list[Flow]:
    found = []
    for entry in entries:
        source, _ = split(entry.source)
        destination, port = split(entry.destination)
        place, place_port = split(entry.place)
        masked = split(entry.masked)[0] if entry.masked else source
        if entry.protocol == UDP and len(source) == LAYOUTS[family].size:
            found.append((source, destination, port, place, masked, place_port))
    return sorted(found)


def listed(family: Family, destination: str = "") -> list[Flow]:
    with Conntrack(family) as door:
        address, port = split(destination) if destination else (b"", b"")
        return sorted(flow for batch in door.udp(address, port) for flow in batch.flows)


def slow_twin(family: Family) -> list[Flow]:
    """The same through pyroute2's decoder."""
    found = []
    with NFCTSocket(nfgen_family=LAYOUTS[family].code) as twin:
        for entry in twin.dump():
            ends = []
            for name in ("CTA_TUPLE_ORIG", "CTA_TUPLE_REPLY"):
                tuple_ = entry.get_attr(name)
                ip, proto = tuple_.get_attr("CTA_TUPLE_IP"), tuple_.get_attr("CTA_TUPLE_PROTO")
                version = f"V{int(family)}"
                ends.append(
                    (
                        proto.get_attr("CTA_PROTO_NUM"),
                        *split(
                            f"[{ip.get_attr(f'CTA_IP_{version}_SRC')}]:"
                            f"{proto.get_attr('CTA_PROTO_SRC_PORT')}"
                        ),
                        *split(
                            f"[{ip.get_attr(f'CTA_IP_{version}_DST')}]:"
                            f"{proto.get_attr('CTA_PROTO_DST_PORT')}"
                        ),
                    )
                )
            (number, source, _, destination, port), (_, place, place_port, masked, _) = ends
            if number == UDP:
                found.append((source, destination, port, place, masked, place_port))
    return sorted(found)


@pytest.mark.parametrize("family", Family)
def test_listing_is_what_was_put_there_and_what_pyroute2_sees(family):
    """Every UDP flow of the family, zones included, and no other."""
    assert listed(family) == expected(family) == slow_twin(family)


@pytest.mark.parametrize(
    ("family", "destination", "count"),
    [
        (V4, VIP, 4),
        (V4, OTHER_VIP, 1),
        (V4, "172.30.0.2:53", 0),
        (V6, VIP6, 3),
        (V6, "[fd00:30::2]:54", 0),
    ],
)
def test_listing_of_a_part(family, destination, count):
    """The kernel picks by original destination, in IPv6 by its port alone."""
    assert len(listed(family, destination)) == count


def test_listing_by_port_or_address_alone():
    """Either half of a destination does."""
    address, port = split(OTHER_VIP)
    with Conntrack(V4) as door:
        by_port = [flow for batch in door.udp(port=port) for flow in batch.flows]
        by_address = [flow for batch in door.udp(address) for flow in batch.flows]
    assert by_port == by_address == expected(V4, ENTRIES[3:4])


@pytest.mark.parametrize("family", Family)
def test_a_kernel_without_the_filter(family, monkeypatch):
    """One that refuses it, and one that overlooks it, give the same flows."""
    whole = listed(family)
    with Conntrack(family) as door:
        door._filters = False
        assert sorted(flow for batch in door.udp() for flow in batch.flows) == whole
    # No kernel knows this filter: flags beyond all that there are.
    monkeypatch.setattr("kproxy.kernel.ctnetlink._FILTER_PROTO", 1 << 30)
    assert listed(family) == whole


@pytest.mark.parametrize("family", Family)
def test_messages_of_another_shape_are_walked(family, monkeypatch):
    """A message that the mask does not fit is read attribute by attribute, to the same end."""
    monkeypatch.setattr(LAYOUTS[family], "skeleton", 1)
    assert listed(family) == expected(family)


@pytest.mark.parametrize("family", Family)
def test_deletion_takes_what_it_names(family):
    """All others stay: of other zones, families and protocols."""
    with Conntrack(family) as door:
        handles = [
            batch.handle(at)
            for batch in door.udp()
            for at, flow in enumerate(batch.flows)
            if flow[0] != flow[4] or flow[1] == flow[3]
        ]
        assert door.delete(handles) == (len(handles), 0)
        gone = [one for one in expected(family) if one[0] != one[4] or one[1] == one[3]]
        assert len(gone) == len(handles) == 2
        assert listed(family) == [one for one in expected(family) if one not in gone]
        # Once more: they are gone already, which is fine.
        assert door.delete(handles) == (0, 2)
    other = V6 if family is V4 else V4
    assert listed(other) == expected(other)
    assert count_of(TCP) == 2


def count_of(protocol: int) -> int:
    """Entries of a protocol in both families."""
    found = 0
    for family in Family:
        with NFCTSocket(nfgen_family=LAYOUTS[family].code) as twin:
            for entry in twin.dump():
                proto = entry.get_attr("CTA_TUPLE_ORIG").get_attr("CTA_TUPLE_PROTO")
                found += proto.get_attr("CTA_PROTO_NUM") == protocol
    return found


def test_an_entry_made_anew_is_spared():
    """Between listing and deletion a client's packet may make a new, healthy entry.

    An id is a hash over the place of the entry in the kernel's memory (``nf_ct_get_id``), so one
    that is put where the old one was has its id too: hence others in between, and several tries.
    """
    spared = 0
    with Conntrack(V4) as door:
        for round_ in range(8):
            [handle] = [batch.handle(0) for batch in door.udp(*split(OTHER_VIP))]
            assert door.delete([handle]).entries == 1
            put([Entry(f"10.0.1.{n}:{5000 + round_}", VIP, POD) for n in range(16)])
            put([Entry("10.0.0.9:4003", OTHER_VIP, "10.180.9.9:53")])
            deleted = door.delete([handle])
            spared += deleted.gone
            if not deleted.gone:
                put([Entry("10.0.0.9:4003", OTHER_VIP, "10.180.9.9:53")])
            assert len(listed(V4, OTHER_VIP)) == 1
    assert spared > 0


def test_many_are_deleted_in_batches():
    """More than a send holds, some of them gone already."""
    many = [Entry(f"10.1.{n >> 8}.{n & 255}:5000", OTHER_VIP, POD) for n in range(1000)]
    put(many)
    with Conntrack(V4) as door:
        handles = [
            batch.handle(at)
            for batch in door.udp(*split(OTHER_VIP))
            for at in range(len(batch.flows))
        ]
        assert len(handles) == 1001
        assert door.delete(handles[100:200]).entries == 100
        assert door.delete(handles) == (901, 100)
    assert listed(V4, OTHER_VIP) == []


def test_a_handle_without_its_flow_is_refused():
    """The kernel takes a deletion without a tuple for all of the table."""
    with Conntrack(V4) as door, pytest.raises(ValueError, match="tuple"):
        door.delete([b"\x08\x00\x0c\x00\x00\x00\x00\x01"])
    assert listed(V4) == expected(V4)


def test_a_listing_that_breaks_off_is_begun_again(monkeypatch):
    """The kernel's word for it is a flag; flows may come twice, and no flow is missed."""
    first = []
    parse = Conntrack._parse

    def interrupted(door, buffer, sequence):
        batch, ended, hole = parse(door, buffer, sequence)
        first.append(sequence)
        return batch, ended, hole or sequence == first[0]

    monkeypatch.setattr(Conntrack, "_parse", interrupted)
    assert sorted(set(listed(V4))) == sorted(set(expected(V4)))
    assert len(set(first)) == 2


def test_a_listing_that_always_breaks_off_is_an_error(monkeypatch):
    """Better no answer than one with holes."""
    monkeypatch.setattr(conntrack, "DUMP_INTERRUPTED", 0x2)  # NLM_F_MULTI: every message has it
    with pytest.raises(NetlinkError, match="changed during each") as refused:
        listed(V4)
    assert refused.value.errno == errno.EINTR


def test_sctp_is_not_udp():
    """Where the kernel tracks SCTP it is another protocol in the same place of the message."""
    layout = LAYOUTS[V4]
    tuples = layout.tuple_(TUPLE_ORIG, *(bytes(4),) * 2, *(bytes(2),) * 2)
    tuples += layout.tuple_(TUPLE_REPLY, *(bytes(4),) * 2, *(bytes(2),) * 2)
    number = int.from_bytes(tuples, "little")
    assert number & layout.mask == layout.skeleton
    assert layout.walk(tuples, 0, len(tuples)) is not None
    for protocol in (TCP, SCTP):
        other = tuples.replace(bytes((5, 0, 1, 0, UDP)), bytes((5, 0, 1, 0, protocol)))
        assert int.from_bytes(other, "little") & layout.mask != layout.skeleton
        assert layout.walk(other, 0, len(other)) is None


def test_attributes_that_are_cut_off():
    """Lengths are checked before anything is trusted."""
    with pytest.raises(NetlinkError, match="cut off"):
        list(contents(b"\x10\x00\x01\x00\x00\x00", 0, 6))
    with Conntrack(V4) as door, pytest.raises(NetlinkError, match="cut off"):
        door._parse(b"\xff\x00\x00\x00" + bytes(16), 0)


@pytest.mark.parametrize("family", Family)
def test_a_flow_is_found_by_its_reply(family):
    """From the place to the client as the place sees it; zones have flows of their own."""
    found, wanted = [], []
    with Conntrack(family) as door:
        for entry in ENTRIES:
            place, client = split(entry.place), split(entry.masked or entry.source)
            if entry.protocol != UDP or len(place[0]) != LAYOUTS[family].size:
                continue
            flow = door.udp_by_reply(place, client)
            found += [flow] if flow is not None else []
            wanted += [] if entry.zone else expected(family, (entry,))
    assert sorted(found) == sorted(wanted)
    assert wanted


def test_nobody_has_such_a_reply():
    """Another port, and the right one of another protocol: no flow, and no error."""
    with Conntrack(V4) as door:
        assert door.udp_by_reply(split(POD), split("10.0.0.9:4009")) is None
        put((Entry("10.0.0.7:7", VIP, POD, protocol=TCP),))
        assert door.udp_by_reply(split(POD), split("10.0.0.7:7")) is None
