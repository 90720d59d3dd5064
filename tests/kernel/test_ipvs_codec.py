"""IPVS's messages and its listing, beside pyroute2 as the slow twin."""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.generic.ipvs import ipvsmsg

from kproxy.core.objects import Family
from kproxy.core.servers import (
    MASQUERADE,
    ONE_PACKET,
    PERSISTENT,
    ROUTE,
    SH_PORT,
    TUNNEL,
    HeldReal,
    Order,
    Scheduling,
    Verb,
)
from kproxy.errors import NetlinkError
from kproxy.kernel.ctnetlink import REQUEST
from kproxy.kernel.ipvs_codec import LARGEST, Codec, listed

V4, V6 = Family.IPV4, Family.IPV6
KIND = 0x1F
CODES = {V4: socket.AF_INET, V6: socket.AF_INET6}


def hosts(family: Family) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=4 if family is V4 else 16, max_size=4 if family is V4 else 16)


def ports() -> st.SearchStrategy[bytes]:
    return st.binary(min_size=2, max_size=2)


def orders(family: Family) -> st.SearchStrategy[Order]:
    keys = st.tuples(hosts(family), ports()).map(b"".join)
    protocols = st.sampled_from([b"\x06", b"\x11", b"\x84"])
    how = st.builds(
        Scheduling,
        st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=15),
        st.sampled_from([0, PERSISTENT, SH_PORT, ONE_PACKET | PERSISTENT]),
        st.integers(0, 86400),
    )
    servers = st.tuples(keys, protocols).map(b"".join)
    about = st.sampled_from([Verb.ADD_SERVER, Verb.SET_SERVER, Verb.REMOVE_SERVER])
    reals = st.sampled_from([Verb.ADD_REAL, Verb.SET_REAL, Verb.REMOVE_REAL])
    drawn = st.one_of(
        st.tuples(about, servers, st.just(b""), st.just(1), how),
        st.tuples(reals, servers, keys, st.integers(0, 65535), st.just(Scheduling())),
    )
    return drawn.map(Order._make)


def decoded(data: bytes) -> Any:
    """A message as pyroute2 reads it."""
    message = ipvsmsg(data)
    message.decode()
    return message


def agrees(order: Order, message: Any, family: Family, number: int) -> None:
    """Attribute by attribute."""
    size = 4 if family is V4 else 16
    header = message["header"]
    assert (header["type"], header["flags"], header["sequence_number"]) == (KIND, REQUEST, number)
    assert (message["cmd"], message["version"]) == (order.verb, 1)
    service = message.get_attr("IPVS_CMD_ATTR_SERVICE")
    assert service.get_attr("IPVS_SVC_ATTR_AF") == CODES[family]
    assert service.get_attr("IPVS_SVC_ATTR_PROTOCOL") == order.server[-1]
    address = service.get_attr("IPVS_SVC_ATTR_ADDR")
    assert ipaddress.ip_address(address).packed == order.server[:size]
    assert service.get_attr("IPVS_SVC_ATTR_PORT").to_bytes(2) == order.server[size:-1]
    dest = message.get_attr("IPVS_CMD_ATTR_DEST")
    if order.real:
        address = dest.get_attr("IPVS_DEST_ATTR_ADDR")
        assert ipaddress.ip_address(address).packed == order.real[:size]
        assert dest.get_attr("IPVS_DEST_ATTR_PORT").to_bytes(2) == order.real[size:]
        assert dest.get_attr("IPVS_DEST_ATTR_ADDR_FAMILY") == CODES[family]
        assert dest.get_attr("IPVS_DEST_ATTR_WEIGHT") == order.weight
        assert dest.get_attr("IPVS_DEST_ATTR_FWD_METHOD") == MASQUERADE
        assert dest.get_attr("IPVS_DEST_ATTR_U_THRESH") == 0
        assert dest.get_attr("IPVS_DEST_ATTR_L_THRESH") == 0
        return
    assert dest is None
    if order.verb is Verb.REMOVE_SERVER:
        assert service.get_attr("IPVS_SVC_ATTR_SCHED_NAME") is None
        return
    how = order.scheduling
    assert service.get_attr("IPVS_SVC_ATTR_SCHED_NAME") == how.scheduler
    flags = service.get_attr("IPVS_SVC_ATTR_FLAGS")
    assert (flags["flags"], flags["mask"]) == (how.flags, 0xFFFFFFFF)
    assert service.get_attr("IPVS_SVC_ATTR_TIMEOUT") == how.timeout
    mask = service.get_attr("IPVS_SVC_ATTR_NETMASK")
    if family is V4:
        assert mask == "255.255.255.255"
    else:  # the length of a prefix in an attribute that pyroute2 takes for an address
        assert struct.unpack("=I", socket.inet_aton(mask)) == (128,)


