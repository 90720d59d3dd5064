"""Tables that come with the project as YAML: lists of rows of one shape. Reads files."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec
import yaml

from kproxy.errors import ScenarioError
from kproxy.lab.scenario.basics import Strict

R = TypeVar("R", bound=Strict)


def project_file(name: str) -> Path:
    """A file of ``netns-lab/``."""
    return Path(__file__).parents[3] / "netns-lab" / name


def load(path: Path, kind: type[R]) -> tuple[R, ...]:
    """The rows of a file; ScenarioError names what is wrong with it."""
    try:
        found = yaml.load(path.read_bytes(), Loader=yaml.CSafeLoader)
        rows: list[R] = msgspec.convert(found, list[kind])  # type: ignore[valid-type]
    except (OSError, yaml.YAMLError, msgspec.ValidationError) as wrong:
        raise ScenarioError(str(wrong), where=str(path), hint="mend the table") from wrong
    return tuple(rows)
