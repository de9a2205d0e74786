"""The table of clients and calls names tests that are there."""

from __future__ import annotations

from pathlib import Path

import pytest
from matrix import MATRIX

HERE = Path(__file__).parent
CELLS = [(client, call, test) for client, calls in MATRIX.items() for call, test in calls.items()]


@pytest.mark.parametrize(("client", "call", "test"), CELLS)
def test_each_cell_is_a_test(client: str, call: str, test: str) -> None:
    file, name = test.split("::")
    source = (HERE / file).read_text()
    assert f"def {name}(" in source
    scripts = "".join(script.read_text() for script in HERE.glob("client_*.py"))
    assert call.split(" ")[0].rsplit(".", 1)[-1].split("(")[0] in source + scripts
