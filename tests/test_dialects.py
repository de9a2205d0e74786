"""Real clients of other servers, from their packages, against a replica behind HTTP: they change one URL."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx
import pytest
from clients import python_with, run_client
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from server import Server

if TYPE_CHECKING:
    from pathlib import Path

    from replica import Replica

CLIENTS = ("infinity_client==0.0.78", "tei-client==0.2.4", "openai==3.54.0")
pytestmark = pytest.mark.timeout(300)  # the first test that needs an environment makes it
GUARDRAILS = ("nemoguardrails==0.24.1",)

TEI = """
import asyncio, json, sys
from tei_client import HttpClient
client = HttpClient(sys.argv[1])
dump = lambda results: [[(s.label, s.score) for s in result.scores] for result in results]
print(json.dumps({
    "health": client.health(),
    "info": [client.info().server_model_id, client.info().server_model_metadata.label2id],
    "one": dump(client.classify("a lovely film")),
    "many": dump(client.classify(["a lovely film", "the dull town"])),
    "pair": dump(client.classify(("a film", "was good"))),
    "raw": dump(client.classify("a lovely film", raw_scores=True)),
    "cut": dump(client.classify("good " * 500, truncate=True)),
    "async": dump(asyncio.run(client.async_classify("a lovely film"))),
}))
"""

INFINITY = """
import asyncio, json, sys
from infinity_client import Client
from infinity_client.api.default import classify, health, models
from infinity_client.models import ClassifyInput
client = Client(base_url=sys.argv[1] + "/infinity", raise_on_unexpected_status=True)
ask = lambda **fields: classify.sync(client=client, body=ClassifyInput(**fields))
texts = ["a lovely film", "the dull town"]
dump = lambda answer: [[(s.label, s.score) for s in labels] for labels in answer.data]
print(json.dumps({
    "models": [model.id for model in models.sync(client=client).data],
    "health": "unix" in health.sync(client=client).additional_properties,
    "many": dump(ask(input_=texts)),
    "raw": dump(ask(input_=texts, raw_scores=True, model="tags")),
    "async": dump(asyncio.run(classify.asyncio(client=client, body=ClassifyInput(input_=texts)))),
    "wrong": ask(input_=[]).detail[0].loc,
}))
"""

VLLM = """
import json, sys
import openai
client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
ask = lambda **body: client.post("/classify", cast_to=object, body=body)
try:
    ask(input="a film", model="nobody")
except openai.NotFoundError as error:
    missing = error.body["type"]
try:
    ask(input=[])
except openai.BadRequestError as error:
    wrong = error.body["param"]
listing = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none")
model = listing.models.list().data[0].id
print(json.dumps({
    "model": model,
    "many": [one["label"] for one in ask(input=["a lovely film", "the dull town"], model=model)["data"]],
    "errors": [missing, wrong],
}))
"""

NEMO = """
import asyncio, json, sys
from nemoguardrails.library.hf_classifier.backends import VLLMBackend
from nemoguardrails.library.hf_classifier.rail_config import RemoteHFClassifierConfig
config = RemoteHFClassifierConfig(engine="vllm", model="mood", base_url=sys.argv[1])
print(json.dumps(asyncio.run(VLLMBackend(config).classify("the dull town"))))
"""


@pytest.fixture(scope="module")
def clients() -> Path:
    """The interpreter of an environment with the clients that do not fit ours."""
    return python_with(*CLIENTS)


def best(results: list[list[tuple[str, float]]]) -> list[str]:
    """The first label of each."""
    return [result[0][0] for result in results]


@pytest.mark.parametrize("path", ["", "/predict", "/models/mood"])
def test_inference_client_classifies(replica: Replica, path: str) -> None:
    client = InferenceClient(model=replica.url + path)
    first, second = client.text_classification("a lovely film")
    assert (first.label, second.label) == ("positive", "negative")
    assert first.score + second.score == pytest.approx(1)
    [only] = client.text_classification("the dull town", top_k=1)
    assert only.label == "negative"
    assert client.text_classification("a lovely film", function_to_apply="none")[0].score > 1


def test_async_inference_client_classifies(replica: Replica) -> None:
    async def ask() -> str:
        async with AsyncInferenceClient(model=replica.url) as client:
            [best, _] = await client.text_classification("the dull town")
            return str(best.label)

    assert asyncio.run(ask()) == "negative"


def test_inference_client_shows_what_to_change(replica: Replica) -> None:
    with pytest.raises(HfHubHTTPError, match="parameters.top_k: Input should be greater than or equal to 1"):
        InferenceClient(model=replica.url).text_classification("a film", top_k=0)


def test_tei_client_classifies_texts_pairs_and_batches(replica: Replica, clients: Path) -> None:
    answer = run_client(clients, TEI, replica.url)
    assert answer["health"] is True
    assert answer["info"] == ["mood", {"negative": 0, "positive": 1}]
    assert best(answer["one"]) == best(answer["async"]) == best(answer["pair"]) == best(answer["cut"]) == ["positive"]
    assert best(answer["many"]) == ["positive", "negative"]
    assert answer["raw"][0][0][1] > 1


def test_infinity_client_classifies_and_lists_models(replica: Replica, clients: Path) -> None:
    answer = run_client(clients, INFINITY, replica.url)
    assert answer["models"] == ["mood", "tags"]
    assert answer["health"] is True
    assert best(answer["many"]) == best(answer["async"]) == ["positive", "negative"]
    assert answer["raw"][0][0][1] > 1
    assert answer["wrong"] == ["body", "input"]


def test_openai_client_asks_vllms_classify_and_lists_models(replica: Replica, clients: Path) -> None:
    answer = run_client(clients, VLLM, replica.url)
    assert answer == {"model": "mood", "many": ["positive", "negative"], "errors": ["NotFoundError", "input"]}


@pytest.mark.slow
def test_inference_client_classifies_behind_the_ingress(bundle_folder: Path) -> None:
    with Server(f"mood={bundle_folder}") as server:
        for path in ("", "/predict", "/models/mood"):
            [best] = InferenceClient(model=server.url + path).text_classification("the dull town", top_k=1)
            assert best.label == "negative"
        for path in ("/classify", "/infinity/classify"):
            assert httpx.post(server.url + path, json={"input": ["a film"]}).json()["model"] == "mood"


@pytest.mark.slow  # its package is large
@pytest.mark.timeout(600)
def test_nemo_guardrails_asks_vllms_classify(replica: Replica) -> None:
    [answer] = run_client(python_with(*GUARDRAILS), NEMO, replica.url)
    assert answer["label"] == "negative"
    assert answer["score"] > 0.5
