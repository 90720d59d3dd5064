"""Modes by their names, and what ``all`` stands for."""

from __future__ import annotations

import pytest

from kproxy.backends import registry
from kproxy.backends.registry import AUTO, Choice
from kproxy.config_check import MODES
from kproxy.errors import UsageError


def test_all_stands_for_every_mode() -> None:
    """In each variant that one chooses between."""
    assert {choice.mode for choice in registry.choices()} == set(MODES)
    variants = [str(choice) for choice in registry.choices()]
    assert len(variants) == len(set(variants))
    assert {"iptables-nft", "iptables-legacy", "nftables"} <= set(variants)


@pytest.mark.parametrize(
    ("mode", "variant", "chosen"),
    [
        ("nftables", AUTO, Choice("nftables")),
        ("iptables", AUTO, Choice("iptables", AUTO)),
        ("iptables", "legacy", Choice("iptables", "legacy")),
        ("userspace", "nft", Choice("userspace", "nft")),
    ],
)
def test_a_mode_and_a_variant(mode: str, variant: str, chosen: Choice) -> None:
    """What --proxy-mode and --iptables-variant mean together."""
    assert registry.named(mode, variant) == chosen


@pytest.mark.parametrize(
    ("mode", "variant", "hint"),
    [
        ("nftables", "nft", "leave --iptables-variant out"),
        ("fastpath", "legacy", "leave --iptables-variant out"),
        ("iptables", "best", "there are: nft, legacy"),
    ],
)
def test_a_variant_that_there_is_not(mode: str, variant: str, hint: str) -> None:
    """The hint says what to do."""
    with pytest.raises(UsageError, match=f"mode {mode} has no variant '{variant}'") as refused:
        registry.named(mode, variant)
    assert refused.value.hint == hint
