"""Hugging Face Inference: always a list of lists, and pipeline parameters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Post

TEXT = "a lovely film"
PATHS = ["/", "/predict", "/models/mood"]


def scores(post: Post, path: str, **parameters: object) -> dict[str, float]:
    """Score by label of one text."""
    [labels] = post(path, {"inputs": TEXT, "parameters": parameters}).json()
    return {one["label"]: one["score"] for one in labels}


def native(post: Post, **body: object) -> list[Any]:
    """Results of the native API."""
    results: list[Any] = post("/v1/classify", body).json()["results"]
    return results


@pytest.mark.parametrize("path", PATHS)
def test_parameters_make_the_answer_nested_also_of_one_text(post: Post, path: str) -> None:
    [expected] = native(post, texts=[TEXT])
    bodies: list[dict[str, object]] = [{"inputs": TEXT, "parameters": {}}, {"inputs": TEXT, "parameters": None}]
    assert [post(path, body).json() for body in bodies] == [[expected["labels"]]] * 2


def test_without_parameters_the_models_path_is_nested_and_the_shared_one_is_flat(post: Post) -> None:
    flat = post("/predict", {"inputs": TEXT}).json()
    assert post("/models/mood", {"inputs": TEXT}).json() == [flat]


def test_a_list_of_strings_is_a_batch_where_parameters_are(post: Post) -> None:
    answer = post("/", {"inputs": ["a lovely film", "the dull town"], "parameters": {}}).json()
    assert [labels[0]["label"] for labels in answer] == ["positive", "negative"]


def test_a_text_pair_is_read_together_also_in_a_batch(post: Post) -> None:
    [pair] = native(post, pairs=[["a film", "was good"]])
    given = {"text": "a film", "text_pair": "was good"}
    assert post("/", {"inputs": given, "parameters": {}}).json() == [pair["labels"]]
    batch = post("/", {"inputs": [given, "dull", {"text": "dull"}], "parameters": {}}).json()
    assert [labels[0]["label"] for labels in batch] == ["positive", "negative", "negative"]
    assert batch[0][0]["score"] == pytest.approx(pair["labels"][0]["score"], abs=1e-5)


def test_every_parameter_changes_the_answer(post: Post) -> None:
    calibrated = scores(post, "/")
    assert list(scores(post, "/", top_k=1)) == ["positive"]
    raw = scores(post, "/", function_to_apply="none")
    assert raw["positive"] > 1
    assert scores(post, "/", function_to_apply="softmax") == pytest.approx(calibrated, abs=1e-6)


def test_the_path_chooses_the_model_and_labels_that_do_not_exclude_one_another_get_a_sigmoid_each(post: Post) -> None:
    path = "/models/tags"
    raw, own = scores(post, path, function_to_apply="none"), scores(post, path)
    for label, logit in raw.items():
        assert own[label] == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-5)
    assert scores(post, path, function_to_apply="sigmoid") == pytest.approx(own, abs=1e-6)
    softmax = scores(post, path, function_to_apply="softmax")
    assert sum(softmax.values()) == pytest.approx(1)
    assert softmax != pytest.approx(own, abs=1e-6)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/", {"inputs": "a", "parameters": {"top_k": 0}}, 422, "parameters.top_k: "),
        ("/", {"inputs": "a", "parameters": {"top_k": True}}, 422, "parameters.top_k: "),
        ("/", {"inputs": "a", "parameters": {"function_to_apply": "tanh"}}, 422, "parameters.function_to_apply: "),
        ("/", {"inputs": "a", "parameters": {"colour": 1}}, 422, "there are: top_k, function_to_apply"),
        ("/", {"inputs": "a", "parameters": []}, 422, "parameters: "),
        ("/", {"inputs": "a", "parameters": {}, "raw_scores": True}, 422, "there are: inputs, parameters"),
        ("/", {"inputs": {"text": "a", "pair": "b"}, "parameters": {}}, 422, "there are: text, text_pair"),
        ("/", {"inputs": 3, "parameters": {}}, 422, "inputs: send a text, or an object"),
        ("/", {"inputs": ["a", 3], "parameters": {}}, 422, "inputs[1]: send a text, or an object"),
        ("/", {"inputs": [{"text": ""}], "parameters": {}}, 422, "inputs[0].text: "),
        ("/", {"inputs": [], "parameters": {}}, 422, "inputs: List should have at least 1 item"),
        ("/models/nobody", {"inputs": "a"}, 404, "mood@"),
        ("/models/", {"inputs": "a"}, 404, "mood@"),
        ("/models/mood/more", {"inputs": "a"}, 404, "mood@"),
    ],
)
def test_errors_are_a_string_that_names_the_field(post: Post, path: str, body: object, status: int, words: str) -> None:
    response = post(path, body)
    assert response.status_code == status
    assert words in response.json()["error"]
