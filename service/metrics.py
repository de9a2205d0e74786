"""Every metric. Seconds, tokens, bytes and ratios; label sets are closed, and no user's text is ever in one.

Replica processes of a node share files in PROMETHEUS_MULTIPROC_DIR; service/exporter.py answers for all of them.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

from model.drift import SIGNALS, Reference, Window, values_of
from service.answers import seen
from service.errors import Failed, ServiceError, where

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from model.drift import Seen
    from model.manifest import Described
    from service.answers import TextAnswer
    from service.batching import PassFigures

log = logging.getLogger("heed")

SHARED = os.environ.get("PROMETHEUS_MULTIPROC_DIR")  # set by service/app.py for replicas
if SHARED:
    Path(SHARED).mkdir(parents=True, exist_ok=True)  # the first metric below opens a file in it

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
TOKENS = tuple(2**n for n in range(3, 16))
ROWS = tuple(2**n for n in range(11))
RATIOS = tuple(n / 10 for n in range(11))
DRIFT_WINDOW, DRIFT_STEP = 1000, 100  # texts
DISTANCES = 200  # of which texts have an embedding that is looked at

REQUESTS = Counter("heed_requests_total", "Requests answered.", ["route", "code"])
REFUSED = Counter("heed_refused_total", "Requests and texts refused, by error code.", ["code"])
TEXTS = Counter("heed_texts_total", "Texts answered.", ["model", "version"])
TOKENS_READ = Counter("heed_tokens_total", "Tokens read; where windows overlap, twice.", ["model"])
PREDICTIONS = Counter("heed_predictions_total", "Texts by their best label.", ["model", "label"])
TRUNCATED = Counter("heed_truncated_texts_total", "Texts of which tokens were cut off.", ["model"])
REQUEST_SECONDS = Histogram(
    "heed_request_seconds", "From the first byte read to the answer.", ["route"], buckets=SECONDS
)
QUEUE_SECONDS = Histogram("heed_queue_seconds", "From accepted to its pass, per text.", buckets=SECONDS)
TOKENIZE_SECONDS = Histogram("heed_tokenize_seconds", "Tokenization, per request.", buckets=SECONDS)
FORWARD_SECONDS = Histogram("heed_forward_seconds", "Forward pass.", buckets=SECONDS)
EXPLAIN_SECONDS = Histogram("heed_explain_seconds", "An explanation, waits for passes included.", buckets=SECONDS)
BATCH_TEXTS = Histogram("heed_batch_texts", "Texts in a pass; a window of a long one counts as one.", buckets=ROWS)
BATCH_TOKENS = Histogram("heed_batch_tokens", "Tokens in a pass, without padding.", buckets=TOKENS)
PADDING = Histogram("heed_batch_padding_ratio", "Share of a pass that is padding.", buckets=RATIOS)
CONFIDENCE = Histogram("heed_confidence", "Score of the best label.", ["model"], buckets=RATIOS)
QUEUE_TEXTS = Gauge("heed_queue_texts", "Texts that wait.", multiprocess_mode="livesum")
QUEUE_TOKENS = Gauge("heed_queue_tokens", "Tokens that wait.", multiprocess_mode="livesum")
QUEUE_OLDEST = Gauge("heed_queue_oldest_seconds", "Wait of the oldest text.", multiprocess_mode="livemax")
BUSY = Gauge("heed_busy_ratio", "Share of the last moments spent in forward passes.", multiprocess_mode="livemax")
STARTED = Gauge("heed_replica_start_time_seconds", "When the process started.", multiprocess_mode="liveall")
RESIDENT = Gauge("heed_replica_resident_bytes", "Memory of the replica and its engine.", multiprocess_mode="liveall")
MODEL_INFO = Gauge(
    "heed_model_info", "1 for the version that answers to each name.", ["model", "version"], multiprocess_mode="livemax"
)
MODEL_LOADS = Counter("heed_model_loads_total", "Models loaded, by outcome: loaded, failed.", ["model", "outcome"])
REGISTRY_POLLS = Counter(
    "heed_registry_polls_total", "Looks at the registry of a followed model: read, failed.", ["model", "outcome"]
)
CANDIDATE_TEXTS = Counter(
    "heed_candidate_texts_total",
    "Texts that a candidate and production have both answered, or not: agreed, disagreed, failed, dropped.",
    ["model", "outcome"],
)
CANDIDATE_SHIFT = Histogram(
    "heed_candidate_score_shift",
    "How far a candidate moves the score of the label that production gives.",
    ["model"],
    buckets=RATIOS,
)
CANDIDATE_SECONDS = Histogram(
    "heed_candidate_seconds", "Forward passes of texts that are read for a trial alone.", ["model"], buckets=SECONDS
)
CANDIDATE_ON_TRIAL = Gauge(
    "heed_candidate_on_trial",
    "1 for the candidate that is tried, 0 once it has broken its bounds.",
    ["model", "version"],
    multiprocess_mode="livemin",
)
DRIFT = Gauge(
    "heed_drift_psi",
    "Population stability index of the last texts against those that the model was measured on, less chance.",
    ["model", "signal"],
    multiprocess_mode="livemax",
)
FEEDBACK = Counter("heed_feedback_total", "Labels taken for answered texts.", ["model"])
UNREMEMBERED = Counter(
    "heed_unremembered_requests_total", "Requests whose answers could not be stored for feedback to come."
)


class Rolling:
    """The last texts, between `size` of them and twice that."""

    def __init__(self, reference: Reference, size: int) -> None:
        self._reference, self._size = reference, size
        self._before, self._now = Window(reference), Window(reference)

    def add(self, values: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Count more; how far each signal is from the reference, empty while they are too few."""
        self._now.add(values)
        both = self._before + self._now
        if self._now.n >= self._size:
            self._before, self._now = self._now, Window(self._reference)
        return both.psi() if both.n >= self._size else {}


