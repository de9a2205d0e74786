"""The workers of a device: how many passes run at once."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from service.compute import Compute, share_cores


@pytest.mark.parametrize(("cores", "device", "expected"), [
    (1, "cpu", (1, 1)), (2, "cpu", (2, 1)), (64, "cpu", (4, 16)), (16, "cuda", (1, 16)),
])  # fmt: skip
def test_the_cores_are_shared_among_a_few_workers(cores: int, device: str, expected: tuple[int, int]) -> None:
    assert share_cores(cores, torch.device(device)) == expected


def test_passes_run_side_by_side_only_where_that_gains_something() -> None:
    shared = threading.Lock()  # as a matrix unit is by two hardware threads

    def exclusive() -> None:
        with shared:
            time.sleep(0.01)

    apart, one_by_one = (Compute(torch.device("cpu"), cores=2) for _ in range(2))
    apart.settle(lambda: time.sleep(0.01))
    one_by_one.settle(exclusive)
    assert (apart.turns.at_once, one_by_one.turns.at_once) == (2, 1)
    apart.close()
    one_by_one.close()
