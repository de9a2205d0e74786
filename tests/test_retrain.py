"""New labels make a better model, bad ones none; killed anywhere, the next run goes on (training/retrain.py)."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import pytest
import torch
from samples import TINY, rows, sentence

from model.bundle import load_bundle
from model.registry import registered, registry_of
from service.cli import main
from service.predict import predict_texts
from service.predictor import Predictor
from training.archive import Archive
from training.build import TrainConfig
from training.data import read_dataset
from training.gate import Bounds
from training.retrain import Plan, RetrainError, retrain
from training.train import train

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from model.registry import RegisteredModel
    from training.retrain import Outcome

CPU = torch.device("cpu")
SETTINGS = {"epochs": 6, "lr": 3e-3, "token_dropout": 0.0, "dropout": 0.1, "batch_tokens": 512}
PLAN = Plan(train=TrainConfig(**SETTINGS), bounds=Bounds(ece_margin=0.1))  # type: ignore[arg-type]
NEW_GOOD, NEW_BAD = ["zesty", "crisp"], ["soggy", "stale"]
OTHER = {"positive": "negative", "negative": "positive"}


def foods(n: int, seed: int = 0, flipped: float = 0.0) -> list[dict[str, object]]:
    """Sentences whose label hangs on words that films have not."""
    rng = random.Random(seed)
    found: list[dict[str, object]] = []
    for i in range(n):
        label = "positive" if i % 2 else "negative"
        text = sentence(rng, NEW_GOOD if i % 2 else NEW_BAD, rng.randrange(3, 14))
        found.append({"text": text, "label": OTHER[label] if rng.random() < flipped else label})
    return found


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file of film reviews and a bundle that was trained on it."""
    folder = tmp_path_factory.mktemp("films")
    file = folder / "films.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(2000)))
    config = dataclasses.replace(TINY, epochs=4)
    train(config, read_dataset(file), None, None, folder / "mood", device=CPU)
    return file, folder / "mood"


@pytest.fixture
def model(films: tuple[Path, Path], tmp_path: Path) -> RegisteredModel:
    """It is in production."""
    made = registered(tmp_path / "registry", "mood")
    made.promote(made.add(films[1]))
    return made


@pytest.fixture
def learn(model: RegisteredModel, films: tuple[Path, Path], write_jsonl: Callable[..., Path]) -> Callable[..., Outcome]:
    """retrain() with new rows."""

    def retrain_on(new: list[dict[str, object]], plan: Plan = PLAN, **options: Any) -> Outcome:
        is_first = not (model.folder / "data" / "log.jsonl").exists()
        base = read_dataset(films[0]) if is_first else None
        return retrain(model, [read_dataset(write_jsonl(new, "new"))], plan, base=base, device=CPU, **options)

    return retrain_on


def right_on(bundle: Path, some: list[dict[str, object]]) -> float:
    predictor = Predictor(load_bundle(bundle), CPU, "fp32")
    answers = predict_texts(predictor, [str(row["text"]) for row in some], 1)
    best = [answer.labels[0].label for answer in answers if answer.labels]
    return sum(label == row["label"] for label, row in zip(best, some, strict=True)) / len(some)


def test_labels_of_another_domain_make_a_model_that_is_promoted_and_flipped_ones_none(
    model: RegisteredModel, learn: Callable[..., Outcome]
) -> None:
    before, of_foods = model.aliases()["production"], foods(200, seed=99)
    assert right_on(model.bundle("production"), of_foods) < 0.7
    good = learn(foods(500))
    assert good.promoted, good.why
    after = model.aliases()
    assert (after["production"], after["previous"]) == (good.candidate, before)
    assert right_on(model.bundle("production"), of_foods) > 0.9
    bad = learn(foods(500, seed=5, flipped=0.4))
    assert not bad.promoted
    assert "a linear model contradicts more of the new labels than 25%" in bad.why
    assert model.aliases()["production"] == good.candidate
    assert model.rollback()["production"] == before


def test_a_decision_is_written_down_with_its_numbers(model: RegisteredModel, learn: Callable[..., Outcome]) -> None:
    outcome = learn([*foods(400), {"text": "neither", "label": "mixed"}])
    assert outcome.report is not None
    record = json.loads((outcome.report.parent / "decision.json").read_text())
    assert record["candidate"] == outcome.candidate == outcome.report.parent.name
    assert record["decision"]["newest"]["candidate"] > record["decision"]["newest"]["production"]
    assert record["batches"][0]["not_taken_in"]["unknown label, --allow-new-labels takes it in"] == 1
    assert record["flips"]["newest"]
    page = outcome.report.read_text()
    assert page.startswith("# mood: promoted")
    assert "| newest labels |" in page


