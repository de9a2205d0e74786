"""New labels -> a candidate -> production, or not: the loop that runs without anybody watching. `heed retrain`.

Read in order: what is new is looked at (intake.py) and kept (archive.py), a candidate learns from old and new rows
(train.py), both models answer the frozen hold-out and the newest labels (side_by_side.py), the gate decides (gate.py),
the decision is written down (decision.py), the alias moves (model/registry.py). Killed anywhere, the next run goes on
from there: each step finds what the one before left, and production changes last but one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import math
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.bundle import load_bundle
from model.disk import write
from training.archive import DIGITS, Archive
from training.checkpoint import has_checkpoint
from training.data import BY_HASH, set_aside, targets
from training.decision import Record, flips, record_files
from training.evaluate import check_problem
from training.gate import Bounds, decide
from training.intake import take_in
from training.side_by_side import abstained_of, calibration_of, costs, has_classes, outside_label, pair_of
from training.train import train

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import torch

    from model.bundle import Bundle
    from model.registry import RegisteredModel
    from training.archive import History, Parts
    from training.build import TrainConfig
    from training.data import Dataset
    from training.gate import Decision
    from training.intake import Intake


LEAST_READ, MOST_EPOCHS = 6400, 5  # rows that a candidate reads that starts from production, and how often


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a retraining goes about it."""

    train: TrainConfig
    bounds: Bounds = dataclasses.field(default_factory=Bounds)
    init: Path | None = None  # encoder that the candidate starts from; None: the bundle in production
    allow_new_labels: bool = False
    again: bool = False  # take in what was refused or is doubted
    least_new: int = 1  # new rows that are worth a training; fewer wait for more
    propose: bool = False  # what passes the gate becomes the candidate, to be tried on live texts, not production
    most_doubted: float = 0.25  # share of new labels that a linear model may contradict


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a retraining; decision is None where there was nothing new, or labels that were not believed."""

    promoted: bool
    why: str
    candidate: str | None = None
    decision: Decision | None = None
    intake: Intake | None = None
    report: Path | None = None


class RetrainError(ValueError):
    """A retraining that cannot begin; says what to change."""


def retrain(
    model: RegisteredModel,
    new: Sequence[Dataset],
    plan: Plan,
    *,
    base: Dataset | None = None,
    hold_out: Dataset | None = None,
    device: torch.device,
    command: str = "",
) -> Outcome:
    """Train on all labels of a model and put the result into production, if the gate lets it through.

    The first time `base` are the rows that production was trained on; the tenth of them that was held out then, or
    `hold_out`, is never trained on. Raises RetrainError, DataError, RegistryError or BundleError, and then production
    is what it was.
    """
    archive = Archive(model.folder / "data", committed=model.push)
    with alone(archive.folder):
        model.pull()
        production = load_bundle(model.bundle("production"))
        begin(archive, base, hold_out, production)
        settled = settle(model, archive, production)
        taken = take_in_new(archive, new, production, plan)
        history = archive.history()
        if settled and not history.newest:
            return Outcome(promoted=True, why=settled, candidate=production.version, intake=taken)
        if not history.newest:
            return Outcome(promoted=False, why="no label is new", intake=taken)
        noisy = [batch for batch in history.newest if (batch.doubted or 0) > plan.most_doubted]
        if noisy and not plan.again:
            doubted = max(batch.doubted or 0 for batch in noisy)
            why = f"a linear model contradicts more of the new labels than {plan.most_doubted:.0%}: {doubted:.0%}"
            archive.decide(noisy, candidate="", promoted=False, refused=True, why=why)
            history = archive.history()
            if not history.newest:
                return Outcome(promoted=False, why=why, intake=taken)
        waiting = sum(batch.rows for batch in history.newest)
        if waiting < plan.least_new:
            why = f"new rows wait until they are {plan.least_new:,}, there are: {waiting:,}"
            return Outcome(promoted=False, why=why, intake=taken)
        return from_rows(model, archive, history, production, plan, taken, device, command)


def begin(archive: Archive, base: Dataset | None, hold_out: Dataset | None, production: Bundle) -> None:
    """The rows that production learned from, the first time; the same ones again change nothing."""
    history = archive.history()
    if history.version:
        if base and base.sha256 != history.batches[0].sources[0]["sha256"]:
            raise RetrainError(f"its old rows are known since the first retraining, leave out --old: {base.name}")
        return
    if base is None:
        raise RetrainError(f"its first retraining needs the rows that it was trained on, --old FILE: {production.name}")
    if hold_out is None and was_trained_on_all(production, base):
        raise RetrainError(
            f"it was trained on all of --old, give rows that it was not trained on, --hold-out: {base.name}"
        )
    for part in (base, hold_out):
        if part is not None:
            check_problem(part, production.problem_type)
            targets(set_aside(part, outside_label(production)), production.labels)  # refuses any other label
    archive.begin(base, hold_out, production.labels)


def was_trained_on_all(production: Bundle, base: Dataset) -> bool:
    """Whether no row of these was held out by hash when production was trained on them."""
    made_by = production.manifest.made_by if production.manifest else {}
    train_part = made_by.get("data", {}).get("train", {})
    return train_part.get("sha256") == base.sha256 and not str(train_part.get("file")).endswith(BY_HASH)


def settle(model: RegisteredModel, archive: Archive, production: Bundle) -> str | None:
    """Note a promotion that the run before had no time to note, and say so; None where there is none.

    Raises RetrainError where labels have moved.
    """
    history, why = archive.history(), None
    if history.newest and was_promoted(model, production.version, history):
        why = "promoted by the run before, which was killed when that was done"
        archive.decide(history.newest, candidate=production.version, promoted=True, refused=False, why=why)
    if production.labels != history.labels[: len(production.labels)]:
        raise RetrainError(
            f"production has other labels than its rows in {archive.folder}, or in another order, which would move "
            f"label ids: {', '.join(production.labels)}"
        )
    return why


def take_in_new(archive: Archive, new: Sequence[Dataset], production: Bundle, plan: Plan) -> Intake | None:
    """Look at new files and keep what is good; the others lie in data/quarantine with a reason each."""
    if not new:
        return None
    history = archive.history()
    parts = archive.parts(history)
    taken = take_in(
        new,
        archive.known(history),
        parts.train,
        parts.hold_out,
        history.labels,
        refused=() if plan.again else archive.refused(history),
        outside_label=outside_label(production),
        allow_new_labels=plan.allow_new_labels,
    )
    if taken.quarantined or taken.unread:
        lines = [
            {"file": row.file, "line": row.example.line, "reason": row.reason, "text": row.example.text}
            for row in taken.quarantined
        ]
        rows = [*lines, *({"reason": why} for why in taken.unread)]
        file = archive.folder / "quarantine" / f"{new[0].sha256[:DIGITS]}.jsonl"
        write(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if taken.accepted:
        archive.add(taken, new)
    return taken


def from_rows(
    model: RegisteredModel,
    archive: Archive,
    history: History,
    production: Bundle,
    plan: Plan,
    taken: Intake | None,
    device: torch.device,
    command: str,
) -> Outcome:
    """Train on what is there, compare, decide."""
    parts = archive.parts(history)
    config, init = settings_of(plan.train, production), plan.init
    if init is None:
        init, config = model.bundle("production"), going_on(config, len(parts.train.examples))
    folder = workplace(archive.folder, f"{history.version} {init.resolve()} {config}") / model.name
    if not folder.exists():
        learn(folder, parts, history, init, config, device, command)
    version = model.add(folder)
    folders = model.bundle("production"), folder
    decision, record = compare(production, load_bundle(folder), folders, parts, history, plan, command)
    for name, text in record_files(record).items():
        write(model.folder / "decisions" / version / name, text)
    model.push()
    if decision.promoted and plan.propose:
        model.propose(version)
    elif decision.promoted:
        model.promote(version, instead_of=production.version)
    refused = decision.harmed and not decision.promoted
    archive.decide(history.newest, candidate=version, promoted=decision.promoted, refused=refused, why=decision.why)
    shutil.rmtree(folder.parent)
    return Outcome(
        promoted=decision.promoted,
        why=decision.why,
        candidate=version,
        decision=decision,
        intake=taken,
        report=model.folder / "decisions" / version / "decision.md",
    )


def was_promoted(model: RegisteredModel, version: str, history: History) -> bool:
    """Whether what is in production was made of these very rows: all was done but the note of it."""
    file = model.folder / "decisions" / version / "decision.json"
    if not file.exists():
        return False
    record = json.loads(file.read_text(encoding="utf-8"))
    return bool(record["data"] == history.version and record["decision"]["promoted"])


def settings_of(config: TrainConfig, production: Bundle) -> TrainConfig:
    """The settings, and where they say nothing what production is: as wide a view, weights of its type, n-grams."""
    made_with = production.manifest.made_by.get("config", {}) if production.manifest else {}
    return dataclasses.replace(
        config,
        max_tokens=config.max_tokens or production.max_tokens,
        weights=made_with.get("weights", config.weights) if config.weights == "fp32" else config.weights,
        out_of_scope_label=config.out_of_scope_label or outside_label(production),
        ngrams=config.ngrams or made_with.get("ngrams", False),
    )


def going_on(config: TrainConfig, rows: int) -> TrainConfig:
    """For a candidate that starts from production, which knows most rows: more epochs made it worse where it was good.

    What a linear line would say of texts made of them, it knows too.
    """
    epochs = config.epochs or min(MOST_EPOCHS, math.ceil(LEAST_READ / rows))
    return dataclasses.replace(config, epochs=epochs, made_texts=config.made_texts or 0)


def workplace(data: Path, run: str) -> Path:
    """Where the candidate of a run is made, and found by the next run if this one is killed; those of others go."""
    folder = data / f"candidate-{hashlib.sha256(run.encode()).hexdigest()[:DIGITS]}"
    for other in data.glob("candidate-*"):
        if other != folder:
            shutil.rmtree(other)
    folder.mkdir(exist_ok=True)
    return folder


def learn(
    folder: Path,
    parts: Parts,
    history: History,
    init: Path,
    config: TrainConfig,
    device: torch.device,
    command: str,
) -> None:
    """Train the candidate, on with what an interrupted run left of it."""
    checkpoint = folder.with_name(f"{folder.name}.checkpoint")
    train(
        config,
        parts.train,
        parts.dev,
        parts.hold_out,
        folder,
        init=init,
        device=device,
        resume=has_checkpoint(checkpoint),
        command=command,
        labels=history.labels,
    )


def compare(
    production: Bundle,
    candidate: Bundle,
    folders: tuple[Path, Path],
    parts: Parts,
    history: History,
    plan: Plan,
    command: str,
) -> tuple[Decision, Record]:
    """Both models on the same rows, and what the gate says of it."""
    both = production, candidate
    hold_out = pair_of(both, parts.hold_out, history.labels)
    newest = pair_of(both, parts.newest, history.labels) if parts.newest and has_classes(parts.newest, both) else None
    cost = costs(both, folders, parts.hold_out.texts)
    outside = abstained_of(both, set_aside(parts.hold_out, outside_label(production)).outside)
    decision = decide(hold_out, newest, calibration_of(hold_out), cost, plan.bounds, outside)
    record = Record(
        model=candidate.name,
        production=production.version,
        candidate=candidate.version,
        data=history.version,
        hold_out=history.hold_out,
        batches=history.newest,
        bounds=dataclasses.asdict(plan.bounds),
        decision=decision,
        cost=cost,
        flips={"hold-out": flips(*hold_out)} | ({"newest": flips(*newest)} if newest else {}),
        command=command,
    )
    return decision, record


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Held by one retraining of a model at a time; the kernel lets go of it when that dies. Raises RetrainError."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RetrainError(f"another retraining of this model is running: {folder.parent}") from None
        yield
