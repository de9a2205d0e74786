"""Containers without a daemon: podman with a storage of its own, and the base image where no registry has it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

CONTAINERS = """[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_config_dir = "{0}/networks"
"""
STORAGE = '[storage]\ndriver = "overlay"\ngraphroot = "{0}/graph"\nrunroot = "{0}/run"\n'
CERTIFICATES = "/etc/ssl/certs"
DEBIAN = ["ca-certificates", "python3", "python3-venv", "python3-pip"]


class Podman:
    """podman, with everything that it keeps below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "containers.conf").write_text(CONTAINERS.format(folder))
        (folder / "storage.conf").write_text(STORAGE.format(folder))
        self.environment = os.environ | {
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        }

    def __call__(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = ["podman", *arguments]
        ran = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert not check or ran.returncode == 0, f"{command}: {ran.stderr}"
        return ran

    def close(self) -> None:
        self("rm", "--all", "--force", check=False)
        self("rmi", "--all", "--force", check=False)
        mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for place in reversed([place for place in mounted if place.startswith(f"{self.folder}/")]):
            subprocess.run(["umount", "--lazy", place], check=False)  # podman leaves its storage mounted upon itself
        shutil.rmtree(self.folder, ignore_errors=True)


def podman_with(base: str, folder: Path) -> Podman:
    """One that has the base image and can run it; skips where there is none."""
    if shutil.which("podman") is None:
        pytest.skip("no podman")
    podman = Podman(folder)
    if podman("pull", "-q", base, check=False).returncode != 0:
        import_debian(podman, base)
    tried = podman("run", "--rm", base, "true", check=False)
    if tried.returncode != 0:
        podman.close()
        pytest.skip(f"no container can be run here: {tried.stderr.strip().splitlines()[-1]}")
    return podman


def import_debian(podman: Podman, name: str) -> None:
    """Debian with its own Python, under the name of the base image."""
    if shutil.which("debootstrap") is None:
        pytest.skip(f"cannot be pulled, and there is no debootstrap to stand in for it: {name}")
    root = podman.folder / "debian"
    make = ["debootstrap", "--variant=minbase", f"--include={','.join(DEBIAN)}", "bookworm", str(root)]
    if subprocess.run(make, capture_output=True).returncode != 0:
        pytest.skip(f"cannot be pulled, nor made of Debian's packages: {name}")
    for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        marker.unlink()
    for alias, program in (("python", "python3"), ("python3", "python3"), ("pip", "pip3")):
        (root / "usr" / "local" / "bin" / alias).symlink_to(f"/usr/bin/{program}")
    changes = [word for change in ('CMD ["python3"]', "ENV LANG=C.UTF-8") for word in ("-c", change)]
    with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as archive:
        podman_import = ["podman", "import", "-q", *changes, "-", name]
        subprocess.run(podman_import, stdin=archive.stdout, env=podman.environment, check=True, capture_output=True)
    shutil.rmtree(root)


def flags_of_this_machine(folder: Path) -> Sequence[str]:
    """Of a build: pip finds packages where pip here does, also those in folders of this machine."""
    said = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    values = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    settings = {key.split(".", 1)[1]: value.strip("'") for key, value in values.items()}
    indexes = {
        key: settings[key] for key in ("index-url", "extra-index-url") if "file:" not in settings.get(key, "file:")
    }
    wheels = [place for place in settings.get("find-links", "").split() if Path(place).is_dir()]
    kept = indexes | {"find-links": " ".join(wheels)}
    (folder / "pip.conf").write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in kept.items()))
    mounted = [f"{place}:{place}:ro" for place in wheels]
    mounts = [f"{CERTIFICATES}:{CERTIFICATES}:ro", f"{folder / 'pip.conf'}:/etc/pip.conf:ro", *mounted]
    return ["--isolation=chroot", "--pull=never", "--network=host", *(word for each in mounts for word in ("-v", each))]