class Drift:
    """How far the last texts of a model are from its reference: of 1,000 to 2,000 of a replica, said every 100."""

    def __init__(self, name: str, bundle: Described) -> None:
        self._name, self._reference = name, (reference := Reference(bundle.reference, bundle.labels))
        self._gauges = {signal: DRIFT.labels(name, signal) for signal in reference.shares}
        self._texts, self._distances = Rolling(reference, DRIFT_WINDOW), Rolling(reference, DISTANCES)
        self._new: list[Seen] = []

    def begin(self) -> None:
        """Its version answers to the name from now on: nothing is known of the texts that it answers."""
        self._texts, self._distances = Rolling(self._reference, DRIFT_WINDOW), Rolling(self._reference, DISTANCES)
        self._new = []
        for signal in SIGNALS:
            DRIFT.labels(self._name, signal).set(0)

    def see(self, one: Seen) -> None:
        """Hear of an answered text."""
        self._new.append(one)
        if len(self._new) == DRIFT_STEP:
            self._say(self._texts.add(values_of(self._new)))
            self._new = []

    def see_distances(self, found: Sequence[float]) -> None:
        """Hear how far some texts are from those that the model was measured on."""
        self._say(self._distances.add({"distance": found}))

    def _say(self, psi: Mapping[str, float]) -> None:
        for signal, value in psi.items():
            self._gauges[signal].set(value)


class ModelMetrics:
    """The metrics of one version of a model, found once: to find a child by its labels costs as much as to count."""

    def __init__(self, name: str, bundle: Described) -> None:
        self._bundle, self.drift = bundle, Drift(name, bundle)
        self._texts = TEXTS.labels(name, bundle.version)
        self._tokens = TOKENS_READ.labels(name)
        self._truncated = TRUNCATED.labels(name)
        self._confidence = CONFIDENCE.labels(name)
        self._predictions = [PREDICTIONS.labels(name, label) for label in bundle.labels]

    def observe(self, answers: Sequence[TextAnswer], tokenize_s: float, *, is_present: bool = True) -> int:
        """Hear of an answered request; on how many of its texts the model failed.

        is_present: this version answers to the name, so what drifts is said of it.
        """
        failed = 0
        TOKENIZE_SECONDS.observe(tokenize_s)
        self._texts.inc(len(answers))
        rows = [row for answer in answers for row in answer.rows]
        self._tokens.inc(sum(len(row.ids) for row in rows))
        if truncated := sum(row.truncated > 0 for row in rows):
            self._truncated.inc(truncated)
        for answer in answers:
            if isinstance(answer.result, ServiceError):
                REFUSED.labels(answer.result.code).inc()
                failed += isinstance(answer.result, Failed)
            if one := seen(self._bundle, answer):
                self._predictions[one.label].inc()
                self._confidence.observe(one.confidence)
                if is_present:
                    self.drift.see(one)
        return failed


STARTED.set_to_current_time()


def count_from_zero(followed: str) -> None:
    """Say 0 of what may happen to a followed model: from nothing to 1 is no increase to Prometheus."""
    for outcome in ("loaded", "failed"):
        MODEL_LOADS.labels(followed, outcome)
    for outcome in ("read", "failed"):
        REGISTRY_POLLS.labels(followed, outcome)


def observe_memory(*processes: int) -> None:
    """Read what the kernel says of these processes together; one that has ended has none."""
    pages = 0
    for process in processes:
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{process}/statm").read_text().split()[1])
    RESIDENT.set(pages * os.sysconf("SC_PAGESIZE"))


def observe_pass(figures: PassFigures) -> None:
    """Hear of a finished pass."""
    if figures.error is not None:
        log.error("a pass of %d texts failed: %s", len(figures.lengths), where(figures.error))
    tokens = sum(figures.lengths)
    FORWARD_SECONDS.observe(figures.forward_s)
    BATCH_TEXTS.observe(len(figures.lengths))
    BATCH_TOKENS.observe(tokens)
    for waited in figures.queue_s:
        QUEUE_SECONDS.observe(waited)


def observe_explanation(figures: PassFigures) -> None:
    """Hear of a finished explanation."""
    if figures.error is not None:
        log.error("an explanation failed: %s", where(figures.error))
    EXPLAIN_SECONDS.observe(figures.forward_s)
