"""A Ray cluster to train on: how it is reached, and what of it a worker gets.

Imported by training/distributed.py and search.py before Ray's own libraries, as it says which packages are missing.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from model.address import check_reachable

try:
    import ray
    import ray.train.torch
    import ray.tune
except ImportError:
    raise ValueError("--workers and --search need packages more: pip install 'heed[ray-train]'") from None

if TYPE_CHECKING:
    from collections.abc import Sequence


def connect(address: str) -> None:
    """Join the cluster at an address; `local` starts one, which ends with this process.

    Raises ValueError where there is none.
    """
    if address.startswith("ray://"):
        raise ValueError(f"--ray runs on a machine of the cluster (ray job submit -- heed train ...): {address}")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # stderr is for the bar; what fails is raised
    for name in ("ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    check_reachable(address)
    try:
        ray.init(address=address, logging_level="error", log_to_driver=False, include_dashboard=False)
    except (ConnectionError, ValueError) as error:
        raise ValueError(f"--ray {address}: {str(error).splitlines()[0]}") from None


def nodes() -> list[dict[str, float]]:
    """What each node has, such as {"CPU": 8.0, "GPU": 1.0}."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def share_cluster(having: Sequence[dict[str, float]], workers: int, device: str) -> dict[str, float]:
    """What each worker gets: a GPU where there are any, else as many cores as all can have alike.

    Raises ValueError where the nodes cannot hold so many.
    """
    gpus = sum(int(node.get("GPU", 0)) for node in having)
    if device.startswith("cuda") and not gpus:
        raise ValueError(f"the cluster has no GPU: {device}")
    if gpus and device != "cpu":
        if workers > gpus:
            raise ValueError(f"--workers is more than the GPUs of the cluster, which has {gpus}: {workers}")
        return {"GPU": 1, "CPU": 1}
    cores = [int(node.get("CPU", 0)) for node in having]
    for each in range(max(cores), 0, -1):
        if sum(n // each for n in cores) >= workers:
            return {"CPU": each}
    raise ValueError(f"--workers is more than the cores of the cluster, which has {sum(cores)}: {workers}")


def cause(error: BaseException | None) -> ValueError | None:
    """The error of ours below one of Ray's, where there is one."""
    while error is not None and not isinstance(error, ValueError):
        error = getattr(error, "cause", None) or error.__cause__
    return error
