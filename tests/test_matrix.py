"""The table of clients and calls names tests that are there."""

from __future__ import annotations

from pathlib import Path

import pytest
from matrix import MATRIX

CELLS = [(client, call, test) for client, calls in MATRIX.items() for call, test in calls.items()]


@pytest.mark.parametrize(("client", "call", "test"), CELLS)
def test_each_cell_is_a_test(client: str, call: str, test: str) -> None:
    file, name = test.split("::")
    source = (Path(__file__).parent / file).read_text()
    assert f"def {name}(" in source
