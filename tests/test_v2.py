"""Open Inference Protocol V2 over a real socket: what it answers, and what it says of itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from v2 import INFER, TEXTS, infer, native, tensor

from model.bundle import load_bundle
from service.dialects import v2_openapi

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

    from model.bundle import Bundle
    from service.dialects.v2_openapi import Answer


def test_an_answer_is_the_native_one_as_tensors(client: httpx.Client, bundle: Bundle) -> None:
    body = {"id": "42", "inputs": [tensor(*TEXTS)]}
    answer = client.post(INFER, json=body).json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("mood", bundle.version, "42")
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert list(outputs) == ["label", "score", "probabilities", "logits", "label_set", "abstained"]
    results = native(client, texts=TEXTS)
    raw = native(client, texts=TEXTS, raw_scores=True)
    assert outputs["label"]["data"] == ["positive", "negative"]
    assert outputs["score"]["data"] == pytest.approx([result["labels"][0]["score"] for result in results])
    for name, found in (("probabilities", results), ("logits", raw)):
        by_label = [{one["label"]: one["score"] for one in result["labels"]} for result in found]
        assert outputs[name]["shape"] == [2, 2]
        assert outputs[name]["data"] == pytest.approx([scores[label] for scores in by_label for label in bundle.labels])
    assert outputs["label_set"]["data"] == [False, True, True, False]
    assert outputs["abstained"]["data"] == [result["abstained"] for result in results]


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
        {"shape": [2.0]},
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


def test_what_the_server_and_its_models_are(client: httpx.Client, bundle: Bundle) -> None:
    def get(path: str, shape: type[Answer]) -> Any:
        response = client.get(path)
        assert response.status_code == 200, path
        shape.model_validate_json(response.text, strict=True)
        return response.json()

    assert get("/v2/health/live", v2_openapi.ServerLive) == {"live": True}
    assert get("/v2/health/ready", v2_openapi.ServerReady) == {"ready": True}
    assert "binary_tensor_data" in get("/v2", v2_openapi.ServerMetadata)["extensions"]
    assert get("/v2/models", v2_openapi.ModelNames) == {"models": ["mood", "tags"]}
    for path in ("/v2/models/mood", f"/v2/models/mood/versions/{bundle.version}"):
        metadata = get(path, v2_openapi.ModelMetadata)
        assert (metadata["name"], metadata["versions"]) == ("mood", [bundle.version])
        assert get(f"{path}/ready", v2_openapi.ModelReady) == {"name": "mood", "ready": True}
    answered = client.post(f"/v2/models/mood/versions/{bundle.version}/infer", json={"inputs": [tensor("a")]}).json()
    described = [(one["name"], one["datatype"]) for one in metadata["outputs"]]
    assert described == [(one["name"], one["datatype"]) for one in answered["outputs"]]


def test_the_repository_lists_what_is_loaded(client: httpx.Client, bundle: Bundle, tags_folder: Path) -> None:
    versions = {"mood": bundle.version, "tags": load_bundle(tags_folder).version}
    for body in (b"", b"{}", b'{"ready": true}'):
        listed = client.post("/v2/repository/index", content=body).json()
        assert listed == [
            {"name": name, "version": version, "state": "READY", "reason": ""} for name, version in versions.items()
        ]
    assert client.post("/v2/repository/index", content=b'{"repository_name": "x"}').status_code == 400


def test_the_documentation_has_the_routes_and_their_limits(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    infer = document["paths"]["/v2/models/{name}/infer"]["post"]
    assert set(infer["responses"]) == {"200", "400", "404", "413", "429", "500", "503", "504"}
    for path in ("/v2", "/v2/models/{name}/versions/{version}/ready", "/v1/models/{name}:predict"):
        assert path in document["paths"]
    references = {part.split('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]}
    assert references <= set(document["components"]["schemas"])
    assert document["components"]["schemas"]["InferParameters"]["additionalProperties"] is False
