"""Active checks: does an endpoint answer as it is asked to?

:class:`~kproxy.health.checks.checker.Checker` checks any number of targets again and again;
:func:`~kproxy.health.checks.probers.probe` makes one try of one. How a try is made is one module
for each kind: ``tcp``, ``udp``, ``http``, ``grpc``, ``execute``.
"""

from __future__ import annotations

from kproxy.health.checks.checker import Checker
from kproxy.health.checks.group import KindFigures
from kproxy.health.checks.outcome import Outcome
from kproxy.health.checks.probers import probe
from kproxy.health.checks.rounds import Figures

__all__ = ["Checker", "Figures", "KindFigures", "Outcome", "probe"]
