"""The whole loop, as it runs for months, in minutes: new labels make a better model, bad ones none, nobody waits.

    python benchmarks/loop.py DATA --init minilm --old 20000 --batches 1200,1200,4000 [--candidate base]

A model of film phrases (SST-2) is served from a registry, and asked without a pause until the end. Comments of another
domain (GoEmotions) are sent to it and labelled through `POST /v1/feedback` in three batches, the second with 40% of
its labels flipped; after each the labels are exported and `heed retrain` decides. At the end the last promotion is
undone. Prints the table of the story; exit 1 where a request failed, or the story went another way.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentiment_data import comments, films
from timing import markdown

from heed import Client
from model.registry import registered
from service.launch import free_port, run_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Row = dict[str, str]

NAME = "opinions"
HEED = [sys.executable, "-m", "service"]
FLIPPED = 0.4  # of the labels of the second batch
READY_S, SWAP_S, POLL_S = 120.0, 60.0, 1.0
PAUSE_S = 0.1  # between two requests of the load
OTHER = {"positive": "negative", "negative": "positive"}


@dataclass(frozen=True)
class Cast:
    """Rows of the story: those that production learns from, and labelled ones of another domain."""

    old: list[Row]
    batches: list[list[Row]]  # the second is spoiled before it is sent
    of_domain: list[Row]  # that nothing learns from


@dataclass
class Load:
    """One caller who never stops."""

    url: str
    texts: list[str]
    answered: int = 0
    failed: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Ask until told to stop; the client's own repeats are off, so that each refusal counts."""
        rng = random.Random(0)
        while not self._stop.wait(PAUSE_S):
            body = json.dumps({"texts": [rng.choice(self.texts)], "top_k": 1}).encode()
            try:
                with urllib.request.urlopen(f"{self.url}/v1/classify", body, timeout=30) as answer:
                    self.answered += "error" not in json.load(answer)["results"][0]
            except OSError:
                self.failed += 1

    @contextlib.contextmanager
    def going(self) -> Iterator[None]:
        """In a thread."""
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()


