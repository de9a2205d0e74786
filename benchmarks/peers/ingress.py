"""`heed serve` with something else in it: the same Ray, HAProxy and settings of both, another application."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ray.serve import Application

    from service.settings import Settings


def serve_application(make: Callable[[], Application], port: int) -> None:
    """Serve what make() returns until SIGTERM. It is called when Ray's variables are set, and Ray may be imported."""
    from service.settings import Settings

    def change() -> None:
        import service.app

        service.app.application = lambda settings, attempts=1: make()

    serve_changed(change, Settings(port=port))


def serve_changed(change: Callable[[], None], settings: Settings) -> None:
    """Serve Heed until SIGTERM, after change() has replaced a part of service.app."""
    from service import launch

    start = launch.start

    def start_changed(folder: Path, settings: Settings) -> None:
        change()
        start(folder, settings)

    launch.start = start_changed
    launch.serve_forever(settings)
