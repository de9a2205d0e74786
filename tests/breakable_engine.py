"""The engine of a replica, with a device that breaks when the file BROKEN says so.

It is lost where that is the id of the replica's process, and hangs at `hang ID`; at `memory` two rows are too many,
at `memory N` a row of more than N tokens is too long.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch

from model.forward import Forward
from service import engine

launch = Forward.launch


def lost_or_not(forward: Forward, *args: Any) -> Any:
    """A pass, or the error of a device that has gone."""
    broken = Path(os.environ["BROKEN"]).read_text()
    if broken == str(os.getppid()):
        raise RuntimeError("the device is lost")
    if broken == f"hang {os.getppid()}":
        time.sleep(3600)
    what, _, longest = broken.partition(" ")
    if what == "memory" and (any(len(row.ids) > int(longest) for row in args[0]) if longest else len(args[0]) > 1):
        raise torch.OutOfMemoryError("out of memory")
    return launch(forward, *args)


if __name__ == "__main__":
    Forward.launch = lost_or_not  # type: ignore[method-assign, assignment]
    engine.main()
