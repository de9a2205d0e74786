"""Explanations: scores that add up, find the word that decides, point into the text, and let passes go first."""

from __future__ import annotations

import asyncio
import json
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import httpx
import pytest
import torch
from samples import BAD, GOOD
from test_families import CASES, ONE_CASE, ours, reference

from model.attribution import masked
from model.batch import make_batch
from model.explain import TOLERANCE, attention_weights, explain
from model.forward import forward_rows
from model.tokens import Row, Span
from service import compute
from service.compute import Compute
from service.engine import Engine
from service.models import Models
from service.routes import Service
from service.settings import Settings, Spec

if TYPE_CHECKING:
    from pathlib import Path

    from model.bundle import Bundle
    from model.encoder import Classifier
    from service.compute import Loaded

FAMILIES = [("bert", CASES["bert"][0]), ("modernbert", CASES["modernbert"][2]), ("deberta-v2", CASES["deberta-v2"][0])]
TEXT = Row([1, 17, 42, 99, 8, 30, 2])
MASKED = Row([1, *[3] * 5, 2])


@torch.no_grad()
def log_odds(classifier: Classifier, row: Row, label: int) -> float:
    [logits] = classifier(make_batch([row], "packed"))
    return float(logits[label] - torch.cat((logits[:label], logits[label + 1 :])).logsumexp(0))


def smooth(family: str, settings: dict[str, Any]) -> Classifier:
    """A random classifier whose logits differ much, though nothing inside it jumps."""
    classifier = ours(reference(family, settings))
    torch.manual_seed(0)
    for parameter in classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        classifier.head.out.weight *= 20
    return classifier


@pytest.mark.parametrize(("family", "settings"), FAMILIES)
@pytest.mark.parametrize("label", [0, 2])
def test_scores_sum_to_what_the_text_adds_to_the_log_odds_of_its_masked_self(
    family: str, settings: dict[str, Any], label: int
) -> None:
    classifier = smooth(family, settings)
    why = explain(classifier, TEXT, MASKED, label)
    gain = log_odds(classifier, TEXT, label) - log_odds(classifier, MASKED, label)
    assert abs(gain) > 4 * TOLERANCE  # else zeros would do
    assert abs(why.gap) <= TOLERANCE
    assert sum(why.scores) + why.gap == pytest.approx(gain, abs=1e-4)
    assert why.scores[0] == why.scores[-1] == 0


def test_independent_labels_are_explained_by_their_own_logit() -> None:
    classifier = smooth(*FAMILIES[0])
    why = explain(classifier, TEXT, MASKED, 1, is_multi=True)
    with torch.no_grad():
        text, blank = classifier(make_batch([TEXT, MASKED], "packed"))[:, 1].tolist()
    assert sum(why.scores) + why.gap == pytest.approx(text - blank, abs=1e-4)


def test_the_word_that_decides_has_the_top_score(bundle: Bundle) -> None:
    text = "the film was a {} story of two people"
    filler_says = int(forward_rows(bundle.classifier, bundle.tokenizer.encode([text.format("town")], 64)).argmax())
    for word in (GOOD, BAD)[filler_says]:  # words that turn what the rest of the text says
        spans = bundle.tokenizer.spans(text.format(word), 64)
        [row] = bundle.tokenizer.encode([text.format(word)], 64)
        why = explain(bundle.classifier, row, masked(row, spans, bundle.tokenizer), 1 - filler_says)
        top = spans[why.scores.index(max(why.scores))]
        assert top is not None
        assert 0 <= top.start - text.index("{}") < len(word)


def test_a_baseline_keeps_the_special_tokens(bundle: Bundle) -> None:
    baseline = masked(Row([7, 8, 9]), [None, Span(0, 1), None], bundle.tokenizer)
    assert baseline.ids == [7, bundle.tokenizer.token_id("[MASK]"), 9]


@pytest.mark.parametrize(("family", "settings"), [case for case in ONE_CASE if case.id != "deberta-v2"])
def test_attention_weights_are_those_of_transformers(family: str, settings: dict[str, Any]) -> None:
    model = reference(family, settings)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = torch.cat(model(input_ids=torch.tensor([TEXT.ids]), output_attentions=True).attentions)
    weights = attention_weights(ours(model), TEXT)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def ask(folder: Path, *bodies: dict[str, Any], **limits: Any) -> list[httpx.Response]:
    """Answers of a service of its own, asked for all at once."""
    settings = Settings(precision="fp32", **limits)
    service = Service(Models([Spec("mood", folder)], settings), settings)
    app = service.asgi()

    async def send() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with service.lifespan(app), httpx.AsyncClient(transport=transport, base_url="http://h") as client:
            return await asyncio.gather(*(client.post("/v1/classify", content=json.dumps(b)) for b in bodies))

    return asyncio.run(send())


