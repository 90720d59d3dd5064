"""Watching real files and pipes. Tests wait for what must come, never for time to pass."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, suppress
from pathlib import Path

import pytest

from kproxy.core.events import Delta
from kproxy.core.objects import Service
from kproxy.errors import SourceError
from kproxy.sources import streams
from kproxy.sources.manifests import ManifestSource

#: Far longer than anything takes: a test that gets here has failed.
LIMIT = 60


def service(name: str, last: int = 1) -> str:
    return (
        f"kind: Service\nmetadata: {{name: {name}}}\n"
        f"spec: {{clusterIP: 10.96.0.{last}, ports: [{{port: 80}}]}}\n"
    )


Until = Callable[[set[str]], Awaitable[None]]


class Watching:
    """Follows a source: what is in force, and everything that was ever deleted."""

    def __init__(self, source: ManifestSource) -> None:
        self.source = source
        self.here: dict[str, str] = {}
        self.deleted: list[str] = []
        self._deltas: AsyncIterator[Delta] | None = None

    def take(self, delta: Delta) -> None:
        for obj in delta.upserted:
            assert isinstance(obj, Service)
            self.here[obj.name] = f"{obj.name}={obj.cluster_ips[0][8:]}"
        for ref in delta.deleted:
            del self.here[ref.key.name]
            self.deleted.append(ref.key.name)

    async def until(self, *names: str) -> None:
        """Takes Deltas until exactly these are in force."""
        assert self._deltas is not None
        while set(self.here.values()) != set(names):
            self.take(await asyncio.wait_for(anext(self._deltas), LIMIT))


def follow(source: ManifestSource, story: Callable[[Watching], Awaitable[None]]) -> Watching:
    """Loads, watches, and lets ``story`` change files and wait for what follows."""

    async def run() -> Watching:
        watching = Watching(source)
        watching.take(source.load())
        async with aclosing(source.watch()) as deltas:  # type: ignore[type-var]
            watching._deltas = deltas
            await story(watching)
        return watching

    return asyncio.run(run())


def test_saves_of_every_kind(tmp_path: Path) -> None:
    """In-place writes, renames over the file, new and removed files are all seen."""
    (tmp_path / "x.yaml").write_text(service("a"))

    async def story(watching: Watching) -> None:
        await watching.until("a=1")
        (tmp_path / "x.yaml").write_text(service("a", 2))
        await watching.until("a=2")
        (tmp_path / ".x.tmp").write_text(service("a", 3))
        (tmp_path / ".x.tmp").rename(tmp_path / "x.yaml")
        await watching.until("a=3")
        (tmp_path / "y.yaml").write_text(service("b"))
        await watching.until("a=3", "b=1")
        (tmp_path / "y.yaml").unlink()
        await watching.until("a=3")

    assert follow(ManifestSource([str(tmp_path)]), story).deleted == ["b"]


def test_a_change_between_load_and_watch_is_not_missed(tmp_path: Path) -> None:
    """What happens before the watches are in place is found when they are."""
    file = tmp_path / "x.yaml"
    file.write_text(service("a"))
    source = ManifestSource([str(file)])

    async def run() -> list[str]:
        source.load()
        file.write_text(service("a", 2))
        async with aclosing(source.watch()) as deltas:  # type: ignore[type-var]
            delta = await asyncio.wait_for(anext(deltas), LIMIT)
        return [obj.cluster_ips[0] for obj in delta.upserted if isinstance(obj, Service)]

    assert asyncio.run(run()) == ["10.96.0.2"]


def test_folder_deleted_and_made_anew(tmp_path: Path) -> None:
    """A new folder under the old name is watched again, and nothing is lost meanwhile."""
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "x.yaml").write_text(service("a"))

    async def story(watching: Watching) -> None:
        (folder / "x.yaml").unlink()
        folder.rmdir()
        folder.mkdir()
        (folder / "y.yaml").write_text(service("b"))
        await watching.until("b=1")
        (folder / "y.yaml").write_text(service("b", 2))
        await watching.until("b=2")

    follow(ManifestSource([str(folder)]), story)


def test_folder_that_is_away_for_a_while(tmp_path: Path) -> None:
    """A missing folder deletes nothing; its return is noticed."""
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "x.yaml").write_text(service("a"))
    (tmp_path / "other.yaml").write_text(service("o"))

    async def story(watching: Watching) -> None:
        folder.rename(tmp_path / "away")
        (tmp_path / "other.yaml").write_text(service("o", 2))
        await watching.until("a=1", "o=2")
        folder.mkdir()
        (folder / "x.yaml").write_text(service("a", 3))
        await watching.until("a=3", "o=2")

    source = ManifestSource([str(folder), str(tmp_path / "other.yaml")])
    assert follow(source, story).deleted == []


@pytest.mark.parametrize("name", ["", "x.yaml"])
def test_configmap_swap(tmp_path: Path, name: str) -> None:
    """Swaps of a mounted ConfigMap's link are seen, one after the other."""
    mount = tmp_path / "cm"
    mount.mkdir()

    def publish(last: int) -> None:
        (mount / f"..{last}").mkdir()
        (mount / f"..{last}" / "x.yaml").write_text(service("a", last))
        (mount / "..tmp").symlink_to(f"..{last}")
        (mount / "..tmp").rename(mount / "..data")

    publish(1)
    (mount / "x.yaml").symlink_to("..data/x.yaml")

    async def story(watching: Watching) -> None:
        for last in (2, 3, 4):
            publish(last)
            await watching.until(f"a={last}")

    assert follow(ManifestSource([str(mount / name) if name else str(mount)]), story).deleted == []


