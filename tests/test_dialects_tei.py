"""text-embeddings-inference: shapes and errors as its clients know them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from conftest import Post
    from replica import Replica

    from model.bundle import Bundle

LONG = "good " * 500


def native(post: Post, **body: object) -> list[list[dict[str, Any]]]:
    """Labels of the native API, in TEI's words."""
    results = post("/v1/classify", body).json()["results"]
    return [[{"score": s["score"], "label": s["label"]} for s in result["labels"]] for result in results]


@pytest.mark.parametrize("path", ["/predict", "/"])
def test_a_text_has_one_list_and_a_batch_has_one_for_each(post: Post, path: str) -> None:
    texts = ["a lovely film", "the dull town"]
    expected = native(post, texts=texts)
    assert post(path, {"inputs": texts[0]}).json() == expected[0]
    assert post(path, {"inputs": [texts[0]]}).json() == expected[0]
    batch = post(path, {"inputs": [[text] for text in texts]}).json()
    assert [[s["label"] for s in one] for one in batch] == [["positive", "negative"], ["negative", "positive"]]
    assert batch[0][0]["score"] == pytest.approx(expected[0][0]["score"], abs=1e-5)


def test_two_strings_are_one_pair_also_in_a_batch(post: Post) -> None:
    [pair] = native(post, pairs=[["a film", "was good"]])
    assert post("/predict", {"inputs": ["a film", "was good"]}).json() == pair
    mixed = post("/predict", {"inputs": [["a film", "was good"], ["dull"]]}).json()
    assert [one[0]["label"] for one in mixed] == ["positive", "negative"]
    assert mixed[0][0]["score"] == pytest.approx(pair[0]["score"], abs=1e-5)


def test_every_parameter_changes_the_answer(post: Post) -> None:
    [raw] = native(post, texts=["a lovely film"], raw_scores=True)
    assert post("/predict", {"inputs": "a lovely film", "raw_scores": True}).json() == raw
    cut = post("/predict", {"inputs": LONG, "truncate": True, "truncation_direction": "Right"})
    assert cut.json() == post("/predict", {"inputs": LONG}).json()
    refused = post("/predict", {"inputs": LONG, "truncate": False})
    assert (refused.status_code, refused.json()["error_type"]) == (422, "Validation")
    assert "must have at most 64 tokens. Given: 502" in refused.json()["error"]
    assert "truncate=true" in refused.json()["error"]


def test_timing_headers_are_whole_numbers(post: Post) -> None:
    headers = post("/predict", {"inputs": [["a film"], ["was", "good"]]}).headers
    assert headers["x-compute-type"] == "cpu"
    assert headers["x-compute-characters"] == str(len("a film") + len("was") + len("good"))
    assert int(headers["x-compute-tokens"]) > 4
    times = ("x-compute-time", "x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time")
    assert all(headers[name].isdecimal() for name in times)


@pytest.mark.parametrize(
    ("body", "status", "kind", "words"),
    [
        (b"{", 400, "Validation", "not JSON"),
        (b"\xff", 400, "Validation", "not JSON"),
        ([], 422, "Validation", "object"),
        ({}, 422, "Validation", "inputs: Field required"),
        ({"inputs": 3}, 422, "Validation", "inputs: send a text, a pair"),
        ({"inputs": {"text": "a"}}, 422, "Validation", "inputs: send a text, a pair"),
        ({"inputs": []}, 422, "Validation", "inputs: List should have at least 1 item"),
        ({"inputs": [[]]}, 422, "Validation", "inputs[0]: List should have at least 1 item"),
        ({"inputs": ["a", "b", "c"]}, 422, "Validation", "inputs: two strings are one pair"),
        ({"inputs": [["a", "b", "c"]]}, 422, "Validation", "inputs[0]: "),
        ({"inputs": [["a"], "b"]}, 422, "Validation", "inputs[1]: "),
        ({"inputs": ["a", 3]}, 422, "Validation", "inputs[1]: "),
        ({"inputs": [["a"]] * 51}, 422, "Validation", "inputs: List should have at most 50 items"),
        ({"inputs": "a" * 20_001}, 422, "Validation", "inputs: String should have at most 20000 characters"),
        ({"inputs": ""}, 400, "Empty", "`inputs` cannot be empty"),
        ({"inputs": [["a"], [""]]}, 400, "Empty", "`inputs` cannot be empty"),
        ({"inputs": "a", "truncate": "yes"}, 422, "Validation", "truncate: "),
        ({"inputs": "a", "truncation_direction": "Left"}, 422, "Validation", "truncation_direction: "),
        ({"inputs": "a", "raw_scores": 1}, 422, "Validation", "raw_scores: "),
        ({"inputs": "a", "raw_scores": None}, 422, "Validation", "raw_scores: "),
        ({"inputs": "a", "colour": "red"}, 422, "Validation", "there are: inputs, truncate, truncation_direction"),
        (b" " * 300_000, 413, "Validation", "200000"),
    ],
)
def test_errors_have_teis_shape_and_name_its_fields(
    post: Post, body: object, status: int, kind: str, words: str
) -> None:
    response = post("/predict", body)
    assert (response.status_code, response.json()["error_type"]) == (status, kind)
    assert words in response.json()["error"]
    assert set(response.json()) == {"error", "error_type"}


def test_no_users_text_is_in_an_error(post: Post) -> None:
    secret = "xyzzysecret"
    bodies: list[object] = [
        {"inputs": secret, secret: 1},
        {"inputs": [secret, 1]},
        {"inputs": secret, "truncation_direction": secret},
        {"inputs": secret, "parameters": {secret: 1}},
        {"inputs": secret, "parameters": {"function_to_apply": secret}},
        secret,
    ]
    for body in bodies:
        response = post("/predict", body)
        assert response.status_code == 422
        assert secret not in response.text, body


def test_info_says_in_teis_words_what_it_says_in_ours(replica: Replica, bundle: Bundle) -> None:
    info = httpx.get(f"{replica.url}/info").json()
    assert [model["name"] for model in info["models"]] == ["mood", "tags"]
    assert (info["model_id"], info["model_sha"], info["model_dtype"]) == ("mood", bundle.version, "float32")
    assert info["model_type"] == {
        "classifier": {"id2label": {"0": "negative", "1": "positive"}, "label2id": {"negative": 0, "positive": 1}}
    }
    assert (info["max_input_length"], info["max_client_batch_size"]) == (64, info["max_texts_per_request"])
    assert info["auto_truncate"] is True
