"""Triton's and KServe's own clients over HTTP: each call that they have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from clients import KSERVE, TRITON, calls
from replica import served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from model.bundle import Bundle

pytestmark = pytest.mark.timeout(900)  # the first run makes the clients' environments


@pytest.fixture(scope="module")
def url(bundle_folder: Path) -> Iterator[str]:
    with served({"mood": bundle_folder}, precision="fp32") as url:
        yield url


@pytest.fixture(scope="module")
def triton(url: str) -> dict[str, Any]:
    return calls("client_triton", TRITON, "http", url.removeprefix("http://"))


@pytest.fixture(scope="module")
def kserve(url: str) -> dict[str, Any]:
    return calls("client_kserve", KSERVE, url, "-")


def test_tritons_client_sees_what_is_served(triton: dict[str, Any], bundle: Bundle) -> None:
    for call in ("is_server_live", "is_server_ready", "is_model_ready", "is_model_ready of a version"):
        assert triton[call] is True, call
    assert triton["get_server_metadata"]["name"] == "heed"
    assert triton["get_model_metadata"]["versions"] == [bundle.version]
    assert [(one["name"], one["version"]) for one in triton["get_model_repository_index"]] == [("mood", bundle.version)]


@pytest.mark.parametrize(
    "call",
    [
        "infer",
        "infer of a version",
        "infer, JSON",
        "infer, compressed",
        "infer, deflated",
        "infer, priority and timeout",
    ],
)
def test_tritons_client_infers(triton: dict[str, Any], call: str) -> None:
    assert triton[call]["label"] == ["positive", "negative"]


def test_tritons_client_gets_what_it_asks_for(triton: dict[str, Any]) -> None:
    answer = triton["infer"]
    assert answer["id"] == "42"
    assert answer["shapes"] == {
        "label": [2],
        "score": [2],
        "probabilities": [2, 2],
        "logits": [2, 2],
        "label_set": [2, 2],
        "abstained": [2],
    }
    assert answer["label_set"] == [False, True, True, False]
    best = [one.split(":")[1:] for one in triton["infer, classification"]["probabilities"]]
    assert best == [["1", "positive"], ["0", "negative"]]
    assert triton["infer, parameters"]["label"] == ["positive", "negative", "negative", "positive"]
    assert len(triton["infer, a pair"]["label"]) == 1


@pytest.mark.parametrize(
    ("call", "status", "words"),
    [
        ("infer, late", ("429", "504"), "timeout_ms"),
        ("infer, unknown parameter", ("400",), "there are: top_k"),
        ("infer, sequence", ("400",), "sequence_id"),
        ("infer, too many texts", ("400",), "n from 1 to 1000"),
        ("infer, no such model", ("404",), "mood@"),
    ],
)
def test_tritons_client_reads_the_error(triton: dict[str, Any], call: str, status: tuple[str, ...], words: str) -> None:
    assert triton[call][0] in status
    assert words in triton[call][1]


def test_kserves_client_speaks_v2(kserve: dict[str, Any]) -> None:
    for call in ("v2 is_server_live", "v2 is_server_ready", "v2 is_model_ready"):
        assert kserve[call] is True, call
    assert kserve["v2 is_model_ready, no such model"] is False
    assert kserve["v2 infer"]["id"] == "42"
    for call in ("v2 infer", "v2 infer, binary"):
        assert kserve[call]["label"] == ["positive", "negative"]
        assert kserve[call]["probabilities"] == pytest.approx(kserve["v2 infer"]["probabilities"])
    assert kserve["v2 infer, unknown parameter"][0] == 400
    assert "there are: top_k" in kserve["v2 infer, unknown parameter"][1]


def test_kserves_client_speaks_v1(kserve: dict[str, Any], bundle: Bundle) -> None:
    assert kserve["v1 is_server_live"] is True
    assert kserve["v1 is_model_ready"] is True
    assert [one["label"] for one in kserve["v1 infer"]["predictions"]] == ["positive", "negative"]
    [lovely, _] = kserve["v1 explain"]["explanations"]
    assert [token["text"] for token in lovely["explanation"]["tokens"]] == ["a", "lovely", "film"]
    assert kserve["v1 infer, no instances"][0] == 400
    assert "instances" in kserve["v1 infer, no instances"][1]
    status, message = kserve["v1 infer, no such model"]
    assert (status, f"mood@{bundle.version}" in message) == (404, True)
