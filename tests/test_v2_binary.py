"""Binary tensors after the JSON, and compressed bodies: Triton's extensions of V2."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from v2 import INFER, TEXTS, infer, tensor

if TYPE_CHECKING:
    import httpx


JSON_LENGTH = "Inference-Header-Content-Length"


def packed(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


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
