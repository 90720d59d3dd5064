"""YAML as Kubernetes' own reader takes it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kproxy.sources.yaml_reader import lines_of, parse, where_and_why


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("80", 80),
        ("-80", -80),
        ("+80", 80),
        ("1_000", 1000),
        ("0x1F", 31),
        ("0b101", 5),
        ("0o17", 15),
        ("017", 15),
        ("08", 8),
        ("0", 0),
        ("80.0", 80),
        ("1e3", 1000),
        ("1.5", 1.5),
        (".5", 0.5),
        ("12:30", "12:30"),
        ("12:30:45", "12:30:45"),
        ("2026-01-31", "2026-01-31"),
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00Z"),
        ("10.0.0.1", "10.0.0.1"),
        ("010.0.0.1", "010.0.0.1"),
        ("1.2.3", "1.2.3"),
        ("0x", "0x"),
        ("yes", True),
        ("y", True),
        ("On", True),
        ("TRUE", True),
        ("no", False),
        ("n", False),
        ("off", False),
        ("False", False),
        ("yES", "yES"),
        ("'yes'", "yes"),
        ('"80"', "80"),
        ("~", None),
        ("null", None),
        ("", None),
        ("Null", None),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("!!str 80", "80"),
        ("!!str yes", "yes"),
        ("!!int '80'", 80),
        ("!!bool on", True),
        ("!!null ~", None),
    ],
)
def test_scalars(text: str, value: object) -> None:
    """Plain scalars have the type that go-yaml v2 gives them; quoted ones are text."""
    (found,) = parse(f"[{text}]".encode()) if text else [parse(b"a:")["a"]]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1\nb: [x, {c: d}]\n", {"a": 1, "b": ["x", {"c": "d"}]}),
        ("80: a\ntrue: b\n1.5: c\n", {"80": "a", "true": "b", "1.5": "c"}),
        ("a: &x {k: 1}\nb: *x\n", {"a": {"k": 1}, "b": {"k": 1}}),
        ("a: &x {k: 1, l: 2}\nb: {<<: *x, k: 3}\n", {"a": {"k": 1, "l": 2}, "b": {"k": 3, "l": 2}}),
        ("x: {<<: [{a: 1}, {a: 2, b: 2}]}", {"x": {"a": 1, "b": 2}}),
        ("a: |\n  x\n  y\n", {"a": "x\ny\n"}),
        ("a: &x 80\nb: *x\n*x : c\n", {"a": 80, "b": 80, "80": "c"}),
        ("", None),
        ("# nothing\n", None),
        ("--- 5\n", 5),
        ("a: [[[]], {}]", {"a": [[[]], {}]}),
    ],
)
def test_documents(text: str, value: Any) -> None:
    """Collections, anchors, merges and keys that are no text."""
    assert parse(text.encode()) == value


_BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{here}: &{here} [{', '.join([f'*{there}'] * 10)}]\n"
    for there, here in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 2, "there twice"),
        ("a:\n  yes: 1\n  on: 2\n", 2, "there twice"),
        ("a: 1\n b: 2\n", 1, "mapping values are not allowed"),
        ("a: 'x\n", 1, "end of stream"),
        ("a: \x00\n", -1, "control characters"),
        ("a: &x [*x]\n", 0, "refers to itself"),
        ("a: *x\n", 0, "refers to itself or to nothing"),
        ("a: !mine 5\n", 0, "!mine"),
        ("a: !mine {}\n", 0, "!mine"),
        ("a: !!int x\n", 0, "unfit"),
        ("a: !!binary aGk=\n", 0, "binary"),
        ("~: 1\n", 0, "cannot be a key"),
        ("? [a]\n: 1\n", 0, "cannot be a key"),
        ("a: {<<: 5}\n", 0, "merge a mapping"),
        ("\ta: 1\n", 0, "cannot start any token"),
        ("[" * 100_000, 0, "nested deeper"),
        ("{a: " * 5_000, 0, "nested deeper"),
        ("- " * 5_000, 0, "nested deeper"),
        (_BOMB, 5, "aliases stand for more"),
    ],
)
def test_faults(text: str, line: int, words: str) -> None:
    """A fault has its line and says what is wrong; nothing crashes or eats the memory."""
    with pytest.raises(yaml.YAMLError) as caught:
        parse(text.encode())
    found, why = where_and_why(caught.value)
    assert words in why
    assert "\n" not in why
    assert found == line


def test_lines() -> None:
    """Every path has the line on which it is written, through lists and nested mappings."""
    text = b"kind: X\nspec:\n  ports:\n  - port: 1\n  - name: b\n    port: 2\n  ips: [a,\n    b]\n"
    lines = lines_of(text)
    assert {path: lines[path] for path in lines if path} == {
        "kind": 0,
        "spec": 1,
        "spec.ports": 2,
        "spec.ports[0]": 3,
        "spec.ports[0].port": 3,
        "spec.ports[1]": 4,
        "spec.ports[1].name": 4,
        "spec.ports[1].port": 5,
        "spec.ips": 6,
        "spec.ips[0]": 6,
        "spec.ips[1]": 7,
    }


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(_PLAIN)
def test_reads_back_what_a_writer_wrote(value: Any) -> None:
    """Everything that PyYAML writes out of plain values is read back the same."""
    text = yaml.dump(value, Dumper=_Quoting, encoding="utf-8")
    assert parse(text) == value


class _Quoting(yaml.CSafeDumper):
    """PyYAML leaves ``y`` and ``0o17`` plain, which it reads as text and Kubernetes does not."""


_Quoting.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


@given(st.binary(max_size=60) | st.text("ab:-{}[]&*!|>'\"#%, \n\t012~<?", max_size=40))
def test_any_bytes_parse_or_fail_by_name(data: bytes | str) -> None:
    """Whatever the bytes: a value or a YAML error, nothing else."""
    raw = data if isinstance(data, bytes) else data.encode()
    fault = None
    try:
        parse(raw)
    except yaml.YAMLError as caught:
        fault = caught
    assert fault is None or where_and_why(fault)[1]
