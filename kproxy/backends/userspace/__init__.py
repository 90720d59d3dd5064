"""Userspace mode: a relay that accepts what a flat set of iptables rules brings to its ports."""
