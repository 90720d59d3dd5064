"""Structured logs to stderr: a message and fields, as ``key=value`` text or as JSON.

On top of the standard library's logging, so that libraries' messages come out in the same form::

    log = logs.get("daemon")
    log.info("synced", family=4, seconds=0.021)
    2025-01-31T12:00:00.123Z INFO daemon: synced family=4 seconds=0.021
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

_ROOT = "kproxy"

#: Verbosity (klog's -v) from which details are logged; below it, what an operator acts upon.
DETAILS = 2


class Log:
    """A logger whose messages carry fields; values may be anything that has a text."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(f"{_ROOT}.{name}")

    def detail(self, message: str, **fields: object) -> None:
        """Shown with ``-v 2``."""
        self._logger.debug(message, extra={"fields": fields})

    def info(self, message: str, **fields: object) -> None:
        self._logger.info(message, extra={"fields": fields})

    def warning(self, message: str, **fields: object) -> None:
        self._logger.warning(message, extra={"fields": fields})

    def error(self, message: str, **fields: object) -> None:
        self._logger.error(message, extra={"fields": fields})

    def fault(self, message: str, error: BaseException, **fields: object) -> None:
        """A fault of ours, with its traceback."""
        self._logger.error(message, exc_info=error, extra={"fields": fields})


def get(name: str) -> Log:
    """The logger of one part of the program."""
    return Log(name)


def setup(form: str = "text", verbosity: int = 0) -> None:
    """Send all logs to stderr in ``form`` (text or json). Calling it again replaces that."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_FORMATTERS[form]())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(_ROOT).setLevel(logging.DEBUG if verbosity >= DETAILS else logging.INFO)


class TextFormatter(logging.Formatter):
    """One line: time, level, part, message, fields."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={_quoted(value)}" for name, value in _fields(record).items())
        head = f"{_time(record)} {record.levelname} {_part(record)}"
        text = f"{head}: {record.getMessage()}{fields}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ts, level, logger, msg, and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "ts": _time(record),
            "level": record.levelname.lower(),
            "logger": _part(record),
            "msg": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


_FORMATTERS: dict[str, type[logging.Formatter]] = {"text": TextFormatter, "json": JsonFormatter}


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = getattr(record, "fields", None)
    return dict(fields) if isinstance(fields, dict) else {}


def _part(record: logging.LogRecord) -> str:
    return record.name.removeprefix(f"{_ROOT}.")


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def _quoted(value: object) -> str:
    """Bare when it cannot be misread, else a JSON string: a line break never splits an entry."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    plain = text and text.isprintable() and not any(letter in text for letter in ' "=')
    return text if plain else json.dumps(text, ensure_ascii=False)
