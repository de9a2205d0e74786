"""KServe's V1 protocol over a real socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from v2 import TEXTS, native

from service.dialects import kserve_v1
from service.routes import Service

if TYPE_CHECKING:
    import httpx

    from model.bundle import Bundle


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

    for one in (1, 1.0):  # the same number in JSON
        [top] = predict(["a lovely film"], top_k=one)
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


def test_the_root_says_to_whoever_is_no_browser_whether_the_device_answers(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = client.get("/", headers={"accept": "text/html"})
    assert (page.headers["content-type"], page.headers["vary"]) == ("text/html; charset=utf-8", "Accept")
    assert client.get("/").json() == {"status": "alive"}
    monkeypatch.setattr(Service, "is_live", False)
    response = client.get("/")
    assert (response.status_code, response.json()) == (503, {"error": "not ready: the device does not answer"})


def test_what_is_explained_is_not_read_in_windows(client: httpx.Client) -> None:
    body = {"instances": ["a lovely film"], "parameters": {"on_long": "window"}}
    assert client.post("/v1/models/mood:predict", json=body).status_code == 200
    response = client.post("/v1/models/mood:explain", json=body)
    assert (response.status_code, response.json()["error"][:19]) == (400, "parameters.on_long:")
