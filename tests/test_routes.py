"""The HTTP contract of a replica, asked over ASGI without Ray."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from starlette.requests import Request

from model.scores import probabilities
from service.errors import BodyTooLarge
from service.models import Models
from service.routes import Service
from service.settings import Settings, Spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from model.bundle import Bundle

    Ask = Callable[..., httpx.Response]

LIMITS: dict[str, Any] = {
    "max_body_bytes": 200_000,
    "max_texts_per_request": 50,
    "max_text_chars": 20_000,
}


@pytest.fixture(scope="module")
def service(bundle_folder: Path) -> Service:
    settings = Settings(**LIMITS, precision="fp32")
    return Service(Models([Spec("mood", bundle_folder), Spec("other", bundle_folder)], settings), settings)


@pytest.fixture(scope="module")
def ask(service: Service) -> Iterator[Ask]:
    """Send one request: ask(path) gets, ask(path, body) posts bytes as they are and anything else as JSON."""
    app = service.asgi()
    with asyncio.Runner() as runner:
        lifespan = service.lifespan(app)
        runner.run(lifespan.__aenter__())
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heed")

        def send(path: str, body: object = None, **options: Any) -> httpx.Response:
            if body is None:
                return runner.run(client.get(path, **options))
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            return runner.run(client.post(path, content=content, timeout=20, **options))

        yield send
        runner.run(client.aclose())
        runner.run(lifespan.__aexit__(None, None, None))


def test_each_text_gets_its_labels_best_first(ask: Ask, bundle: Bundle) -> None:
    response = ask("/v1/classify", {"texts": ["a lovely film", "the dull town"]})
    assert response.status_code == 200
    answer = response.json()
    assert [r["labels"][0]["label"] for r in answer["results"]] == ["positive", "negative"]
    for result in answer["results"]:
        assert sum(label["score"] for label in result["labels"]) == pytest.approx(1)
        assert result["labels"][0]["score"] >= result["labels"][1]["score"]
        assert result["label_set"] == [result["labels"][0]["label"]]
        assert result["truncated_tokens"] == 0
    assert (answer["model"], answer["version"]) == ("mood", bundle.version)
    timing = answer["timing_ms"]
    assert list(timing) == ["queue", "tokenize", "forward", "total"]
    assert response.headers["server-timing"] == ", ".join(f"{name};dur={ms}" for name, ms in timing.items())
    assert response.headers["x-request-id"] == answer["request_id"]


def test_every_parameter_changes_the_answer(ask: Ask) -> None:
    text = "a lovely film"
    [scores] = ask("/v1/classify", {"texts": [text]}).json()["results"]
    [top] = ask("/v1/classify", {"texts": [text], "top_k": 1}).json()["results"]
    assert top["labels"] == scores["labels"][:1]
    assert ask("/v1/classify", {"texts": [text], "top_k": 1.0}).json()["results"] == [top]
    [raw] = ask("/v1/classify", {"texts": [text], "raw_scores": True}).json()["results"]
    assert raw["labels"][0]["score"] > 1
    assert ask("/v1/classify", {"texts": [text], "model": "other"}).json()["model"] == "other"
    long = "good " * 500
    [cut] = ask("/v1/classify", {"texts": [long]}).json()["results"]
    assert cut["tokens"] == 64
    assert cut["truncated_tokens"] == 502 - 64
    refused, short = ask("/v1/classify", {"texts": [long, text], "on_long": "error"}).json()["results"]
    assert refused["error"]["code"] == "too_many_tokens"
    assert "502 tokens and the model reads 64" in refused["error"]["message"]
    assert short["labels"] == scores["labels"]


def test_a_long_text_is_read_in_windows_that_answer_for_themselves_too(ask: Ask) -> None:
    text = "a dull film " * 40 + "good lovely " * 60
    options = {"top_k": 1, "raw_scores": True}
    body = {"texts": ["a film", text], "on_long": "window", **options}
    short, long = ask("/v1/classify", body).json()["results"]
    assert "windows" not in short
    assert (long["tokens"], long["truncated_tokens"]) == (242, 0)
    windows = long["windows"]
    assert (windows[0]["start"], windows[-1]["end"]) == (0, len(text) - 1)
    parts = [text[window["start"] : window["end"]] for window in windows]
    alone = ask("/v1/classify", {"texts": parts, **options}).json()["results"]
    for window, part in zip(windows, alone, strict=True):
        assert set(window) == {"start", "end", "labels"}
        assert window["labels"][0]["label"] == part["labels"][0]["label"]
        assert window["labels"][0]["score"] == pytest.approx(part["labels"][0]["score"], abs=1e-4)
    assert [windows[0]["labels"][0]["label"], windows[-1]["labels"][0]["label"]] == ["negative", "positive"]


def test_a_text_that_fits_gets_the_same_answer_however_long_ones_are_read(ask: Ask) -> None:
    answers = [
        ask("/v1/classify", {"texts": ["a lovely film"], "on_long": on_long}).json()["results"]
        for on_long in ("truncate", "error", "window")
    ]
    assert answers[0] == answers[1] == answers[2]


def test_a_pair_is_read_in_windows_of_its_longer_side(ask: Ask) -> None:
    pairs = [["a film", "good " * 100], ["good " * 100, "dull " * 100]]
    long, refused = ask("/v1/classify", {"pairs": pairs, "on_long": "window"}).json()["results"]
    assert {window["side"] for window in long["windows"]} == {1}
    assert long["windows"][-1]["end"] == len("good " * 100) - 1
    assert refused["error"]["code"] == "pair_too_long"


def test_scores_are_calibrated(ask: Ask, bundle: Bundle) -> None:
    def values(**options: object) -> list[float]:
        [result] = ask("/v1/classify", {"texts": ["a film"], **options}).json()["results"]
        by_label = {scored["label"]: scored["score"] for scored in result["labels"]}
        return [by_label[label] for label in bundle.labels]

    logits = np.array([values(raw_scores=True)], dtype=np.float32)
    expected = probabilities(logits, bundle.problem_type, bundle.calibration)[0]
    assert bundle.calibration.temperature != 1
    assert values() == pytest.approx(expected.tolist(), abs=1e-5)


def test_pairs_are_read_together(ask: Ask) -> None:
    [pair] = ask("/v1/classify", {"pairs": [["a film", "was good"]]}).json()["results"]
    [text] = ask("/v1/classify", {"texts": ["a film was good"]}).json()["results"]
    assert pair["tokens"] == text["tokens"] + 1


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        (b"{", 400, "not_json", "EOF"),
        (b"\xff\xfe", 400, "not_json", "line 1"),
        (b'{"texts": ["\\ud800"]}', 400, "not_json", "line 1"),
        (b"", 400, "not_json", "EOF"),
        ([], 422, "invalid_request", "object"),
        ({}, 422, "invalid_request", "send either texts or pairs"),
        ({"texts": ["a"], "pairs": [["a", "b"]]}, 422, "invalid_request", "send either texts or pairs"),
        ({"texts": []}, 422, "invalid_request", "texts: List should have at least 1 item"),
        ({"texts": [""]}, 422, "invalid_request", "texts[0]: String should have at least 1 character"),
        ({"texts": "a"}, 422, "invalid_request", "texts: "),
        ({"texts": [1]}, 422, "invalid_request", "texts[0]: "),
        ({"texts": ["a"] * 51}, 422, "invalid_request", "at most 50 items"),
        ({"texts": ["a" * 100_000]}, 422, "invalid_request", "at most 20000 characters"),
        ({"texts": ["a"], "top_k": 0}, 422, "invalid_request", "top_k"),
        ({"texts": ["a"], "top_k": "2"}, 422, "invalid_request", "top_k"),
        ({"texts": ["a"], "raw_scores": "yes"}, 422, "invalid_request", "raw_scores"),
        ({"texts": ["a"], "explain": 1}, 422, "invalid_request", "explain"),
        ({"texts": ["a"], "explain": "joyful"}, 422, "invalid_request", "it has: negative, positive"),
        ({str(n): n for n in range(10_000)}, 422, "invalid_request", "there is no such field"),
        ({"texts": ["a"], "on_long": "windows"}, 422, "invalid_request", "on_long"),
        ({"texts": ["a"], "timeout_ms": -1}, 422, "invalid_request", "timeout_ms"),
        ({"texts": ["a"], "colour": 1}, 422, "invalid_request", "there are: texts, pairs, model"),
        ({"texts": ["a"], "model": "nobody"}, 404, "no_such_model", "mood@"),
        ({"texts": ["a"], "model": "mood@0000"}, 404, "no_such_model", "mood@"),
        (b" " * 300_000, 413, "body_too_large", "200000"),
    ],
)
def test_bad_input_gets_its_status_and_says_what_to_change(
    ask: Ask, body: object, status: int, code: str, words: str
) -> None:
    response = ask("/v1/classify", body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert words in error["message"]
    assert ask("/v1/classify", {"texts": ["a lovely film"]}).status_code == 200


def test_a_body_without_a_length_is_cut_off_at_the_limit(service: Service) -> None:
    sent = 0

    async def receive() -> dict[str, object]:
        nonlocal sent
        sent += 10_000
        return {"type": "http.request", "body": b" " * 10_000, "more_body": True}

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    with pytest.raises(BodyTooLarge):
        asyncio.run(service.classify(request))
    assert sent <= LIMITS["max_body_bytes"] + 10_000


def test_no_users_text_is_in_an_error_or_a_metric(ask: Ask) -> None:
    secret = "xyzzysecret"
    bodies = [
        f'{{"texts": ["{secret}", 1]}}'.encode(),
        f'{{"{secret}": 1}}'.encode(),
        f"{secret}".encode(),
        {"texts": ["a"], "model": secret},
        {"texts": ["a"], "on_long": secret},
        {"texts": ["a"], "explain": secret},
        {"texts": [secret]},
    ]
    for body in bodies:
        response = ask("/v1/classify", body)
        assert secret not in response.text, body
    assert secret not in ask("/metrics").text
    assert secret not in ask(f"/{secret}").text


def test_what_is_served_is_listed(ask: Ask, bundle: Bundle) -> None:
    listed = ask("/v1/models").json()
    assert [(m["name"], m["version"], m["labels"]) for m in listed["models"]] == [
        (name, bundle.version, ["negative", "positive"]) for name in ("mood", "other")
    ]
    assert listed["max_texts_per_request"] == 50
    info = ask("/info").json()
    assert {key: info[key] for key in ("models", "max_texts_per_request")} == {
        key: listed[key] for key in ("models", "max_texts_per_request")
    }


def test_a_version_can_be_asked_for(ask: Ask, bundle: Bundle) -> None:
    response = ask("/v1/classify", {"texts": ["a"], "model": f"other@{bundle.version}"})
    assert response.json()["version"] == bundle.version


def test_unknown_routes_and_methods_answer_in_the_same_shape(ask: Ask) -> None:
    for path in ("/nowhere", "/docs/", "/v1/classify/"):
        assert ask(path).json()["error"]["code"] == "no_such_route"
    response = ask("/v1/classify")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


def test_metrics_count_what_was_answered(ask: Ask) -> None:
    def value(name: str) -> float:
        lines = ask("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    texts, passes = 'heed_texts_total{model="mood"', "heed_forward_seconds_count"
    before = value(texts), value(passes)
    ask("/v1/classify", {"texts": ["a", "b", "c"]})
    assert (value(texts), value(passes)) == (before[0] + 3, before[1] + 1)
    ask("/v1/classify", b"{")
    assert value('heed_requests_total{code="400",route="/v1/classify"}') >= 1
    assert value('heed_refused_total{code="not_json"}') >= 1


def test_the_documentation_is_what_validates(ask: Ask) -> None:
    document = ask("/openapi.json").json()
    schema = document["components"]["schemas"]["ClassifyRequest"]
    [texts] = [s for s in schema["properties"]["texts"]["anyOf"] if s["type"] == "array"]
    assert (texts["maxItems"], texts["items"]["maxLength"]) == (50, 20_000)
    assert schema["additionalProperties"] is False
    assert schema["properties"]["on_long"]["enum"] == ["truncate", "error", "window"]
    assert set(document["paths"]["/v1/classify"]["post"]["responses"]) >= {
        "200",
        "400",
        "404",
        "413",
        "422",
        "429",
        "504",
    }
    assert "swagger-ui" in ask("/docs").text
    assert ask("/docs/assets/swagger-ui.css").status_code == 200


def test_health_is_well_while_the_loops_turn(ask: Ask) -> None:
    for path in ("/health", "/health/live", "/health/ready"):
        assert ask(path).json() == {"live": True, "ready": True}


def test_many_texts_at_once_score_as_each_does_alone(service: Service, ask: Ask) -> None:
    texts = [f"{'film ' * (i % 40)}good" for i in range(50)]
    together = ask("/v1/classify", {"texts": texts, "raw_scores": True}).json()["results"]
    for text, result in list(zip(texts, together, strict=True))[::10]:
        [alone] = ask("/v1/classify", {"texts": [text], "raw_scores": True}).json()["results"]
        for a, b in zip(alone["labels"], result["labels"], strict=True):
            assert a["score"] == pytest.approx(b["score"], abs=1e-4)