def test_link_to_a_file_elsewhere(tmp_path: Path) -> None:
    """A file behind a link is watched where it really is."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.yaml").write_text(service("a"))
    (tmp_path / "link.yaml").symlink_to("real/x.yaml")

    async def story(watching: Watching) -> None:
        (tmp_path / "real" / "x.yaml").write_text(service("a", 2))
        await watching.until("a=2")

    follow(ManifestSource([str(tmp_path / "link.yaml")]), story)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        try:
            os.close(descriptor)
        except OSError:
            continue


def test_standard_input_to_its_end(pipe: tuple[int, int]) -> None:
    """A pipe that its writer closed is read whole at the start, without waiting."""
    reading, writing = pipe
    os.write(writing, f"{service('a')}---\n{service('b')}".encode())
    os.close(writing)
    source = ManifestSource(["-"], stdin=reading, patience=LIMIT)
    assert [obj.key.name for obj in source.load().upserted] == ["a", "b"]
    assert source.known


def test_load_to_the_end(pipe: tuple[int, int]) -> None:
    """A command that runs once reads its standard input to the end, however late that comes."""
    reading, writing = pipe
    source = ManifestSource(["-"], stdin=reading, patience=0)

    def write() -> None:
        os.write(writing, f"{service('a')}---\n".encode())
        os.write(writing, service("b").encode())
        os.close(writing)

    writer = threading.Thread(target=write)
    writer.start()
    delta = source.load(to_end=True)
    writer.join()
    assert [obj.key.name for obj in delta.upserted] == ["a", "b"]


def test_standard_input_that_goes_on(pipe: tuple[int, int]) -> None:
    """Documents are taken as they end; a later version replaces an earlier one; a bad one keeps
    it; the last one is taken at the end of the input."""
    reading, writing = pipe
    source = ManifestSource(["-"], stdin=reading, patience=LIMIT)
    os.write(writing, f"{service('a')}---\n{service('b')}".encode())

    async def story(watching: Watching) -> None:
        assert set(watching.here.values()) == {"a=1"}
        os.write(writing, b"---\n")
        await watching.until("a=1", "b=1")
        os.write(writing, f"{service('a', 2)}...\n".encode())
        await watching.until("a=2", "b=1")
        os.write(writing, f"{service('a').replace('10.96', 'x')}---\n{service('c')}---\n".encode())
        await watching.until("a=2", "b=1", "c=1")
        assert ["a" in refusal.key for refusal in source.refusals] == [True]
        os.write(writing, f"{service('a', 3)}---\n{service('d')}".encode())
        await watching.until("a=3", "b=1", "c=1")
        assert source.refusals == ()
        os.close(writing)
        await watching.until("a=3", "b=1", "c=1", "d=1")

    assert follow(source, story).deleted == []


def test_standard_input_that_says_nothing(pipe: tuple[int, int], tmp_path: Path) -> None:
    """A silent writer holds nobody up; until it has spoken, what is known is not everything."""
    reading, writing = pipe
    (tmp_path / "x.yaml").write_text(service("x"))
    source = ManifestSource([str(tmp_path), "-"], stdin=reading, patience=0)

    async def story(watching: Watching) -> None:
        assert not source.known
        assert set(watching.here.values()) == {"x=1"}
        os.write(
            writing,
            b'{"kind": "Service", "metadata": {"name": "a"}, "spec": {"clusterIP": '
            b'"10.96.0.1", "ports": [{"port": 80}]}}\n',
        )
        await watching.until("x=1", "a=1")
        assert source.known

    follow(source, story)


@pytest.mark.parametrize("patience", [0, LIMIT])
def test_a_document_without_end_is_given_up(
    pipe: tuple[int, int], patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start and later, with the input's name and the limit; what fits is taken."""
    monkeypatch.setattr(streams, "MAX_DOCUMENT", 3 << 20)
    reading, writing = pipe
    source = ManifestSource(["-"], stdin=reading, patience=patience)
    if patience:
        os.write(writing, b"".join((f"{service('a')}---\n".encode(), b"x" * 1000)))
        assert [obj.key.name for obj in source.load().upserted] == ["a"]
    else:
        source.load()
    writer = threading.Thread(target=write_until_closed, args=(writing,))
    writer.start()
    try:
        with pytest.raises(SourceError, match=r"-: a document has no end within 3 MiB"):
            asyncio.run(consume(source))
    finally:
        os.close(reading)
        writer.join()


