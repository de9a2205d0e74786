"""What the figures of benchmarks/ rest on: turns, ratios, exact passes, memory."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import pytest
import torch
from engines import Missing
from host import tiny_bundle
from limits import peak_bytes, rows_of
from peers import Peer, Start
from running import Texts, ask, running
from serving import Results, all_peers, table, verdict
from timing import markdown, ratio, take_turns

from model.bundle import load_bundle
from model.tokens import Row
from service.figures import QUANTILES, Answers, Figures

if TYPE_CHECKING:
    from pathlib import Path


def test_each_way_has_one_result_a_round_after_a_warm_up() -> None:
    clock = count()
    turns = take_turns({"a": lambda: next(clock), "b": lambda: next(clock)}, rounds=2)
    assert turns == {"a": [3, 4], "b": [2, 5]}  # 0 and 1 warm up, then the first place goes round


def test_a_round_that_was_slow_for_both_changes_no_ratio() -> None:
    assert ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == 2.0


def test_a_pass_has_exactly_the_tokens_asked_for() -> None:
    rows = rows_of([Row([1] * 7), Row([2] * 5)], tokens=30)
    assert [row.tokens for row in rows] == [7, 5, 7, 5, 6]


def test_peak_memory_is_what_was_held_at_once() -> None:
    x = torch.zeros(1 << 20)  # 4 MiB, held before
    assert peak_bytes(lambda: (x + 1) + (x + 2)) == pytest.approx(12 << 20, rel=0.01)


def test_a_table_says_what_was_not_measured() -> None:
    assert markdown([{"way": "a", "rate": 1234.5, "accuracy": None}]).endswith("| a | 1,234 | – |")


def rounds(*rates: float) -> list[Figures]:
    answers = Answers(1, dict.fromkeys(QUANTILES, 10.0), None)
    return [Figures([rate], rate, mean_ms=10.0, late_ms=0.0, busy=0.1, outcomes={"200": answers}) for rate in rates]


def test_a_gap_is_resolved_where_the_spread_of_the_rounds_is_smaller() -> None:
    level = (32, 1)
    found = Results(
        {"heed": {level: rounds(400, 420)}, "slow": {level: rounds(90, 110)}, "near": {level: rounds(390, 410)}}
    )
    assert verdict(found, level, "heed", ["slow"]) == "heed: 4.10 x slow (resolved)"
    assert verdict(found, level, "heed", ["slow", "near"]) == "heed: 1.02 x near (not resolved)"
    assert verdict(found, level, "heed", ["absent"]) is None


def test_a_share_of_the_ceiling_is_of_the_same_round() -> None:
    found = Results({"heed": {(8, 16): rounds(20, 40)}, "heed-int8": {(8, 16): rounds(30, 30)}})
    found.ceilings = {"auto": [400, 800], "int8": [960, 960]}
    rows = {row["server"]: row["of the ceiling"] for row in table(found, (8, 16))}
    assert rows == {"heed": 0.8, "heed-int8": 0.5}


class Program:
    """A server of a few lines, in a process."""

    SOURCE = (
        "import http.server, json, sys\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "    def do_POST(self):\n"
        "        texts = json.loads(self.rfile.read(int(self.headers['Content-Length'])))['texts']\n"
        "        body = json.dumps({'labels': [sys.argv[2] for _ in texts]}).encode()\n"
        "        self.send_response(200); self.send_header('Content-Length', str(len(body))); self.end_headers()\n"
        "        self.wfile.write(body)\n"
        "http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()\n"
    )

    def __init__(self, says: str) -> None:
        self.peer = Peer("small", lambda start: [start.python, "-c", self.SOURCE, str(start.port), says])


def test_a_server_that_answers_wrongly_or_ends_is_left_out(tmp_path: Path) -> None:
    texts = Texts(tmp_path, ["a lovely film"] * 16, ["positive"] * 16)
    with running(Program("positive").peer, tmp_path, texts, tmp_path) as server:
        assert ask(server.peer, server.url, ["x", "y"]) == ["positive"] * 2
        assert len(server.target(texts.texts, 5).requests) == 3
    with pytest.raises(OSError, match="refused"):
        ask(server.peer, server.url, ["x"])
    with pytest.raises(Missing, match="0 of 16 labels"), running(Program("negative").peer, tmp_path, texts, tmp_path):
        pass
    ends = Peer("ends", lambda start: [start.python, "-c", "print('no model'); raise SystemExit(3)"])
    with pytest.raises(Missing, match="ends ended with 3: no model"), running(ends, tmp_path, texts, tmp_path):
        pass


def test_the_random_model_that_the_host_is_measured_with_can_be_loaded(tmp_path: Path) -> None:
    assert load_bundle(tiny_bundle(tmp_path / "tiny")).classifier.config.width == 128


def test_every_peer_says_how_it_is_started_and_asked(tmp_path: Path) -> None:
    for name, peer in all_peers().items():
        start = Start("/bin/python", tmp_path / "bundle", None, 1234, tmp_path / name, 2)
        start.folder.mkdir()
        assert "1234" in " ".join(peer.command(start)) or (start.folder / "settings.json").exists(), name
        assert b"two films" in peer.body(["two films"])
        assert all("==" in pin for pin in peer.requirements)
