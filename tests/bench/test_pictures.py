"""The pictures: what is in them, and that they can be told apart."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from msgspec.structs import replace

from kproxy.bench import pictures, words
from kproxy.bench.ours import MODES
from kproxy.bench.pictures import bars, costs, curves, lines, services, style, survival
from kproxy.bench.results import Section
from kproxy.bench.subjects import COMPARED
from kproxy.errors import MachineError
from tests.bench.comparisons import make_results, make_row, make_section

_DRAW = {
    "bars": bars.draw,
    "costs": costs.draw,
    "curves": curves.draw,
    "places": services.places,
    "programming": services.programming,
    "survival": survival.draw,
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pictures of a full comparison."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = pictures.write(make_results(), folder)
    assert [path.name for path in paths] == [each.file for each in pictures.planned(make_results())]
    return folder


def _canvas(name: str, section: Section) -> style.Canvas:
    """One picture, drawn and not saved."""
    picture = next(
        each for each in pictures.planned(make_results(section)) if each.chart.name == name
    )
    with style.Canvas(picture.title, picture.subtitle) as canvas:
        _DRAW[picture.chart.shape](canvas, picture)
    return canvas


def _texts(canvas: style.Canvas) -> list[str]:
    return [each.get_text() for each in canvas.figure.findobj(Text)] + canvas.notes


def test_all_are_slides_and_none_is_blank(drawn: Path) -> None:
    """1,920 x 1,080, with ink in every quarter; user-mode Linux has its own."""
    files = sorted(path.name for path in drawn.iterdir())
    assert "first-packet.png" in files
    assert "uml-first-packet.png" in files
    for file in files:
        picture = imread(drawn / file)[:, :, :3]
        assert picture.shape[:2] == (1080, 1920), file
        ink = (picture < 0.95).any(axis=2)
        for rows in (slice(0, 540), slice(540, 1080)):
            for columns in (slice(0, 960), slice(960, 1920)):
                assert ink[rows, columns].mean() > 0.003, file
        assert ink.mean() < 0.5, file


def test_every_mode_has_its_colour_in_the_picture(drawn: Path) -> None:
    """Of those that were measured; ipvs was not."""
    picture = np.rint(imread(drawn / "first-packet.png")[:, :, :3] * 255)
    for name in MODES:
        colour = np.rint(np.array(to_rgb(style.look(name).colour)) * 255)
        pixels = (np.abs(picture - colour) <= 6).all(axis=2).sum()
        assert (pixels > 500) == (name != "ipvs"), name


def test_a_failed_subject_is_called_failed_and_has_no_bar() -> None:
    """nginx loses requests: words stand where its bar would be, and there is no bar of its colour
    in that panel."""
    canvas = _canvas("requests", make_section())
    assert "✕ failed: 84 of 12,000" in _texts(canvas)
    panels = [
        axes for axes in canvas.figure.axes if axes.get_title(loc="left") == words.SHORT["crr"]
    ]
    colours = {
        tuple(np.round(each.get_facecolor()[:3], 3))
        for each in panels[0].findobj(Rectangle)
        if each is not panels[0].patch
    }
    assert tuple(np.round(to_rgb(style.look("nginx").colour), 3)) not in colours
    assert tuple(np.round(to_rgb(style.look("haproxy").colour), 3)) in colours


def test_who_is_absent_is_said_to_be() -> None:
    """haproxy relays no datagrams; ipvs is not there at all."""
    texts = _texts(_canvas("requests", make_section()))
    assert texts.count("not measured") == 4
    assert "ipvs" in texts


def test_a_failed_point_breaks_the_line() -> None:
    """A cross and words at the point, no figure at it, and no line across it."""
    rows = tuple(
        make_row(
            "cold-sync",
            {"nftables": 0.1 * size},
            at=size,
            base="",
            failing={"nftables": (1, 100)} if size == 1000 else {},
        )
        for size in (100, 1000, 10_000)
    )
    canvas = _canvas("programming", make_section(rows=rows))
    assert any("nftables failed: 12 of 1,200 at 1,000 services" in each for each in _texts(canvas))
    [axes] = canvas.figure.axes
    drawn = [line for line in axes.get_lines() if line.get_color() == style.look("nftables").colour]
    assert [list(line.get_xdata()) for line in drawn] == [[100], [10_000], [1000]]
    assert drawn[-1].get_marker() == "x"


def test_failed_latencies_are_not_drawn() -> None:
    """Who fails has no curve; it is named below."""
    section = make_section()
    rows = tuple(
        make_row(
            "crr-p50",
            {"direct": 1e-5, "nginx": 2e-5},
            failing={"nginx": (3, 10)},
        )
        if row.point.measure == "crr-p50"
        else row
        for row in section.rows
    )
    full = next(row for row in section.rows if row.point.measure == "crr-p50")
    rows = tuple(
        replace(row, distributions={name: full.distributions[name] for name in ("direct", "nginx")})
        if row.point.measure == "crr-p50"
        else row
        for row in rows
    )
    texts = _texts(_canvas("short-connections", make_section(rows=rows)))
    assert any("Not drawn" in each and "nginx (failed: 36 of 120)" in each for each in texts)
    assert not any(each.startswith("nginx\n") for each in texts)
    assert any(each.startswith("direct\n") for each in texts)


def test_survival_says_what_was_lost() -> None:
    """The share of all rounds, beside the longest silence."""
    texts = _texts(_canvas("survival", make_section()))
    assert "2 % failed, 100 % broke" in texts
    assert "nothing lost" in texts


def test_survival_draws_the_slowest_as_far_as_it_took() -> None:
    """A line beyond the bar, and room for it."""
    canvas = _canvas("survival", make_section())
    (axes, *_) = canvas.figure.axes
    ends = [
        path.vertices[1][0]
        for lines in axes.collections
        for path in lines.get_paths()  # those across have one end at the same place
        if path.vertices[0][0] != path.vertices[1][0]
    ]
    assert max(ends) == pytest.approx(0.6, rel=0.1)
    assert axes.get_xlim()[1] > max(ends)


@pytest.mark.parametrize(
    ("rounds", "said"),
    [(1, "there was one round"), (4, "of 4 rounds"), (11, "99.9 % interval")],
)
def test_pictures_say_how_sure_they_are(rounds: int, said: str) -> None:
    """What bands are depends on the rounds, and stands below."""
    for name in ("requests", "first-packet", "programming"):
        assert any(said in each for each in _canvas(name, make_section(rounds=rounds)).notes)


def test_titles_say_kernel_and_what_is_better() -> None:
    """And how many rounds; the picture of user-mode Linux begins with it."""
    for picture in pictures.planned(make_results()):
        assert picture.title.endswith("is better")
        assert "round" in picture.subtitle
        uml = picture.section.name == "uml"
        assert picture.file.startswith("uml-") == uml
        assert picture.title.startswith("User-mode Linux 6.1.0: ") == uml
        assert words.kernel_name(picture.section) in picture.subtitle


def test_the_same_figures_give_the_same_picture(drawn: Path, tmp_path: Path) -> None:
    """Byte by byte: a report that is made again is no change in a repository."""
    section = make_section()
    only = make_section(
        rows=tuple(row for row in section.rows if row.point.measure.startswith("stream"))
    )
    path, *_ = pictures.write(make_results(only), tmp_path)
    assert path.read_bytes() == (drawn / "throughput.png").read_bytes()


def test_matplotlib_is_needed_for_pictures_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planning them loads nothing of it; where it is missing that is said, with what to do."""
    code = (
        "import sys, kproxy.bench.pictures, kproxy.bench.html; print('matplotlib' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == "False"
    pictures.require()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MachineError, match="netns-lab/up"):
        pictures.require()


