"""What service/steady.py takes from Ray is still there. That nothing hangs on the time of day: test_faults.py."""

from __future__ import annotations

import inspect
import re
import time
from typing import TYPE_CHECKING

from ray._common.utils import Timer
from ray.serve._private import deployment_state, proxy_state

from service.steady import measure_by_a_steady_clock

if TYPE_CHECKING:
    import pytest


def test_the_installed_ray_measures_by_what_is_replaced() -> None:
    assert set(re.findall(r"\btime\.(\w+)", inspect.getsource(deployment_state))) == {"time"}
    assert "self._timer.time() - self._last_health_check_time" in inspect.getsource(proxy_state)
    assert proxy_state.Timer is Timer


def test_replicas_and_proxies_are_not_timed_by_the_time_of_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment_state, "time", time)
    monkeypatch.setattr(Timer, "time", Timer.time)
    measure_by_a_steady_clock()
    before, now = time.time(), time.time
    monkeypatch.setattr(time, "time", lambda: now() - 3600)
    assert before <= deployment_state.time.time() < before + 60
    assert before <= Timer().time() < before + 60
