"""The workers of a device: how many passes run at once."""

from __future__ import annotations

import pytest
import torch

from service.compute import share_cores


@pytest.mark.parametrize(("cores", "device", "expected"), [
    (1, "cpu", (1, 1)), (2, "cpu", (2, 1)), (64, "cpu", (4, 16)), (16, "cuda", (1, 16)),
])  # fmt: skip
def test_the_cores_are_shared_among_a_few_workers(cores: int, device: str, expected: tuple[int, int]) -> None:
    assert share_cores(cores, torch.device(device)) == expected
