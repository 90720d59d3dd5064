"""The text of a file: documents told apart, faults with their lines, streams bit by bit."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.sources.text import Contents, Splitter, json_values, read_text


def service(name: str, ip: str = "10.96.0.1") -> str:
    return (
        f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n"
        f"spec:\n  clusterIP: {ip}\n  ports:\n  - port: 80\n"
    )


def as_json(name: str) -> str:
    spec = {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}
    return json.dumps({"kind": "Service", "metadata": {"name": name}, "spec": spec}, indent=1)


def names(contents: Contents) -> list[str]:
    return [obj.name for item in contents.items for obj in item.objects]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (service("a"), ["a"]),
        (service("a") + "---\n" + service("b"), ["a", "b"]),
        ("---\n" + service("a") + "...\n---\n" + service("b") + "...\n", ["a", "b"]),
        ("%YAML 1.1\n---\n" + service("a"), ["a"]),
        ("# only words\n---\n\n---\n" + service("a") + "---\n# end\n", ["a"]),
        ((service("a") + "---\n" + service("b")).replace("\n", "\r\n"), ["a", "b"]),
        ("\ufeff" + service("a"), ["a"]),
        ("--- {kind: Service, metadata: {name: a}}\n", ["a"]),
        ("{kind: Service, metadata: {name: a}}\n", ["a"]),
        (as_json("a"), ["a"]),
        (as_json("a") + as_json("b") + "\n \n" + as_json("c"), ["a", "b", "c"]),
        (as_json("a") + "\n---\n" + service("b"), ["a", "b"]),
        (f"[{as_json('a')}, {as_json('b')}]", ["a", "b"]),
        ("note: |\n  --- not a marker\n", []),
        ("", []),
        ("---\n", []),
    ],
)
def test_documents(text: str, expected: list[str]) -> None:
    """YAML streams, JSON, and both mixed give their objects in order."""
    assert names(read_text(text.encode(), "x.yaml")) == expected


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (service("b").replace("clusterIP: 10", "clusterIP: '10"), 16, "quoted scalar"),
        (service("b").replace("port: 80", "port: 70000"), 15, "70000"),
        (service("b").replace("port: 80", "port: '80'"), 15, "remove the quotes"),
        (service("b", ip="nonsense"), 13, "nonsense"),
        (service("b").replace("name: b", "title: b"), 11, "missing"),
        (service("b") + "spec: {}\n", 16, "there twice"),
        ("just text\n", 9, "no object"),
        ("a: b\n", 9, "kind"),
    ],
)
def test_faults_have_their_line_and_neighbours_are_read(text: str, line: int, words: str) -> None:
    """The document that is broken is named with file and line; those around it are read."""
    data = service("a") + "---\n" + text + "---\n" + service("c")
    contents = read_text(data.encode(), "x.yaml")
    assert names(contents) == ["a", "c"]
    (refusal,) = [refusal for item in contents.items for refusal in item.refusals]
    assert (refusal.file, refusal.whole) == ("x.yaml", True)
    assert words in str(refusal)
    assert refusal.line == line


def test_bad_utf8_is_named_with_its_line() -> None:
    """A document that is no UTF-8 is refused alone, at the line of the first wrong byte."""
    data = service("a").encode() + b"---\nkind: Service\nmetadata: {name: \xff}\n---\n"
    contents = read_text(data + service("c").encode(), "x.yaml")
    assert names(contents) == ["a", "c"]
    (refusal,) = [refusal for item in contents.items for refusal in item.refusals]
    assert "0xff" in refusal.message
    assert refusal.line == 10


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{\n "kind": "Service",\n "x": ]\n}', 3),
        ('{\n "kind": "Service",\n', 2),
        ("{}\n{}\nx", 0),
    ],
)
def test_json_faults(text: str, line: int) -> None:
    """Broken JSON in a .json file is a fault of JSON, with its line."""
    contents = read_text(text.encode(), "x.json")
    (item,) = contents.items
    assert contents.broken
    assert "JSON" in item.refusals[0].message
    assert item.refusals[0].line >= line


def test_line_in_json() -> None:
    """A broken field of a JSON object has its line too."""
    text = as_json("a").replace("80", "70000")
    (item,) = read_text(text.encode(), "x.json").items
    assert text.splitlines()[item.refusals[0].line - 1].strip() == '"port": 70000'


def test_line_in_a_list() -> None:
    """An item of a List has its own line."""
    body = "".join("- " + service(name).replace("\n", "\n  ").rstrip() + "\n" for name in "ab")
    text = "kind: List\nitems:\n" + body.replace("clusterIP: 10.96.0.1\n", "clusterIP: x\n", 1)
    (refusal,) = [
        refusal for item in read_text(text.encode(), "f").items for refusal in item.refusals
    ]
    assert text.splitlines()[refusal.line - 1].strip() == "clusterIP: x"


def test_one_notice_a_kind_and_file() -> None:
    """Skipped kinds are counted over all documents of a file."""
    text = "kind: Pod\n---\nkind: Pod\n---\nkind: Secret\n"
    notices = read_text(text.encode(), "x.yaml").notices
    assert [(notice.kind, notice.count, notice.file) for notice in notices] == [
        ("Pod", 2, "x.yaml"),
        ("Secret", 1, "x.yaml"),
    ]


@pytest.mark.parametrize(
    ("chunks", "pieces"),
    [
        (["a: 1\n", "---\n", "b: 2\n", "...\n"], [0, 1, 0, 1]),
        (["a: 1\n--", "-", " # x\n"], [0, 0, 1]),
        (["a: 1\n---x\n", "---"], [0, 0]),
        (["---\na: 1\n", "---\n---\n"], [0, 1]),
        (['{"a": ', "1}\n"], [0, 1]),
        (['{"a": 1}', '{"b": 1}\n{"c"', ": {}}"], [1, 0, 2]),
    ],
)
def test_a_document_is_complete_when_its_end_is_there(chunks: list[str], pieces: list[int]) -> None:
    """A stream's document is taken at its end line or closing brace, not before and not later."""
    splitter = Splitter()
    taken = [
        sum(len(_values(piece.data)) for piece in splitter.feed(chunk.encode())) for chunk in chunks
    ]
    assert taken == pieces


