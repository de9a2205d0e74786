"""What a run reports to TensorBoard or MLflow while it trains: `heed train --log tensorboard` or `--log mlflow`.

The settings, figures by step, those of dev by epoch, at the end those of the held-out data and the bundle's version:
numbers and names, no text. The loop tells a Log, the Log tells each Tracker. The tools are extras, imported where
they are asked for.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from training.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from model.manifest import Manifest
    from training.checkpoint import Progress
    from training.watch import Pace

EXPERIMENT = "heed"  # of MLflow, where MLFLOW_EXPERIMENT_NAME says nothing
RUNS = "runs"  # TensorBoard's own default
REQUEST = 1000  # metrics of one request that MLflow takes


class Tracker(Protocol):
    """A tool that keeps the figures of a run; it is made with where, the run's name and its settings."""

    def figures(self, values: Mapping[str, float], step: int) -> None:
        """Figures after a step."""

    def flush(self) -> None:
        """Make what it was told visible to a reader."""

    def close(self, version: str | None) -> None:
        """End the run; version is that of its bundle, None where there is none."""


class TensorBoard:
    """Event files in a folder named after the run; `tensorboard --logdir runs` shows them."""

    def __init__(self, folder: str, name: str, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(f"{folder or RUNS}/{name}")
        lines = ["| setting | value |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in settings.items())]
        self._writer.add_text("settings", "\n".join(lines))

    def figures(self, values: Mapping[str, float], step: int) -> None:
        """Scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """To the file."""
        self._writer.flush()

    def close(self, version: str | None) -> None:
        """With the version as a text."""
        if version is not None:
            self._writer.add_text("version", version)
        self._writer.close()


class MLflow:
    """A run of an experiment, at a tracking server or in a database.

    MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, MLFLOW_TRACKING_USERNAME and _PASSWORD count as they do everywhere.
    A server that goes away while the run lasts costs figures, which stderr says, and not the training.
    """

    def __init__(self, uri: str, name: str, settings: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # else it tells its makers of each run
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # 7 of its own are minutes, and the loop waits
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException

        self._metric, self._error = Metric, MlflowException
        self._waiting: list[Any] = []
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        try:
            self._client = MlflowClient(tracking_uri=uri or None)
            found = self._client.get_experiment_by_name(experiment)
            place = found.experiment_id if found else self._client.create_experiment(experiment)
            self._run = self._client.create_run(place, run_name=name).info.run_id
            self._client.log_batch(self._run, params=[Param(key, str(value)) for key, value in settings.items()])
        except MlflowException as error:
            raise ValueError(
                f"MLflow cannot be written to ({_first_line(error)}), change --log: mlflow:{uri}"
            ) from None

    def figures(self, values: Mapping[str, float], step: int) -> None:
        """Metrics; many in one request, since the loop waits for it."""
        if len(self._waiting) + len(values) > REQUEST:
            self.flush()
        now_ms = int(time.time() * 1000)
        self._waiting += [self._metric(name, value, now_ms, step) for name, value in values.items()]

    def flush(self) -> None:
        """Send what waits."""
        waiting, self._waiting = self._waiting, []
        try:
            self._client.log_batch(self._run, metrics=waiting)
        except self._error as error:
            print(f"MLflow did not take {len(waiting)} figures: {_first_line(error)}", file=sys.stderr)

    def close(self, version: str | None) -> None:
        """With the version as a tag."""
        self.flush()
        try:
            if version is not None:
                self._client.set_tag(self._run, "version", version)
            self._client.set_terminated(self._run, "FAILED" if version is None else "FINISHED")
        except self._error as error:
            print(f"MLflow did not hear that the run ended: {_first_line(error)}", file=sys.stderr)


TRACKERS: dict[str, type[TensorBoard | MLflow]] = {"tensorboard": TensorBoard, "mlflow": MLflow}


class Log(Watch):
    """Hears a run of a name, and tells the tools; without specs, TOOL or TOOL:WHERE, it does nothing.

    Raises ValueError for a spec that is none.
    """

    def __init__(self, specs: Sequence[str] = (), name: str = "") -> None:
        for spec in specs:
            _check(spec)
        self._specs, self._name = specs, name
        self._trackers: list[Tracker] = []
        self._version: str | None = None
        self._step = 0

    def __enter__(self) -> Log:
        """Itself; open() opens the tools, so that a run that is refused before it leaves nothing there."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close what was opened, as failed where no bundle was heard of."""
        for tracker in self._trackers:
            tracker.close(self._version)

    def open(self, settings: Mapping[str, Any]) -> None:
        """Before a run with such settings. Raises ValueError where a tool is not installed or cannot be written to."""
        for spec in self._specs:
            self._trackers.append(_open(spec, self._name, settings))

    def step(self, pace: Pace) -> None:
        """A step is done."""
        self._step = pace.step
        self._tell({"train/loss": pace.loss, "train/lr": pace.lr, "train/tokens_per_s": pace.tokens_per_s})

    def epoch(self, at: Progress) -> None:
        """After an epoch and its figures on dev."""
        row = at.history[-1]
        self._tell({"dev/loss": row["dev_loss"], "dev/score": row["dev_score"]})
        for tracker in self._trackers:
            tracker.flush()

    def end(self, manifest: Manifest) -> None:
        """The figures of the bundle that was written, by its held-out parts."""
        self._version = manifest.version
        for part, figures in manifest.metrics.items():
            self._tell({f"{part}/{name}": value for name, value in figures.items() if type(value) in (int, float)})

    def _tell(self, values: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.figures(values, self._step)


def _check(spec: str) -> None:
    tool, _, where = spec.partition(":")
    if tool not in TRACKERS:
        raise ValueError(f"--log is tensorboard[:FOLDER] or mlflow[:URI]: {spec}")
    if "@" in urlsplit(where).netloc:  # the bundle keeps the command
        raise ValueError(f"a password is set as MLFLOW_TRACKING_PASSWORD, take it out of --log: {tool}")


def _open(spec: str, name: str, settings: Mapping[str, Any]) -> Tracker:
    tool, _, where = spec.partition(":")
    try:
        return TRACKERS[tool](where, name, settings)
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed, pip install 'heed[{tool}]': --log {spec}") from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
