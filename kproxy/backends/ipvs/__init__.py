"""IPVS mode: virtual servers by netlink, ipsets, and a fixed set of iptables rules."""
