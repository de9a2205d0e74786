"""The same run as a Ray Data job: the rows are read where the command runs, answered all over the cluster, and written here.

A chunk of rows is one item of the data set, so that chunks, and with them passes, are those of a run on one machine.
Nothing has to be shared: the bundle goes through Ray's object store. Heed must be installed on every node.
Called by service/predict_command.py.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.bundle import load_bundle
from model.device import choose_device
from model.records import FileError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from model.manifest import Described
    from service.predict_output import Format
    from service.predict_rows import Reading, Written
    from service.schemas import OnLong

try:
    import pandas as pd
    import ray
    from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
    from ray.data.block import BlockMetadata
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError:
    raise FileError("--ray needs packages more: pip install 'heed[ray-data]'") from None

