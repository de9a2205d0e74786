"""Attention against what came before it, at equal size: accuracy, speed, and both from 16 to 512 tokens.

    python benchmarks/architectures.py --data DATA --sets trec6,sst2_glue --budget 2m --out FOLDER

A bag of words with an MLP, Kim's CNN, a BiLSTM with attention (baselines.py) and the encoder of `heed train`: as many
parameters in all, to within 2%, embeddings of the same width, and the same tokenizer, rows, loop, epochs at most and
budget of seconds; all from scratch. Prints one table; it is in FOLDER, too, with a plot.

The epoch is chosen on dev and accuracy is of test; where SETS of accuracy.py has no test, on a tenth of the training
rows, and of dev. DATA is as there. Beside the sets stands a task that needs no data, word_order.py, at each length. A
run whose figures are in FOLDER is not done again, an interrupted one goes on: other settings want another folder.
Speed (architectures_speed.py) is measured unless speed.json is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import word_order
from accuracy import Set, chosen, drawn
from architectures_speed import measure
from baselines import NAMES, RATES, network, parameters
from timing import markdown
from word_order import TOKENS

from model.device import choose_device, keep_freed_memory
from model.disk import write
from model.forward import forward_rows
from model.scores import Calibration, probabilities
from training.build import TrainConfig, build, recipe_of
from training.commands import read_config, seconds_of
from training.data import Dataset, read_dataset, split, targets
from training.evaluate import score
from training.recipe import MOST_EPOCHS
from training.run import Run
from training.train import fit
from training.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch

ORDER = "word_order"
ORDER_ROWS, ORDER_DEV, ORDER_TEST = 4000, 500, 400  # the last, of each length
Found = dict[str, dict[str, dict[str, Any]]]  # figures by task and architecture


@dataclass(frozen=True)
class Task:
    """What is trained on, what chooses the epoch, and the parts that accuracy is measured on."""

    name: str
    train: Dataset
    dev: Dataset
    parts: dict[str, Dataset]


def real(one: Set, data: Path, out: Path, rows: int | None) -> Task:
    """A set of DATA."""
    folder = data / one.folder
    file = folder / "train.jsonl.gz"
    train = read_dataset(file if rows is None else drawn(file, rows, out))
    part = read_dataset(folder / f"{one.part}.jsonl.gz")
    train, dev = split(train) if one.part == "dev" else (train, read_dataset(folder / "dev.jsonl.gz"))
    return Task(one.folder, train, dev, {one.part: part})


def synthetic(rows: int | None) -> Task:
    """The task of word_order.py."""
    train, dev = word_order.texts("train", rows or ORDER_ROWS, TOKENS), word_order.texts("dev", ORDER_DEV, TOKENS)
    return Task(ORDER, train, dev, {str(n): word_order.texts(f"test {n}", ORDER_TEST, (n,)) for n in TOKENS})


def learn(name: str, task: Task, config: TrainConfig, budget_s: float, device: torch.device, out: Path) -> None:
    """Train one architecture on one task and write its figures, unless they are there."""
    file = figures_file(name, task.name, out)
    if file.exists():
        return
    run = prepare(name, task, config, budget_s, device)
    print(f"{name} on {task.name}, {parameters(run.classifier):,} parameters", file=sys.stderr)
    checkpoint = file.with_suffix(".checkpoint")
    history, cost = fit(run, checkpoint, resume=checkpoint.exists(), watch=Watch())
    figures = {
        "epochs": len(history),
        "seconds": sum(row["seconds"] for row in history),
        "cost": cost,
        "accuracy": {part: accuracy(run, dataset) for part, dataset in task.parts.items()},
    }
    write(file, json.dumps(figures, indent=1) + "\n")


def prepare(name: str, task: Task, config: TrainConfig, budget_s: float, device: torch.device) -> Run:
    """A run of training/train.py, with another network in the place of the encoder."""
    labels = task.train.label_names
    if task.name == ORDER:
        config = dataclasses.replace(config, max_tokens=max(TOKENS))
    encoder, tokenizer, max_tokens = build(config, task.train, labels, None)
    recipe = recipe_of(config, encoder.config, tokenizer, task.train, max_tokens)
    return Run(
        config,
        dataclasses.replace(recipe, lr=recipe.lr * RATES.get(name, 1.0)),
        network(name, encoder.config, len(labels), config.seed).to(device),
        tokenizer,
        labels,
        task.train,
        task.dev,
        device,
        max_tokens,
        budget_s=budget_s,
    )


def accuracy(run: Run, dataset: Dataset) -> dict[str, float]:
    """The share of right answers, with its Wilson interval."""
    logits = forward_rows(run.classifier, run.rows(dataset))
    scores, truth = probabilities(logits, run.problem_type, Calibration()), targets(dataset, run.labels)
    return asdict(score(scores, truth, run.labels, Calibration()).accuracy)


def figures_file(name: str, task: str, out: Path) -> Path:
    """Where the figures of a run lie."""
    return out / f"{task}-{re.sub('[^a-z]+', '-', name.lower()).strip('-')}.json"


def table(found: Found, speeds: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per architecture."""
    lengths = " / ".join(map(str, TOKENS))
    return [
        {
            "architecture": name,
            "parameters": f"{speeds[name]['parameters']:,}",
            **{f"accuracy {task}": with_interval(runs[name]) for task, runs in found.items() if task != ORDER},
            f"word order at {lengths} tokens": joined(
                f"{part['value']:.3f}" for part in found[ORDER][name]["accuracy"].values()
            ),
            f"epochs of {' / '.join(found)}": joined(runs[name]["epochs"] for runs in found.values()),
            "training tokens/s": joined(f"{runs[name]['cost']['tokens_per_s']:,}" for runs in found.values()),
            f"texts/s at {lengths} tokens": joined(f"{rate:,.0f}" for rate in speeds[name]["texts_per_s"].values()),
            f"one text of {TOKENS[0]} tokens, ms": speeds[name]["one_s"] * 1e3,
        }
        for name in NAMES
    ]


