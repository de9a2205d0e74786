"""What service/ray_node.py takes from Ray is still there, and no helper runs."""

from __future__ import annotations

import inspect

from ray._private import node, services, worker

from service import ray_node


def test_the_installed_ray_has_the_names_that_are_replaced() -> None:
    assert "ray._private.node.Node(" in inspect.getsource(worker.init)
    started = inspect.getsource(node.Node.start_head_processes) + inspect.getsource(node.Node.start_ray_processes)
    for method in ("start_monitor", "start_api_server", "start_log_monitor", "start_raylet"):
        assert f"self.{method}(" in started
        assert method in vars(ray_node.LeanNode)
    raylet = inspect.getsource(services.start_raylet)
    assert all(f'"{agent}' in raylet for agent in ray_node.AGENTS)
    assert "start_ray_process(" in raylet
    assert "ray._private.utils.set_sigterm_handler(" in inspect.getsource(worker.init)


def test_only_the_agents_of_the_raylet_are_stood_in_for() -> None:
    command = ["raylet", "--dashboard_agent_command=python agent.py --port=1", "--head", "--x=a=b"]
    assert ray_node.without_agents(command) == ["raylet", "--dashboard_agent_command=sh -c cat", "--head", "--x=a=b"]