def test_a_new_label_gets_the_next_id_where_it_is_allowed(
    model: RegisteredModel, learn: Callable[..., Outcome]
) -> None:
    rng = random.Random(0)
    lost: list[dict[str, object]] = [
        {"text": sentence(rng, ["missing", "absent"], 6), "label": "lost"} for _ in range(200)
    ]
    longer = dataclasses.replace(PLAN.train, epochs=20, patience=20)
    outcome = learn([*foods(300), *lost], dataclasses.replace(PLAN, allow_new_labels=True, train=longer))
    assert outcome.promoted, outcome.why
    assert load_bundle(model.bundle("production")).labels == ["negative", "positive", "lost"]
    assert right_on(model.bundle("production"), lost) > 0.9


def test_the_hold_out_and_texts_near_it_are_never_learned_from(
    model: RegisteredModel, learn: Callable[..., Outcome]
) -> None:
    learn(foods(60))
    archive = Archive(model.folder / "data")
    held = archive.parts(archive.history()).hold_out
    copies = [{"text": str(text).upper(), "label": "positive"} for text in held.texts]
    outcome = learn([*copies, *foods(2, seed=77)])
    assert outcome.intake is not None
    assert not {str(e.text).lower() for e in outcome.intake.accepted} & {str(text).lower() for text in held.texts}


def test_a_candidate_has_what_production_has(model: RegisteredModel, learn: Callable[..., Outcome]) -> None:
    outcome = learn(foods(300))
    assert outcome.candidate is not None
    old, new = (load_bundle(model.bundle(wanted)) for wanted in ("previous", "production"))
    assert (new.labels, new.max_tokens, new.name) == (old.labels, old.max_tokens, "mood")
    assert new.tokenizer.to_json() == old.tokenizer.to_json()


