"""A service with keys: who is let in, how each client is told, how much a key may send, and which pages may ask."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from clients import KSERVE, TRITON, python_with, run_client
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from replica import Replica, served
from test_dialects import CLIENTS

import heed
from service.keys import new_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = secrets.token_urlsafe(32)
WITH_KEY = {"Authorization": f"Bearer {KEY}"}
PAGE = "https://pages.example"
V2 = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a lovely film"]}]}
ASKED: dict[str, dict[str, Any]] = {  # a request of each dialect
    "/v1/classify": {"texts": ["a lovely film"]},
    "/predict": {"inputs": "a lovely film"},
    "/": {"inputs": "a lovely film"},
    "/models/mood": {"inputs": "a lovely film", "parameters": {}},
    "/classify": {"input": "a lovely film"},
    "/infinity/classify": {"input": ["a lovely film"]},
    "/v2/models/mood/infer": V2,
    "/v1/models/mood:predict": {"instances": ["a lovely film"]},
}
SHAPES: dict[str, Any] = {  # of a 401, where it has no message
    "/predict": lambda body: body["error_type"] == "Validation" and "Bearer KEY" in body["error"],
    "/classify": lambda body: (body["error"]["type"], body["error"]["code"]) == ("AuthenticationError", 401),
    "/infinity/classify": lambda body: body == {"detail": "Unauthorized"},
    "/v2/models/mood/infer": lambda body: list(body) == ["error"] and "Bearer KEY" in body["error"],
    "/v1/classify": lambda body: body["error"]["code"] == "unauthorized" and "Bearer KEY" in body["error"]["message"],
}
OPENAI = """
import json, sys
from openai import AuthenticationError, OpenAI
url, key = sys.argv[1:]
ask = lambda client: client.post("/classify", body={"input": "the dull town"}, cast_to=object)["data"][0]["label"]
try:
    refused = ask(OpenAI(base_url=url, api_key="sk-wrong"))
except AuthenticationError as error:
    refused = [error.status_code, error.type]
print(json.dumps([ask(OpenAI(base_url=url, api_key=key)), refused]))
"""
INFINITY = """
import json, sys
from infinity_client import AuthenticatedClient
from infinity_client.api.default import classify
from infinity_client.models import ClassifyInput
client = AuthenticatedClient(base_url=sys.argv[1] + "/infinity", token=sys.argv[2])
print(json.dumps(classify.sync(client=client, body=ClassifyInput(input_=["the dull town"])).data[0][0].label))
"""

TRITONS = """
import importlib, json, sys
import numpy as np
protocol, address, key = sys.argv[1:]
triton = importlib.import_module("tritonclient." + protocol)
text = triton.InferInput("text", [1], "BYTES")
text.set_data_from_numpy(np.array(["the dull town"], dtype=np.object_))
client, headers = triton.InferenceServerClient(address), {"authorization": "Bearer " + key}
try:
    refused = client.infer("mood", [text])
except triton.InferenceServerException as error:
    refused = error.status()
label = client.infer("mood", [text], headers=headers).as_numpy("label").item()
print(json.dumps([client.is_server_ready(), client.is_model_ready("mood", headers=headers), label.decode(), refused]))
"""
KSERVES = """
import asyncio, json, sys
from kserve import InferenceRESTClient, RESTConfig
url, key = sys.argv[1:]
async def main():
    async with InferenceRESTClient(RESTConfig(protocol="v1")) as client:
        answer = await client.infer(
            url, {"instances": ["the dull town"]}, model_name="mood", headers={"Authorization": "Bearer " + key}
        )
    print(json.dumps(answer["predictions"][0]["label"]))
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def url(bundle_folder: Path) -> Iterator[str]:
    with served({"mood": bundle_folder}, api_keys=[KEY], cors_origins=[PAGE]) as url:
        yield url


