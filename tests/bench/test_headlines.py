"""What a measure is said to show."""

from __future__ import annotations

from kproxy.bench.headlines import Headline, hardest, headlines
from kproxy.bench.results import Section
from tests.bench.comparisons import MEASURES, make_row, make_section, make_uml_section


def _of(section: Section, title: str) -> str:
    return next(
        " ".join(each.sentences) for each in headlines(section) if each.title.startswith(title)
    )


def test_differences_are_said_with_their_interval_and_failures_without_speed() -> None:
    """Slower ones best first with ratio and interval; who failed with how many and no figure."""
    said = _of(make_section(), "Connect, request, response, close; 16 at once")
    assert said.startswith("direct: 5")
    slower = said[said.index("Slower than direct") :]
    assert slower.index("nft-dnat") < slower.index("iptables-nft") < slower.index("haproxy")
    assert "haproxy ×0.328" in said
    assert "No figure: nginx (failed: 84 of 12,000)." in said
    assert said.count("nginx") == 1


def test_no_difference_and_too_few_rounds_are_said() -> None:
    """Equals are not ranked; four rounds take no side."""
    even = make_section(
        rows=(make_row("rr", {"direct": 100.0, "direct again": 100.0, "nftables": 100.0}),)
    )
    assert "No difference from direct shown: nftables" in _of(even, "Requests on")
    assert "Too few rounds to say: " in _of(make_uml_section(), "Connect, request")
    assert "Slower" not in _of(make_uml_section(), "Connect, request")


def test_the_hardest_point_is_chosen() -> None:
    """The largest size to the last service; a size that only few have reached is not it."""
    section = make_section()
    row = hardest(section, MEASURES["first-packet"])
    assert row is not None
    assert (row.point.at, row.point.where) == (10_000, "last")
    alone = make_row("first-packet", {"direct": 1.0}, at=100_000, where="last")
    row = hardest(make_section(rows=(*section.rows, alone)), MEASURES["first-packet"])
    assert row is not None
    assert row.point.at == 10_000


def test_survival_is_said_by_event() -> None:
    """Who lost nothing in one sentence, each of the others with what it lost."""
    assert "Nothing lost: iptables-legacy, iptables-nft and nftables" not in _of(
        make_section(), "Restart"
    )
    said = _of(make_section(), "Restart")
    assert "Nothing lost: iptables-legacy, iptables-nft, nftables" in said
    assert "userspace: 2.0 % of new connections failed and 100 % of held ones broke" in said
    assert "longest silence 410 ms; slowest answered connection 620 ms." in said
    assert "Rules of both modes" not in said
    assert "Rules of both modes stood for 32 ms to 220 ms." in _of(make_section(), "Mode switch")


def test_nothing_measured_gives_no_headline() -> None:
    """A section without rows has none; one without a base says so."""
    assert headlines(make_section(rows=())) == []
    alone = make_section(rows=(make_row("cold-sync", {"nftables": 1.0}, at=100, base=""),))
    [headline] = headlines(alone)
    assert isinstance(headline, Headline)
    assert "compared with nobody: nftables" in headline.sentences[0]
