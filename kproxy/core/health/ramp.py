"""Slow start: how much of its share an endpoint gets so and so long after it came up. Pure.

Weights go up in few steps, because each is a change of rules in every mode.
"""

from __future__ import annotations

from kproxy.core.health.values import FULL_WEIGHT

#: Where an endpoint starts: enough to warm up and to show a fault, too little to hurt by it.
LEAST_WEIGHT = 5
MAX_STEPS = 10
#: Seconds. A ramp shorter than ten of these has fewer steps.
MIN_STEP = 0.5


def steps_of(slow_start: float) -> int:
    """How many times the weight goes up in that many seconds (more than 0)."""
    return max(1, min(MAX_STEPS, int(slow_start / MIN_STEP)))


def weight_after(elapsed: float, slow_start: float) -> int:
    """Weight (5 to 100) ``elapsed`` seconds after the endpoint came up; full from ``slow_start``
    on."""
    if slow_start <= 0 or elapsed >= slow_start:
        return FULL_WEIGHT
    steps = steps_of(slow_start)
    # A step that is due by the clock of its timer must not be missed by a rounding.
    done = min(steps, int(max(0.0, elapsed) * steps / slow_start + 1e-6))
    return max(LEAST_WEIGHT, FULL_WEIGHT * done // steps)


def next_step(elapsed: float, slow_start: float) -> float | None:
    """Seconds from now to the next step; None: there is none left."""
    if slow_start <= 0 or elapsed >= slow_start:
        return None
    steps = steps_of(slow_start)
    done = int(max(0.0, elapsed) * steps / slow_start + 1e-6)
    return (done + 1) * slow_start / steps - elapsed if done < steps else None
