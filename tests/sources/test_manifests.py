"""Files and folders as a source: what is in force after which change on disk. No waiting here:
the clock is the test's, and ``refresh`` looks when it is told to."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from kproxy.core.events import Delta, Ref
from kproxy.core.objects import ObjectKey, Service
from kproxy.errors import SourceError
from kproxy.sources.files import identity_of
from kproxy.sources.manifests import _RECHECK, ManifestSource, Status


def service(name: str, last: int = 1) -> str:
    return (
        f"kind: Service\nmetadata: {{name: {name}}}\n"
        f"spec: {{clusterIP: 10.96.0.{last}, ports: [{{port: 80}}]}}\n---\n"
    )


BAD = "kind: Service\nmetadata: {name: a}\nspec: {clusterIP: nonsense, ports: [{port: 80}]}\n---\n"
HALF = "kind: Service\nmetadata: {name: 'a\n"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Rig:
    """A source over ``tmp_path`` whose quiet time passes when the test says so."""

    def __init__(self, *paths: Path | str) -> None:
        self.clock = Clock()
        self.source = ManifestSource([str(path) for path in paths], settle=10, clock=self.clock)
        self.names: dict[Ref, str] = {}
        self.take(self.source.load())

    def take(self, delta: Delta) -> list[str]:
        """Keeps account of what is in force; returns what changed: ``+name=address``, ``-name``."""
        said = []
        for obj in delta.upserted:
            assert isinstance(obj, Service)
            self.names[Ref("Service", obj.key)] = obj.cluster_ips[0]
            said.append(f"+{obj.name}={obj.cluster_ips[0][8:]}")
        for ref in delta.deleted:
            del self.names[ref]
            said.append(f"-{ref.key.name}")
        return sorted(said)

    def look(self) -> list[str]:
        # Where file times advance in ticks, what was written twice within one is read again.
        self.clock.now += _RECHECK
        return self.take(self.source.refresh())

    def quiet(self) -> list[str]:
        self.clock.now += 11
        return self.look()

    @property
    def here(self) -> list[str]:
        return sorted(f"{ref.key.name}={ip[8:]}" for ref, ip in self.names.items())


def write(path: Path, text: str) -> None:
    path.write_text(text)


def replace(path: Path, text: str) -> None:
    """Saves as careful editors do: a new file renamed over the old one."""
    other = path.with_name(f".{path.name}.new")
    other.write_text(text)
    other.rename(path)


def test_missing_path_at_the_start(tmp_path: Path) -> None:
    """A path that is not there at the start is an error that names it."""
    with pytest.raises(SourceError) as caught:
        ManifestSource([str(tmp_path / "none.yaml")]).load()
    assert "none.yaml" in str(caught.value)
    assert caught.value.exit_status == 2


def test_a_folder(tmp_path: Path) -> None:
    """All manifests directly in a folder are read, nothing hidden, other or below."""
    for name in ("b.yml", "a.yaml", "c.json"):
        write(tmp_path / name, service(name[0]) if name != "c.json" else '{"kind":"Pod"}')
    for name in (".hidden.yaml", "a.yaml~", "readme.txt", ".#a.yaml"):
        write(tmp_path / name, service("wrong"))
    (tmp_path / "below").mkdir()
    write(tmp_path / "below" / "d.yaml", service("wrong"))
    (tmp_path / "folder.yaml").mkdir()
    rig = Rig(tmp_path)
    assert rig.here == ["a=1", "b=1"]
    assert [notice.kind for notice in rig.source.notices] == ["Pod"]
    assert rig.source.refusals == ()


def test_an_empty_folder_is_a_known_empty_cluster(tmp_path: Path) -> None:
    """Nothing there is knowledge, not a fault."""
    rig = Rig(tmp_path)
    assert (rig.here, rig.source.known, rig.source.refusals) == ([], True, ())


@pytest.mark.parametrize("save", [write, replace])
def test_changes(tmp_path: Path, save) -> None:  # type: ignore[no-untyped-def]
    """A Delta holds only what really differs, however the file was saved."""
    file = tmp_path / "x.yaml"
    save(file, service("a") + service("b"))
    rig = Rig(file)
    assert rig.look() == []
    save(file, service("a") + service("b", 2))
    assert rig.look() == ["+b=2"]
    save(file, "# a comment\n" + service("b", 2) + service("a"))
    assert rig.look() == []
    save(file, service("c") + service("b", 2) + service("a"))
    assert rig.look() == ["+c=1"]


@pytest.mark.parametrize("save", [write, replace])
def test_deletion_waits_for_quiet(tmp_path: Path, save) -> None:  # type: ignore[no-untyped-def]
    """What is gone from a file is deleted when the file has been quiet without it."""
    file = tmp_path / "x.yaml"
    save(file, service("a") + service("b"))
    rig = Rig(file)
    save(file, service("b"))
    assert rig.look() == []
    assert rig.source.files[str(file)].status is Status.SETTLING
    assert rig.quiet() == ["-a"]
    assert rig.source.files[str(file)].status is Status.READ


def test_truncated_save_drops_nothing(tmp_path: Path) -> None:
    """An editor that empties the file and then writes it never takes an object away."""
    file = tmp_path / "x.yaml"
    text = service("a") + service("b")
    write(file, text)
    rig = Rig(file)
    said = []
    for end in range(0, len(text) + 1, 7):
        write(file, text[:end])
        said += rig.look()
    write(file, text)
    assert said + rig.look() + rig.quiet() == []
    assert rig.here == ["a=1", "b=1"]


def test_moving_away_and_writing_anew_drops_nothing(tmp_path: Path) -> None:
    """An editor that renames the old file to a backup first takes nothing away either."""
    file = tmp_path / "x.yaml"
    write(file, service("a"))
    rig = Rig(tmp_path)
    file.rename(tmp_path / "x.yaml~")
    assert rig.look() == []
    assert rig.source.files[str(file)].status is Status.MISSING
    write(file, service("a", 2))
    assert rig.look() == ["+a=2"]
    assert rig.quiet() == []


def test_file_removed_from_a_folder(tmp_path: Path) -> None:
    """A file that is gone from a watched folder takes its objects along, after the quiet time."""
    write(tmp_path / "x.yaml", service("a"))
    write(tmp_path / "y.yaml", service("b"))
    rig = Rig(tmp_path)
    (tmp_path / "x.yaml").unlink()
    assert rig.look() == []
    assert rig.quiet() == ["-a"]
    assert list(rig.source.files) == [str(tmp_path / "y.yaml")]


@pytest.mark.parametrize(
    ("text", "after"),
    [
        (BAD + service("b", 2), ["+b=2"]),
        (HALF + "---\n" + service("b", 2), ["+b=2"]),
        (service("b", 2) + "---\n" + HALF, ["+b=2"]),
        ("kind: Service\nmetadata: {}\n---\n" + service("b", 2), ["+b=2"]),
        ("\x00", []),
    ],
)
def test_bad_keeps_the_last_good_version(tmp_path: Path, text: str, after: list[str]) -> None:
    """An object that turns bad, or hides in a part that cannot be read, stays as it was."""
    file = tmp_path / "x.yaml"
    write(file, service("a") + service("b"))
    rig = Rig(file)
    write(file, text)
    assert rig.look() == after
    assert rig.quiet() == []
    assert any("in force" in str(refusal) for refusal in rig.source.refusals)
    write(file, service("a", 9) + service("b", 2))
    rig.look()
    assert rig.here == ["a=9", "b=2"]
    assert rig.source.refusals == ()


def test_bad_then_deleted(tmp_path: Path) -> None:
    """A bad object stays until it is deleted from a file that reads well."""
    file = tmp_path / "x.yaml"
    write(file, service("a") + service("b"))
    rig = Rig(file)
    write(file, BAD + service("b"))
    assert rig.look() == []
    write(file, service("b"))
    assert rig.look() + rig.quiet() == ["-a"]


def test_bad_from_the_start_is_left_out(tmp_path: Path) -> None:
    """What was never good is not there; its neighbours are; the refusal has file and line."""
    file = tmp_path / "x.yaml"
    write(file, service("b") + BAD)
    rig = Rig(file)
    assert rig.here == ["b=1"]
    (refusal,) = rig.source.refusals
    assert (refusal.file, refusal.line, refusal.key) == (str(file), 7, "default/a")
    assert "in force" not in str(refusal)


def test_the_only_file_vanishes(tmp_path: Path) -> None:
    """A file named by -f that vanishes keeps its objects and is reported until it is back."""
    file = tmp_path / "x.yaml"
    write(file, service("a"))
    rig = Rig(file)
    file.unlink()
    assert rig.look() + rig.quiet() == []
    assert [refusal.file for refusal in rig.source.refusals] == [str(file)]
    assert rig.source.files[str(file)].status is Status.MISSING
    write(file, service("a", 2))
    assert rig.look() == ["+a=2"]
    assert rig.source.refusals == ()


def test_the_folder_vanishes(tmp_path: Path) -> None:
    """A folder that is gone keeps everything; made anew, what it holds then counts."""
    folder = tmp_path / "d"
    folder.mkdir()
    write(folder / "x.yaml", service("a"))
    write(folder / "y.yaml", service("b"))
    rig = Rig(folder)
    folder.rename(tmp_path / "away")
    assert rig.look() + rig.quiet() == []
    assert [refusal.file for refusal in rig.source.refusals] == [str(folder)]
    folder.mkdir()
    write(folder / "x.yaml", service("a", 2))
    assert rig.look() == ["+a=2"]
    assert rig.quiet() == ["-b"]
    assert rig.source.refusals == ()


def test_configmap_volume(tmp_path: Path) -> None:
    """A folder whose files change by the swap of one link, as Kubernetes mounts a ConfigMap."""
    mount = tmp_path / "cm"
    for stamp, last in (("..one", 1), ("..two", 2)):
        (mount / stamp).mkdir(parents=True)
        write(mount / stamp / "x.yaml", service("a", last))
    (mount / "..data").symlink_to("..one")
    (mount / "x.yaml").symlink_to("..data/x.yaml")
    rigs = [Rig(mount), Rig(mount / "x.yaml")]
    assert [rig.here for rig in rigs] == [["a=1"], ["a=1"]]
    (mount / "..tmp").symlink_to("..two")
    (mount / "..tmp").rename(mount / "..data")
    assert [rig.look() for rig in rigs] == [["+a=2"], ["+a=2"]]


def test_objects_move_between_files(tmp_path: Path) -> None:
    """An object that moves to another file is not deleted in between."""
    one, two = tmp_path / "x.yaml", tmp_path / "y.yaml"
    write(one, service("a") + service("b"))
    write(two, service("c"))
    rig = Rig(tmp_path)
    write(one, service("b"))
    assert rig.look() == []
    write(two, service("c") + service("a"))
    assert rig.look() + rig.quiet() == []
    two.rename(tmp_path / "z.yaml")
    assert rig.look() + rig.quiet() == []
    assert rig.here == ["a=1", "b=1", "c=1"]


def test_same_object_in_two_files(tmp_path: Path) -> None:
    """The first file in order counts, the other is refused by name, and takes over afterwards."""
    one, two = tmp_path / "b.yaml", tmp_path / "a.yaml"
    write(one, service("a", 1))
    write(two, service("a", 2))
    rig = Rig(one, two)
    assert rig.here == ["a=1"]
    (refusal,) = rig.source.refusals
    assert refusal.file == str(two)
    assert str(one) in refusal.message
    write(two, service("a", 3))
    assert rig.look() == []
    write(one, "")
    assert rig.look() == []
    assert rig.quiet() == ["+a=3"]
    assert rig.source.refusals == ()


def test_same_object_twice_in_a_file(tmp_path: Path) -> None:
    """Within a file the first counts as well."""
    file = tmp_path / "x.yaml"
    write(file, service("a", 1) + service("a", 2))
    rig = Rig(file)
    assert rig.here == ["a=1"]
    assert "twice" in rig.source.refusals[0].message


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    """A file that is named itself and by its folder is no duplicate of itself."""
    write(tmp_path / "x.yaml", service("a"))
    rig = Rig(tmp_path / "x.yaml", tmp_path, tmp_path)
    assert (rig.here, rig.source.refusals) == (["a=1"], ())


def test_identity_of_what_was_read(tmp_path: Path) -> None:
    """With status read and the identity on disk, a supervisor knows that all is taken over."""
    file = tmp_path / "x.yaml"
    write(file, service("a"))
    rig = Rig(file)
    # Of another size: its times may be those of the first.
    write(file, service("a", 22))
    state = rig.source.files[str(file)]
    assert state.identity != identity_of(os.stat(file))
    rig.look()
    state = rig.source.files[str(file)]
    assert (state.status, state.identity) == (Status.READ, identity_of(os.stat(file)))


def test_same_size_and_modification_time(tmp_path: Path) -> None:
    """A write that leaves size and modification time as they were is still seen."""
    file = tmp_path / "x.yaml"
    write(file, service("a", 1))
    rig = Rig(file)
    times = os.stat(file)
    write(file, service("a", 2))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    rig.look()
    assert rig.here == ["a=2"]


def test_unreadable_entries_of_a_folder(tmp_path: Path) -> None:
    """A dangling link, a pipe and a socket in a folder are reported and stop nothing."""
    write(tmp_path / "a.yaml", service("a"))
    (tmp_path / "b.yaml").symlink_to("nowhere")
    os.mkfifo(tmp_path / "c.yaml")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "d.yaml"))
        rig = Rig(tmp_path)
    assert rig.here == ["a=1"]
    assert sorted(Path(refusal.file).name for refusal in rig.source.refusals) == [
        "b.yaml",
        "c.yaml",
        "d.yaml",
    ]


def test_mirrored_endpoints_over_files(tmp_path: Path) -> None:
    """Endpoints serve until their Service has a slice of its own, and again after it."""
    write(
        tmp_path / "e.yaml",
        "kind: Endpoints\nmetadata: {name: a}\n"
        "subsets: [{addresses: [{ip: 10.0.0.1}], ports: [{port: 80}]}]\n",
    )
    clock = Clock()
    source = ManifestSource([str(tmp_path)], settle=10, clock=clock)
    mirror = Ref("EndpointSlice", ObjectKey("default", "a-mirror-0-ipv4"))
    assert [obj.key for obj in source.load().upserted] == [mirror.key]
    write(
        tmp_path / "s.yaml",
        "kind: EndpointSlice\naddressType: IPv4\n"
        "metadata: {name: a-1, labels: {kubernetes.io/service-name: a}}\n",
    )
    delta = source.refresh()
    assert [obj.key.name for obj in delta.upserted] == ["a-1"]
    assert delta.deleted == (mirror,)
    (tmp_path / "s.yaml").unlink()
    source.refresh()
    clock.now += 11
    delta = source.refresh()
    assert [obj.key for obj in delta.upserted] == [mirror.key]
    assert [ref.key.name for ref in delta.deleted] == ["a-1"]
