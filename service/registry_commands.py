"""`heed registry`: versions of models, and which of them is in production."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from model.location import local_folder, parse_location
from model.manifest import Manifest
from model.registry import names, open_registry, registered, registry_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from model.registry import RegisteredModel


def add_registry_arguments(parser: argparse.ArgumentParser) -> None:
    """What `heed registry` does, and to what."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")

    def action(name: str, function: Callable[[argparse.Namespace], int], *positional: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=function.__doc__, description=function.__doc__)
        sub.set_defaults(function=function)
        sub.add_argument("registry", metavar="REGISTRY", help="its folder, or the URL of an object store")
        for argument in positional:
            sub.add_argument(argument, metavar=argument.upper())
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
        return sub

    action("list", list_command)
    action("show", show_command, "model").usage = "%(prog)s [-h] [--json] REGISTRY NAME[@ALIAS_OR_VERSION]"
    promotes = action("add", add_command, "name", "bundle")
    promotes.add_argument("--promote", action="store_true", help="put it into production; else it is the candidate")
    action("promote", promote_command, "name", "version")
    action("rollback", rollback_command, "name")
    collects = action("gc", gc_command, "name")
    collects.add_argument(
        "--keep", type=int, default=5, metavar="N", help="versions to keep beside those that an alias names; default: 5"
    )


def registry_command(args: argparse.Namespace) -> int:
    """Do what was asked."""
    function: Callable[[argparse.Namespace], int] = args.function
    return function(args)


def list_command(args: argparse.Namespace) -> int:
    """Every model with its versions, oldest first, and what they are."""
    registry = open_registry(args.registry)
    models = [registered(registry, name) for name in names(registry)]
    if args.json:
        found = {model.name: {"versions": model.versions(), "aliases": model.aliases()} for model in models}
        print(json.dumps(found, indent=2))
        return 0
    for model in models:
        for version in model.versions():
            print(f"{model.name}@{version}  {', '.join(aliases_of(model, version))}".rstrip())
    return 0


def aliases_of(model: RegisteredModel, version: str) -> list[str]:
    """What the version is."""
    return [alias for alias, named in model.aliases().items() if named == version]


def show_command(args: argparse.Namespace) -> int:
    """One version of a model, the one in production unless another is named."""
    name, at, wanted = args.model.partition("@")
    model = registered(open_registry(args.registry), name)
    shown = describe(model, wanted if at else "production")
    if args.json:
        print(json.dumps(shown, indent=2, ensure_ascii=False))
        return 0
    for field, value in shown.items():
        print(f"{field:<12} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
    return 0


def describe(model: RegisteredModel, wanted: str) -> dict[str, Any]:
    """What a version is called, where it lies, and what its manifest, if it has one, says of it."""
    folder = model.bundle(wanted)
    aliases = aliases_of(model, folder.name)
    shown: dict[str, Any] = {"name": model.name, "version": folder.name, "aliases": aliases, "folder": str(folder)}
    if (folder / "heed.json").exists():
        manifest = Manifest.from_json((folder / "heed.json").read_bytes())
        fields = ("created", "labels", "problem_type", "max_tokens", "metrics")
        shown |= {field: getattr(manifest, field) for field in fields}
    return shown


def add_command(args: argparse.Namespace) -> int:
    """Copy a bundle in, checked, and name it the candidate or the production version."""
    model = registered(registry_of(args.registry), args.name)
    version = model.add(local_folder(parse_location(args.bundle)))
    aliases = model.promote(version) if args.promote else model.propose(version)
    return told(args, model, version, aliases)


def promote_command(args: argparse.Namespace) -> int:
    """Put a version into production; the one before is kept as previous."""
    model = registered(open_registry(args.registry), args.name)
    aliases = model.promote(args.version)
    return told(args, model, aliases["production"], aliases)


def rollback_command(args: argparse.Namespace) -> int:
    """Put the previous version back into production; once more undoes it."""
    model = registered(open_registry(args.registry), args.name)
    aliases = model.rollback()
    return told(args, model, aliases["production"], aliases)


def gc_command(args: argparse.Namespace) -> int:
    """Remove versions that are neither in production, nor candidate, nor previous, nor among the newest."""
    if args.keep < 0:
        raise ValueError(f"--keep is not at least 0: {args.keep}")
    gone = registered(open_registry(args.registry), args.name).collect(args.keep)
    if args.json:
        print(json.dumps({"name": args.name, "removed": gone}, indent=2))
        return 0
    for version in gone:
        print(f"{args.name}@{version}")
    print(f"heed registry: {args.name}: versions removed: {len(gone)}", file=sys.stderr)
    return 0


def told(args: argparse.Namespace, model: RegisteredModel, version: str, aliases: dict[str, str]) -> int:
    """Print the version that it is about, and say on stderr what the aliases are now."""
    if args.json:
        print(json.dumps({"name": model.name, "version": version, "aliases": aliases}, indent=2))
    else:
        print(f"{model.name}@{version}")
    now = ", ".join(f"{alias} {named}" for alias, named in aliases.items())
    print(f"heed registry: {model.name}: {now}", file=sys.stderr)
    return 0
