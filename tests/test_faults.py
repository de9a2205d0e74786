"""Parts of the service are killed, stopped, filled and spoiled under load (benchmarks/faults.py): what clients see."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from breaking import Service
from faults import FAULTS, watch

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

RATE, SECONDS = 20, 8
LOST = {  # outcomes that a fault may cost, and of how many requests: on a busy machine some seconds' worth
    "a replica is killed": ({"connection lost", "503"}, 5),  # an answer of which some has been sent
    "a replica's engine is killed": ({"failed text"}, RATE),
    "HAProxy is killed": ({"connection lost", "503"}, RATE * 10),
    "a replica's passes hang": ({"connection lost", "503", "504"}, 40),
    "the raylet of a second node is killed": ({"connection lost", "503"}, RATE * 2),
}
WHOLE_S = {  # else 15, three times what the README says of a replica that is killed
    "a replica's passes hang": 110,
    "the registry reads 2 MB/s": 90,
    "the raylet of a second node is killed": 60,
}


SILENT_S = {"HAProxy is killed": 10, "the registry reads 2 MB/s": 10}  # in which nobody is answered, else 5


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    started = Service(tmp_path_factory.mktemp("faults"))
    yield started
    started.stop()


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_breaks_no_answer_is_wrong_none_is_lost_that_need_not_be_and_the_service_comes_back(
    service: Service, fault: str
) -> None:
    if fault == "the registry reads 2 MB/s" and not (shutil.which("bindfs") and Path("/dev/fuse").exists()):
        pytest.skip("a slow disk is bindfs on /dev/fuse: install the package bindfs, where the kernel has FUSE")
    seen = asyncio.run(watch(service, FAULTS[fault], RATE, SECONDS))
    others = seen.counts()
    answered = others.pop("200")
    allowed, most = LOST.get(fault, (set[str](), 0))
    assert set(others) <= allowed, others
    assert others.total() <= most, others
    assert answered + others.total() == len(seen.rows)
    assert seen.silence_s() < SILENT_S.get(fault, 5)
    assert seen.whole_s is not None
    assert seen.whole_s < WHOLE_S.get(fault, 15)
