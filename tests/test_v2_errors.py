"""What V2 refuses, in its own shape and without a word of the caller's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from v2 import INFER, tensor

if TYPE_CHECKING:
    import httpx


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "not JSON"),
        (b"", 400, "not JSON"),
        (b'{"inputs": [{"name": "t", "shape": [1], "datatype": "BYTES", "data": ["\\ud800"]}]}', 400, "not JSON"),
        ([], 400, "object"),
        ({}, 400, "inputs: "),
        ({"inputs": []}, 400, "inputs: "),
        ({"inputs": [tensor("a")] * 3}, 400, "inputs: "),
        ({"inputs": [tensor("a"), tensor("b")]}, 400, "text and text_pair"),
        ({"inputs": [tensor("a"), tensor("b", "c", name="text_pair")]}, 400, "different numbers"),
        ({"inputs": [tensor("a", datatype="INT32")]}, 400, "inputs[0].datatype: Input should be 'BYTES'"),
        ({"inputs": [tensor("a", data=[1])]}, 400, "inputs[0].data"),
        ({"inputs": [tensor("a", data="a")]}, 400, "inputs[0].data"),
        ({"inputs": [tensor("a", data=None)]}, 400, "send the texts once"),
        ({"inputs": [tensor("a", shape=[1.5])]}, 400, "inputs[0].shape"),
        ({"inputs": [tensor("a", shape=None)]}, 400, "inputs[0].shape"),
        ({"inputs": [tensor("")]}, 400, "at least 1 character"),
        ({"inputs": [tensor("a" * 20_001)]}, 400, "at most 20000"),
        ({"inputs": [tensor(*["a"] * 51)]}, 400, "at most 50 items"),
        ({"inputs": [tensor("a", shape=[51])]}, 400, "n from 1 to 50"),
        ({"inputs": [tensor("a", shape=[0])]}, 400, "n from 1 to 50"),
        ({"inputs": [tensor("a", data=[])]}, 400, "at least 1 item"),
        ({"inputs": [tensor("a", colour=1)]}, 400, "inputs[0]: there is no such field, there are: name, shape"),
        (
            {"inputs": [tensor("a")], "parameters": {"colour": 1}},
            400,
            "parameters: there is no such field, there are: top_k",
        ),
        ({"inputs": [tensor("a")], "parameters": {"sequence_id": 1}}, 400, "leave out: sequence_id"),
        ({"inputs": [tensor("a")], "parameters": {"timeout": -1}}, 400, "parameters.timeout"),
        ({"inputs": [tensor("a")], "parameters": {"timeout": 10**12}}, 400, "parameters.timeout"),
        ({"inputs": [tensor("a")], "parameters": {"priority": -1}}, 400, "parameters.priority"),
        ({"inputs": [tensor("a")], "parameters": {"explain": "joyful"}}, 400, "negative, positive"),
        ({"inputs": [tensor("a")], "parameters": {"explain": True, "on_long": "window"}}, 400, "explain needs"),
        ({"inputs": [tensor("a")], "outputs": [{"name": "joy"}]}, 400, "outputs[0].name"),
        ({"inputs": [tensor("a")], "outputs": [{"name": "explanation"}]}, 400, "there are: label, score"),
        (
            {"inputs": [tensor("a")], "outputs": [{"name": "label_set", "parameters": {"classification": 1}}]},
            400,
            "ranks",
        ),
        (
            {"inputs": [tensor("a")], "outputs": [{"name": "label", "parameters": {"classification": 0}}]},
            400,
            "greater",
        ),
        ({"inputs": [tensor("a")], "model_name": "other"}, 400, "model_name"),
        (b" " * 300_000, 413, "200000"),
    ],
)
def test_bad_input_is_an_error_in_the_shape_of_the_protocol(
    client: httpx.Client, body: Any, status: int, words: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = client.post(INFER, content=content)
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    assert words in response.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/nobody", 404),
        ("GET", "/v2/models/nobody/ready", 404),
        ("GET", "/v2/models/mood/versions/0", 404),
        ("GET", "/v2/models/mood/versions/0/ready", 404),
        ("POST", "/v2/models/mood/versions/0/infer", 404),
        ("POST", "/v2/models/nobody/infer", 404),
        ("GET", "/v2/models/mood/config", 404),
        ("POST", "/v2/repository/models/mood/load", 404),
        ("GET", "/v2/", 404),
        ("GET", INFER, 405),
        ("POST", "/v2/models/mood", 405),
        ("GET", "/v1/models/nobody", 404),
    ],
)
def test_what_there_is_not_is_an_error_in_the_shape_of_the_protocol(
    client: httpx.Client, method: str, path: str, status: int
) -> None:
    response = client.request(method, path, content=json.dumps({"inputs": [tensor("a")]}) if method == "POST" else None)
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]


def test_no_users_text_is_in_an_error(client: httpx.Client) -> None:
    secret = "xyzzysecret"
    bodies: list[Any] = [
        {"inputs": [tensor(secret, shape=[2])]},
        {"inputs": [tensor("a", **{secret: 1})]},
        {"inputs": [tensor("a", datatype=secret)]},
        {"inputs": [tensor("a", name=secret), tensor("b", name=secret)]},
        {"inputs": [tensor("a")], "parameters": {secret: 1}},
        {"inputs": [tensor("a")], "parameters": {"explain": secret}},
        {"inputs": [tensor("a")], "outputs": [{"name": secret}]},
        {"inputs": [tensor("a")], "model_name": secret},
    ]
    for body in bodies:
        response = client.post(INFER, json=body)
        assert response.status_code == 400
        assert secret not in response.text, body
    for path in (f"/v2/models/{secret}", f"/v2/{secret}", f"/v1/models/{secret}"):
        assert secret not in client.get(path).text
    assert secret not in client.post("/v1/models/mood:predict", json={"instances": [secret, {secret: 1}]}).text
    assert secret not in client.get("/metrics").text