def write_until_closed(writing: int) -> None:
    with suppress(BrokenPipeError):
        while True:
            os.write(writing, b"x" * 65536)


async def consume(source: ManifestSource) -> None:
    async for _ in source.watch():
        pass


def test_a_terminal_is_not_waited_for(tmp_path: Path) -> None:
    """Nobody has typed anything at the start: the source goes on, and takes what comes."""
    ours, theirs = os.openpty()
    source = ManifestSource(["-"], stdin=theirs, patience=LIMIT)

    async def story(watching: Watching) -> None:
        assert not source.known
        os.write(ours, f"{service('a')}---\n".encode())
        await watching.until("a=1")

    try:
        follow(source, story)
    finally:
        os.close(ours)
        os.close(theirs)


def test_named_pipe(tmp_path: Path) -> None:
    """A pipe given as a path (a shell's process substitution) is read like standard input."""
    path = tmp_path / "p"
    os.mkfifo(path)
    keep = os.open(path, os.O_RDWR)
    os.write(keep, f"{service('a')}---\n".encode())
    source = ManifestSource([str(path)], patience=LIMIT)

    async def story(watching: Watching) -> None:
        await watching.until("a=1")
        os.write(keep, f"{service('a', 2)}---\n".encode())
        await watching.until("a=2")

    follow(source, story)
    os.close(keep)


def test_watch_ends_when_cancelled(tmp_path: Path) -> None:
    """Cancelling the task that watches ends it, with nothing left running."""
    (tmp_path / "x.yaml").write_text(service("a"))

    async def run() -> int:
        source = ManifestSource([str(tmp_path)])
        source.load()
        started = asyncio.Event()

        async def consume() -> None:
            async for _ in source.watch():
                started.set()

        task = asyncio.create_task(consume())
        (tmp_path / "x.yaml").write_text(service("a", 2))
        await asyncio.wait_for(started.wait(), LIMIT)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return len(asyncio.all_tasks())

    assert asyncio.run(run()) == 1