def test_what_a_killed_run_with_other_settings_left_does_not_stop_the_next(
    model: RegisteredModel, learn: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("training.train.finish", killed)
        with pytest.raises(KeyboardInterrupt):
            learn(foods(400))
    assert list((model.folder / "data").glob("candidate-*/mood.checkpoint"))
    other = dataclasses.replace(PLAN, train=dataclasses.replace(PLAN.train, lr=2e-3))
    outcome = retrain(model, [], other, device=CPU)
    assert outcome.candidate is not None
    assert not list((model.folder / "data").glob("candidate-*"))


def test_a_promotion_whose_note_was_lost_is_noted_and_not_made_again(
    model: RegisteredModel, learn: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Archive, "decide", killed)
        with pytest.raises(KeyboardInterrupt):
            learn(foods(400))
    versions, production = model.versions(), model.aliases()["production"]
    outcome = retrain(model, [], PLAN, device=CPU)
    assert (outcome.promoted, outcome.candidate) == (True, production)
    assert model.versions() == versions
    assert not Archive(model.folder / "data").history().newest


def test_without_new_labels_nothing_is_trained(model: RegisteredModel, learn: Callable[..., Outcome]) -> None:
    learn(foods(100))
    versions = model.versions()
    assert learn(foods(100)).why == "no label is new"
    assert model.versions() == versions


def test_what_cannot_begin_says_why(
    model: RegisteredModel, films: tuple[Path, Path], learn: Callable[..., Outcome], write_jsonl: Callable[..., Path]
) -> None:
    new = [read_dataset(write_jsonl(foods(10), "new"))]
    with pytest.raises(RetrainError, match="its first retraining needs the rows that it was trained on, --old FILE"):
        retrain(model, new, PLAN, device=CPU)
    learn(foods(60))
    with pytest.raises(RetrainError, match="its old rows are known since the first retraining, leave out --old"):
        retrain(model, new, PLAN, base=new[0], device=CPU)


def test_the_command_exits_with_0_where_it_promotes_and_with_3_where_not(
    model: RegisteredModel,
    films: tuple[Path, Path],
    write_jsonl: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["retrain", "--registry", str(model.registry), "--name", "mood", "--json"]
    command += [f"--set={name}={value}" for name, value in SETTINGS.items()] + ["--gate=ece_margin=0.1"]
    new = write_jsonl(foods(400), "new")
    assert main([*command, "--new", str(new), "--old", str(films[0])]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["promoted"]
    assert told["candidate"] == model.aliases()["production"]
    assert main([*command, "--new", str(new)]) == 3
    capsys.readouterr()
    assert main([*command, "--new", str(write_jsonl([], "nothing"))]) == 3
    assert json.loads(capsys.readouterr().out)["why"] == "no label is new"
    assert main([*command, "--gate", "level=2"]) == 2
    assert "level is not in (0, 1): 2" in capsys.readouterr().err


def test_few_new_rows_wait_for_more_unless_the_texts_have_drifted(
    model: RegisteredModel,
    films: tuple[Path, Path],
    learn: Callable[..., Outcome],
    write_jsonl: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = learn(foods(60), dataclasses.replace(PLAN, least_new=500))
    assert (few.promoted, few.candidate) == (False, None)
    assert few.why == "new rows wait until they are 500, there are: 60"
    command = ["retrain", "--registry", str(model.registry), "--name", "mood", "--gate=ece_margin=0.1"]
    command += [f"--set={name}={value}" for name, value in SETTINGS.items()]
    more = ["--new", str(write_jsonl(foods(400, seed=1), "more")), "--least-new", "5000"]
    with saying(
        'heed_drift_psi{model="other",signal="label"} 3.0\nheed_drift_psi{model="mood",signal="label"} 0.1'
    ) as url:
        assert main([*command, *more, "--metrics", url]) == 3
    assert "new rows wait until they are 5,000" in capsys.readouterr().out
    with saying('heed_drift_psi{model="mood",signal="distance"} 0.9\n') as url:
        assert main([*command, "--least-new", "5000", "--metrics", url]) == 0
    assert "the texts of now have drifted: distance 0.90" in capsys.readouterr().err
    assert main([*command, "--metrics", "http://127.0.0.1:9/metrics"]) == 2
    assert "the metrics of the service cannot be read" in capsys.readouterr().err


@contextlib.contextmanager
def saying(text: str) -> Iterator[str]:
    """The URL of a server that answers with a text."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_candidate_that_is_proposed_waits_to_be_promoted_by_hand(
    model: RegisteredModel, learn: Callable[..., Outcome]
) -> None:
    before = model.aliases()["production"]
    outcome = learn(foods(500), dataclasses.replace(PLAN, propose=True))
    assert outcome.promoted, outcome.why
    assert model.aliases() == {"production": before, "candidate": outcome.candidate}
    assert learn(foods(500)).why == "no label is new"


def test_a_retraining_in_an_object_store_goes_on_on_another_machine(
    films: tuple[Path, Path], write_jsonl: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model_on(machine: str) -> RegisteredModel:
        monkeypatch.setenv("HEED_CACHE", str(tmp_path / machine))
        return registered(registry_of(f"memory://models/{tmp_path.name}"), "mood")

    here = model_on("here")
    before = here.promote(here.add(films[1]))["production"]
    new, more = (read_dataset(write_jsonl(foods(300, seed), f"new{seed}")) for seed in (1, 2))
    first = retrain(here, [new], PLAN, base=read_dataset(films[0]), device=CPU)
    assert first.promoted, first.why
    there = model_on("there")
    assert there.aliases() == {"production": first.candidate, "previous": before}
    assert retrain(there, [new], PLAN, device=CPU).why == "no label is new"
    second = retrain(there, [more], PLAN, device=CPU)
    assert second.decision is not None
    here = model_on("here")
    here.pull()
    assert Archive(here.folder / "data").history().batches[-1].rows > 200
    assert (here.folder / "decisions" / str(second.candidate) / "decision.md").exists()
    assert not Archive(here.folder / "data").history().newest


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_killed_at_fifty_moments_the_registry_loads_production_answers_and_the_next_run_goes_on(
    model: RegisteredModel, films: tuple[Path, Path], write_jsonl: Callable[..., Path]
) -> None:
    command = [sys.executable, "-m", "service", "retrain", "--registry", str(model.registry), "--name", "mood"]
    command += [f"--set={name}={value}" for name, value in SETTINGS.items()] + ["--gate=ece_margin=0.1"]
    rng, before, kills, whole_s = random.Random(0), model.aliases()["production"], 0, 0.0
    for round_ in range(100):
        if kills == 50:
            break
        batch = ["--new", str(write_jsonl(foods(120, seed=100 + round_), f"new{round_}"))]
        first = [] if round_ else ["--old", str(films[0])]
        begun = time.monotonic()
        with subprocess.Popen([*command, *batch, *first], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as run:
            if round_ % 11 == 0:  # one that nobody kills
                assert run.wait() in (0, 3)
                whole_s = time.monotonic() - begun
                continue
            time.sleep(rng.uniform(0.1, 0.9) * whole_s)
            kills += run.poll() is None
            run.kill()
        assert load_bundle(model.bundle("production")).labels == ["negative", "positive"]
        assert Archive(model.folder / "data").history().version
    assert kills == 50
    assert main(["retrain", "--registry", str(model.registry), "--name", "mood", *command[-len(SETTINGS) - 1 :]]) in (
        0,
        3,
    )
    assert not Archive(model.folder / "data").history().newest
    assert model.aliases()["production"] != before
    assert right_on(model.bundle("production"), foods(200, seed=98)) > 0.85
