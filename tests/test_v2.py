"""Open Inference Protocol V2 and KServe V1 over HTTP, byte by byte; tests/test_v2_clients.py asks with real clients."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from replica import served

from service.dialects import kserve_v1, v2_openapi
from service.dialects.v2_openapi import Answer, InferResponse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from model.bundle import Bundle

LIMITS: dict[str, Any] = {"max_body_bytes": 200_000, "max_texts_per_request": 50, "max_text_chars": 20_000}
JSON_LENGTH = "Inference-Header-Content-Length"
INFER = "/v2/models/mood/infer"
TEXTS = ["a lovely film", "the dull town"]


@pytest.fixture(scope="module")
def client(bundle_folder: Path) -> Iterator[httpx.Client]:
    folders = {"mood": bundle_folder, "other": bundle_folder}
    with served(folders, precision="fp32", **LIMITS) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client


def tensor(*texts: str, **fields: Any) -> dict[str, Any]:
    return {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)} | fields


def infer(client: httpx.Client, *texts: str, **fields: Any) -> dict[str, Any]:
    """The outputs by name, of an answer that is as documented."""
    response = client.post(INFER, json={"inputs": [tensor(*texts)], **fields})
    assert response.status_code == 200, response.text
    InferResponse.model_validate_json(response.text, strict=True)
    return {output["name"]: output for output in response.json()["outputs"]}


def native(client: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = client.post("/v1/classify", json=body).json()["results"]
    return results


def packed(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def test_an_answer_is_the_native_one_as_tensors(client: httpx.Client, bundle: Bundle) -> None:
    body = {"id": "42", "inputs": [tensor(*TEXTS)]}
    answer = client.post(INFER, json=body).json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("mood", bundle.version, "42")
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert list(outputs) == ["label", "score", "probabilities", "logits", "label_set"]
    results = native(client, texts=TEXTS)
    raw = native(client, texts=TEXTS, raw_scores=True)
    assert outputs["label"]["data"] == ["positive", "negative"]
    assert outputs["score"]["data"] == pytest.approx([result["labels"][0]["score"] for result in results])
    for name, found in (("probabilities", results), ("logits", raw)):
        by_label = [{one["label"]: one["score"] for one in result["labels"]} for result in found]
        assert outputs[name]["shape"] == [2, 2]
        assert outputs[name]["data"] == pytest.approx([scores[label] for scores in by_label for label in bundle.labels])
    assert outputs["label_set"]["data"] == [False, True, True, False]


def test_every_parameter_changes_the_answer(client: httpx.Client) -> None:
    long, text = "good " * 500, "a lovely film"
    plain = infer(client, text)
    top = infer(client, text, parameters={"top_k": 2})
    assert (top["label"]["shape"], top["label"]["data"]) == ([1, 2], ["positive", "negative"])
    assert infer(client, text, parameters={"raw_scores": True})["score"]["data"] == plain["logits"]["data"][1:]
    explained = infer(client, text, parameters={"explain": True})["explanation"]
    assert [token["text"] for token in json.loads(explained["data"][0])["tokens"]] == ["a", "lovely", "film"]
    negative = infer(client, text, parameters={"explain": "negative"})["explanation"]
    assert json.loads(negative["data"][0])["label"] == "negative"
    [window] = native(client, texts=[long], on_long="window", raw_scores=True)
    assert max(infer(client, long, parameters={"on_long": "window"})["logits"]["data"]) == pytest.approx(
        window["labels"][0]["score"]
    )
    refused = client.post(INFER, json={"inputs": [tensor(text, long)], "parameters": {"on_long": "error"}})
    assert refused.status_code == 400
    assert "texts[1]: the text has 502 tokens and the model reads 64" in refused.json()["error"]
    late = client.post(INFER, json={"inputs": [tensor(*[text] * 50)], "parameters": {"timeout": 1}})
    assert late.status_code in (429, 504)
    for parameters in ({"priority": 0}, {"priority": 1}, {"priority": 7}, {"timeout": 10**7}, {"timeout": 0}):
        assert infer(client, text, parameters=parameters) == plain


def test_outputs_are_those_that_are_asked_for(client: httpx.Client) -> None:
    outputs = [
        {"name": "label_set"},
        {"name": "probabilities", "parameters": {"classification": 1}},
        {"name": "logits", "parameters": {"classification": 9}},
    ]
    found = infer(client, "a lovely film", outputs=outputs)
    assert list(found) == ["label_set", "probabilities", "logits"]
    [best] = found["probabilities"]["data"]
    score, index, label = best.split(":")
    assert (index, label, found["probabilities"]["shape"]) == ("1", "positive", [1, 1])
    assert float(score) == pytest.approx(infer(client, "a lovely film")["score"]["data"][0], abs=1e-6)
    assert found["logits"]["shape"] == [1, 2]
    assert found["label_set"] == {"name": "label_set", "datatype": "BOOL", "shape": [1, 2], "data": [False, True]}


@pytest.mark.parametrize(
    "fields",
    [
        {"shape": [2, 1]},
        {"shape": [2, 1], "data": [[text] for text in TEXTS]},
        {"name": "args", "parameters": {"content_type": "str"}},
        {"parameters": None},
    ],
)
def test_texts_come_in_the_shapes_and_under_the_names_of_other_servers(
    client: httpx.Client, fields: dict[str, Any]
) -> None:
    response = client.post(INFER, json={"inputs": [tensor(*TEXTS, **fields)], "outputs": None, "parameters": None})
    assert response.json()["outputs"][0]["data"] == ["positive", "negative"]


def test_two_inputs_are_pairs(client: httpx.Client) -> None:
    pair = [tensor("a film"), tensor("was good", name="text_pair")]
    for inputs in (pair, pair[::-1]):
        outputs = client.post(INFER, json={"inputs": inputs}).json()["outputs"]
        [expected] = native(client, pairs=[["a film", "was good"]])
        assert outputs[1]["data"] == pytest.approx([expected["labels"][0]["score"]])


def ask_binary(client: httpx.Client, head: dict[str, Any], tail: bytes, **headers: str) -> httpx.Response:
    text = json.dumps(head).encode()
    return client.post(INFER, content=text + tail, headers={JSON_LENGTH: str(len(text))} | headers)


def binary_tensor(tail: bytes, **fields: Any) -> dict[str, Any]:
    without = {key: value for key, value in tensor(*TEXTS).items() if key != "data"}
    return without | {"parameters": {"binary_data_size": len(tail)}} | fields


def test_binary_tensors_go_both_ways(client: httpx.Client) -> None:
    tail = packed(*(text.encode() for text in TEXTS))
    outputs = [
        {"name": "label", "parameters": {"binary_data": True}},
        {"name": "score", "parameters": {"binary_data": False}},
        {"name": "logits"},
        {"name": "label_set"},
    ]
    head = {"inputs": [binary_tensor(tail)], "outputs": outputs, "parameters": {"binary_data_output": True}}
    response = ask_binary(client, head, tail)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/octet-stream")
    length = int(response.headers[JSON_LENGTH])
    label, score, logits, label_set = json.loads(response.content[:length])["outputs"]
    expected = packed(b"positive", b"negative")
    assert label["parameters"] == {"binary_data_size": len(expected)}
    assert response.content[length:].startswith(expected)
    plain = infer(client, *TEXTS)
    assert score["data"] == plain["score"]["data"]
    assert struct.unpack("<4f", response.content[length:][len(expected) : -4]) == pytest.approx(plain["logits"]["data"])
    assert response.content[-4:] == bytes([0, 1, 1, 0])
    assert (logits["parameters"], label_set["parameters"]) == ({"binary_data_size": 16}, {"binary_data_size": 4})


def test_compressed_requests_are_read_under_the_same_limit(client: httpx.Client) -> None:
    body = json.dumps({"inputs": [tensor(*TEXTS)]}).encode()
    for encoding, squeeze in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        headers = {"content-encoding": encoding}
        assert client.post(INFER, content=squeeze(body), headers=headers).status_code == 200
        bomb = squeeze(b" " * 50_000_000)
        assert client.post(INFER, content=bomb, headers=headers).status_code == 413
        for wrong in (body, squeeze(body)[:-5], squeeze(body) + b"more", b""):
            assert client.post(INFER, content=wrong, headers=headers).status_code == 400
    assert client.post(INFER, content=body, headers={"content-encoding": "br"}).status_code == 400


RIGHT = packed(b"a lovely film", b"the dull town")


@pytest.mark.parametrize(
    ("inputs", "tail"),
    [
        ([binary_tensor(RIGHT)], b""),
        ([binary_tensor(RIGHT)], RIGHT + b"x"),
        ([binary_tensor(RIGHT, shape=[3])], RIGHT),
        ([binary_tensor(RIGHT, shape=[1])], RIGHT),
        ([binary_tensor(RIGHT, shape=[-1])], RIGHT),
        ([binary_tensor(RIGHT, shape=[10**30])], RIGHT),
        ([binary_tensor(RIGHT, shape=[])], RIGHT),
        ([binary_tensor(RIGHT, shape=[1] * 9)], RIGHT),
        ([binary_tensor(RIGHT, parameters={"binary_data_size": -1})], RIGHT),
        ([binary_tensor(RIGHT, parameters={"binary_data_size": 10**30})], RIGHT),
        ([binary_tensor(RIGHT, parameters={"binary_data_size": "12"})], RIGHT),
        ([binary_tensor(RIGHT, parameters={"shared_memory_region": "x"})], RIGHT),
        ([binary_tensor(RIGHT, data=TEXTS)], RIGHT),
        ([binary_tensor(RIGHT, parameters={})], b""),
        ([binary_tensor(b"\xff\xff\xff\xff", shape=[1])], b"\xff\xff\xff\xff"),
        ([binary_tensor(packed(b"\xff"), shape=[1])], packed(b"\xff")),
        ([binary_tensor(packed(b""), shape=[1])], packed(b"")),
        ([tensor(*TEXTS)], b"more"),
        ([binary_tensor(RIGHT), binary_tensor(RIGHT)], RIGHT + RIGHT),
    ],
)
def test_a_malformed_tensor_is_refused(client: httpx.Client, inputs: list[Any], tail: bytes) -> None:
    response = ask_binary(client, {"inputs": inputs}, tail)
    assert response.status_code == 400, response.text
    assert list(response.json()) == ["error"]
    assert "lovely" not in response.text


@pytest.mark.parametrize("length", ["-1", "x", "", "1e3", "99999999", "9" * 5000, "0", "3", "²"])
def test_a_json_length_that_is_none_is_refused(client: httpx.Client, length: str) -> None:
    body = json.dumps({"inputs": [tensor(*TEXTS)]}).encode()
    response = client.post(INFER, content=body, headers=[(JSON_LENGTH.encode(), length.encode())])
    assert response.status_code == 400
    assert response.json()["error"]


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


def test_what_the_server_and_its_models_are(client: httpx.Client, bundle: Bundle) -> None:
    def get(path: str, shape: type[Answer]) -> Any:
        response = client.get(path)
        assert response.status_code == 200, path
        shape.model_validate_json(response.text, strict=True)
        return response.json()

    assert get("/v2/health/live", v2_openapi.ServerLive) == {"live": True}
    assert get("/v2/health/ready", v2_openapi.ServerReady) == {"ready": True}
    assert "binary_tensor_data" in get("/v2", v2_openapi.ServerMetadata)["extensions"]
    assert get("/v2/models", v2_openapi.ModelNames) == {"models": ["mood", "other"]}
    for path in ("/v2/models/mood", f"/v2/models/mood/versions/{bundle.version}"):
        metadata = get(path, v2_openapi.ModelMetadata)
        assert (metadata["name"], metadata["versions"]) == ("mood", [bundle.version])
        assert get(f"{path}/ready", v2_openapi.ModelReady) == {"name": "mood", "ready": True}
    answered = client.post(f"/v2/models/mood/versions/{bundle.version}/infer", json={"inputs": [tensor("a")]}).json()
    described = [(one["name"], one["datatype"]) for one in metadata["outputs"]]
    assert described == [(one["name"], one["datatype"]) for one in answered["outputs"]]


def test_the_repository_lists_what_is_loaded(client: httpx.Client, bundle: Bundle) -> None:
    for body in (b"", b"{}", b'{"ready": true}'):
        listed = client.post("/v2/repository/index", content=body).json()
        assert listed == [
            {"name": name, "version": bundle.version, "state": "READY", "reason": ""} for name in ("mood", "other")
        ]
    assert client.post("/v2/repository/index", content=b'{"repository_name": "x"}').status_code == 400


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


def test_v1_predicts_and_explains(client: httpx.Client, bundle: Bundle) -> None:
    answer = client.post("/v1/models/mood:predict", json={"instances": [TEXTS[0], {"text": TEXTS[1]}]}).json()
    kserve_v1.V1Predictions.model_validate(answer, strict=True)
    results = native(client, texts=TEXTS)
    for prediction, result in zip(answer["predictions"], results, strict=True):
        assert (prediction["labels"], prediction["label_set"]) == (result["labels"], result["label_set"])
        assert {"label": prediction["label"], "score": prediction["score"]} == result["labels"][0]
    assert (answer["model_name"], answer["model_version"]) == ("mood", bundle.version)
    explained = client.post("/v1/models/mood:explain", json={"instances": TEXTS}).json()
    kserve_v1.V1Explanations.model_validate(explained, strict=True)
    assert [one["explanation"]["label"] for one in explained["explanations"]] == ["positive", "negative"]
    assert client.get("/v1/models/mood").json() == {"name": "mood", "ready": True}


def test_v1_parameters_change_the_answer(client: httpx.Client) -> None:
    def predict(instances: list[Any], **parameters: Any) -> Any:
        body = {"instances": instances, "parameters": parameters}
        return client.post("/v1/models/mood:predict", json=body).json()["predictions"]

    [top] = predict(["a lovely film"], top_k=1)
    assert len(top["labels"]) == 1
    assert predict(["a lovely film"], raw_scores=True)[0]["score"] > 1
    refused, short = predict(["good " * 500, "a lovely film"], on_long="error")
    assert refused["error"]["code"] == "too_many_tokens"
    assert short["label"] == "positive"
    [pair] = predict([{"text": "a film", "text_pair": "was good"}])
    assert pair["labels"] == native(client, pairs=[["a film", "was good"]])[0]["labels"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"instances": []},
        {"instances": "a"},
        {"instances": [1]},
        {"instances": [{"text": "a"}, {"text": "a", "text_pair": "b"}]},
        {"instances": ["a"], "parameters": {"colour": 1}},
        {"instances": ["a"], "signature_name": "x"},
        {"instances": ["a"] * 51},
    ],
)
def test_v1_refuses_what_it_does_not_know(client: httpx.Client, body: Any) -> None:
    response = client.post("/v1/models/mood:predict", json=body)
    assert (response.status_code, list(response.json())) == (400, ["error"])


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


def test_the_documentation_has_the_routes_and_their_limits(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    infer = document["paths"]["/v2/models/{name}/infer"]["post"]
    assert set(infer["responses"]) == {"200", "400", "404", "413", "429", "500", "503", "504"}
    for path in ("/v2", "/v2/models/{name}/versions/{version}/ready", "/v1/models/{name}:predict"):
        assert path in document["paths"]
    references = {part.split('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]}
    assert references <= set(document["components"]["schemas"])
    assert document["components"]["schemas"]["InferParameters"]["additionalProperties"] is False
