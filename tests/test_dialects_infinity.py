"""infinity under /infinity: shapes and errors as its clients know them."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from conftest import Post
    from replica import Replica


def classify(post: Post, **fields: object) -> Any:
    """The answer to a request that is well."""
    response = post("/infinity/classify", {"input": ["a lovely film"], **fields})
    assert response.status_code == 200, response.text
    return response.json()


def test_each_text_has_all_its_labels_best_first(post: Post) -> None:
    answer = classify(post, input=["a lovely film", "the dull town"], model="default/not-specified")
    assert [[s["label"] for s in labels] for labels in answer["data"]] == [
        ["positive", "negative"],
        ["negative", "positive"],
    ]
    assert (answer["object"], answer["model"]) == ("classify", "mood")
    assert answer["id"].startswith("infinity-")
    assert abs(answer["created"] - time.time()) < 60
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] < len("a lovely film the dull town")


def test_raw_scores_are_logits_and_a_sigmoid_is_applied_to_labels_that_do_not_exclude_one_another(post: Post) -> None:
    [own], [raw] = (classify(post, model="tags", raw_scores=on)["data"] for on in (False, True))
    assert raw[0]["score"] > 1
    for score, logit in zip(own, raw, strict=True):
        assert score["score"] == pytest.approx(1 / (1 + math.exp(-logit["score"])), abs=1e-5)


@pytest.mark.parametrize(
    ("body", "loc", "words"),
    [
        (b"{", "", "not JSON"),
        ({}, "input", "required"),
        ({"input": "a"}, "input", "valid array"),
        ({"input": []}, "input", "at least 1 item"),
        ({"input": [""]}, "input[0]", "at least 1 character"),
        ({"input": ["a"] * 51}, "input", "at most 50 items"),
        ({"input": ["a"], "raw_scores": 1}, "raw_scores", "boolean"),
        ({"input": ["a"], "model": None}, "model", "string"),
        ({"input": ["a"], "user": "me"}, "", "there are: input, model, raw_scores"),
    ],
)
def test_a_wrong_body_is_described_as_fastapi_does(post: Post, body: object, loc: str, words: str) -> None:
    response = post("/infinity/classify", body)
    [detail] = response.json()["detail"]
    assert (response.status_code, detail["loc"]) == (422, ["body", loc] if loc else ["body"])
    assert words in detail["msg"]


@pytest.mark.parametrize(("body", "status"), [({"input": ["a"], "model": "nobody"}, 404), (b" " * 300_000, 413)])
def test_other_errors_have_openais_shape(post: Post, body: object, status: int) -> None:
    response = post("/infinity/classify", body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"], error["param"]) == (status, status, None, None)


def test_models_and_health_are_listed(replica: Replica) -> None:
    models = httpx.get(f"{replica.url}/infinity/models").json()
    assert [model["id"] for model in models["data"]] == ["mood", "tags"]
    assert models["data"][0]["capabilities"] == ["classify"]
    assert models["data"][0]["stats"]["queue_absolute"] == 0
    assert abs(httpx.get(f"{replica.url}/infinity/health").json()["unix"] - time.time()) < 60