@pytest.mark.parametrize("family", [V4, V6], ids=["ipv4", "ipv6"])
@given(data=st.data())
def test_pyroute2_reads_what_is_packed(family: Family, data: st.DataObject) -> None:
    """Every order, alone and among others, and none is longer than the batches count on."""
    some = data.draw(st.lists(orders(family), min_size=1, max_size=6))
    first = data.draw(st.integers(1, 1 << 31))
    messages = Codec(family, KIND).pack(some, first)
    assert len(messages) == len(some)
    for number, (order, message) in enumerate(zip(some, messages), first):
        assert len(message) <= LARGEST
        assert len(message) % 4 == 0
        assert struct.unpack_from("=I", message) == (len(message),)
        agrees(order, decoded(message), family, number)


LISTING = """\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
SCTP  0A000001:005A rr  \n\
  -> [fd00:0000:0000:0000:0000:0000:0000:0002]:005A      Tunnel  1      0          0         \n\
TCP  0A000001:0050 rr  persistent 30000 FFFFFFFF
  -> 0A010002:0050      Route   1234567 12         3456789012\n\
  -> 0A010001:1F90      Masq    0      0          7         \n\
UDP  [fd00:0000:0000:0000:0000:0000:0000:0001]:0035 wrr \n\
  -> [fd00:0000:0000:0000:0000:0000:0000:0003]:0036      Masq    1      0          0         \n\
UDP  0A000001:0035 sh ops \n\
FWM  00000007 rr \n\
  -> 0A010009:0000      Masq    1      0          0         \n\
IP_51  0A000001:0000 rr  \n\
  -> 0A010001:0000      Local   1      0          0         \n"""


def key(address: str, port: int, protocol: int | None = None) -> bytes:
    packed = ipaddress.ip_address(address).packed + port.to_bytes(2)
    return packed if protocol is None else packed + bytes((protocol,))


LISTED = {
    V4: {
        key("10.0.0.1", 90, 132): {key("fd00::2", 90): HeldReal(1, TUNNEL)},
        key("10.0.0.1", 80, 6): {
            key("10.1.0.2", 80): HeldReal(1234567, ROUTE, 12, 3456789012),
            key("10.1.0.1", 8080): HeldReal(0, MASQUERADE, 0, 7),
        },
        key("10.0.0.1", 53, 17): {},
        key("10.0.0.1", 0, 51): {key("10.1.0.1", 0): HeldReal(1, 1)},
    },
    V6: {key("fd00::1", 53, 17): {key("fd00::3", 54): HeldReal(1)}},
}


@pytest.mark.parametrize("family", [V4, V6], ids=["ipv4", "ipv6"])
def test_the_listing_is_read(family: Family) -> None:
    """Lines as Linux 6.1 writes them: wide numbers, flags, packet marks, both families mixed."""
    assert listed(LISTING, family) == LISTED[family]


@pytest.mark.parametrize("wanted", [*LISTED[V4], key("10.9.9.9", 9, 6)], ids=bytes.hex)
def test_only_what_is_wanted_is_read(wanted: bytes) -> None:
    """The real servers of others go to nobody."""
    expected = {wanted: LISTED[V4][wanted]} if wanted in LISTED[V4] else {}
    assert listed(LISTING, V4, {wanted}) == expected


def test_an_empty_listing() -> None:
    """Nothing but its head."""
    assert listed("".join(LISTING.splitlines(keepends=True)[:3]), V4) == {}


@pytest.mark.parametrize("verb", list(Verb))
def test_a_message_that_is_cut_off(verb: Verb) -> None:
    """Refused, not read as something else: an attribute says that it is longer than the rest."""
    codec = Codec(V4, KIND)
    order = Order(verb, key("10.0.0.1", 80, 6), key("10.1.0.1", 80))
    (message,) = codec.pack([order], 1)
    with pytest.raises(NetlinkError, match="cut off"):
        codec.server((KIND, message, 16, 30))
