"""The kernel's counters that rules of ours count with: kube-proxy's, by their names. Pure.

Where the kernel has such objects (``nfacct``), two rules say how often they were met, and a metric
reads it. Both families count with the same objects.
"""

from __future__ import annotations

#: Packets of endpoints that conntrack could not place, dropped when they were forwarded.
INVALID_DROPPED = "ct_state_invalid_dropped_pkts"

#: Connections to node ports on 127.0.0.0/8. Connections, because nat sees their first packet only.
LOCALHOST_ACCEPTED = "localhost_nps_accepted_pkts"

NAMES = (INVALID_DROPPED, LOCALHOST_ACCEPTED)
