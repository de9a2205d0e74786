"""heed.json: what a bundle says of itself beyond what transformers reads; and what a model is without its weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from model.scores import Calibration, ProblemType

if TYPE_CHECKING:
    from pathlib import Path

    from model.tokens import Tokenizer

HASHED = ("config.json", "model.safetensors", "tokenizer.json")  # what the version is made of
FORMAT = 2  # of heed.json; a reader refuses a higher one. 2: more in calibration, out_of_scope_label


class BundleError(ValueError):
    """A folder that is not a bundle, or not one that can be trusted."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """heed.json."""

    name: str
    version: str  # content hash of config, weights and tokenizer
    created: str  # ISO 8601, UTC
    labels: list[str]  # position is the label id, pinned for good
    problem_type: ProblemType
    max_tokens: int  # longest row that it reads, special tokens included
    calibration: Calibration = field(default_factory=Calibration)
    made_by: dict[str, Any] = field(default_factory=dict)  # Heed's version, settings, data files with hashes
    metrics: dict[str, Any] = field(default_factory=dict)  # of held-out data, each with its n
    probes: list[dict[str, Any]] = field(default_factory=list)  # {"text", "logits"}
    reference: dict[str, Any] = field(default_factory=dict)  # statistics of held-out data, for drift
    out_of_scope_label: str | None = None  # of rows that were no class of it
    format: int = FORMAT

    def to_json(self) -> str:
        """The text of heed.json."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Raises BundleError naming what is missing or of a newer format."""
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"heed.json is not a manifest of format {FORMAT}: {error}") from None
        try:
            written = fields.pop("format")
            if written > FORMAT:
                raise BundleError(f"heed.json is of a newer format than {FORMAT}, update Heed: {written}")
            return cls(**fields | {"calibration": Calibration.from_json(fields["calibration"])})
        except (KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"heed.json is not a manifest of format {FORMAT}: {error}") from None


def content_hash(folder: Path) -> str:
    """The first 16 hex digits of SHA-256 over config, weights and tokenizer."""
    digest = hashlib.sha256()
    for name in HASHED:
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def now() -> str:
    """The time as a manifest writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Described:
    """A model without its weights: what is needed to read texts and to say what logits mean."""

    name: str
    version: str
    labels: list[str]
    problem_type: ProblemType
    max_tokens: int
    calibration: Calibration
    tokenizer: Tokenizer
    reference: dict[str, Any] = field(default_factory=dict)  # of the manifest
