"""Every error, in every dialect: a documented status, and no word that only the native API has."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from replica import Replica
from samples import FILLER, GOOD

from service.dialects import infinity, tei, vllm
from service.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    Failed,
    InvalidRequest,
    NotJSON,
    NotReady,
    Overloaded,
    ServiceError,
    TooManyTokens,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ERRORS = [
    NotJSON("EOF"),
    BodyTooLarge(5),
    InvalidRequest([{"field": "input[0]", "message": "too short"}, {"field": "", "message": "what"}]),
    Overloaded(3),
    NotReady("the server is stopping"),
    DeadlineExceeded(500),
    Failed(),
    ServiceError(),
]
NATIVE = ("timeout_ms", "on_long", "texts", "top_k")
PATHS: dict[str, Any] = {"/predict": tei, "/classify": vllm, "/infinity/classify": infinity}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("error", [*ERRORS, TooManyTokens(70, 64)], ids=lambda error: type(error).__name__)
def test_each_error_is_documented_and_speaks_the_clients_words(
    replica: Replica, path: str, error: ServiceError
) -> None:
    dialect = PATHS[path]
    if dialect is infinity and isinstance(error, TooManyTokens):
        return  # it cuts, always
    operation = httpx.get(f"{replica.url}/openapi.json").json()["paths"][path]["post"]
    assert str(dialect.error_status(error)) in operation["responses"]
    body = json.dumps(dialect.error_body(error)).replace("send fewer texts", "")
    assert not [word for word in NATIVE if word in body]


def test_a_full_queue_is_a_429_with_a_time_to_come_back_in_each_shape(bundle_folder: Path) -> None:
    shapes: dict[str, Callable[[str], dict[str, object]]] = {
        "/predict": lambda text: {"inputs": text},
        "/classify": lambda text: {"input": text},
        "/infinity/classify": lambda text: {"input": [text]},
    }
    texts = [f"{one} {two}" for one in FILLER for two in GOOD]

    async def flood(url: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            asked = [client.post(path, json=shape(text)) for text in texts for path, shape in shapes.items()]
            return await asyncio.gather(*asked)

    with Replica({"mood": bundle_folder}, max_queue_tokens=40, max_batch_tokens=20) as replica:
        answers = asyncio.run(flood(replica.url))
    assert {answer.status_code for answer in answers} == {200, 429}
    refused = {answer.request.url.path: answer for answer in answers if answer.status_code == 429}
    assert set(refused) == set(shapes)
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused.values())
    assert refused["/predict"].json()["error_type"] == "Overloaded"
    assert refused["/classify"].json()["error"]["type"] == "RateLimitError"
    assert refused["/infinity/classify"].json()["error"]["code"] == 429


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/models/a%0Ab", str),
        ("GET", "/predict", str),
        ("GET", "/v2/nothing", str),
        ("POST", "/v1/models/mood", str),
        ("GET", "/classify", dict),
        ("GET", "/infinity/classify", dict),
        ("GET", "/v1/classify", dict),
    ],
)
def test_a_path_or_method_that_is_not_there_has_the_error_of_its_dialect(
    replica: Replica, method: str, path: str, kind: type
) -> None:
    response = httpx.request(method, f"{replica.url}{path}")
    assert response.status_code in (404, 405)
    assert isinstance(response.json()["error"], kind)


def test_a_path_tells_every_method_that_it_takes(replica: Replica) -> None:
    allowed = {path: httpx.put(f"{replica.url}{path}").headers["allow"] for path in ("/", "/v1/models/mood:predict")}
    assert allowed == {"/": "GET, HEAD, POST", "/v1/models/mood:predict": "POST"}
