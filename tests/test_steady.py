"""What service/steady.py takes from Ray is still there. What comes back after the clock was set: test_faults.py."""

from __future__ import annotations

import inspect
import re
import time

import pytest
from ray._common.utils import Timer
from ray.serve._private import deployment_state, proxy_state

from service.steady import measure_by_a_steady_clock


def test_the_installed_ray_measures_by_what_is_replaced() -> None:
    assert set(re.findall(r"\btime\.(\w+)", inspect.getsource(deployment_state))) == {"time"}
    assert "self._timer.time() - self._last_health_check_time" in inspect.getsource(proxy_state)
    assert proxy_state.Timer is Timer


def test_replicas_and_proxies_are_timed_by_a_clock_that_never_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment_state, "time", time)
    monkeypatch.setattr(Timer, "time", Timer.time)
    measure_by_a_steady_clock()
    right = time.time
    for off, expected in ((0, 0), (-3600, 0), (7200, 7200), (0, 7200)):
        monkeypatch.setattr(time, "time", lambda off=off: right() + off)
        assert deployment_state.time.time() == pytest.approx(right() + expected, abs=30)
        assert Timer().time() == pytest.approx(right() + expected, abs=30)