def test_every_operation_wants_a_key_or_says_that_it_wants_none(url: str) -> None:
    document = httpx.get(f"{url}/openapi.json", headers=WITH_KEY).json()
    assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    free = set()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            answer = httpx.request(method, url + path.format(name="mood", version="1"))
            assert (answer.status_code == 401) == ("security" in operation) == ("401" in operation["responses"]), path
            if answer.status_code == 401:
                assert answer.headers["www-authenticate"] == "Bearer"
            else:
                free.add(path)
    health = {"/health", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/infinity/health"}
    assert free == {"/", "/metrics"} | health  # the page, and whether the device answers


def test_routes_that_are_not_in_the_document_want_a_key_too_but_the_page_none(url: str) -> None:
    for path in ("/docs", "/openapi.json"):
        assert (httpx.get(url + path).status_code, httpx.get(url + path, headers=WITH_KEY).status_code) == (401, 200)
    for path in ("/", "/page/page.js", "/page/page.css"):
        assert httpx.get(url + path).status_code == 200


def test_without_keys_no_operation_knows_a_401(replica: Replica) -> None:
    document = httpx.get(f"{replica.url}/openapi.json").json()
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    assert not [one for one in operations if "security" in one or "401" in one["responses"]]
    assert "securitySchemes" not in document["components"]


@pytest.mark.parametrize("path", ASKED)
def test_each_dialect_takes_the_key_and_refuses_another_in_its_shape(url: str, path: str) -> None:
    assert httpx.post(url + path, json=ASKED[path], headers=WITH_KEY).status_code == 200
    for headers in ({}, {"Authorization": f"Bearer {KEY[:-1]}"}):
        answer = httpx.post(url + path, json=ASKED[path], headers=headers)
        assert answer.status_code == 401
        assert SHAPES.get(path, lambda body: "Bearer KEY" in body["error"])(answer.json())
        assert KEY[:-1] not in answer.text + str(answer.headers)


def test_a_caller_without_a_key_is_refused_before_the_body_is_read(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    head = b"POST /v1/classify HTTP/1.1\r\nHost: heed\r\nContent-Length: 1000000\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(head)  # and no body
        assert client.recv(100).startswith(b"HTTP/1.1 401")


def test_a_key_that_is_taken_out_of_the_file_is_refused_and_a_new_one_taken(
    bundle_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    (old, old_line), (new, new_line) = new_key("app"), new_key("app")
    file.write_text(f"{old_line}\n")

    def status(url: str, key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.post(f"{url}/v1/classify", json={"texts": ["a film"]}, headers=headers).status_code

    with served({"mood": bundle_folder}, api_keys_file=file) as url:
        assert (status(url, old), status(url, new)) == (200, 401)
        (tmp_path / "next").write_text(f"{new_line}\n")
        (tmp_path / "next").rename(file)
        end = time.monotonic() + 30
        while status(url, new) == 401:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert status(url, old) == 401


def test_the_python_client_sends_its_key_and_says_what_is_wrong_without_one(url: str) -> None:
    with heed.Client(url, api_key=KEY) as client:
        assert [result.label for result in client.classify(["a lovely film", "the dull town"])] == [
            "positive",
            "negative",
        ]
    with heed.Client(url) as client, pytest.raises(heed.HeedError, match="there is no API key: send") as refused:
        client.classify(["a lovely film"])
    assert (refused.value.status, refused.value.code) == (401, "unauthorized")


def test_inference_client_sends_its_token_as_the_key(url: str) -> None:
    assert InferenceClient(model=url, token=KEY).text_classification("the dull town")[0].label == "negative"
    with pytest.raises(HfHubHTTPError, match="401"):
        InferenceClient(model=url, token="hf_wrong").text_classification("the dull town")


@pytest.mark.timeout(300)  # makes the clients' environment
def test_openais_and_infinitys_clients_send_their_key(url: str) -> None:
    clients = python_with(*CLIENTS)
    assert run_client(clients, OPENAI, url, KEY) == ["negative", [401, "AuthenticationError"]]
    assert run_client(clients, INFINITY, url, KEY) == "negative"


@pytest.mark.timeout(900)
def test_tritons_and_kserves_clients_send_it_as_a_header(url: str) -> None:
    triton = run_client(python_with(*TRITON), TRITONS, "http", url.removeprefix("http://"), KEY)
    assert triton == [True, True, "negative", "401"]
    assert run_client(python_with(*KSERVE), KSERVES, url, KEY) == "negative"


def test_bench_takes_its_key_from_the_environment(url: str) -> None:
    command = [sys.executable, "-m", "service", "bench", url, "--connections", "1", "--seconds", "0.05", "--json"]
    environment = {**os.environ, "HEED_API_KEY": ""}
    refused = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert refused.returncode == 2
    assert "answers 401: there is no API key" in refused.stderr
    environment["HEED_API_KEY"] = KEY
    taken = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert taken.returncode == 0
    assert KEY not in taken.stdout + taken.stderr


def test_a_key_that_has_sent_its_texts_waits_in_every_dialect_and_another_key_does_not(bundle_folder: Path) -> None:
    (app, app_line), (other, other_line) = new_key("app"), new_key("other")
    limits: dict[str, Any] = {"texts_per_second_per_key": 0.01, "max_texts_per_request": 5}

    def ask(client: httpx.Client, key: str, path: str, body: object) -> httpx.Response:
        return client.post(path, json=body, headers={"Authorization": f"Bearer {key}"})

    keys = [str(app_line), str(other_line)]
    with served({"mood": bundle_folder}, api_keys=keys, **limits) as url, httpx.Client(base_url=url) as client:
        answer = ask(client, app, "/v1/classify", {"texts": ["a film"] * 6})
        assert answer.status_code == 422  # to what can never be let in, no time is said to come back
        assert "at most 5 items" in answer.json()["error"]["message"]
        assert ask(client, app, "/v1/classify", {"texts": ["a film"] * 5}).status_code == 200
        for path, body in ASKED.items():
            answer = ask(client, app, path, body)
            assert answer.status_code == 429, path
            assert 90 <= int(answer.headers["retry-after"]) <= 100
            assert "the API key has sent as many texts as it may" in answer.text
        assert ask(client, other, "/v1/classify", {"texts": ["a film"] * 5}).status_code == 200
        assert client.get("/health/ready").status_code == 200
        assert 'heed_refused_total{code="rate_limited"}' in client.get("/metrics").text


def test_a_page_of_an_allowed_origin_may_ask_after_its_preflight(url: str) -> None:
    wants = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    preflight = httpx.options(f"{url}/v1/classify", headers={"Origin": PAGE, **wants})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == PAGE
    assert "Authorization" in preflight.headers["access-control-allow-headers"]
    for headers in (WITH_KEY, {}):  # a page may read its refusals too
        answer = httpx.post(f"{url}/v1/classify", json=ASKED["/v1/classify"], headers={"Origin": PAGE, **headers})
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
    stranger = {"Origin": "https://elsewhere.example"}
    assert httpx.options(f"{url}/v1/classify", headers={**stranger, **wants}).status_code == 400
    answer = httpx.post(f"{url}/v1/classify", json=ASKED["/v1/classify"], headers={**stranger, **WITH_KEY})
    assert "access-control-allow-origin" not in answer.headers


def test_no_page_may_ask_where_none_is_named(replica: Replica) -> None:
    headers = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    answers = [httpx.options(f"{replica.url}/v1/classify", headers=headers)]
    answers.append(httpx.post(f"{replica.url}/v1/classify", json={"texts": ["a film"]}, headers={"Origin": PAGE}))
    assert [answer.status_code for answer in answers] == [405, 200]
    assert not [name for answer in answers for name in answer.headers if name.startswith("access-control")]
