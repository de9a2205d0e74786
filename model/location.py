"""Where a model lies -> the folder to read: a folder as it is, an entry of a registry (model/registry.py), or the
files of a repository of the Hugging Face hub.

The one place that knows what `REGISTRY/NAME@VERSION` and `hf:OWNER/REPO[@REVISION]` mean, called wherever a model
is named. No torch: service/settings.py parses before Ray starts. Where the hub's library keeps its downloads, which
hub it asks and with what token is the library's: HF_HOME, HF_ENDPOINT, HF_TOKEN.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from model.registry import ALIASES, URL, RegisteredModel, RegistryError, registered, registry_of

if TYPE_CHECKING:
    from collections.abc import Collection

log = logging.getLogger("heed")

HUB = "hf:"
REPO = re.compile(r"([\w.-]+/[\w.-]+)(?:@(\S+))?", re.ASCII)
READ = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "heed.json"]  # all that is


class LocationError(ValueError):
    """A location that names nothing that can be read; the message says what to change."""


@dataclass(frozen=True)
class HubRepo:
    """A model on the hub; `revision` is a branch, a tag or a commit, None its main branch."""

    id: str  # OWNER/REPO
    revision: str | None = None

    @property
    def name(self) -> str:
        """What a model from there is called where nothing else is said."""
        return self.id.split("/")[1]

    def __str__(self) -> str:
        return f"{HUB}{self.id}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class RegistryEntry:
    """A version of a registered model; an alias is followed by the service when it moves."""

    model: RegisteredModel
    wanted: str  # an alias, a version, or the beginning of one

    @property
    def name(self) -> str:
        """What the model is called where nothing else is said."""
        return self.model.name

    @property
    def is_alias(self) -> bool:
        """Whether it may be another version later."""
        return self.wanted in ALIASES

    def __str__(self) -> str:
        return f"{self.model}@{self.wanted}"


Location: TypeAlias = Path | RegistryEntry | HubRepo


def parse_location(text: str) -> Location:
    """A folder, REGISTRY/NAME@ALIAS_OR_VERSION or hf:OWNER/REPO[@REVISION]; whether the model is there is not asked.

    A folder that is there is one, whatever its name. Raises LocationError for another hf: or @.
    """
    if not text.startswith(HUB):
        return parse_path(text)
    match = REPO.fullmatch(text.removeprefix(HUB))
    if match is None:
        raise LocationError(f"a model on the hub is named hf:OWNER/REPO or hf:OWNER/REPO@REVISION, not: {text}")
    return HubRepo(*match.groups())


def parse_path(text: str) -> Path | RegistryEntry:
    """A folder or an entry of a registry. Raises LocationError for what is neither."""
    path, is_url = Path(text), URL.match(text) is not None
    if is_url and "@" not in path.name:
        raise LocationError(f"of what a URL names only an entry of a registry is read, URL/NAME@ALIAS, not: {text}")
    if not is_url and ("@" not in path.name or path.is_dir()):
        return path
    registry = text.rpartition("/")[0] if is_url else str(path.parent.resolve())
    name, _, wanted = path.name.rpartition("@")
    try:
        return RegistryEntry(registered(registry_of(registry), name), wanted)
    except RegistryError as error:
        raise LocationError(str(error)) from None


def local_folder(location: Location) -> Path:
    """The folder of a location, downloaded where it is on the hub. Raises LocationError."""
    if isinstance(location, Path):
        return location
    if isinstance(location, HubRepo):
        return download(location)
    try:
        return location.model.bundle(location.wanted)
    except RegistryError as error:
        raise LocationError(str(error)) from None


def download(repo: HubRepo) -> Path:
    """The folder in the library's cache with those files of a repository that are read.

    Where the hub cannot be asked, it is what was downloaded before, and a warning says so. Raises LocationError
    where the repository, its revision or a file is missing, and without network or copy.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # the library reads it when it is imported
    from huggingface_hub import HfApi, constants, errors

    hub = HfApi()
    fetch = partial(hub.snapshot_download, repo.id, revision=repo.revision, allow_patterns=READ)
    try:
        info = hub.model_info(repo.id, revision=repo.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        files = {file.rfilename for file in info.siblings or []}
        check_files(files, repo)
        for name in READ:
            if name in files:  # in this thread and not in those of fetch, so that Ctrl-C ends it
                hub.hf_hub_download(repo.id, name, revision=info.sha)
        return Path(fetch())  # notes what belongs to the revision, for when there is no network
    except LocationError:
        raise
    except errors.HFValidationError as error:
        raise LocationError(f"not a name of the hub ({first_line(error)}): {repo}") from None
    except errors.RevisionNotFoundError:
        raise LocationError(f"{repo.id} has no such revision on the hub: {repo.revision}") from None
    except errors.RepositoryNotFoundError:
        raise LocationError(
            f"the hub has no such model, or it is private or gated (set HF_TOKEN to a token that may read it): {repo}"
        ) from None
    except Exception as error:  # what the library's HTTP client raises has no class of the library
        reason = first_line(error)
    try:
        folder = Path(fetch(local_files_only=True))
    except errors.LocalEntryNotFoundError:
        raise LocationError(
            f"cannot be downloaded ({reason}), and the cache has no complete copy of it: {repo}"
        ) from None
    log.warning("the hub cannot be asked (%s): %s is the copy that was downloaded before, %s", reason, repo, folder)
    return folder


def check_files(files: Collection[str], repo: HubRepo) -> None:
    """Raise LocationError for a repository without the files that are needed, saying how to make them."""
    if "config.json" not in files:
        raise LocationError(f"no checkpoint of transformers, it has no config.json: {repo}")
    problem = missing(files)
    if problem is not None:
        source = repr(repo.id) + (f", revision={repo.revision!r}" if repo.revision else "")
        raise LocationError(
            f"{repo} {problem}: make a folder with transformers, "
            f"AutoModelForSequenceClassification.from_pretrained({source}).save_pretrained(FOLDER) "
            f"and AutoTokenizer.from_pretrained({source}).save_pretrained(FOLDER), and name that FOLDER"
        )


def missing(files: Collection[str]) -> str | None:
    """What a checkpoint of these files lacks, None for nothing."""
    pickled = sorted(name for name in files if name.startswith("pytorch_model"))
    if "model.safetensors.index.json" in files and "model.safetensors" not in files:
        return "has its weights in several files (model.safetensors.index.json), and only one is read"
    if "model.safetensors" not in files and pickled:
        return f"has only pickled weights ({pickled[0]}), which are never downloaded"
    return next((f"has no {name}" for name in ("model.safetensors", "tokenizer.json") if name not in files), None)


def first_line(error: Exception) -> str:
    """The first line of an error's message that says something, or else its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
