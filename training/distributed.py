"""The loop of training/train.py in several processes at once, on the GPUs or cores of one machine or of a Ray cluster.

Ray Train starts the workers, and again where one is lost: they go on from the last checkpoint. Network and data go
to them through Ray's object store; checkpoints come back through the folder of --out, which all nodes must see.
Called by training/commands.py.
"""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import ray.train.torch
import torch

from model.device import keep_freed_memory
from training.checkpoint import has_checkpoint, load_outcome, remove_checkpoint
from training.cluster import cause, connect, nodes, share_cluster
from training.group import Group
from training.train import fit
from training.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from training.checkpoint import Progress
    from training.run import Run
    from training.train import Outcome
    from training.watch import Pace

MOST_LOST = 3  # times that workers are started again
LISTEN_S = 0.3


@dataclass(frozen=True)
class OnWorkers:
    """Fits a run in so many workers on a Ray cluster; `local` is one that begins and ends with the run."""

    workers: int
    address: str
    device: str = "auto"

    def __call__(self, run: Run, checkpoint: Path, *, resume: bool, watch: Watch) -> Outcome:
        """Leave the best weights in the classifier; return a row of figures per epoch, and what it cost.

        Raises ValueError for what fit() refuses, and where the cluster cannot hold the workers.
        """
        connect(self.address)
        try:
            needs = share_cluster(nodes(), self.workers, self.device)
            if not resume:
                remove_checkpoint(checkpoint)
            cost = self._fit(run, checkpoint.absolute(), needs, resume, watch)
        finally:
            ray.shutdown()
        history, best = load_outcome(checkpoint)
        run.classifier.load_state_dict(best)
        return history, cost | {"workers": self.workers}

    def _fit(self, run: Run, checkpoint: Path, needs: dict[str, float], resume: bool, watch: Watch) -> dict[str, Any]:
        seen = checkpoint.with_suffix(".ray")  # what Ray Train notes of a run
        shutil.rmtree(seen, ignore_errors=True)
        seen.mkdir(parents=True)
        line = ray.remote(num_cpus=0)(Line).remote()
        trainer = ray.train.torch.TorchTrainer(
            work,
            train_loop_config={"run": ray.put(run), "checkpoint": checkpoint, "resume": resume, "line": line},
            scaling_config=ray.train.ScalingConfig(
                num_workers=self.workers, use_gpu="GPU" in needs, resources_per_worker=needs
            ),
            run_config=ray.train.RunConfig(
                name=seen.name,
                storage_path=str(seen.parent),
                failure_config=ray.train.FailureConfig(max_failures=MOST_LOST),
            ),
        )
        try:
            outcome = in_thread(trainer.fit)
            while not wait([outcome], LISTEN_S).done:
                tell(watch, line)
            tell(watch, line)
            returned = outcome.result().return_value
        except ray.train.TrainingFailedError as error:
            failures = getattr(error, "worker_failures", {}).values()
            raise next(filter(None, map(cause, failures)), error) from None
        finally:
            shutil.rmtree(seen, ignore_errors=True)
        if isinstance(returned, ValueError):
            raise returned
        cost: dict[str, Any] = returned
        return cost


def work(config: dict[str, Any]) -> dict[str, Any] | ValueError:
    """A worker: the loop, with its share of each batch. What fit() refuses is returned: to try again would not help."""
    checkpoint = config["checkpoint"]
    if not checkpoint.with_suffix(".ray").exists():
        raise ValueError(f"a node does not see the folder of --out, which all must share: {checkpoint.parent}")
    device = ray.train.torch.get_device()
    torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))
    keep_freed_memory()
    run: Run = ray.get(config["run"])
    run = replace(run, classifier=run.classifier.to(device), device=device)
    torch.manual_seed(run.config.seed)
    group = Group(device)
    watch = Told(config["line"]) if group.is_first else Watch()
    resume = config["resume"] or has_checkpoint(checkpoint)
    try:
        _, cost = fit(run, checkpoint, resume=resume, watch=watch, group=group)
    except ValueError as error:
        return error
    return cost


class Line:
    """An actor: what the first worker says, until somebody asks."""

    def __init__(self) -> None:
        self._said: list[Any] = []

    def say(self, name: str, what: Pace | Progress) -> None:
        """Keep it; of steps the last one is enough."""
        if self._said and self._said[-1][0] == name == "step":
            self._said.pop()
        self._said.append((name, what))

    def heard(self) -> list[tuple[str, Pace | Progress]]:
        """What was said since the last time."""
        said, self._said = self._said, []
        return said


class Told(Watch):
    """Passes on what it hears, without waiting."""

    def __init__(self, line: Any) -> None:
        self._line = line

    def begin(self, at: Progress) -> None:
        """The run begins, or goes on."""
        self._line.say.remote("begin", at)

    def step(self, pace: Pace) -> None:
        """A step is done."""
        self._line.say.remote("step", pace)

    def epoch(self, at: Progress) -> None:
        """An epoch was closed."""
        self._line.say.remote("epoch", at)


def tell(watch: Watch, line: Any) -> None:
    """Tell what was heard."""
    for name, what in ray.get(line.heard.remote()):
        getattr(watch, name)(what)


def in_thread(call: Callable[[], Any]) -> Future[Any]:
    """What a call will return; a thread waits for it, so that Ctrl-C ends this process at once."""
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # raised where the result is asked for
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome
