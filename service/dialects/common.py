"""What several dialects share: strict foreign bodies, texts and pairs in one request, labels best first.

Called by the other files of this folder.
"""

from __future__ import annotations

import operator
import time
from functools import reduce
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag, model_validator
from pydantic_core import PydanticCustomError

from service.errors import DeadlineExceeded, Overloaded, ServiceError
from service.schemas import ClassifyRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from model.tokens import Text
    from service.routes import Reply
    from service.scored import Scored
    from service.settings import Settings

STARTED = int(time.time())  # Unix time of this process, for clients that want to know when a model was created
WORDS: dict[type[ServiceError], str] = {  # where the native message names a field that only the native API has
    Overloaded: "too much is waiting to answer this in time: send it again in {} s",
    DeadlineExceeded: "no answer in the time that is allowed, send fewer texts a request, or send it later (ms): {}",
}


class Foreign(BaseModel):
    """A foreign request, or a part of one. A field that nothing would depend on is refused, as in the native API."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: object) -> object:
        """Name the fields there are: the caller's own names are text that no error repeats."""
        if isinstance(data, dict) and not data.keys() <= cls.model_fields.keys():
            known = ", ".join(cls.model_fields)
            raise PydanticCustomError("no_such_field", "there is no such field, there are: {known}", {"known": known})
        return data


class MixedRequest(ClassifyRequest):
    """Texts and pairs in one request, which only foreign clients send."""

    mixed: list[str | tuple[str, str]]

    @model_validator(mode="after")
    def _texts_or_pairs(self) -> MixedRequest:
        return self  # neither: both are in mixed

    @property
    def inputs(self) -> list[Text]:
        """The texts and the pairs."""
        return list(self.mixed)


class Prediction(BaseModel):
    """A label with its score."""

    score: float
    label: str


def text_type(settings: Settings) -> Any:
    """A text with the limits of this service in its type, and so in its schema."""
    return Annotated[str, StringConstraints(min_length=1, max_length=settings.max_text_chars)]


def list_type(item: Any, most: int) -> Any:
    """One to so many of them."""
    return Annotated[list[item], Field(min_length=1, max_length=most)]


def either_type(branches: dict[str, Any], which: Callable[[Any], str | None], otherwise: str) -> Any:
    """A union of which one branch is chosen by looking: a wrong text has one error, not one of each branch.

    Names of branches are in <>, so that no error shows them; otherwise is the error where which() finds none.
    """
    tagged = [Annotated[branch, Tag(name)] for name, branch in branches.items()]
    found = Discriminator(which, custom_error_type="no_branch", custom_error_message=otherwise)
    return Annotated[reduce(operator.or_, tagged), found]


def scored(reply: Reply) -> list[Scored]:
    """What the model says of each text. Raises the first error: these clients know none in the place of a text."""
    results = [answer.result for answer in reply.answers]
    for result in results:
        if isinstance(result, ServiceError):
            raise result
    return [result for result in results if not isinstance(result, ServiceError)]


def predictions(labels: Sequence[str], values: Sequence[float], top_k: int | None = None) -> list[Prediction]:
    """Labels with their values, best first."""
    best = sorted(zip(labels, values, strict=True), key=lambda pair: -pair[1])
    return [Prediction(score=value, label=label) for label, value in best[:top_k]]


def message(error: ServiceError) -> str:
    """What an error says to a client that knows no field of the native API."""
    return WORDS[type(error)].format(*error.args) if type(error) in WORDS else str(error)
