"""What is said on the way to a machine: every frame comes out as it went in."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.lab.uml import channel, init
from kproxy.lab.uml.channel import Decoder, Frame, Kind, Request

FRAMES = st.builds(
    Frame,
    st.sampled_from(Kind),
    st.integers(0, 2**32 - 1),
    st.integers(0, 255),
    st.binary(max_size=300),
)


@given(st.lists(FRAMES, max_size=6), st.integers(1, 40))
def test_pieces_of_any_size_give_the_same_frames(frames: list[Frame], size: int) -> None:
    """A reader never sees where the writer's pieces ended."""
    data = b"".join(frame.encode() for frame in frames)
    decoder = Decoder()
    pieces = (data[start : start + size] for start in range(0, len(data), size))
    assert [frame for piece in pieces for frame in decoder.feed(piece)] == frames


def test_what_is_no_frame_is_refused() -> None:
    """At once, not when as many bytes have come as a nonsense header speaks of."""
    with pytest.raises(ValueError, match="Kind"):
        list(Decoder().feed(b"\xff" * 64))


@pytest.mark.parametrize("status", [0, 1, 255, -9, -15])
def test_numbers_come_back(status: int) -> None:
    """Statuses keep their sign, sizes their order."""
    assert channel.ended(3, status).status == status
    assert channel.signalled(2).number == 2
    assert channel.credit(3, 1, 65536).number == 65536
    assert channel.sized(24, 80).size == (24, 80)


def test_a_request_keeps_names_that_are_no_text() -> None:
    """File names are bytes; what is a terminal is no pipe."""
    request = Request((b"cat", b"\xff\xfe"), ((b"A\xff", b"\x80"),), b"/\xff", 0o22, (0,), (1,))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=Request) == request
    assert request.outputs == (2,)


@pytest.mark.parametrize(
    ("directory", "shown"),
    [
        ("/etc/kproxy", True),
        ("/var/tmp", True),
        ("/mnt/data/labs", True),
        ("/etc", False),
        ("/usr/share/doc", False),
        ("/run/kproxy", False),
        ("/", False),
    ],
)
def test_which_folders_are_shown_on_demand(directory: str, shown: bool) -> None:
    """Not those that the machine needs as its own."""
    assert init.to_be_shown(Path(directory)) is shown


def test_which_folders_are_live() -> None:
    """People's, not the system's."""
    names = ["home", "usr", "work", "etc", "tmp", "proc", "run"]
    assert init.live_folders(names) == ("home", "tmp", "work")


def test_a_script_can_be_made_for_any_path() -> None:
    """Blanks and quotes are in people's folders, too."""
    odd = Path("/home/it's a lab")
    text = init.script(
        "x", live=["my files"], kept=Path("/k"), kept_on_host=odd, python="/p y/python"
    )
    assert "'my files'" in text
    assert "/mnt/host'/home/it'\"'\"'s a lab'" in text
    assert "exec '/p y/python'" in text
