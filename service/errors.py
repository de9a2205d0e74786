"""What can go wrong, once: one class, one code and one status each, and a message that says what to change.

Only numbers, limits and names of ours go into a message: never a user's text.
"""

from __future__ import annotations

from typing import Any, ClassVar


class ServiceError(Exception):
    """An answer that is not a prediction. Arguments stay in args: errors are pickled between processes."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    template: ClassVar[str] = "the server failed; the request was not answered"

    def __str__(self) -> str:
        return self.template.format(*self.args)

    @property
    def details(self) -> list[dict[str, Any]]:
        """More than fits into the message."""
        return []

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        return {}

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        return {"error": {"code": self.code, "message": str(self), "details": self.details}}


class NotJSON(ServiceError):
    status, code = 400, "not_json"
    template = "the body is not JSON ({}): send a JSON object, encoded as UTF-8"


class Unauthorized(ServiceError):
    """Arguments: what is wrong with the key, which is never told."""

    status, code = 401, "unauthorized"
    template = "{}: send the header Authorization: Bearer KEY"

    @property
    def headers(self) -> dict[str, str]:
        """How to say who one is (RFC 6750, section 3)."""
        return {"WWW-Authenticate": "Bearer"}


class NoSuchRoute(ServiceError):
    status, code = 404, "no_such_route"
    template = "no such route: GET /docs lists them"


class NoSuchModel(ServiceError):
    """Arguments: what is served. The name asked for is the caller's text."""

    status, code = 404, "no_such_model"
    template = "no such model or version is served, there are: {}"


class NoSuchAnswer(ServiceError):
    """Arguments: days and texts that are remembered."""

    status, code = 404, "no_such_answer"
    template = (
        "no answer is remembered of this request_id and index: check them, and that the API key is the one that asked; "
        "answers are remembered for {:g} days, of the last {} texts"
    )


class MethodNotAllowed(ServiceError):
    status, code = 405, "method_not_allowed"
    template = "the route does not take this method, it takes: {}"

    @property
    def headers(self) -> dict[str, str]:
        """Which methods the route takes (RFC 9110, section 15.5.6)."""
        return {"Allow": self.args[0]}


class BodyTooLarge(ServiceError):
    status, code = 413, "body_too_large"
    template = "the body is larger than max_body_bytes, send fewer texts a request: {}"


class InvalidRequest(ServiceError):
    """Arguments: a list of {"field", "message"}."""

    status, code = 422, "invalid_request"

    def __str__(self) -> str:
        first = self.args[0][0]
        more = f" (and {len(self.args[0]) - 1} more, see details)" if len(self.args[0]) > 1 else ""
        return f"{first['field']}: {first['message']}{more}" if first["field"] else f"{first['message']}{more}"

    @property
    def details(self) -> list[dict[str, Any]]:
        """Every field that is wrong."""
        details: list[dict[str, Any]] = self.args[0]
        return details


class TooManyTokens(ServiceError):
    """Answers one text in its place: its neighbours are answered."""

    status, code = 422, "too_many_tokens"
    template = "the text has {} tokens and the model reads {}: shorten it, or send on_long=truncate or window"


class PairTooLong(ServiceError):
    """Answers one pair in its place: its windows would be more of the same text than of the one they move along."""

    status, code = 422, "pair_too_long"
    template = "the shorter text takes over half of the {} tokens that are read: shorten it or send on_long=truncate"


class TooManyWindows(ServiceError):
    """Refuses a request that would keep everybody else waiting."""

    status, code = 422, "too_many_windows"
    template = "the windows of the long texts have over {} tokens: send fewer texts a request, or on_long=truncate"


class Overloaded(ServiceError):
    """Arguments: whole seconds after which the request would be let in."""

    status, code = 429, "overloaded"
    template = "too much is waiting to answer this in time: send it with a later timeout_ms, or again in {} s"

    @property
    def headers(self) -> dict[str, str]:
        """When to try again, in whole seconds (RFC 9110, section 10.2.3)."""
        return {"Retry-After": str(self.args[0])}


class RateLimited(Overloaded):
    """Arguments: whole seconds after which the key may send as many texts."""

    code = "rate_limited"
    template = "the API key has sent as many texts as it may: send this again in {} s"


class Failed(ServiceError):
    """The forward pass of this text failed; answers one text in its place."""

    status, code = 500, "failed"
    template = "the model failed on this text"


class NotReady(ServiceError):
    status, code = 503, "not_ready"
    template = "not ready: {}"


class StoreUnavailable(ServiceError):
    """Answers a label that was not kept. The log says why, of the first of several."""

    status, code = 503, "store_unavailable"
    template = "the store of labels does not answer, nothing was kept: send it again"

    @property
    def headers(self) -> dict[str, str]:
        """When to try again, in whole seconds."""
        return {"Retry-After": "1"}


class DeadlineExceeded(ServiceError):
    status, code = 504, "deadline_exceeded"
    template = "no answer within timeout_ms, send fewer texts or a later deadline: {}"


class EngineError(Exception):
    """The engine failed, or has ended. Arguments: the type of its error, and what it says of it."""

    def __str__(self) -> str:
        return str(self.args[-1])


def where(error: BaseException) -> str:
    """Type of an error, file and line where it was raised: enough to find a bug, and no value of a variable."""
    if isinstance(error, EngineError):
        return str(error)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(error).__name__}{place}"
