"""`heed serve`, of the Serve config in deploy/base/rayservice.yaml: read and deployed as `serve run` does it.

Run by test_deploy.py, as a script. Only what a machine is not: a node for each replica, and ports that are free.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from service import cli, launch

if TYPE_CHECKING:
    from service.settings import Settings

MANIFEST = Path(__file__).parent.parent / "deploy" / "base" / "rayservice.yaml"


def start(folder: Path, settings: Settings) -> None:
    """Ray, and what the manifest has it serve."""
    import ray
    from ray.serve._private import api
    from ray.serve.config import gRPCOptions
    from ray.serve.schema import ServeDeploySchema

    ray.init(address="local", include_dashboard=False, log_to_driver=False, _temp_dir=str(folder / "ray"))
    config = ServeDeploySchema.model_validate(on_one_machine(settings))
    client = api.serve_start(
        proxy_location=config.proxy_location,
        http_options=config.http_options.model_dump(),
        grpc_options=gRPCOptions(**config.grpc_options.model_dump()),
    )
    client.deploy_apps(config, _blocking=True)


def on_one_machine(settings: Settings) -> dict[str, Any]:
    """The Serve config of the manifest, with ports of its own."""
    config: dict[str, Any] = yaml.safe_load(yaml.safe_load(MANIFEST.read_text())["spec"]["serveConfigV2"])
    config["http_options"] = {"host": launch.LOOPBACK, "port": settings.port}
    config["grpc_options"]["port"] = settings.grpc_port
    config["applications"][0]["args"] |= {"replicas": 1, "metrics_port": 0}
    return config


if __name__ == "__main__":
    launch.start = start
    sys.exit(cli.main())
