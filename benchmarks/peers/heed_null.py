"""Heed without its forward pass: every text gets the same logits. What is left is the host path of a request."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from peers import Peer, Start
from peers.heed import command, labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.scores import Array
    from model.tokens import Row


def null_command(start: Start) -> list[str]:
    """The program below."""
    return start.program("heed_null")


PEERS = [
    Peer("heed-tiny", partial(command, "auto"), path="/v1/classify", labels=labels),
    Peer("heed-null", null_command, path="/v1/classify", labels=labels),
]


def without_forward_pass() -> None:
    """Replace the deployment's class by one whose passes answer zeros."""
    import service.app

    original: Any = service.app.Replica

    class NullReplica(original):  # type: ignore[misc]
        """Ray sends it to the replica's process by value."""

        def __init__(self, settings: dict[str, Any]) -> None:
            import numpy as np

            from service.compute import Compute, Loaded

            async def constants(compute: Compute, model: Loaded, rows: Sequence[Row]) -> tuple[Array, int]:
                logits = np.zeros((len(rows), len(model.bundle.labels)), dtype=np.float32)
                return logits, sum(row.tokens for row in rows)

            Compute.run = constants  # type: ignore[method-assign, assignment]
            super().__init__(settings)

    service.app.Replica = NullReplica  # type: ignore[misc]


def main() -> None:
    """`heed serve` of the bundle."""
    from peers.ingress import serve_changed
    from service.settings import Settings

    serve_changed(without_forward_pass, Settings(models=[f"model={sys.argv[1]}"], port=int(sys.argv[2])))


if __name__ == "__main__":
    main()
