"""Texts like those that a model was measured on do not drift, others do (model/drift.py, heed drift, its metric)."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from samples import rows

from model.bundle import load_bundle
from model.drift import LARGE, Reference, Seen, Window, distance_statistics, distances, number_statistics, values_of
from model.manifest import BundleError
from service import metrics
from service.cli import main
from service.predictor import Predictor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LABELS = ["negative", "positive"]
CONFIDENCE = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0, 1.0, 1.0, 1.0, 1.0]  # deciles
STATISTICS = {
    "n": 2000,
    "label_share": {"negative": 0.5, "positive": 0.5},
    "confidence": number_statistics(np.interp(np.linspace(0, 10, 2000), range(11), CONFIDENCE).tolist()),
    "tokens": number_statistics([round(3 + 30 * i / 1999) for i in range(2000)]),
    "unknown_share": 0.02,
}


def seen(n: int, *, positive: float = 0.5, longer: int = 0, unknown: float = 0.02) -> list[Seen]:
    """Texts as STATISTICS has them, but for what is said."""
    rng = random.Random(0)
    return [
        Seen(
            int(rng.random() < positive),
            float(np.interp(rng.random() * 10, range(11), CONFIDENCE)),
            round(3 + 30 * rng.random()) + longer,
            rng.random() < unknown,
        )
        for _ in range(n)
    ]


def psi(some: list[Seen]) -> dict[str, float]:
    window = Window(Reference(STATISTICS, LABELS))
    window.add(values_of(some))
    return window.psi()


def test_texts_of_the_same_kind_have_not_moved() -> None:
    assert all(value < 0.02 for value in psi(seen(1000)).values())


@pytest.mark.parametrize(
    ("signal", "change"), [("label", {"positive": 0.9}), ("tokens", {"longer": 20}), ("unknown", {"unknown": 0.5})]
)
def test_the_signal_that_moved_is_the_one_that_says_so(signal: str, change: dict[str, float]) -> None:
    found = psi(seen(1000, **change))  # type: ignore[arg-type]
    assert found.pop(signal) > LARGE
    assert all(value < 0.02 for value in found.values())


def test_what_is_compared_are_counts_also_where_many_texts_have_one_value() -> None:
    found = number_statistics([0.5] * 100 + [0.9] * 100 + [1.0] * 800)
    assert found["edges"] == [0.49, 0.89, 0.9, 0.99, 1.0]
    assert found["shares"] == [0.0, 0.1, 0.1, 0.0, 0.8, 0.0]


def test_a_sure_model_sees_no_drift_in_like_texts() -> None:
    rng = np.random.default_rng(0)

    def sure(n: int) -> list[float]:
        return [float(x) for x in 0.981 - 0.3 * rng.random(n) ** 4]  # most between 0.96 and 0.98

    window = Window(Reference({"n": 3000, "confidence": number_statistics(sure(3000))}, LABELS))
    window.add({"confidence": sure(1000)})
    assert window.psi()["confidence"] < 0.02


def test_a_model_that_was_always_sure_and_no_longer_is_has_drifted() -> None:
    reference = Reference(
        STATISTICS
        | {"confidence": number_statistics([0.7] * 100 + [1.0] * 900), "tokens": number_statistics([7] * 1000)},
        LABELS,
    )
    same, other = Window(reference), Window(reference)
    same.add(values_of([Seen(i % 2, 0.7 if i % 10 == 0 else 1.0, 7, is_unknown=i % 50 == 0) for i in range(1000)]))
    other.add(values_of([Seen(i % 2, 0.6, 9, is_unknown=i % 50 == 0) for i in range(1000)]))
    assert max(same.psi().values()) < 0.15
    assert min(other.psi()["confidence"], other.psi()["tokens"]) > 1


@pytest.mark.parametrize(
    "odd",
    [
        {"label_share": {"negative": "x"}},
        {"label_share": {"negative": None}},
        {"label_share": []},
        {"confidence": []},
        {"confidence": {"unit": 1, "edges": [], "shares": [1.0]}},
        {"tokens": {"unit": 1, "edges": [3, 2], "shares": [0.5, 0.5, 0.0]}},
        {"n": 1e999},
        {"n": 10**400},
        {"unknown_share": 7},
        {"embedding_center": [0.0, float("nan")]},
        {"embedding_center": [0.0]},
        {"distance": {}},
        {"distance": {"unit": 0, "edges": [1.0], "shares": [0.5, 0.5]}},
        {"distance": {"unit": 1, "edges": [1.0, 0.5], "shares": [0.5, 0.5, 0]}},
    ],
)
def test_a_strangers_statistics_are_refused_when_the_bundle_is_loaded(
    odd: dict[str, object], bundle_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundle_folder, tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / "heed.json").read_text())
    manifest["reference"] |= odd
    (tmp_path / "b" / "heed.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"heed\.json: reference is not what was written"):
        load_bundle(tmp_path / "b")


def test_few_texts_say_little() -> None:
    quiet = [max(psi(seen(n)).values()) for n in (20, 50, 200)]
    assert max(quiet) < LARGE


def test_windows_add_up() -> None:
    reference = Reference(STATISTICS, LABELS)
    parts, whole = (Window(reference), Window(reference)), Window(reference)
    some = seen(400)
    parts[0].add(values_of(some[:150]))
    parts[1].add(values_of(some[150:]))
    whole.add(values_of(some))
    assert (parts[0] + parts[1]).psi() == whole.psi()


def test_a_bundle_without_statistics_has_no_drift() -> None:
    window = Window(Reference({}, LABELS))
    window.add(values_of(seen(100)))
    assert window.psi() == {}


def test_the_command_tells_a_file_of_other_texts_and_exits_with_3(
    bundle_folder: Path, write_jsonl: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    like = write_jsonl(rows(600, seed=4), "like")
    assert main(["drift", str(bundle_folder), str(like), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 600
    long = [{"text": " ".join(str(row["text"]) for row in rows(6, seed=i))} for i in range(300)]
    assert main(["drift", str(bundle_folder), str(write_jsonl(long, "other"))]) == 3
    assert "tokens" in capsys.readouterr().out


def test_the_metric_follows_the_last_texts_and_forgets_those_before(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "DRIFT_WINDOW", 300)
    bundle = replace(load_bundle(bundle_folder), reference=STATISTICS)
    drift = metrics.Drift("watched", bundle)

    def now(some: list[Seen]) -> float:
        for one in some:
            drift.see(one)
        return metrics.DRIFT.labels("watched", "tokens")._value.get()  # type: ignore[no-any-return]

    assert now(seen(200, longer=20)) == 0  # too few to say
    assert now(seen(100, longer=20)) > LARGE
    assert now(seen(1000)) < LARGE


def test_a_model_that_maps_each_label_to_a_point_sees_no_drift_in_like_texts_and_some_in_others() -> None:
    rng = np.random.default_rng(0)
    points = np.array([[3.0, 0.0], [-3.5, 0.0]], dtype=np.float32)

    def embedded(n: int, noise: float) -> np.ndarray:
        return (points[rng.integers(2, size=n)] + rng.normal(0, noise, (n, 2))).astype(np.float32)

    center = embedded(2000, 0.001).mean(axis=0).tolist()
    statistics = distance_statistics(distances(embedded(2000, 0.001), center))
    reference = Reference({"n": 2000, "embedding_center": center, "distance": statistics}, LABELS)
    like, between = Window(reference), Window(reference)
    like.add({"distance": distances(embedded(300, 0.003), center)})
    between.add({"distance": distances((embedded(300, 0.003) / 2).astype(np.float32), center)})
    assert like.psi()["distance"] < 0.05
    assert between.psi()["distance"] > 1


def test_a_model_knows_texts_of_other_words_by_their_embeddings(bundle_folder: Path) -> None:
    bundle = load_bundle(bundle_folder)
    predictor = Predictor(bundle, torch.device("cpu"))

    def far(texts: list[str]) -> float:
        window = Window(Reference(bundle.reference, bundle.labels))
        window.add({"distance": predictor.distances(bundle.tokenizer.encode(texts, bundle.max_tokens))})
        return window.psi()["distance"]

    assert far([str(row["text"]) for row in rows(300, seed=7)]) < LARGE
    assert far([f"dog {i} town" for i in range(300)]) > LARGE
