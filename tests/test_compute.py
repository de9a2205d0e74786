"""The engine of a replica: a process that holds the weights, and ends with what it was started for."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pytest

from model.forward import forward_rows
from model.manifest import BundleError
from model.tokens import Row
from service import remote
from service.compute import Compute
from service.engine import share_cores
from service.errors import EngineError
from service.remote import STOP_S

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from pathlib import Path

    from model.bundle import Bundle

Result = TypeVar("Result")
start_process = remote.start_engine  # before conftest.py puts it into threads


def test_a_model_loads_and_answers_without_the_compiler_of_torch() -> None:
    script = """
import sys, torch
from service.engine import load_bundle
from service.predictor import Predictor
from service.settings import SENTIMENT
for step in Predictor(load_bundle(SENTIMENT), torch.device("cpu"), "fp32").warm_up_steps(None): pass
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"  # it is a second of each start, and 90 MB


@pytest.mark.parametrize(("cores", "device", "expected"), [
    (1, "cpu", (1, 1)), (2, "cpu", (2, 1)), (64, "cpu", (4, 16)), (16, "cuda", (1, 16)),
])  # fmt: skip
def test_the_cores_are_shared_among_a_few_passes(cores: int, device: str, expected: tuple[int, int]) -> None:
    assert share_cores(cores, device, 4) == expected


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compute]:
    monkeypatch.setattr(remote, "start_engine", start_process)
    device = Compute("cpu", 2)
    yield device
    device.engine.close()
    assert process_of(device).returncode is not None


def run(device: Compute, work: Coroutine[None, None, Result]) -> Result:
    """Its result, on an event loop that the device is closed with."""

    async def then_close() -> Result:
        try:
            return await asyncio.wait_for(work, 20)
        finally:
            device.engine.close()

    return asyncio.run(then_close())


def process_of(device: Compute) -> subprocess.Popen[bytes]:
    assert device.engine._process is not None
    return device.engine._process


def test_a_process_of_its_own_computes_what_the_bundle_does(
    device: Compute, bundle_folder: Path, bundle: Bundle
) -> None:
    model = device.load(bundle_folder, "fp32")
    rows = model.bundle.tokenizer.encode(["a lovely film", "the dull town", ("two", "texts")], 64)
    logits, tokens = run(device, device.run(model, rows))
    np.testing.assert_allclose(logits, forward_rows(bundle.classifier, rows), atol=1e-5)
    assert tokens >= sum(row.tokens for row in rows)
    assert model.bundle.labels == bundle.labels
    assert model.bundle.calibration == bundle.calibration


def test_what_the_engine_refuses_and_where_it_fails_is_said(
    device: Compute, bundle_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=r"no config.json in the folder"):
        device.load(tmp_path, "fp32")
    with pytest.raises(BundleError, match="precision fp16 is for GPUs"):
        device.load(bundle_folder, "fp16")
    with pytest.raises(BundleError, match="files of the bundle were changed"):
        device.load(bundle_folder, "fp32", version="another")
    model = device.load(bundle_folder, "fp32")
    with pytest.raises(EngineError, match=r"IndexError at .*\.py:\d+"):
        run(device, device.run(model, [Row([10**9])]))


def test_a_device_that_is_not_there_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "start_engine", start_process)
    with pytest.raises(ValueError, match="device is not one of auto, cpu, cuda, cuda:N: tpu"):
        Compute("tpu", 2)


def test_passes_of_an_engine_that_was_killed_fail_at_once(device: Compute, bundle_folder: Path) -> None:
    model = device.load(bundle_folder, "fp32")

    async def passes() -> None:
        await device.run(model, [model.known_row])
        assert not device.engine.is_lost
        os.kill(process_of(device).pid, signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(EngineError, match="the engine has ended"):
                await device.run(model, [model.known_row])
        assert device.engine.is_lost

    run(device, passes())


def test_an_engine_ends_with_a_replica_that_was_killed(bundle_folder: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from service.compute import Compute; device = Compute('cpu', 1);"
        "print(device.engine._process.pid, flush=True); device.load(Path(sys.argv[1]), 'fp32'); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(bundle_folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as replica:
        assert replica.stdout is not None
        engine = int(replica.stdout.readline())
        replica.kill()
    end = time.monotonic() + 20
    while time.monotonic() < end and is_running(engine):
        time.sleep(0.05)
    assert not is_running(engine)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_engine_that_ends_while_nothing_is_asked_is_noticed(device: Compute) -> None:
    async def idle() -> None:
        await device.engine.connect()
        os.kill(process_of(device).pid, signal.SIGKILL)
        while not device.engine.is_lost:  # noqa: ASYNC110 (that it is noticed is the event)
            await asyncio.sleep(0.01)

    run(device, idle())


def test_an_engine_that_hangs_in_a_load_ends_with_its_replica_all_the_same(device: Compute, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")  # nobody ever writes

    def load() -> None:
        with pytest.raises(EngineError):
            device.load(tmp_path, "fp32")

    loading = threading.Thread(target=load)
    loading.start()
    time.sleep(0.5)
    started = time.monotonic()
    device.engine.close()
    loading.join()
    assert time.monotonic() - started < STOP_S
