"""Ray's processes where Ray serves Heed alone: without the five that no replica needs.

Besides its store, its raylet and the workers, Ray starts a dashboard (also when that is turned off), the
agents of the dashboard and of runtime environments, a log monitor and a monitor that would add machines:
0.4 GB, and half of the time that a start takes. There is no setting to leave them out, so that this rests
on names of Ray 2.60, which tests/test_ray_node.py holds. Used by service/launch.py, before ray.init.
"""

from __future__ import annotations

from typing import Any

import ray
from ray._private import node, services, utils

raylet: Any = ray._raylet  # its stubs lack what is used here

# The raylet ends itself where one of its agents is missing or ends. This one reads what the raylet never
# writes, and so ends with it.
STAND_IN = "sh -c cat"
AGENTS = ("--dashboard_agent_command=", "--runtime_env_agent_command=")
PORTS = (  # the raylet waits until each agent has said on which port it listens; -1 is none
    raylet.METRICS_AGENT_PORT_NAME,
    raylet.METRICS_EXPORT_PORT_NAME,
    raylet.DASHBOARD_AGENT_LISTEN_PORT_NAME,
    raylet.RUNTIME_ENV_AGENT_PORT_NAME,
)
_start_process = services.start_ray_process


def without_agents(command: list[str]) -> list[str]:
    """The command of the raylet with stand-ins; those of other processes have nothing to replace."""
    return [f"{part.partition('=')[0]}={STAND_IN}" if part.startswith(AGENTS) else part for part in command]


def start_process(command: list[str], *args: Any, **options: Any) -> Any:
    """Ray's function of this name, without agents."""
    return _start_process(without_agents(command), *args, **options)


class LeanNode(node.Node):  # type: ignore[misc]
    """Ray's node without helpers. No runtime environment can be asked of it."""

    def start_monitor(self) -> None:
        """There are no machines to add."""

    def start_api_server(self, **_: Any) -> None:
        """Nobody looks at the dashboard."""

    def start_log_monitor(self) -> None:
        """Nobody reads the logs while they are written."""

    def start_raylet(self, *args: Any, **options: Any) -> None:
        """Answer for its agents, then start it."""
        for name in PORTS:
            raylet.persist_port(self._session_dir, self._node_id, name, -1)
        super().start_raylet(*args, **options)


def install() -> None:
    """From now on ray.init starts a LeanNode, and leaves signals to service/launch.py."""
    services.start_ray_process, node.Node = start_process, LeanNode
    utils.set_sigterm_handler = lambda handler: None
