"""The two kernel parts that the iptables tools can speak to. Pure."""

from __future__ import annotations

from enum import StrEnum


class Variant(StrEnum):
    """Which kernel part the tools speak to: ip_tables, or nf_tables in iptables' clothes."""

    LEGACY = "legacy"
    NFT = "nft"
