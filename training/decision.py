"""What the gate decided, with all numbers: a record for programs and a page for people. Written by training/retrain.py.

REGISTRY/NAME/decisions/VERSION/decision.json, decision.md      of the candidate VERSION
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from model.manifest import now
from training.report_page import markdown_template

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from training.answers import Answers
    from training.archive import Batch
    from training.gate import Cost, Decision

MOST_FLIPS = 200  # in a record; on the page fewer


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A text whose answer changed."""

    line: int  # of its file of rows
    true: list[str]
    before: list[str]
    after: list[str]
    text: Any


@dataclass(frozen=True, kw_only=True)
class Record:
    """A decision and all that it was made of."""

    model: str
    production: str
    candidate: str
    data: str  # version of the rows
    hold_out: str  # name of its rows
    batches: Sequence[Batch]  # that were new
    bounds: Mapping[str, Any]
    decision: Decision
    cost: tuple[Cost, Cost]
    flips: Mapping[str, Sequence[Flip]]
    command: str


def flips(production: Answers, candidate: Answers) -> list[Flip]:
    """Texts whose answer changed, first those that were right before."""
    changed = (production.given != candidate.given).any(axis=1).nonzero()[0].tolist()
    ordered = sorted(changed, key=lambda i: (not production.right[i], candidate.right[i]))

    def names(given: Any) -> list[str]:
        return [label for label, is_given in zip(production.labels, given, strict=True) if is_given]

    return [
        Flip(
            line=production.dataset.examples[i].line,
            true=list(production.dataset.examples[i].labels),
            before=names(production.given[i]),
            after=names(candidate.given[i]),
            text=production.dataset.examples[i].text,
        )
        for i in ordered[:MOST_FLIPS]
    ]


def record_files(record: Record) -> dict[str, str]:
    """File name -> text."""
    as_json = {"at": now()} | asdict(record)
    page = markdown_template("decision.md").render(record=record, decision=record.decision, made=as_json["at"])
    return {"decision.json": json.dumps(as_json, indent=1, ensure_ascii=False) + "\n", "decision.md": page}
