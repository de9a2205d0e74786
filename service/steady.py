"""The clock of Serve's controller: one that is never set back.

Ray tells by the time of day how long ago it looked at replicas and at HAProxy. Where that is set back by an hour, it
would look at none of them for an hour, and start none again that died. Ray calls this in the controller's process,
where RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH names it (service/launch.py, deploy/). It rests on names of Ray 2.60,
which tests/test_steady.py holds.
"""

from __future__ import annotations

import time
from types import SimpleNamespace

from ray._common.utils import Timer
from ray.serve._private import deployment_state


def measure_by_a_steady_clock() -> None:
    """From now on the controller does, for replicas and proxies: by the time of day, or what it was and has gone by."""
    ahead = time.time() - time.monotonic()

    def steady() -> float:
        nonlocal ahead
        ahead = max(ahead, time.time() - time.monotonic())
        return ahead + time.monotonic()

    deployment_state.time = SimpleNamespace(time=steady)  # all that it takes of `time`
    Timer.time = lambda _: steady()
