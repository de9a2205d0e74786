"""What replicas count adds up across processes that come and go."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from service.exporter import exposition
from service.launch import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

REPLICA = """
import sys
from service import metrics
from service.exporter import Exporter
if len(sys.argv) > 1:
    Exporter("127.0.0.1", int(sys.argv[1]))
metrics.QUEUE_TEXTS.set(7)
for line in sys.stdin:
    metrics.TEXTS.labels("mood", "1").inc(int(line))
    metrics.FORWARD_SECONDS.observe(0.003)
    print("counted", flush=True)
"""


class Replica:
    """A process that counts texts and waits for more."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", REPLICA, *arguments],
            env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def count(self, texts: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(texts, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "counted\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    return tmp_path


def value(name: str, text: bytes | None = None) -> float:
    """Sum of a metric's samples in an exposition."""
    lines = re.findall(rf"(?m)^{name}(?:\{{.*\}})? (\S+)$", (text or exposition()).decode())
    return sum(map(float, lines))


def test_counts_of_the_dead_stay_and_their_gauges_go_and_files_do_not_pile_up(folder: Path) -> None:
    files = []
    for generation in range(1, 4):
        two = [Replica(folder), Replica(folder)]
        for replica in two:
            replica.count(5)
        assert value("heed_queue_texts") == 14
        assert value("heed_texts_total") == 10 * generation
        for replica in two:
            replica.kill()
        assert value("heed_queue_texts") == 0
        assert value("heed_texts_total") == 10 * generation
        assert value("heed_forward_seconds_count") == 2 * generation
        assert value('heed_forward_seconds_bucket{le="0.005"}') == 2 * generation
        files.append(len(list(folder.iterdir())))
    assert files == [3, 3, 3]  # counters and histograms of the dead, and the lock


def test_scrapes_at_the_same_time_see_every_count_once_while_processes_die(folder: Path) -> None:
    replicas = [Replica(folder) for _ in range(4)]
    for replica in replicas:
        replica.count(1000)

    def scrape(_: int) -> list[float]:
        return [value("heed_texts_total") for _ in range(15)]

    with ThreadPoolExecutor(4) as scrapers:
        seen = scrapers.map(scrape, range(4))
        for replica in replicas:
            replica.kill()
        assert {count for counts in seen for count in counts} == {4000}


@pytest.mark.parametrize("steps", range(5))
def test_a_scrape_that_is_killed_between_two_steps_loses_no_count_and_counts_none_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    for so_far in (5, 10):
        replica = Replica(folder)
        replica.count(5)
        assert value("heed_texts_total") == so_far  # and those that were dead are absorbed
        replica.kill()
    left = iter([True] * steps)

    def until_killed(change: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **options: object) -> object:
            if next(left, False):
                return change(*arguments, **options)
            raise KeyboardInterrupt

        return step

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink"):
            patch.setattr(Path, name, until_killed(getattr(Path, name)))
        with pytest.raises(KeyboardInterrupt):
            exposition()
    assert value("heed_texts_total") == 10
    assert value("heed_forward_seconds_count") == 2
    assert len(list(folder.iterdir())) == 3


def test_a_process_that_died_before_it_counted_anything_harms_no_scrape(folder: Path) -> None:
    (folder / "counter_999999999.db").touch()
    assert exposition() == b""


def test_a_thread_that_has_the_number_of_a_dead_process_keeps_no_gauge_of_it(folder: Path) -> None:
    """As after a restart of a container, whose numbers begin anew."""
    replica, ends = Replica(folder), threading.Event()
    replica.count(1)
    replica.kill()
    thread = threading.Thread(target=ends.wait)
    thread.start()
    left = folder / f"gauge_livesum_{replica.process.pid}.db"
    assert left.exists()
    left.rename(folder / f"gauge_livesum_{thread.native_id}.db")
    assert value("heed_queue_texts") == 0
    ends.set()
    thread.join()


def test_replicas_of_a_node_share_a_port_that_outlives_each_of_them(folder: Path) -> None:
    port = free_port()
    two = [Replica(folder, str(port)), Replica(folder, str(port))]
    for replica in two:
        replica.count(1)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            assert value("heed_texts_total", answer.read()) >= 1
    two[0].kill()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert value("heed_texts_total", answer.read()) == 2
    two[1].kill()