def _values(data: bytes) -> list[object]:
    return list(json_values(data)) if data.lstrip().startswith(b"{") else [data]


@given(
    st.lists(st.sampled_from(["a: 1\n", "---\n", "...\n", "# x\n", "--- b\n", "-", "\n"])),
    st.data(),
)
def test_chunks_do_not_matter(parts: list[str], data: st.DataObject) -> None:
    """However the bytes arrive, the documents and their lines are the same."""
    text = "".join(parts).encode()
    whole = Splitter().close(text)
    splitter, rest, pieces = Splitter(), text, []
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        pieces += splitter.feed(rest[:size])
        rest = rest[size:]
    assert pieces + splitter.close() == whole


@given(st.binary(max_size=200) | st.text("{}[]\"',:-\n .ka", max_size=60).map(str.encode))
def test_any_bytes_are_contents(data: bytes) -> None:
    """Whatever a file holds: values or refusals, never an exception."""
    for item in read_text(data, "x.yaml").items:
        assert item.objects or item.refusals or not item.refused


@pytest.mark.parametrize("name", ["f.json", "f.yaml"])
def test_deep_json_is_refused_alone(name: str) -> None:
    """Deeper than any reader goes: a refusal with its line, not the end of the process."""
    text = "\n" + "[" * 100_000 + "]" * 100_000 + "\n---\n" + service("a")
    contents = read_text(text.encode(), name)
    assert names(contents) == ["a"]
    (refusal,) = [refusal for item in contents.items for refusal in item.refusals]
    assert (refusal.file, refusal.line) == (name, 2)
    assert "nested too deeply" in refusal.message


def test_items_know_where_their_document_begins() -> None:
    """The first line with a word on it, in YAML and in JSON."""
    text = "# words\n\n" + service("a") + "---\n\n# more\n" + service("b")
    assert [item.line for item in read_text(text.encode(), "f").items] == [3, 13]
    values = as_json("a") + "\n\n" + as_json("b")
    lines = [item.line for item in read_text(values.encode(), "f").items]
    assert lines == [1, 3 + as_json("a").count("\n")]
