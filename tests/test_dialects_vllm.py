"""vLLM's POST /classify: shapes and errors as its clients know them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from replica import Replica

from service.settings import SENTIMENT

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Post

LONG = "good " * 500


def classify(post: Post, given: object = "a lovely film", **fields: object) -> Any:
    """The answer to a request that is well."""
    response = post("/classify", {"input": given, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def test_each_text_has_its_best_label_and_a_probability_for_each_label_id(post: Post) -> None:
    answer = classify(post, ["a lovely film", "the dull town"], model="mood")
    first, second = answer["data"]
    assert [first["label"], second["label"]] == ["positive", "negative"]
    assert [first["index"], second["index"]] == [0, 1]
    assert first["num_classes"] == len(first["probs"]) == 2
    assert first["probs"][1] > 0.5 > second["probs"][1]
    assert sum(first["probs"]) == pytest.approx(1)
    assert (answer["object"], answer["model"]) == ("list", "mood")
    assert answer["id"].startswith("classify-")
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 6


def test_every_parameter_changes_the_answer(post: Post) -> None:
    assert classify(post, use_activation=False)["data"][0]["probs"][1] > 1
    assert classify(post, use_activation=True)["data"] == classify(post)["data"]
    assert classify(post, request_id="mine")["id"] == "classify-mine"
    assert classify(post, model="tags")["model"] == "tags"
    for limit in (-1, 64):
        cut = classify(post, LONG, truncate_prompt_tokens=limit, truncation_side="right")
        assert cut["usage"]["prompt_tokens"] == 64
    for priority in (-1, 0, 7, 7.0):
        assert classify(post, priority=priority)["data"] == classify(post)["data"]


def test_labels_that_do_not_exclude_one_another_get_a_sigmoid_each(post: Post) -> None:
    [own], [raw] = (classify(post, model="tags", use_activation=on)["data"] for on in (None, False))
    for probability, logit in zip(own["probs"], raw["probs"], strict=True):
        assert probability == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-5)
    assert own["label"] == raw["label"] == "positive"


@pytest.mark.parametrize(
    ("body", "status", "kind", "param", "words"),
    [
        (b"{", 400, "BadRequestError", None, "not JSON"),
        ([], 400, "BadRequestError", None, "object"),
        ({}, 400, "BadRequestError", "input", "Field required"),
        ({"input": [1, 2]}, 400, "BadRequestError", "input[0]", "valid string"),
        ({"input": 3}, 400, "BadRequestError", "input", "send a text or a list of texts"),
        ({"input": []}, 400, "BadRequestError", "input", "at least 1 item"),
        ({"input": ""}, 400, "BadRequestError", "input", "at least 1 character"),
        ({"input": ["a"] * 51}, 400, "BadRequestError", "input", "at most 50 items"),
        ({"input": LONG}, 400, "BadRequestError", None, "send truncate_prompt_tokens=-1"),
        ({"input": "a", "model": "nobody"}, 404, "NotFoundError", None, "mood@"),
        ({"input": "a", "truncate_prompt_tokens": 32}, 400, "BadRequestError", "truncate_prompt_tokens", "-1 or 64"),
        ({"input": "a", "truncation_side": "left"}, 400, "BadRequestError", "truncation_side", "'right'"),
        ({"input": "a", "add_special_tokens": False}, 400, "BadRequestError", "add_special_tokens", "send true"),
        ({"input": "a", "add_special_tokens": 1}, 400, "BadRequestError", "add_special_tokens", "boolean"),
        ({"input": "a", "priority": 2**63}, 400, "BadRequestError", "priority", "less than"),
        ({"input": "a", "priority": 0.5}, 400, "BadRequestError", "priority", "integer"),
        ({"input": "a", "user": "me"}, 400, "BadRequestError", "user", "null"),
        ({"messages": [{"role": "user", "content": "a"}]}, 400, "BadRequestError", "input", "Field required"),
        ({"input": "a", "colour": "red"}, 400, "BadRequestError", None, "there are: input, model, use_activation"),
        (b" " * 300_000, 413, "BadRequestError", None, "200000"),
    ],
)
def test_errors_have_openais_shape_and_name_its_fields(
    post: Post, body: object, status: int, kind: str, param: str | None, words: str
) -> None:
    response = post("/classify", body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (status, status, kind)
    assert error["param"] == param
    assert words in error["message"]


def test_fields_that_a_client_sends_as_null_are_as_if_they_were_not_there(post: Post) -> None:
    nothing = dict.fromkeys(("model", "user", "messages", "truncate_prompt_tokens", "truncation_side"))
    assert classify(post, **nothing)["data"] == classify(post)["data"]


def test_a_length_that_another_model_reads_is_refused(bundle_folder: Path) -> None:
    with Replica({"mood": bundle_folder, "sentiment": SENTIMENT}) as replica:
        body = {"input": "a film", "model": "sentiment", "truncate_prompt_tokens": 64}
        refused = httpx.post(f"{replica.url}/classify", json=body, timeout=20)
        body["truncate_prompt_tokens"] = 256
        assert httpx.post(f"{replica.url}/classify", json=body, timeout=20).status_code == 200
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "truncate_prompt_tokens")
    assert "send -1 or 256" in refused.json()["error"]["message"]
