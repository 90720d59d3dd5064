"""The garbage collector while it is held off."""

from __future__ import annotations

import gc
import threading

import pytest

from kproxy.collector import held_off


def test_it_comes_back_with_the_last_one() -> None:
    """Nested, from two threads, and after an error."""
    inside, go_on = threading.Event(), threading.Event()

    def other() -> None:
        with held_off():
            inside.set()
            go_on.wait(60)

    def fails() -> None:
        with held_off():
            raise ValueError("gone")

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(60)
    with pytest.raises(ValueError, match="gone"):
        fails()
    assert not gc.isenabled()
    go_on.set()
    thread.join()
    assert gc.isenabled()


def test_one_that_was_off_stays_off() -> None:
    """Somebody else's choice."""
    gc.disable()
    try:
        with held_off():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