def story(cast: Cast, folder: Path, train: Sequence[str], retrain: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each model that was made, and for the way back; train and retrain are more of these commands."""
    old, registry, store = folder / "old.jsonl", folder / "registry", folder / "labels.db"
    write(old, cast.old)
    heed("train", "--train", str(old), "--out", str(folder / "first"), *train)
    heed("registry", "add", str(registry), NAME, str(folder / "first"), "--promote")
    model = registered(registry, NAME)
    rows: list[dict[str, Any]] = []
    with served(registry, store, folder) as url, Client(url) as client:
        load = Load(url, [row["text"] for row in [*cast.old[:200], *cast.of_domain[:200]]])

        def told(what: str, decision: str, hold_out: float | None) -> None:
            rows.append(
                {
                    "step": what,
                    "version": model.aliases()["production"][:8],
                    "hold-out": hold_out,
                    "new domain": right(client, cast.of_domain),
                    "decision": decision,
                    "answered": load.answered,
                    "failed": load.failed,
                }
            )

        with load.going():
            told("films", "–", None)
            for number, batch in enumerate(cast.batches, 1):
                is_spoiled = number == 2
                sent = spoiled(batch) if is_spoiled else batch
                file = label(client, store, sent, folder / f"labels{number}.jsonl")
                first = ["--old", str(old)] if number == 1 else []
                arguments = ["--registry", str(registry), "--name", NAME, "--new", str(file), *first, *retrain]
                outcome = json.loads(heed("retrain", *arguments, "--json", allowed=(0, 3)))
                follow(url, model.aliases()["production"])
                decision = outcome["decision"]
                told(
                    f"batch {number}, {len(sent):,} labels" + (f", {FLIPPED:.0%} flipped" if is_spoiled else ""),
                    f"{'promoted' if outcome['promoted'] else 'refused'}: {outcome['why']}",
                    decision and decision["hold_out"]["candidate"],
                )
            heed("registry", "rollback", str(registry), NAME)
            follow(url, model.aliases()["production"])
            told("rollback", "–", None)
    return rows


@contextlib.contextmanager
def served(registry: Path, store: Path, folder: Path) -> Iterator[str]:
    """`heed serve` of what is in production; its URL."""
    with run_folder() as run, (folder / "serve.log").open("wb") as log:
        port = free_port()
        command = [*HEED, "serve", f"{registry / NAME}@production", "--port", str(port), "--grpc-port", "0"]
        command += ["--feedback-store", str(store), "--registry-poll-s", str(POLL_S)]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"HEED_LOOP_FOLDER": str(run)})
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(f"{url}/health/ready", READY_S, process)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def wait_for(url: str, seconds: float, process: subprocess.Popen[bytes]) -> None:
    """Return when it answers with 200. Raises TimeoutError."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    raise TimeoutError(f"heed serve did not answer within {seconds:.0f} s, its log is beside the registry")


def follow(url: str, version: str) -> None:
    """Return when the service answers by this version. Raises TimeoutError."""
    until = time.monotonic() + SWAP_S
    while time.monotonic() < until:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as answer:
            if json.load(answer)["models"][0]["version"] == version:
                return
        time.sleep(0.2)
    raise TimeoutError(f"the service did not take up the version within {SWAP_S:.0f} s: {version}")


def label(client: Client, store: Path, rows: Sequence[Row], file: Path) -> Path:
    """Send texts, give each its label, and export what the service has kept of them since."""
    since = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    texts = [row["text"] for row in rows]
    for result, row in zip(client.classify(texts), rows, strict=True):
        client.feedback(result.request_id, result.index, label=row["label"], text=row["text"])
    heed("feedback", "export", str(store), "--model", NAME, "--since", since, "--out", str(file))
    return file


def right(client: Client, rows: Sequence[Row]) -> float:
    """Accuracy through the service."""
    found = client.classify([row["text"] for row in rows], top_k=1)
    return sum(one.labels[0].label == row["label"] for one, row in zip(found, rows, strict=True)) / len(rows)


def spoiled(rows: Sequence[Row]) -> list[Row]:
    """The same with FLIPPED of the labels wrong."""
    rng = random.Random(0)
    return [row | {"label": OTHER[row["label"]]} if rng.random() < FLIPPED else row for row in rows]


def heed(*arguments: str, allowed: Sequence[int] = (0,)) -> str:
    """What a command prints. Raises RuntimeError where it exits with anything else."""
    done = subprocess.run([*HEED, *arguments], capture_output=True, text=True, check=False)
    if done.returncode not in allowed:
        raise RuntimeError(f"heed {arguments[0]} exits with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def write(file: Path, rows: Sequence[Row]) -> None:
    """As JSONL."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def cast_of(data: Path, old: int, sizes: Sequence[int]) -> Cast:
    """Films to begin with, comments to learn from and to be measured on."""
    rng = random.Random(0)
    known = [{"text": row["text"], "label": row["label"]} for row in films(data, "train")]
    other = [{"text": row["text"], "label": row["label"]} for row in comments(data, "train")]
    new = iter(rng.sample(other, sum(sizes)))
    held = [{"text": row["text"], "label": row["label"]} for row in comments(data, "dev")][:1000]
    return Cast(rng.sample(known, old), [list(islice(new, size)) for size in sizes], held)


def went_wrong(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is not as the story goes."""
    films_only, first, bad, last, back = rows
    checks = {
        "a request failed": back["failed"] > 0,
        "the first batch was not promoted": not first["decision"].startswith("promoted"),
        "the flipped labels were promoted": bad["decision"].startswith("promoted"),
        "the new domain got no better": last["new domain"] <= films_only["new domain"],
        "the rollback changed nothing": back["version"] == last["version"],
    }
    return [what for what, is_so in checks.items() if is_so]


def main() -> None:
    """Tell the story once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--old", type=int, default=20_000, help="phrases that the first model learns from")
    parser.add_argument("--batches", default="1200,1200,4000", help="labels of each of the three; each gains less")
    parser.add_argument("--init", default="minilm", help="encoder of the first model")
    parser.add_argument(
        "--candidate", choices=["production", "base"], default="production", help="what each candidate starts from"
    )
    args = parser.parse_args()
    sizes = [int(size) for size in args.batches.split(",")]
    retrain = ["--init", args.init] if args.candidate == "base" else []
    with tempfile.TemporaryDirectory() as folder:
        rows = story(cast_of(args.data, args.old, sizes), Path(folder), ["--init", args.init], retrain)
    print(markdown(rows))
    wrong = went_wrong(rows) + (
        [] if rows[3]["decision"].startswith("promoted") else ["the last batch was not promoted"]
    )
    if wrong:
        sys.exit(f"not as it should be: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
