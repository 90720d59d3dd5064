"""nftables mode: one table for each family, a constant set of rules; all else is elements."""
