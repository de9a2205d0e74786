"""`heed bench`: what it makes of made-up curves, and whether it tells of a real server what that did."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import numpy as np
import pytest
import uvicorn

from service.bench import bodies, sentences
from service.cli import main
from service.figures import QUANTILES, Answers, Figures, figures, knee, recommend, round_up, together
from service.launch import free_port
from service.load import LOST, UNANSWERED, Samples, arrivals, closed_loop, open_loop, run, target
from service.models import Models
from service.routes import Service
from service.settings import Settings, Spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Capture = pytest.CaptureFixture[str]
    Answering = Callable[[int], bytes]

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def level(offered: float, rate: float, p99: float) -> Figures:
    """A level of load in an open loop."""
    answers = Answers(100, {name: p99 * q for name, q in QUANTILES.items()} | {"p99": p99}, None)
    return Figures([rate], offered, mean_ms=p99 / 2, late_ms=0.0, busy=0.1, outcomes={"200": answers})


def samples(rows: list[tuple[float, ...]]) -> Samples:
    """A round from 0 to 10 s."""
    return Samples(np.array(rows, dtype=float), 0.0, 10.0, 0.1)


def test_the_knee_is_the_highest_rate_that_is_answered_in_time() -> None:
    kept_up = [level(100, 100, 10), level(200, 199, 20), level(300, 298, 90)]
    assert knee([*kept_up, level(400, 330, 800)]) == kept_up[2]
    assert knee([*reversed(kept_up), level(400, 400, 800)]) == kept_up[2]  # all answered, but late
    assert knee([*kept_up, level(400, 330, 80)]) == kept_up[2]  # in time, but not all
    assert knee(kept_up, p99_ms=50) == kept_up[1]


def test_a_server_that_sustains_nothing_has_no_knee() -> None:
    assert knee([]) is None
    assert knee([level(100, 20, 10), level(200, 20, 10)]) is None
    assert knee([replace(level(100, 100, 10), outcomes={})]) is None


def test_settings_follow_from_the_knee() -> None:
    at_knee, ahead = level(400, 400, 100), level(280, 280, 40)
    settings = {s.name: s.value for s in recommend(at_knee, ahead, 25.0, wanted_rate=1000)}
    assert settings == {"timeout_ms": 200, "max_queue_tokens": 2000, "ongoing requests": 6, "replicas": 4}
    assert "max_queue_tokens" not in {s.name for s in recommend(at_knee, ahead, math.nan)}
    assert [round_up(value) for value in (0.3, 7, 99.1, 1234)] == [1, 7, 100, 1300]


def test_latency_counts_from_the_intended_start_and_rates_from_the_answer() -> None:
    found = figures(
        samples([
            (-1, -1, 1, 200, 2000),  # started before the window: only its answer is in it
            (1, 3, 4, 200, 5),  # sent two seconds late
            (2, 2, 2.1, 429, 1),
            (3, 3, 3, LOST, math.nan),
            (9, 9, 11, 200, 7),  # answered after the window
            (9, 9, math.inf, UNANSWERED, math.nan),
        ])
    )  # fmt: skip
    assert found.rates == [0.2]
    assert found.offered == 0.5
    assert found.latency_ms["p99"] == 3000
    assert found.late_ms == 2000
    assert {name: answers.count for name, answers in found.outcomes.items()} == {
        "200": 2, "429": 1, "lost": 1, "unanswered": 1
    }  # fmt: skip
    assert found.outcomes["429"].server_ms == dict.fromkeys(QUANTILES, 1.0)
    assert found.outcomes["lost"].server_ms is None


def test_a_disturbed_round_does_not_decide() -> None:
    three = together([level(100, 100, 10), level(100, 99, 12), level(100, 40, 900)])
    assert (three.rate, three.latency_ms["p99"], min(three.rates)) == (99, 12, 40)
    assert three.outcomes["200"].count == 300


def test_random_arrivals_have_the_rate_that_even_ones_have() -> None:
    even, random = list(arrivals(100, 10, poisson=False)), list(arrivals(100, 10, poisson=True))
    assert len(even) == pytest.approx(1000, abs=1)
    assert len(random) == pytest.approx(1000, abs=100)
    assert np.std(np.diff(random)) == pytest.approx(0.01, rel=0.2)
    assert np.std(np.diff(even)) < 1e-9


def test_every_text_of_a_file_is_sent_and_made_up_ones_are_always_the_same() -> None:
    texts = [f"text {i}" for i in range(5)]
    sent = [json.loads(body)["texts"] for body in bodies(texts, 2)]
    assert sent == [texts[0:2], texts[2:4], [texts[4], texts[0]]]
    assert json.loads(bodies([("a", "b")], 1)[0]) == {"pairs": [["a", "b"]]}
    assert sentences() == sentences()
    assert len(set(sentences())) > 1900


@contextlib.contextmanager
def serving(answer: Answering) -> Iterator[str]:
    """A server that answers its n-th request with answer(n), or hangs up where that is empty; its URL."""
    count = iter(range(1 << 30))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            content = answer(next(count))
            self.wfile.write(content)
            self.close_connection = not content

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def test_an_open_loop_charges_a_server_for_those_it_kept_waiting() -> None:
    stall = threading.Event()

    def answer(n: int) -> bytes:
        if n == 20:
            stall.wait(0.3)  # nobody sets it
        return ANSWER

    with serving(answer) as url:
        found = figures(run(open_loop(target(url, [b"{}"]), 100, 0.5, 0.0, max_connections=1)))
    assert found.offered == pytest.approx(100, rel=0.05)
    assert found.latency_ms["p90"] > 100  # one caller in a closed loop would have seen one slow answer
    assert found.late_ms > 100


def test_every_outcome_is_counted() -> None:
    refusal = b"HTTP/1.1 429 Too Many Requests\r\nServer-Timing: total;dur=0.5\r\nContent-Length: 0\r\n\r\n"
    answers = {0: ANSWER, 1: refusal, 2: ANSWER.replace(b"\r\n", b"\r\nConnection: close\r\n", 1), 3: b""}
    with serving(lambda n: answers[n % 4]) as url:
        found = figures(run(closed_loop(target(url, [b"{}"]), 2, 0.5, 0.0)))
    assert set(found.outcomes) == {"200", "429", "lost"}
    assert found.outcomes["429"].server_ms == dict.fromkeys(QUANTILES, 0.5)
    assert found.outcomes["200"].count >= 2


@dataclass
class Running:
    """A service on a port."""

    url: str


@pytest.fixture(scope="module")
def running(bundle_folder: Path) -> Iterator[Running]:
    """The routes of a replica under uvicorn, without Ray."""
    settings = Settings(precision="fp32")
    app = Service(Models([Spec("mood", bundle_folder)], settings), settings).asgi()
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield Running(f"http://127.0.0.1:{port}")
    server.should_exit = True
    thread.join()


def test_bench_finds_the_knee_of_a_running_service(running: Running, capsys: Capture) -> None:
    command = ["bench", running.url, "--connections", "1,4", "--seconds", "0.1", "--texts-per-request", "2"]
    assert main([*command, "--p99-ms", "2000", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["closed"]["4"]["rates"][0] > 0
    assert len(report["closed"]["1"]["rates"]) == 3
    assert report["closed"]["1"]["outcomes"]["200"]["server_ms"]["p50"] > 0
    assert set(report["closed"]["1"]["outcomes"]) == {"200"}
    assert len(report["open"]) >= 5


def test_bench_prints_tables(running: Running, capsys: Capture) -> None:
    assert main(["bench", running.url, "--connections", "1", "--seconds", "0.02", "--p99-ms", "5000"]) == 0
    printed = capsys.readouterr()
    assert "closed loop" in printed.out
    assert "requests/s offered" in printed.err


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://127.0.0.1", "not a URL such as"),
        ("127.0.0.1:8000", "not a URL such as"),
        ("http://127.0.0.1:1", "no answer from http://127.0.0.1:1/v1/classify: "),
    ],
)
def test_what_cannot_be_reached_is_one_line(url: str, says: str, capsys: Capture) -> None:
    assert main(["bench", url]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert says in line


def test_a_server_that_answers_errors_only_is_one_line(running: Running, capsys: Capture) -> None:
    assert main(["bench", f"{running.url}/v1/nothing"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "answers 404: " in line
