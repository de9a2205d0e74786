"""Settings: where they come from, who wins, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.location import HubRepo
from service.settings import Settings, Spec, load_settings, parse_specs


def test_a_flag_beats_the_environment_which_beats_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "heed.yaml"
    file.write_text("port: 1001\nreplicas: 3\ntimeout_ms: 7\n")
    monkeypatch.setenv("HEED_PORT", "1002")
    monkeypatch.setenv("HEED_REPLICAS", "2")
    settings = load_settings({"port": "1003"}, file)
    assert (settings.port, settings.replicas, settings.timeout_ms) == (1003, 2, 7)
    assert settings.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"replicas": "3", "max_replicas": "2"}, "max_replicas is less than replicas=3, raise it: 2"),
        ({"grpc_port": "8000"}, "grpc_port is the port of HTTP too, choose another: 8000"),
        ({"metrics_port": "9000"}, "metrics_port is the port of gRPC too, choose another: 9000"),
        ({"metrics_port": "8000"}, "metrics_port is the port of the service too, choose another: 8000"),
        ({"port": "http"}, r"port: .*integer.*: http"),
        ({"port": 0}, "port: .*: 0"),
        ({"precision": "int4"}, "precision: .*: int4"),
        ({"max_queue_tokens": 10, "max_batch_tokens": 20}, "max_queue_tokens .* max_batch_tokens=20: raise it from 10"),
        ({"device": "cpu", "precision": "fp16"}, "use --precision bf16 or fp32"),
        ({"keep_text": "true"}, "keep_text keeps texts in feedback_store: set it too"),
        ({"feedback_store": "mysql://h/d"}, "feedback_store is a file or postgresql://USER@HOST/DATABASE"),
        ({"feedback_store": ":memory:"}, "feedback_store is kept in no file, name one"),
        ({"feedback_store": "f.db", "feedback_days": 0}, "feedback_days: .*: 0"),
    ],
)
def test_what_cannot_work_is_refused_with_the_change_that_mends_it(flags: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_settings(flags)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://heed:xyzzy@db/labels",
        "postgresql://heed:xy/zzy@db/labels",
        "postgres://db/labels?user=heed&password=xyzzy",
        "mysql://heed:xyzzy@db/labels",
    ],
)
def test_a_password_in_a_setting_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ValueError, match="feedback_store") as refused:
        load_settings({"feedback_store": url})
    assert "zzy" not in str(refused.value)
    with pytest.raises(ValueError, match="feedback_store") as refused:
        Settings(feedback_store=url, port=0)
    assert "zzy" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "store"),
    [
        ("labels.db", "HERE/labels.db"),
        ("/a/labels.db", "/a/labels.db"),
        ("sqlite:///labels.db", "HERE/labels.db"),
        ("sqlite:////a/labels.db", "/a/labels.db"),
        ("postgresql://heed@db/labels", "postgresql+psycopg://heed@db/labels"),
        ("postgres://db/labels?sslmode=require", "postgresql+psycopg://db/labels?sslmode=require"),
    ],
)
def test_every_replica_finds_the_same_store(text: str, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEED_FEEDBACK_STORE", text)
    found = load_settings({}).feedback_store
    assert found == store.replace("HERE", str(Path.cwd()))
    assert Settings(feedback_store=found).feedback_store == found


def test_an_unknown_setting_in_a_file_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "heed.yaml"
    file.write_text("prot: 1\n")
    with pytest.raises(ValueError, match="prot"):
        load_settings({}, file)


def test_what_is_no_mapping_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "heed.yaml"
    file.write_text("- a\n- b\n")
    with pytest.raises(ValueError, match="not a mapping of names to values"):
        load_settings({}, file)


def test_models_in_the_environment_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEED_MODELS", "a=x, b=y")
    assert load_settings({}).models == ["a=x", "b=y"]


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no settings file: .*none.yaml"):
        load_settings({}, tmp_path / "none.yaml")


def test_a_model_is_named_by_its_spec_or_its_folder(tmp_path: Path) -> None:
    assert Spec.parse(str(tmp_path)) == Spec(tmp_path.name, tmp_path)
    assert Spec.parse(f"mood={tmp_path}") == Spec("mood", tmp_path)


def test_a_model_of_the_hub_is_named_by_its_spec_or_its_repository() -> None:
    assert Spec.parse("hf:somebody/Mood-2") == Spec("Mood-2", HubRepo("somebody/Mood-2"))
    assert Spec.parse("hf:somebody/mood@refs/pr/1") == Spec("mood", HubRepo("somebody/mood", "refs/pr/1"))
    assert Spec.parse("m=hf:somebody/mood@v1.0") == Spec("m", HubRepo("somebody/mood", "v1.0"))


def test_specs_that_name_nothing_or_one_name_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no bundle folder"):
        parse_specs([str(tmp_path / "none")])
    with pytest.raises(ValueError, match="two models have one name.*: a"):
        parse_specs([f"a={tmp_path}", f"a={tmp_path}"])
    with pytest.raises(ValueError, match="named hf:OWNER/REPO or hf:OWNER/REPO@REVISION, not: hf:mood"):
        parse_specs(["hf:mood"])
    with pytest.raises(ValueError, match="has no @"):
        parse_specs([f"a@b={tmp_path}"])


def test_without_a_spec_the_model_that_comes_with_heed_is_served() -> None:
    [spec] = parse_specs([])
    assert spec.name == "sentiment"
    assert isinstance(spec.location, Path)
    assert (spec.location / "heed.json").exists()