def joined(values: Iterable[object]) -> str:
    """In one cell."""
    return " / ".join(map(str, values))


def with_interval(figures: Mapping[str, Any]) -> str:
    """The accuracy of a set, which has one part."""
    [part] = figures["accuracy"].values()
    return "{value:.3f} ({low:.3f} to {high:.3f})".format(**part)


def plot(found: Found, speeds: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Texts/s and the accuracy of the word order over the length, a line per architecture."""
    from matplotlib.figure import Figure

    figure = Figure((10, 4), layout="constrained")
    fast, right = figure.subplots(1, 2)
    for name in NAMES:
        fast.plot(TOKENS, list(speeds[name]["texts_per_s"].values()), "o-", label=name)
        parts = list(found[ORDER][name]["accuracy"].values())
        below, above = ([abs(part["value"] - part[end]) for part in parts] for end in ("low", "high"))
        right.errorbar(TOKENS, [part["value"] for part in parts], [below, above], fmt="o-", label=name, capsize=2)
    fast.set(xlabel="tokens of a text", ylabel="texts/s", yscale="log")
    right.set(xlabel="tokens of a text", ylabel="accuracy, which of two words is first", ylim=(0.4, 1.02))
    for axes in (fast, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(TOKENS, map(str, TOKENS))
        axes.grid(alpha=0.3)
    fast.legend()
    figure.savefig(file)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and measure what is missing, then print the table of all."""
    args = parse_args(arguments)
    config = read_config(None, args.set, TrainConfig)
    epochs = config.epochs or MOST_EPOCHS
    # the budget alone ends a run early, and no linear line helps
    config = dataclasses.replace(config, epochs=epochs, patience=epochs, made_texts=0)
    device = choose_device(args.device)
    keep_freed_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    tasks = [real(one, args.data, args.out, args.rows) for one in args.sets] + [synthetic(args.rows)]
    for task in tasks:
        for name in NAMES:
            learn(name, task, config, args.budget, device, args.out)
    speeds_file = args.out / "speed.json"
    if not speeds_file.exists():
        write(speeds_file, json.dumps(measure(config, device, args.rounds), indent=1) + "\n")
    speeds = json.loads(speeds_file.read_text(encoding="utf-8"))
    found = {
        task.name: {
            name: json.loads(figures_file(name, task.name, args.out).read_text(encoding="utf-8")) for name in NAMES
        }
        for task in tasks
    }
    lines = markdown(table(found, speeds))
    write(args.out / "architectures.md", lines + "\n")
    plot(found, speeds, args.out / "architectures.svg")
    print(lines)


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--sets", type=chosen, default="trec6,sst2_glue", metavar="SET,...", help="default: %(default)s"
    )
    parser.add_argument(
        "--budget", type=seconds_of, default="2m", metavar="TIME", help="of each run; default: %(default)s"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the figures")
    parser.add_argument("--rows", type=int, metavar="N", help="train on so many rows only, to try the command")
    parser.add_argument("--rounds", type=int, default=5, help="of the speed; default: %(default)s")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="a setting, as of heed train")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
