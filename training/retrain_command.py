"""`heed retrain`: new labels in, a candidate that is promoted or not; exit 0 promoted (or proposed), 3 not."""

from __future__ import annotations

import dataclasses
import http.client
import json
import re
import shlex
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from model.device import choose_device
from model.drift import LARGE
from model.records import read_records
from model.registry import open_registry, registered
from training.build import TrainConfig
from training.commands import add_data_arguments, read_config, read_rows, starting_point
from training.gate import Bounds
from training.retrain import Plan, retrain

if TYPE_CHECKING:
    import argparse

    from training.retrain import Outcome

NOT_PROMOTED = 3
METRICS_S, MOST_METRICS = 10.0, 16_000_000  # to wait for, and bytes of, what /metrics answers


def add_retrain_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `heed retrain`."""
    parser.add_argument(
        "--registry", required=True, metavar="REGISTRY", help="its folder, or the URL of an object store"
    )
    parser.add_argument("--name", required=True, metavar="NAME", help="the model, which is in production there")
    parser.add_argument(
        "--new", type=Path, nargs="*", default=[], metavar="FILE", help="rows that were labelled since the last time"
    )
    parser.add_argument(
        "--old", type=Path, metavar="FILE", help="the rows that production was trained on; the first time only"
    )
    parser.add_argument(
        "--hold-out",
        type=Path,
        metavar="FILE",
        help="rows that every candidate is measured on and none is trained on; the first time only; default: the tenth "
        "of --old that heed train without --dev held out",
    )
    parser.add_argument(
        "--init",
        metavar="LOCATION",
        help="what a candidate starts from, as of heed train; default: the model in production",
    )
    parser.add_argument("--config", type=Path, metavar="YAML", help="settings of the training, as --set")
    parser.add_argument(
        "--set", action="append", default=[], metavar="key=value", help="a setting of the training, as of heed train"
    )
    defaults = ", ".join(f"{f.name}={f.default}" for f in dataclasses.fields(Bounds))
    parser.add_argument(
        "--gate",
        action="append",
        default=[],
        metavar="key=value",
        help=f"how sure a gain has to be, what may be worse; defaults: {defaults}",
    )
    parser.add_argument(
        "--most-doubted",
        type=float,
        default=0.25,
        metavar="SHARE",
        help="of the new labels, which a linear model may contradict; of more none is learned from; default: 0.25",
    )
    parser.add_argument(
        "--allow-new-labels", action="store_true", help="take in labels that the model does not have, after its own"
    )
    parser.add_argument(
        "--least-new",
        type=int,
        default=1,
        metavar="ROWS",
        help="new rows that are worth a training; fewer are kept, and wait for more; default: 1",
    )
    parser.add_argument(
        "--metrics",
        metavar="URL",
        help="/metrics of the service: where its texts have drifted, any new row is worth a training",
    )
    parser.add_argument(
        "--propose",
        action="store_true",
        help="what passes the gate becomes the candidate, to be tried on live texts first, and not production",
    )
    parser.add_argument("--again", action="store_true", help="take in rows that were refused before, or are doubted")
    add_data_arguments(parser)


def retrain_command(args: argparse.Namespace) -> int:
    """Retrain a model from its registry."""
    if not 0 < args.most_doubted <= 1:
        raise ValueError(f"--most-doubted is not in (0, 1]: {args.most_doubted}")
    if args.least_new < 1:
        raise ValueError(f"--least-new is not at least 1: {args.least_new}")
    is_urgent = args.metrics is not None and has_drifted(args.metrics, args.name)
    plan = Plan(
        train=read_config(args.config, args.set, TrainConfig),
        bounds=read_config(None, args.gate, Bounds),
        init=starting_point(args.init) if args.init else None,
        allow_new_labels=args.allow_new_labels,
        again=args.again,
        most_doubted=args.most_doubted,
        least_new=1 if is_urgent else args.least_new,
        propose=args.propose,
    )
    new = [dataset for path in args.new if has_rows(path) and (dataset := read_rows(path, args))]
    outcome = retrain(
        registered(open_registry(args.registry), args.name),
        new,
        plan,
        base=read_rows(args.old, args),
        hold_out=read_rows(args.hold_out, args),
        device=choose_device(args.device),
        command=shlex.join(["heed", *sys.argv[1:]]),
    )
    print(
        json.dumps(as_json(outcome), ensure_ascii=False)
        if args.json
        else in_words(args.name, outcome, propose=args.propose)
    )
    return 0 if outcome.promoted else NOT_PROMOTED


def has_rows(path: Path) -> bool:
    """Whether a file has any; an export of labels that nobody has given has none, which is no fault."""
    return next(read_records(path), None) is not None


def as_json(outcome: Outcome) -> dict[str, object]:
    """The outcome with its figures."""
    return {
        "promoted": outcome.promoted,
        "why": outcome.why,
        "candidate": outcome.candidate,
        "taken_in": len(outcome.intake.accepted) if outcome.intake else 0,
        "not_taken_in": outcome.intake.reasons() if outcome.intake else {},
        "decision": dataclasses.asdict(outcome.decision) if outcome.decision else None,
        "report": str(outcome.report) if outcome.report else None,
    }


def has_drifted(url: str, name: str) -> bool:
    """Whether the texts that a service answers are far from those that the model was measured on, by its metrics.

    Raises ValueError where they cannot be read.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"--metrics is not an http URL: {url}")
    try:
        with urllib.request.urlopen(url, timeout=METRICS_S) as answer:  # noqa: S310
            text = answer.read(MOST_METRICS).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"the metrics of the service cannot be read ({error}): {url}") from None
    found = re.findall(rf'(?m)^heed_drift_psi{{model="{re.escape(name)}",signal="(\w+)"}} (\S+)$', text)
    if not found:
        raise ValueError(f"the service says nothing of drift of a model of that name: {name}")
    far = [f"{signal} {float(psi):.2f}" for signal, psi in found if float(psi) > LARGE]
    if far:
        print(f"heed retrain: the texts of now have drifted: {', '.join(far)}", file=sys.stderr)
    return bool(far)


def in_words(name: str, outcome: Outcome, *, propose: bool) -> str:
    """For a terminal."""
    lines = []
    if outcome.intake:
        lines.append(f"{len(outcome.intake.accepted):,} new rows taken in")
        lines += [f"{rows:,} not taken in: {reason}" for reason, rows in outcome.intake.reasons().items()]
    if outcome.candidate:
        lines.append(f"candidate {name}@{outcome.candidate}, report {outcome.report}")
    promoted = "proposed" if propose and outcome.decision else "promoted"
    lines.append(f"{promoted if outcome.promoted else 'not promoted'}: {outcome.why}")
    return "\n".join(lines)
