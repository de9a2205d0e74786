"""How many replicas are wanted, from what each says that it has to do.

Pure: no Ray, no torch. Ray's controller calls Policy with what Replica.record_autoscaling_stats (service/app.py)
reports each second; it cannot count requests itself, which reach the replicas past it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

SAMPLES_EVERY_S = 1.0
MEAN_OVER_S = 3.0  # of the samples
UP_AFTER_S = 2.0  # that more replicas must have been wanted
CALM = 0.2  # of the wait that adds a replica; above it none is taken away
CALM_BUSY = 0.6  # of the time of those that stay


@dataclass(frozen=True)
class Load:
    """What one replica has to do."""

    busy: float  # share of the last moments that its device computed, 0 to 1
    wait_s: float  # of a text that arrives now, predicted


def wanted_replicas(loads: Sequence[Load], up_wait_s: float) -> int:
    """Replicas to have, given the loads of those that answer.

    More, at most twice as many, where a text waits for over up_wait_s wherever it goes: what one busy replica still
    has to do, another cannot take over. A device that is always busy is no reason, since its passes grow before
    anyone waits. Fewer where no one waits and those that stay would be busy for up to CALM_BUSY of the time.
    """
    least, most = min(load.wait_s for load in loads), max(load.wait_s for load in loads)
    if least > up_wait_s:
        return math.ceil(len(loads) * min(2.0, least / up_wait_s))
    if most > CALM * up_wait_s:
        return len(loads)
    return max(1, min(len(loads), math.ceil(sum(load.busy for load in loads) / CALM_BUSY)))


class Policy:
    """What Ray asks, ten times a second. It keeps to its own limits, and waits before it obeys."""

    def __init__(self, up_wait_s: float) -> None:
        self.up_wait_s = up_wait_s

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Replicas wanted; as many as now while some start, stop or have not reported yet."""
        reported = context.aggregated_metrics or {}
        waits = reported.get("wait_s", {})
        loads = [Load(busy, waits[replica]) for replica, busy in reported.get("busy", {}).items()]
        if not loads or len(loads) != context.target_num_replicas:
            return context.target_num_replicas, {}
        return wanted_replicas(loads, self.up_wait_s), {}
