"""What the clients send, and what they do with a refusal: decisions without a socket, for both of them.

A text is a string, or a pair of strings that are read together.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

import httpx

from heed.errors import HeedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Text = str | tuple[str, str]

T = TypeVar("T")

REQUEST_S = 60.0  # for a request of a call without a deadline, retries included
GRACE_S = 1.0  # the service's own word that the deadline is past says more than a socket that times out
MAX_TIMEOUT_MS = 600_000  # the service takes no later one
PASSING = {429, 503}  # refusals that pass
LEAST_WAIT_S = 0.1  # also where Retry-After says 0
FIRST_WAIT_S, MAX_WAIT_S = 0.5, 8.0  # where no Retry-After says how long
ENVELOPE_BYTES = 4096  # of a body, for what is not texts


class Options(TypedDict, total=False):
    """Parameters of classify(), those of POST /v1/classify; what is left out is the service's default.

    timeout_ms is the deadline of the whole call: of all its requests, and their retries.
    """

    model: str | None
    top_k: int | None
    raw_scores: bool
    on_long: Literal["truncate", "error", "window"]
    explain: bool | str
    timeout_ms: int | None
    priority: Literal["interactive", "bulk"] | None


class Deadline:
    """A time by which there is an answer."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._end = clock, clock() + seconds

    @property
    def left_s(self) -> float:
        """Seconds until then; negative when it is past."""
        return self._end - self._clock()


def call_deadline(options: Options) -> Deadline | None:
    """Of the whole call, where it names one."""
    timeout_ms = options.get("timeout_ms")
    return None if timeout_ms is None else Deadline(timeout_ms / 1000)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may hold."""

    texts: int
    body_bytes: int

    @classmethod
    def parse(cls, listed: dict[str, Any]) -> Limits:
        """From GET /v1/models. Raises KeyError or TypeError where it is something else."""
        return cls(int(listed["max_texts_per_request"]), int(listed["max_body_bytes"]))


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts of one request; start is where they are in those of the call."""

    start: int
    texts: Sequence[Text]
    options: Options

    def body(self, deadline: Deadline) -> bytes:
        """JSON, with the part of the call's deadline that is left."""
        kind = "texts" if isinstance(self.texts[0], str) else "pairs"
        fields: dict[str, Any] = {kind: self.texts, **self.options}
        if self.options.get("timeout_ms") is not None:
            fields["timeout_ms"] = min(max(1, int(deadline.left_s * 1000)), MAX_TIMEOUT_MS)
        return encoded(fields)


@dataclass(frozen=True, slots=True)
class Correction:
    """A label for an answered text; fields that are None are not sent."""

    request_id: str
    index: int
    label: str | None
    labels: Sequence[str] | None
    text: str | None
    text_pair: str | None

    def body(self, deadline: Deadline) -> bytes:
        """JSON."""
        return encoded({name: value for name, value in asdict(self).items() if value is not None})


def request(asked: Batch | Correction | None, deadline: Deadline) -> dict[str, Any]:
    """What httpx is asked to send: texts, a label, or the question what is served."""
    timeout = max(0.0, deadline.left_s) + GRACE_S
    if asked is None:
        return {"method": "GET", "url": "/v1/models", "timeout": timeout}
    url = "/v1/classify" if isinstance(asked, Batch) else "/v1/feedback"
    return {"method": "POST", "url": url, "content": asked.body(deadline), "timeout": timeout}


def checked(texts: Sequence[Text]) -> Sequence[Text]:
    """The texts. Raises TypeError for a lone string, whose characters would be taken for texts."""
    if isinstance(texts, str):
        raise TypeError("texts is a list of strings, not a string: put it into a list")
    return texts


def batches(texts: Sequence[Text], options: Options, limits: Limits) -> Iterator[Batch]:
    """Consecutive texts, as many in each as a request may hold; what no request may hold is left to the service."""
    start = size = 0
    for i, text in enumerate(texts):
        text_size = len(encoded(text)) + 1
        if i > start and (i - start == limits.texts or size + text_size > limits.body_bytes - ENVELOPE_BYTES):
            yield Batch(start, texts[start:i], options)
            start, size = i, 0
        size += text_size
    if texts:
        yield Batch(start, texts[start:], options)


def encoded(value: object) -> bytes:
    """JSON in UTF-8, without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def retry_in(
    outcome: httpx.Response | httpx.TransportError, attempt: int, deadline: Deadline, *, was_reached: bool
) -> float | None:
    """Seconds after which to send it again; None if that is no use, or not within the deadline.

    Where nobody answers, there may never have been a service; one that was reached once may come back.
    """
    if isinstance(outcome, Exception):
        passes, asked_s = was_reached and not isinstance(outcome, httpx.TimeoutException), None
    else:
        passes, asked_s = outcome.status_code in PASSING, _asked_wait(outcome.headers)
    wait_s = min(FIRST_WAIT_S * 2 ** min(attempt, 10), MAX_WAIT_S) if asked_s is None else max(asked_s, LEAST_WAIT_S)
    return wait_s if passes and wait_s < deadline.left_s else None


def answer_of(outcome: httpx.Response | httpx.TransportError, url: object) -> httpx.Response:
    """The answer. Raises HeedError where there is none: what is below the client is not its callers' concern."""
    if isinstance(outcome, httpx.TimeoutException):
        message = "no answer in time: send fewer texts or a later timeout_ms"
        raise HeedError("deadline_exceeded", None, message) from None
    if isinstance(outcome, httpx.TransportError):
        message = f"no answer ({type(outcome).__name__}): is a service running there? {url}"
        raise HeedError("unreachable", None, message) from outcome
    return outcome


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """Retry-After, in seconds or as a date (RFC 9110, section 10.2.3)."""
    value = headers.get("retry-after", "")
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):  # no date, or one of no time zone
        return None


def parsed(response: httpx.Response, parse: Callable[[dict[str, Any]], T]) -> T:
    """The body of a success as `parse` makes it. Raises HeedError for another status, and another body."""
    if not response.is_success:
        raise refusal(response)
    try:
        return parse(response.json())
    except (ValueError, KeyError, TypeError, AttributeError):
        message = f"the answer is not one of Heed: is it at this URL? {response.request.url}"
        raise HeedError("not_heed", response.status_code, message) from None


def refusal(response: httpx.Response) -> HeedError:
    """The error of an answer, also where something before the service gave it."""
    status = response.status_code
    try:
        error = response.json()["error"]
        return HeedError(error["code"], status, error["message"], error["details"])
    except (ValueError, KeyError, TypeError):
        return HeedError(f"http_{status}", status, f"answered by something that is not Heed: {response.reason_phrase}")
