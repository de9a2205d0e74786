"""A bundle on a device: rows in, logits out, and what that costs.

Called by service/engine.py, and offline by service/predict.py; the batcher decides what is in a pass.
"""

from __future__ import annotations

import copy
import time
from functools import cached_property
from itertools import cycle, islice
from typing import TYPE_CHECKING

import torch

from model.bundle import PROBES
from model.cpu import pack, quantize
from model.device import DTYPES, choose_precision, keep_freed_memory
from model.drift import distances
from model.explain import explain_steps
from model.forward import Forward
from model.scores import MULTI
from model.tokens import Row
from service.planning import USUAL_ROW, fit_cost, full_pass
from service.scored import score

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from model.attribution import Attribution
    from model.bundle import Bundle
    from model.encoder import Classifier
    from model.forward import Launched
    from service.errors import ServiceError
    from service.planning import Cost
    from service.scored import Scored

KNOWN_TEXT = "to be or not to be, that is the question"  # answered at warm-up
# Rows and tokens of each, of the passes that are timed: up to one that fills the device, or takes this long.
MEASURED = ((1, 16), (1, 128), (4, USUAL_ROW), (16, USUAL_ROW), (64, USUAL_ROW))
MEASURED_TIMES, MEASURED_S = 3, 0.25


class Predictor:
    """Moves the bundle's classifier to its device and precision, and answers passes of rows."""

    def __init__(self, bundle: Bundle, device: torch.device, precision: str = "auto") -> None:
        self.bundle, self.device = bundle, device
        self.precision = choose_precision(precision, device)
        self._classifier = bundle.classifier.to(device, DTYPES[self.precision]).eval().requires_grad_(False)
        self._forward = Forward(self._fast())
        [self.known_row] = bundle.tokenizer.encode([KNOWN_TEXT], bundle.max_tokens)

    def _fast(self) -> Classifier:
        """The classifier that answers, as the device runs it fastest."""
        if self.device.type != "cpu":
            return self._classifier
        keep_freed_memory()
        if self.precision == "int8":
            return quantize(self._classifier, self.bundle.tokenizer.encode(PROBES, self.bundle.max_tokens))
        return pack(self._classifier)

    @cached_property
    def explained(self) -> Classifier:
        """The classifier to explain with: the same weights in fp32, made when somebody first asks."""
        return self._classifier if DTYPES[self.precision] == torch.float32 else copy.deepcopy(self._classifier).float()

    @property
    def is_padded(self) -> bool:
        """Whether a pass computes rows * longest tokens, rather than those that the rows have."""
        return self._forward.layout == "padded"

    def __call__(self, rows: Sequence[Row]) -> list[Scored | ServiceError]:
        """One forward pass; answers in the order of the rows, Failed where a logit is not a number."""
        return score(self.bundle, self.launch(rows)())

    def launch(self, rows: Sequence[Row]) -> Launched:
        """Start a pass."""
        return self._forward.launch(rows)

    def distances(self, rows: Sequence[Row]) -> list[float]:
        """How far the embedding of each row is from the middle of those that the model was measured on."""
        return distances(self._forward.embed(rows), self.bundle.reference["embedding_center"])

    def plan(self, rows: Sequence[Row]) -> list[list[int]]:
        """Row indices of each pass when nobody waits for one."""
        return self._forward.plan(rows)

    def explain(self, row: Row, baseline: Row, label: int) -> Iterator[Attribution | None]:
        """Steps of an explanation, each to be taken in the compute thread; the last gives it."""
        is_multi = self.bundle.problem_type == MULTI
        yield from explain_steps(self.explained, row, baseline, label, is_multi=is_multi)

    def warm_up(self) -> Cost:
        """Run the shapes of first requests once, then time passes: what they cost on this device."""
        *_, cost = self.warm_up_steps()
        assert cost is not None
        return cost

    def warm_up_steps(self, cost: Cost | None = None) -> Iterator[Cost | None]:
        """The same in steps, each to be taken in the compute thread; the last gives the cost, or the one known."""
        for _ in self._forward.warm_up_steps(self.known_row):
            yield None
        measured = []
        for num_rows, tokens in MEASURED if cost is None else ():
            row = Row(list(islice(cycle(self.known_row.ids), min(tokens, self.bundle.max_tokens))))
            rows = [row] * num_rows
            seconds = []
            for _ in range(MEASURED_TIMES):
                seconds.append(self._seconds(rows))
                yield None
            measured.append((num_rows, num_rows * row.tokens, min(seconds)))
            if min(seconds) > MEASURED_S:
                break
        yield cost or fit_cost(measured)

    def costs_like(self, other: Predictor) -> bool:
        """Whether passes cost the same: only the weights may differ."""
        ours, theirs = ((p.bundle.classifier.config, p.device, p.precision) for p in (self, other))
        return ours == theirs

    @property
    def most_tokens(self) -> int:
        """Tokens of a pass, at most: more would only make others wait."""
        return self._forward.full_pass

    def full_pass(self, cost: Cost) -> int:
        """Tokens of a pass that fills the device."""
        return full_pass(cost, self.most_tokens)

    def _seconds(self, rows: Sequence[Row]) -> float:
        start = time.perf_counter()
        self._forward(rows)
        return time.perf_counter() - start
