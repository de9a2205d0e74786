"""The engine of a replica, with a device that is lost once the replica's process id stands in the file BROKEN."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from model.forward import Forward
from service import engine

launch = Forward.launch


def lost_or_not(forward: Forward, *args: Any) -> Any:
    """A pass, or the error of a device that has gone."""
    if Path(os.environ["BROKEN"]).read_text() == str(os.getppid()):
        raise RuntimeError("the device is lost")
    return launch(forward, *args)


if __name__ == "__main__":
    Forward.launch = lost_or_not  # type: ignore[method-assign, assignment]
    engine.main()