# --- looks --------------------------------------------------------------------------------------

#: Linear RGB as it is seen without one kind of cones (Machado, Oliveira, Fernandes 2009).
_SEEN = {
    "all": np.eye(3),
    "no red": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "no green": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "no blue": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}


def _lab(colour: str, seen: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of a colour as somebody sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(seen @ linear, 0, 1)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = to_xyz @ linear / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eyes", list(_SEEN))
def test_modes_can_be_told_apart_by_everybody(eyes: str) -> None:
    """Any two modes' colours differ by 10 and more (CIE 1976), 2.3 being what can just be seen."""
    for one, other in combinations(MODES, 2):
        apart = np.linalg.norm(
            _lab(style.look(one).colour, _SEEN[eyes]) - _lab(style.look(other).colour, _SEEN[eyes])
        )
        assert apart > 10, (one, other, eyes)


def test_everybody_has_a_look_of_their_own() -> None:
    """Colour and mark of all who are compared; a stranger gets one as well."""
    assert set(COMPARED) <= set(style.LOOKS)
    assert len({each.colour for each in style.LOOKS.values()}) == len(style.LOOKS)
    marks = [each.marker for each in style.LOOKS.values() if each.kind != "floor"]
    assert len(set(marks)) == len(marks)
    assert style.look("somebody's own").kind == "peer"


def test_names_of_strangers_are_cut_and_are_no_mathematics() -> None:
    """A user's peer may be called anything; ours are written whole."""
    evil = "$\\frac{1}{0}$ & a very long name"
    canvas = _canvas(
        "requests", make_section(rows=(make_row("crr", {"direct": 100.0, evil: 90.0}),))
    )
    canvas.figure.canvas.draw()
    assert "$\\frac{1}{0}$ &…" in _texts(canvas)
    assert all(style.label(name) == name for name in COMPARED)


@given(
    st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=14),
    st.floats(0.01, 0.2),
)
def test_labels_make_way(wanted: list[float], gap: float) -> None:
    """Within bounds, in the same order, as far apart as asked when there is room; one that has room
    stays where it wants to be."""
    placed = style.apart(wanted, gap, 0.0, 1.0)
    room = min(gap, 1.0 / max(len(wanted) - 1, 1))
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    for before, after in pairwise(order):
        assert placed[after] - placed[before] >= room * (1 - 1e-5)
    assert all(-1e-9 <= each <= 1 + 1e-9 for each in placed)
    if len(wanted) == 1 and 0 <= wanted[0] <= 1:
        assert placed == wanted


def test_labels_that_have_room_stay() -> None:
    """Only those that overlap move, and evenly."""
    assert style.apart([0.1, 0.5, 0.52, 0.9], 0.1, 0, 1) == pytest.approx([0.1, 0.46, 0.56, 0.9])
    assert style.apart([], 0.1, 0, 1) == []


def test_lines_leave_the_second_floor_out() -> None:
    """Direct routing twice would be a line over a line."""
    section = make_section()
    rows = [row for row in section.rows if row.point.measure == "first-packet"]
    assert "direct again" not in lines.lines_of(rows, section)
    assert "direct" in lines.lines_of(rows, section)
