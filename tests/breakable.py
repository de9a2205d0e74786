"""`heed serve` with a device that breaks on demand, and new settings on demand. Run by test_cluster.py, as a script.

The device of the replica whose process id stands in the file BROKEN is lost for good (breakable_engine.py). A line of
stdin is settings to change, as JSON: they are deployed anew, as `serve deploy` does it in a cluster. With NODES=2 there
is a second raylet, under which replicas run as on another machine. Ray is imported when its environment is set.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service import cli, launch

if TYPE_CHECKING:
    from service.settings import Settings

_start = launch.start


def start(folder: Path, settings: Settings) -> None:
    """Start with replicas whose engine looks at the file before each pass, then listen to stdin."""
    from service import app

    program = str(Path(__file__).with_name("breakable_engine.py"))

    class Breakable(app.Replica):
        def __init__(self, settings: dict[str, Any]) -> None:
            from service import remote

            remote.PROGRAM = (program,)
            super().__init__(settings)

    app.Replica = Breakable  # type: ignore[misc]
    if os.environ.get("NODES") == "2":
        add_a_node_to_what_ray_starts()
    _start(folder, settings)
    threading.Thread(target=redeploy, args=(settings,), daemon=True).start()


def add_a_node_to_what_ray_starts() -> None:
    """As ray.cluster_utils does it for Ray's own tests."""
    import ray
    from ray._private import node, parameter, worker

    init = ray.init

    def init_with_two(**options: Any) -> None:
        init(**options)
        head = worker._global_node
        parameters = parameter.RayParams(
            gcs_address=head.gcs_address,
            num_cpus=options["num_cpus"],
            object_store_memory=launch.OBJECT_STORE_BYTES,
            plasma_directory=options["_plasma_directory"],
            min_worker_port=0,
            max_worker_port=0,
            node_manager_port=0,
        )
        node.Node(parameters, head=False, shutdown_at_exit=False, spawn_reaper=False)

    ray.init = init_with_two


def redeploy(settings: Settings) -> None:
    """Deploy with the settings of each line."""
    from ray import serve

    from service.app import application

    for line in sys.stdin:
        changed = launch.shared_out(settings.model_copy(update=json.loads(line)), num_gpus=0)
        serve.run(application(changed), name="heed", route_prefix="/")
        launch.say("deployed anew")


if __name__ == "__main__":
    launch.start = start
    sys.exit(cli.main())
