"""The comparison: every mode and its peers, measured side by side by one harness.

In the order in which a figure comes about::

    load ─► agent ─► path ─► measure ─► rounds ─► report
    (what a  (who    (three   (one load   (who is    (what is said
     client   does    name-    against     measured   of it, where
     does)    it)     spaces)  a subject)  when)      it is kept)

Who is measured: :mod:`~kproxy.bench.ours` (kproxy's modes), :mod:`~kproxy.bench.peers` (others).
The figures of single parts have suites of their own, in the tree's ``bench/``.
"""