def test_an_explanation_names_the_winner_and_its_tokens_with_their_place(bundle_folder: Path) -> None:
    texts = ["the 🎉 film was\u00a0lóvely", "味道 dull"]
    [response] = ask(bundle_folder, {"texts": texts, "explain": True})
    for text, result in zip(texts, response.json()["results"], strict=True):
        why = result["explanation"]
        assert why["label"] == result["labels"][0]["label"]
        assert abs(why["gap"]) <= TOLERANCE
        assert len(why["tokens"]) == result["tokens"] - 2
        for token in why["tokens"]:
            assert token["text"] == text[token["start"] : token["end"]] != ""
            assert "side" not in token


def test_another_label_can_be_asked_for(bundle_folder: Path) -> None:
    bodies = [{"texts": ["a lovely film"], "explain": label} for label in ("positive", "negative", False)]
    for_it, against, none = (r.json()["results"][0] for r in ask(bundle_folder, *bodies))
    assert (for_it["explanation"]["label"], against["explanation"]["label"]) == ("positive", "negative")
    for a, b in zip(for_it["explanation"]["tokens"], against["explanation"]["tokens"], strict=True):
        assert a["score"] == pytest.approx(-b["score"], abs=1e-3)  # of two labels, one gains what the other loses
    assert "explanation" not in none


def test_tokens_of_a_pair_say_which_text_they_are_of(bundle_folder: Path) -> None:
    pair = ["the film", "was lovely"]
    [response] = ask(bundle_folder, {"pairs": [pair], "explain": True})
    tokens = response.json()["results"][0]["explanation"]["tokens"]
    assert {token["side"] for token in tokens} == {0, 1}
    assert all(token["text"] == pair[token["side"]][token["start"] : token["end"]] for token in tokens)


def test_a_text_that_was_cut_is_explained_for_what_was_read_and_a_refused_one_is_not(bundle_folder: Path) -> None:
    body = {"texts": ["good " * 90, "good"], "explain": True}
    whole, refusing = ask(bundle_folder, body, body | {"on_long": "error"})
    assert len(whole.json()["results"][0]["explanation"]["tokens"]) == 62
    refused, answered = refusing.json()["results"]
    assert refused.keys() == {"error"}
    assert answered["explanation"]["label"] == "positive"


def test_too_many_explanations_are_a_429(bundle_folder: Path) -> None:
    bodies = [{"texts": ["a film"], "explain": True} for _ in range(30)]
    answers = ask(bundle_folder, *bodies, max_queue_tokens=200, max_batch_tokens=200)
    assert {answer.status_code for answer in answers} == {200, 429}


def test_an_explanation_keeps_its_deadline_and_then_takes_no_more_steps(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0

    async def never(self: Compute, message: object) -> None:
        nonlocal steps
        steps += 1
        await asyncio.sleep(0)  # a step that is not the last

    monkeypatch.setattr(Compute, "step", never)
    [late] = ask(bundle_folder, {"texts": ["a film", "a town"], "explain": True, "timeout_ms": 200})
    assert late.status_code == 504
    assert steps > 0  # and the service has stopped: the loop over the steps has ended


FIRST, SECOND, EARLIER, LATER = 1, 2, 3, 4


def order_of_two_passes_and_a_step(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """In which order an engine computes: a step has been; while a pass runs, a step and then a second pass come."""
    order: list[int] = []
    release = threading.Event()

    def one_pass(self: Engine, name: int, ids: object, types: object) -> list[object]:
        if name == FIRST:
            release.wait()
        order.append(name)
        return [[], 0]

    def step(self: Engine, job: int) -> None:
        if job in (EARLIER, LATER):  # an engine of another test may still be told that its callers have left
            order.append(job)

    monkeypatch.setattr(Engine, "compute", one_pass)
    monkeypatch.setattr(Engine, "stop_explaining", step)
    device = Compute("cpu", 1)

    async def passes_and_a_step() -> None:
        await device.step(["stop_explaining", EARLIER])
        tasks = [asyncio.create_task(device.run(loaded(FIRST), []))]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(device.step(["stop_explaining", LATER])))
        for _ in range(5):  # turns of the loop: the step has had its chance
            await asyncio.sleep(0)
        tasks.append(asyncio.create_task(device.run(loaded(SECOND), [])))
        await asyncio.sleep(0)
        release.set()
        await asyncio.gather(*tasks)
        device.engine.close()

    asyncio.run(asyncio.wait_for(passes_and_a_step(), 20))
    return order


def loaded(name: int) -> Loaded:
    """A model of that id."""
    return cast("Loaded", SimpleNamespace(id=name))


def test_passes_go_before_steps_of_explanations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "STEP_SHARE", 1e-9)
    assert order_of_two_passes_and_a_step(monkeypatch) == [EARLIER, FIRST, SECOND, LATER]


def test_a_step_whose_share_is_due_does_not_wait_for_passes_to_cease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "STEP_SHARE", 1.0)
    assert order_of_two_passes_and_a_step(monkeypatch) == [EARLIER, FIRST, LATER, SECOND]
