"""A training in several processes gives what one gives, also where one of them is killed; the bar and its rate."""

from __future__ import annotations

import functools
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from samples import ROOT, TINY, rows
from tqdm import tqdm

from model.bundle import load_bundle
from service.cli import main
from training.cluster import share_cluster
from training.data import read_dataset
from training.train import train

if TYPE_CHECKING:
    from collections.abc import Callable

    Capture = pytest.CaptureFixture[str]

SMALL = [
    "layers=2",
    "width=32",
    "heads=2",
    "feed_forward=64",
    "vocab_size=400",
    "max_tokens=64",
    "batch_tokens=512",
    "made_texts=0",
]
EXACT = [
    "dropout=0",
    "token_dropout=0",
    "precision=fp32",
    "class_weights=balanced",
    "adversarial=0.3",
]  # nothing random, and a loss that weighs rows
HOW = ["epochs=4", "lr=1e-3", "batch_rows=31"]  # uneven for two


def command(*arguments: str, settings: list[str]) -> list[str]:
    return [sys.executable, "-m", "service", "train", *arguments, *(f"--set={each}" for each in settings)]


def processes(parent: int) -> dict[int, str]:
    """All below a process, with their command lines."""
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, line = (folder / "stat").read_text(), (folder / "cmdline").read_text()
        except OSError:
            continue
        if int(stat.rsplit(")", 1)[1].split()[1]) == parent:
            found |= {int(folder.name): line} | processes(int(folder.name))
    return found


def kill_a_worker(of: subprocess.Popen[str], checkpoint: Path) -> None:
    """As soon as there is a checkpoint."""
    while not checkpoint.exists() and of.poll() is None:
        time.sleep(0.02)
    workers = [pid for pid, line in processes(of.pid).items() if "RayTrainWorker" in line]
    assert len(workers) == 2
    os.kill(max(workers), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_workers_reach_the_weights_of_one_also_where_one_is_killed(
    write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    content = [row for i, row in enumerate(rows(1000)) if i % 2 or i % 3]  # one label is rarer
    data = ["--train", str(write_jsonl(content)), "--device", "cpu"]
    alone, both, torn = (tmp_path / name for name in ("alone", "both", "torn"))
    settings = SMALL + EXACT + HOW
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for out, more in ((alone, []), (both, ["--workers", "2"])):
        subprocess.run(command(*data, "--out", str(out), *more, settings=settings), env=environment, check=True)
    program = command(*data, "--out", str(torn), "--workers", "2", settings=settings)
    with subprocess.Popen(program, env=environment, stderr=subprocess.PIPE, text=True) as running:
        kill_a_worker(running, torn.with_name("torn.checkpoint"))
        said = running.communicate()[1]
    assert running.returncode == 0, said
    assert "goes on from its checkpoint, after step" in said
    expected = load_bundle(alone).classifier.state_dict()
    for out in (both, torn):
        torch.testing.assert_close(load_bundle(out).classifier.state_dict(), expected, rtol=0, atol=2e-4)
        figures = json.loads((out / "report" / "metrics.json").read_text())
        assert [row["epoch"] for row in figures["history"]] == [1, 2, 3, 4]
        assert figures["cost"]["workers"] == 2
    assert not list(tmp_path.glob("*.checkpoint")) + list(tmp_path.glob("*.ray"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_the_loop_refuses_in_a_worker_is_one_line_and_tried_once(
    write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    data = ["--train", str(write_jsonl(rows(300))), "--out", str(tmp_path / "b"), "--device", "cpu"]
    ran = subprocess.run(
        command(*data, "--workers", "2", settings=[*SMALL, "lr=1e30"]),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].startswith("heed train: the loss is no number at step")


def test_workers_share_the_cores_alike_or_have_a_gpu_each() -> None:
    assert share_cluster([{"CPU": 8.0}], 2, "auto") == {"CPU": 4}
    assert share_cluster([{"CPU": 8.0}, {"CPU": 4.0}], 3, "auto") == {"CPU": 4}
    assert share_cluster([{"CPU": 8.0, "GPU": 2.0}], 2, "auto") == {"GPU": 1, "CPU": 1}
    assert share_cluster([{"CPU": 8.0, "GPU": 2.0}], 2, "cpu") == {"CPU": 4}


@pytest.mark.parametrize(
    ("node", "device", "message"),
    [
        ({"CPU": 2.0}, "auto", "more than the cores of the cluster, which has 2: 3"),
        ({"CPU": 8.0, "GPU": 2.0}, "auto", "more than the GPUs of the cluster, which has 2: 3"),
        ({"CPU": 8.0}, "cuda", "the cluster has no GPU: cuda"),
    ],
)
def test_more_workers_than_a_cluster_holds_are_refused(node: dict[str, float], device: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        share_cluster([node], 3, device)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workers", "0"], "--workers is not at least 1: 0"),
        (["--workers", "2", "--ray", "127.0.0.1:1"], "--ray 127.0.0.1:1: "),
        (["--workers", "2", "--ray", "ray://head:1"], "on a machine of the cluster"),
    ],
)
def test_workers_that_cannot_be_are_one_line(
    flags: list[str], message: str, write_jsonl: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    tiny = [f"--set={each}" for each in SMALL]
    assert main(["train", "--train", str(write_jsonl(rows(50))), "--out", str(tmp_path / "b"), *flags, *tiny]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


ONE_OF_TWO = """
import os, sys, torch, torch.distributed as dist
from training.group import ALONE, Group

def gradient(group, rows):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    x, weights = torch.randn(rows, 3), torch.arange(1.0, rows + 1)
    network = group.network(model)
    logits = group.whole(network(torch.stack(group.share(list(x)))), rows)
    loss = (logits.logsumexp(dim=1) * weights).sum() / weights.sum()
    loss.backward()
    return torch.cat([loss.detach()[None], *(p.grad.flatten() for p in model.parameters())])

dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2)
group = Group(torch.device("cpu"))
for rows in (1, 4, 5):
    torch.testing.assert_close(gradient(group, rows), gradient(ALONE, rows))
assert group.agree(float(sys.argv[2]) + 7) == (7.0,)
dist.destroy_process_group()
os._exit(0)  # a thread of gloo's that gives back a tensor while Python ends would abort the process: not what is tested
"""


def test_the_gradients_of_two_processes_are_those_of_one_however_the_rows_are_dealt(tmp_path: Path) -> None:
    both = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_OF_TWO, str(tmp_path / "store"), str(rank)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for rank in range(2)
    ]
    assert [each.wait() for each in both] == [0, 0]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_says_how_fast_it_goes_and_how_much_of_the_time_is_spent_computing(
    write_jsonl: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("training.watch.tqdm", functools.partial(tqdm, mininterval=0))  # shown at once, however fast
    train(TINY, read_dataset(write_jsonl(rows(300))), None, None, tmp_path / "b", device=torch.device("cpu"))
    shown = terminal.getvalue()
    assert "epoch 1/5" in shown
    assert "tokens/s, " in shown
    assert "% computing" in shown
