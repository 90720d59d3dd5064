"""Raw objects out of files: what is good is taken, whatever lies around it is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kproxy.errors import SourceError
from kproxy.lab.manifests import read_paths, read_text

GOOD = "kind: Service\nmetadata: {name: %s}\n"


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        (b"a: b\n\tc: d\n", 2, "tab"),
        (b"kind: Service\nmetadata: {name: x", 3, "flow mapping"),
        (b"kind: \xff", 1, "0xff is no UTF-8"),
        (GOOD.encode("utf-16"), 1, "no UTF-8"),
        (b"a: &a [*a]", 1, "refers to itself"),
        (b"[" * 5000, 1, "nested deeper"),
        (b"# nothing\n\nhello", 3, "no kind"),
        (b"kind: 5", 1, "no kind"),
        (b"kind: List\nitems: 5", 1, "no kind"),
        (b"kind: List\nitems: [5]", 1, "no kind"),
    ],
)
def test_a_fault_has_file_line_and_reason(text: bytes, line: int, word: str) -> None:
    """One refusal; the document after it is read."""
    read = read_text(text + b"\n---\n" + (GOOD % "after").encode(), "f.yaml")
    assert [(fault.file, fault.line) for fault in read.refusals] == [("f.yaml", line)]
    assert word in str(read.refusals[0])
    assert [raw.obj["metadata"]["name"] for raw in read.objects] == ["after"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (b"", []),
        (b"---\n# words\n---\n", []),
        (b"kind: List\n", []),
        (b"\xef\xbb\xbf" + (GOOD % "bom").encode(), ["bom"]),
        ((GOOD % "crlf").replace("\n", "\r\n").encode(), ["crlf"]),
        (b'{"kind": "List", "items": [{"kind": "Service", "metadata": {"name": "j"}}]}', ["j"]),
    ],
)
def test_forms_that_are_fine(text: bytes, names: list[str]) -> None:
    """Nothing is refused."""
    read = read_text(text, "f.yaml")
    assert ([raw.obj["metadata"]["name"] for raw in read.objects], read.refusals) == (names, ())


def test_a_folder_s_bad_files_are_refused_alone(tmp_path: Path) -> None:
    """A ring of links and a pipe stop nobody; folders below and hidden files are passed by."""
    (tmp_path / "good.yaml").write_text(GOOD % "good")
    (tmp_path / ".hidden.yaml").write_text(GOOD % "hidden")
    (tmp_path / "below.yaml").mkdir()
    (tmp_path / "ring.yaml").symlink_to("ring.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    read = read_paths([str(tmp_path)])
    assert [raw.obj["metadata"]["name"] for raw in read.objects] == ["good"]
    assert [Path(fault.file).name for fault in read.refusals] == ["pipe.yaml", "ring.yaml"]


@pytest.mark.parametrize("path", ["/no/such/file", "", "ring.yaml"])
def test_a_path_that_cannot_be_read_ends_the_command(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was named by hand: a mistyped word, not a bad object."""
    monkeypatch.chdir(tmp_path)
    Path("ring.yaml").symlink_to("ring.yaml")
    with pytest.raises(SourceError, match="cannot be read"):
        read_paths([path])
