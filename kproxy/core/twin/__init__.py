"""The packet engine of fastpath mode, written to be read: the slow twin of ``_fastpath.Engine``.

Same tables and packets in, same codes and bytes out; the tests hold the two equal on every field
spoiled one at a time and on random flows. A reader who wants to know what the engine does to a
packet reads :mod:`~kproxy.core.twin.engine`; one who wants to know how fast reads the compiled one.

- :mod:`~kproxy.core.twin.values`: what goes in (services, node, settings) and what comes out
- :mod:`~kproxy.core.twin.states`: the states of a flow and how long each lasts, as tables
- :mod:`~kproxy.core.twin.parse`: what a packet is, from its bytes
- :mod:`~kproxy.core.twin.rewrite`, :mod:`~kproxy.core.twin.refuse`: new bytes from old ones
- :mod:`~kproxy.core.twin.flows`, :mod:`~kproxy.core.twin.memory`: what is remembered
- :mod:`~kproxy.core.twin.tables`: what is in force, and how a new flow would be treated
- :mod:`~kproxy.core.twin.choice`: which endpoint serves a new flow
- :mod:`~kproxy.core.twin.engine`, :mod:`~kproxy.core.twin.retry`: the decisions

No I/O here, no clock and no chance: the time is told, and chance is a hash under a seed.
"""
