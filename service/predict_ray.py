"""The same run as a Ray Data job: read and written where the command runs, answered all over the cluster.

A chunk of rows is one item of the data set, so that chunks, and with them passes, are those of a run on one machine.
Nothing has to be shared: rows and bundle go through Ray's object store. Heed must be installed on every node.
Called by service/predict_command.py.
"""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from model.address import check_reachable
from model.bundle import load_bundle
from model.device import choose_device, choose_precision
from model.records import FileError
from service.predict import Answering
from service.predictor import Predictor

try:
    import pandas as pd
    import ray
    from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask, read_datasource
    from ray.data.block import BlockMetadata
except ImportError:
    raise FileError("--ray needs packages more: pip install 'heed[ray-data]'") from None

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from model.manifest import Described
    from service.predict_output import Format
    from service.predict_rows import Reading, Written
    from service.schemas import OnLong

ONE_CHUNK = 1  # bytes of a block, so that each chunk is a block of its own, and none waits for others


class OnRay:
    """Predicts on a cluster, an actor for each GPU, or for each core where there is none."""

    def __init__(self, address: str, folder: Path, device: str, precision: str) -> None:
        if address.startswith("ray://"):
            raise ValueError(f"--ray runs on a machine of the cluster (ray job submit -- heed predict ...): {address}")
        self._bundle = load_bundle(folder)
        self._model = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # stderr is for the bar; what fails is raised
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        check_reachable(address)
        try:
            ray.init(address=address, logging_level="error", log_to_driver=False, include_dashboard=False)
        except (ConnectionError, ValueError) as error:
            raise ValueError(f"--ray {address}: {str(error).splitlines()[0]}") from None
        self._actors, self._needs = share_cluster(ray.cluster_resources(), device)
        try:
            self._device, self._precision = ray.get(ray.remote(**self._needs)(resolve).remote(device, precision))
        except ray.exceptions.RayError as error:
            raise _cause(error) from None
        self.settings = {"device": f"ray {self._device}", "precision": self._precision, "threads": 1}

    @property
    def bundle(self) -> Described:
        """The model."""
        return self._bundle

    def run(self, reading: Reading, output: Format, on_long: OnLong) -> Generator[Written]:
        """Each chunk as it is written, in order."""
        context = DataContext.get_current()
        context.execution_options.preserve_order = True
        context.target_max_block_size = ONE_CHUNK
        context.enable_progress_bars = context.print_on_execution_start = False
        rows = read_datasource(
            Chunks(replace(reading, file=str(Path(reading.file).absolute()))),
            override_num_blocks=1,
            num_cpus=0,
            label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
        )
        model = ray.put(self._model)
        answered = rows.map_batches(
            Answerer,
            batch_size=1,
            batch_format="pandas",
            compute=ActorPoolStrategy(min_size=1, max_size=self._actors),
            fn_constructor_args=[model, self._device, self._precision, output, on_long],
            **self._needs,
        )
        try:
            for row in answered.iter_rows():
                yield row["written"]
        except ray.exceptions.RayError as error:
            raise _cause(error) from None
        finally:
            ray.shutdown()


def share_cluster(resources: dict[str, float], device: str) -> tuple[int, dict[str, int]]:
    """How many actors at most, and what each needs."""
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    if device.startswith("cuda") and not gpus:
        raise ValueError(f"the cluster has no GPU: {device}")
    return (gpus, {"num_gpus": 1}) if gpus and device != "cpu" else (max(1, cpus), {"num_cpus": 1})


def resolve(device: str, precision: str) -> tuple[str, str]:
    """What auto means where actors run, once for all of them: the last bits depend on it. Called on such a node."""
    found = choose_device(device)
    return str(found), choose_precision(precision, found)


class Chunks(Datasource):  # type: ignore[misc]
    """The chunks of a file, read by one task."""

    def __init__(self, reading: Reading) -> None:
        super().__init__()
        self._reading = reading

    def estimate_inmemory_data_size(self) -> int | None:
        """Nobody knows."""
        return None

    def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
        """One: rows of a file are found one after the other."""
        reading = self._reading

        def read() -> Iterator[pd.DataFrame]:
            for chunk in reading.chunks():
                yield pd.DataFrame({"chunk": [chunk]})

        return [ReadTask(read, BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None))]


class Answerer:
    """An actor: the model, and what answers with it."""

    def __init__(self, model: Any, device: str, precision: str, output: Format, on_long: OnLong) -> None:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            for name, content in ray.get(model).items():
                (Path(folder) / name).write_bytes(content)
            bundle = load_bundle(Path(folder))
        self._answer = Answering(Predictor(bundle, choose_device(device), precision), output, on_long)

    def __call__(self, batch: pd.DataFrame) -> pd.DataFrame:
        """One chunk."""
        return pd.DataFrame({"written": [self._answer(chunk) for chunk in batch["chunk"]]})


def _cause(error: BaseException) -> BaseException:
    """What went wrong over there, where it is an error of ours."""
    cause: BaseException | None = error
    while isinstance(cause, ray.exceptions.RayError) or not isinstance(cause, ValueError | None):
        cause = getattr(cause, "cause", None) or cause.__cause__
    return cause or error
