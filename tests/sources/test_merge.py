"""Which version counts, over any history of files."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from kproxy.core.decode import Item
from kproxy.core.events import Delta, Ref, ref_of
from kproxy.core.objects import (
    ClusterObject,
    EndpointSlice,
    Family,
    ObjectKey,
    Refusal,
    Service,
    SliceEndpoint,
)
from kproxy.sources.merge import Merge
from kproxy.sources.text import Contents

FILES = ("a.yaml", "b.yaml", "c.yaml")


def key(name: str) -> ObjectKey:
    return ObjectKey("default", name)


def service(name: str, version: int) -> Item:
    obj = Service("default", name, cluster_ips=(f"10.96.0.{version}",))
    return Item(Ref("Service", key(name)), (obj,))


def real_slice(service_name: str, version: int) -> Item:
    name = f"{service_name}-{version % 2}"
    obj = EndpointSlice("default", name, service_name, Family.IPV4)
    return Item(Ref("EndpointSlice", key(name)), (obj,))


def endpoints(name: str, version: int) -> Item:
    slices = tuple(
        EndpointSlice(
            "default",
            f"{name}-mirror-{at}-ipv4",
            name,
            Family.IPV4,
            endpoints=(SliceEndpoint(f"10.0.0.{version}"),),
        )
        for at in range(version % 3)
    )
    return Item(Ref("Endpoints", key(name)), slices)


def bad(name: str, version: int) -> Item:
    ref = Ref("Service", key(name)) if version else None
    return Item(ref, refusals=(Refusal("bad", kind="Service", key=name),), refused=True)


_ITEMS = st.builds(
    lambda make, name, version: make(name, version),
    st.sampled_from([service, real_slice, endpoints, bad]),
    st.sampled_from(["x", "y"]),
    st.integers(0, 5),
)
_GOOD_ITEMS = st.builds(
    lambda make, name, version: make(name, version),
    st.sampled_from([service, real_slice, endpoints]),
    st.sampled_from(["x", "y"]),
    st.integers(0, 5),
)


class Follower:
    """Applies Deltas, and checks that each of them is exact."""

    def __init__(self) -> None:
        self.here: dict[Ref, ClusterObject] = {}

    def take(self, delta: Delta) -> None:
        changed = [ref_of(obj) for obj in delta.upserted]
        assert len({*changed, *delta.deleted}) == len(changed) + len(delta.deleted)
        for obj in delta.upserted:
            assert self.here.get(ref_of(obj)) != obj
            self.here[ref_of(obj)] = obj
        for ref in delta.deleted:
            del self.here[ref]


def _histories(items: st.SearchStrategy[Item]) -> st.SearchStrategy[list[object]]:
    contents = st.none() | st.lists(items, max_size=5).map(lambda parts: Contents(tuple(parts)))
    step = st.tuples(st.sampled_from(FILES), contents, st.booleans())
    return st.lists(step, max_size=12)


def _play(merge: Merge, file: str, contents: Contents | None, hold: bool = False) -> None:
    if contents is None:
        merge.drop(file)
    else:
        merge.put(file, (0, file), contents, hold=hold)


@given(_histories(_GOOD_ITEMS), st.booleans())
def test_history_does_not_matter(history, often) -> None:  # type: ignore[no-untyped-def]
    """With good objects only, what is in force depends on the files as they are, not on how they
    came to be so, and the Deltas lead there however often they are asked for."""
    merge, follower = Merge(), Follower()
    final: dict[str, Contents | None] = {}
    for file, contents, _ in history:
        _play(merge, file, contents)
        final[file] = contents
        if often:
            follower.take(merge.delta())
    follower.take(merge.delta())

    fresh, expected = Merge(), Follower()
    for file, contents in final.items():
        _play(fresh, file, contents)
    expected.take(fresh.delta())
    assert follower.here == expected.here
    assert set(merge.refusals) == set(fresh.refusals)


@given(_histories(_ITEMS))
def test_any_history_keeps_the_rules(history) -> None:  # type: ignore[no-untyped-def]
    """With bad objects and held deletions too: Deltas are exact, mirrored slices stand only
    without real ones, and when all files are gone nothing is left."""
    merge, follower = Merge(), Follower()
    for file, contents, hold in history:
        _play(merge, file, contents, hold)
        follower.take(merge.delta())
        slices = [obj for obj in follower.here.values() if isinstance(obj, EndpointSlice)]
        own = {obj.service for obj in slices if "mirror" not in obj.name}
        assert not [obj for obj in slices if "mirror" in obj.name and obj.service in own]
        assert follower.take(merge.delta()) is None
    for file in FILES:
        merge.drop(file)
    follower.take(merge.delta())
    assert follower.here == {}
    assert (merge.refusals, merge.notices) == ((), ())


def test_a_bad_object_keeps_its_version_per_file() -> None:
    """The last good version that stays is the one of the file that has it, until that lets go."""
    merge, follower = Merge(), Follower()
    _play(merge, "a.yaml", Contents((service("x", 1),)))
    _play(merge, "b.yaml", Contents((service("x", 2),)))
    _play(merge, "a.yaml", Contents((bad("x", 1),)))
    follower.take(merge.delta())
    assert list(follower.here.values()) == list(service("x", 1).objects)
    _play(merge, "a.yaml", Contents())
    follower.take(merge.delta())
    assert list(follower.here.values()) == list(service("x", 2).objects)


def test_a_repeated_object_is_named_with_its_line() -> None:
    """In one file and in two: the refusal tells where the one stands that does not count."""
    again = msgspec.structs.replace(service("s", 2), line=7)
    merge = Merge()
    merge.put("a.yaml", (0, ""), Contents((service("s", 1), again)))
    merge.put("b.yaml", (1, ""), Contents((again,)))
    merge.delta()
    assert [(fault.file, fault.line) for fault in merge.refusals] == [("a.yaml", 7), ("b.yaml", 7)]
