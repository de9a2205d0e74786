"""An answer of the service as Python has it. Fields that a newer service adds are passed over."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from heed.errors import HeedError


@dataclass(frozen=True, slots=True)
class LabelScore:
    """A label with its calibrated probability; its logit, where raw_scores was asked."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class TokenScore:
    """What the characters start to end of the text add to a label, in log-odds."""

    text: str
    start: int
    end: int
    score: float
    side: int | None = None  # 0 or 1, of a pair


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why the text has its label."""

    label: str
    tokens: tuple[TokenScore, ...]
    gap: float


@dataclass(frozen=True, slots=True)
class Window:
    """What the model says of the characters start to end by themselves."""

    start: int
    end: int
    labels: tuple[LabelScore, ...]
    side: int | None = None


@dataclass(frozen=True, slots=True)
class TextError:
    """Why this one text has no answer."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to one text; where error is set, there are no labels."""

    request_id: str
    index: int  # in its request: what a correction names it by, together with request_id
    model: str
    version: str
    labels: tuple[LabelScore, ...] = ()  # best first
    label_set: tuple[str, ...] | None = None
    abstained: bool | None = None  # the text is unlike those trained on: do not use its labels; None: cannot tell
    tokens: int = 0
    truncated_tokens: int = 0
    windows: tuple[Window, ...] = ()
    explanation: Explanation | None = None
    error: TextError | None = None

    @property
    def label(self) -> str:
        """The best label. Raises HeedError where the text has no answer."""
        return self._best.label

    @property
    def score(self) -> float:
        """Its score. Raises HeedError where the text has no answer."""
        return self._best.score

    @property
    def _best(self) -> LabelScore:
        if self.error is not None:
            raise HeedError(self.error.code, None, self.error.message)
        return self.labels[0]


@dataclass(frozen=True, slots=True)
class Kept:
    """A label that the service has kept, for an answer of this version."""

    request_id: str
    index: int
    model: str
    version: str
    has_text: bool  # without, it cannot be trained on

    @classmethod
    def parse(cls, answer: dict[str, Any]) -> Kept:
        """The body of a 202. Raises KeyError or TypeError where it is something else."""
        return cls(**{field.name: answer[field.name] for field in fields(cls)})


def parse_results(answer: dict[str, Any]) -> list[Result]:
    """The body of a 200, in the order of the texts. Raises KeyError or TypeError where it is something else."""
    of_all = {name: answer[name] for name in ("request_id", "model", "version")}
    return [_result(found, {**of_all, "index": index}) for index, found in enumerate(answer["results"])]


def _result(found: dict[str, Any], of_all: dict[str, Any]) -> Result:
    if "error" in found:
        return Result(**of_all, error=TextError(found["error"]["code"], found["error"]["message"]))
    return Result(
        **of_all,
        labels=_labels(found),
        label_set=tuple(found["label_set"]) if "label_set" in found else None,
        abstained=found.get("abstained"),
        tokens=found["tokens"],
        truncated_tokens=found["truncated_tokens"],
        windows=tuple(Window(w["start"], w["end"], _labels(w), w.get("side")) for w in found.get("windows", ())),
        explanation=_explanation(found["explanation"]) if "explanation" in found else None,
    )


def _labels(found: dict[str, Any]) -> tuple[LabelScore, ...]:
    return tuple(LabelScore(label["label"], label["score"]) for label in found["labels"])


def _explanation(found: dict[str, Any]) -> Explanation:
    tokens = (TokenScore(t["text"], t["start"], t["end"], t["score"], t.get("side")) for t in found["tokens"])
    return Explanation(found["label"], tuple(tokens), found["gap"])
