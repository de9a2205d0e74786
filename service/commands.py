"""`heed serve`: parse, call one function, return an exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from model.location import RegistryEntry, local_folder
from service.settings import Settings, load_settings, parse_specs, wants_spans

if TYPE_CHECKING:
    import argparse

    from pydantic.fields import FieldInfo

    from model.location import Location

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `heed serve`: one for each setting."""
    parser.add_argument(
        "models",
        nargs="*",
        metavar="[NAME=]LOCATION",
        help="a bundle's folder, REGISTRY/NAME@ALIAS_OR_VERSION (an alias is followed) or hf:OWNER/REPO[@REVISION]; "
        "default: the model that comes with Heed",
    )
    parser.add_argument("--config", type=Path, metavar="YAML", help="settings by name")
    for name, field in Settings.model_fields.items():
        if name != "models":
            default = "" if field.default in (None, []) else f" (default: {field.default})"
            flag = f"--{name.replace('_', '-')}"
            parser.add_argument(flag, metavar=_metavar(field), help=f"{field.description}{default}")


def serve_command(args: argparse.Namespace) -> int:
    """Serve until it is stopped."""
    flags = {name: getattr(args, name) for name in Settings.model_fields if getattr(args, name) not in (None, [])}
    settings = load_settings(flags, args.config)
    os.environ.pop("HEED_API_KEYS", None)  # hashed by now, and no process that is started here needs it
    check_access(settings)
    specs = parse_specs(settings.models)
    for spec in specs:
        print(f"heed serve: {spec.name} from {spec.location}", file=sys.stderr)
    found = [f"{spec.name}={found_once(spec.location)}" for spec in specs]
    from service.launch import serve_forever

    serve_forever(settings.model_copy(update={"models": found}))
    return 0


def check_access(settings: Settings) -> None:
    """Say who may ask. Raises ValueError where a replica would: a file without keys, spans that cannot be sent."""
    from service.access import Access

    if wants_spans(os.environ):
        from service.tracing import Tracing

        Tracing.from_environment().close()
    access = Access(settings)
    if not access.is_open:
        print(f"heed serve: for callers with a key: {', '.join(access.names)}", file=sys.stderr)
    elif settings.host not in LOOPBACK or "HEED_API_KEY" in os.environ:  # that is a caller's; a letter is missing
        print(f"heed serve: no keys are set, whoever reaches it may ask: {settings.host}", file=sys.stderr)


def found_once(location: Location) -> Location:
    """Where replicas find the model, without a download in each; an alias stays one, for they follow it.

    Raises LocationError where there is none.
    """
    folder = local_folder(location)
    return location if isinstance(location, RegistryEntry) and location.is_alias else folder


def _metavar(field: FieldInfo) -> str:
    choices = get_args(field.annotation)
    return "{" + ",".join(choices) + "}" if choices and isinstance(choices[0], str) else "VALUE"
