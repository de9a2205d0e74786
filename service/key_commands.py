"""`heed key`: a new API key, once, and the line that a file keeps of it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from service.keys import new_key

if TYPE_CHECKING:
    import argparse


def add_key_arguments(parser: argparse.ArgumentParser) -> None:
    """Whose it is."""
    parser.add_argument("name", metavar="NAME", help="who will send it: letters, digits and . _ -")


def key_command(args: argparse.Namespace) -> int:
    """The line goes to stdout, and so into a file; the key to the person who is there, for it is kept nowhere."""
    key, kept = new_key(args.name)
    print(f"heed key: give it to {kept.name}, it is shown only now: {key}", file=sys.stderr)
    print(kept)
    return 0
