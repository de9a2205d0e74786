"""Versions and aliases of models in a folder, as their user and their other writers see them."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model.bundle import load_bundle
from model.location import LocationError, RegistryEntry, local_folder, parse_location
from model.manifest import BundleError, content_hash
from model.registry import ABANDONED_AFTER_S, RegisteredModel, RegistryError, promoted, proposed
from service.cli import main
from service.settings import Spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.sharedctypes import Synchronized
    from multiprocessing.synchronize import Barrier

    Capture = pytest.CaptureFixture[str]


@pytest.fixture
def model(tmp_path: Path) -> RegisteredModel:
    return RegisteredModel(tmp_path / "registry", "mood")


@pytest.fixture
def versions(model: RegisteredModel, bundle_folder: Path, opposite_folder: Path) -> list[str]:
    """Both bundles, added."""
    return [model.add(bundle_folder), model.add(opposite_folder)]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_bundle_is_copied_whole_under_the_hash_of_its_content_and_once(
    model: RegisteredModel, bundle_folder: Path
) -> None:
    version = model.add(bundle_folder)
    assert version == content_hash(bundle_folder)
    folder = model.folder / version
    assert files(folder) == files(bundle_folder)
    made = folder.stat().st_ino
    assert model.add(bundle_folder) == version
    assert folder.stat().st_ino == made
    assert [path.name for path in model.folder.iterdir() if path.is_dir()] == [version]


def test_what_a_killed_writer_left_goes_after_a_day_and_what_another_copies_now_stays(
    model: RegisteredModel, versions: list[str], variant: Callable[[float], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = model.folder / ".partial-killed"
    shutil.copytree(model.folder / versions[0], partial)  # as the copy of a bundle, it looks as old as that
    model.add(variant(2.0))
    assert partial.exists()
    in_a_day = time.time() + ABANDONED_AFTER_S
    monkeypatch.setattr(time, "time", lambda: in_a_day)
    model.add(variant(3.0))
    assert not partial.exists()
    assert len(model.versions()) == 4


def test_a_bundle_that_cannot_be_served_is_not_added(
    model: RegisteredModel, bundle_folder: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(bundle_folder, tmp_path / "broken")
    weights = bytearray((broken / "model.safetensors").read_bytes())
    weights[-1] ^= 0x40
    (broken / "model.safetensors").write_bytes(weights)
    with pytest.raises(BundleError, match="files of the bundle were changed"):
        model.add(broken)
    assert not model.folder.exists()


def test_aliases_are_decided_by_what_they_were() -> None:
    assert proposed({}, "b") == {"candidate": "b"}
    assert promoted({"candidate": "b"}, "b") == {"production": "b"}
    assert promoted({"production": "a", "candidate": "b"}, "b") == {"production": "b", "previous": "a"}
    assert promoted({"production": "a", "candidate": "c"}, "b")["candidate"] == "c"
    unchanged = {"production": "b", "previous": "a"}
    assert promoted(unchanged, "b") == proposed(unchanged, "b") == unchanged


def test_a_promotion_is_rolled_back_and_that_is_undone(model: RegisteredModel, versions: list[str]) -> None:
    first, second = versions
    model.promote(first)
    with pytest.raises(RegistryError, match="nothing was in production before"):
        model.rollback()
    assert model.promote(second) == {"production": second, "previous": first}
    assert model.rollback() == {"production": first, "previous": second}
    assert model.rollback() == model.aliases() == {"production": second, "previous": first}


def test_old_versions_go_and_none_that_an_alias_names(
    model: RegisteredModel, variant: Callable[[float], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third, fourth, fifth = (model.add(variant(factor)) for factor in (1.0, 1.1, 1.2, 1.3, 1.4))
    model.promote(first)
    model.promote(third)
    model.propose(second)
    assert main(["registry", "gc", str(model.registry), model.name, "--keep", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == [fourth]
    assert set(model.versions()) == {first, second, third, fifth}
    assert model.collect(0) == [fifth]
    assert model.rollback()["production"] == first
    assert not list(model.folder.glob(".partial-*"))


def test_a_version_is_named_by_an_alias_by_itself_or_by_its_beginning(
    model: RegisteredModel, versions: list[str]
) -> None:
    first, second = versions
    model.promote(first)
    for wanted in ("production", first, first[:8]):
        location = parse_location(f"{model}@{wanted}")
        assert local_folder(location) == model.folder / first
        assert Spec.parse(f"{model}@{wanted}") == Spec("mood", location)
    assert Spec.parse(f"m={model}@{second}").name == "m"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("candidate", "mood has no candidate, it has: production"),
        ("prod", "not one of production, candidate, previous, nor a version or at least 8 digits of one: .*mood@prod"),
        ("0" * 16, "mood has 0 versions 0{16}, it has: [0-9a-f]{16}, [0-9a-f]{16}$"),
    ],
)
def test_a_version_that_is_not_there_is_refused_with_those_that_are(
    model: RegisteredModel, versions: list[str], wanted: str, message: str
) -> None:
    model.promote(versions[0])
    with pytest.raises(LocationError, match=message):
        local_folder(parse_location(f"{model}@{wanted}"))


def test_what_is_no_registry_is_refused(model: RegisteredModel, versions: list[str], tmp_path: Path) -> None:
    with pytest.raises(
        LocationError, match="only an entry of a registry is read, URL/NAME@ALIAS, not: s3://bucket/mood"
    ):
        parse_location("s3://bucket/mood")
    with pytest.raises(LocationError, match="no model other in .*registry, it has: mood$"):
        local_folder(parse_location(f"{model.registry}/other@production"))
    with pytest.raises(LocationError, match="cannot be read .No such file or directory.: .*nowhere"):
        local_folder(parse_location(f"{tmp_path}/nowhere/mood@production"))
    with pytest.raises(LocationError, match="letters, digits"):
        parse_location("registry/a mood@production")


@pytest.mark.parametrize("text", ["{", "[]", '{"production": 1}', '{"production": "../../etc"}', "\xff"])
def test_aliases_that_are_damaged_are_said_to_be_and_never_overwritten(
    model: RegisteredModel, versions: list[str], text: str
) -> None:
    file = model.folder / "aliases.json"
    file.write_text(text, encoding="latin-1")
    for attempt in (lambda: model.version("production"), lambda: model.promote(versions[0])):
        with pytest.raises(RegistryError, match="aliases.json$"):
            attempt()
    assert file.read_text(encoding="latin-1") == text


def test_a_folder_with_an_at_in_its_name_stays_a_folder(bundle_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle_folder, tmp_path / "mood@production")
    assert parse_location(str(folder)) == folder
    assert isinstance(parse_location(str(tmp_path / "other@production")), RegistryEntry)


def roll_back_often(model: RegisteredModel, times: int, at_once: Barrier) -> None:
    at_once.wait()
    for _ in range(times):
        model.rollback()


def test_writers_of_several_processes_take_turns_and_a_reader_sees_whole_aliases(
    model: RegisteredModel, versions: list[str]
) -> None:
    for version in versions:
        model.promote(version)
    before = model.aliases()
    context = multiprocessing.get_context("fork")
    at_once = context.Barrier(3)
    writers = [context.Process(target=roll_back_often, args=(model, times, at_once)) for times in (100, 101)]
    for writer in writers:
        writer.start()
    at_once.wait()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        aliases = model.aliases()  # raises where it is half written
        seen.add((aliases["production"], aliases["previous"]))
    assert [writer.exitcode for writer in writers] == [0, 0]
    first, second = versions
    assert seen == {(first, second), (second, first)}
    assert model.aliases() == {
        "production": before["previous"],
        "previous": before["production"],
    }  # 201 times, none lost


def write_without_end(model: RegisteredModel, bundles: list[Path], written: Synchronized[int]) -> None:
    while True:
        for bundle in bundles:
            model.promote(model.add(bundle))
            model.rollback()
            model.propose(model.add(bundle))
            model.collect(0)
            written.value += 1


def test_a_writer_killed_at_fifty_moments_leaves_a_registry_that_loads_and_takes_the_next(
    model: RegisteredModel, versions: list[str], variant: Callable[[float], Path]
) -> None:
    for version in versions:
        model.promote(version)
    bundles, rng = [variant(factor) for factor in (1.0, 1.1, 1.2)], random.Random(0)
    context = multiprocessing.get_context("fork")
    written = context.Value("i", 0)
    for _ in range(50):
        writer = context.Process(target=write_without_end, args=(model, bundles, written))
        writer.start()
        time.sleep(rng.uniform(0, 0.3))
        writer.kill()
        writer.join()
        assert content_hash(model.bundle("production")) == model.aliases()["production"]
        assert all(content_hash(model.folder / version) == version for version in model.versions())
    assert written.value > 5  # rounds: they did write
    assert model.promote(model.add(bundles[0]))["production"] == content_hash(bundles[0])


def test_the_same_bundle_added_by_several_at_once_is_there_once(model: RegisteredModel, bundle_folder: Path) -> None:
    at_once = threading.Barrier(3)

    def add() -> str:
        at_once.wait()
        return model.add(bundle_folder)

    with ThreadPoolExecutor(3) as pool:
        added = [pool.submit(add) for _ in range(3)]
    assert {future.result() for future in added} == {content_hash(bundle_folder)}
    assert files(model.folder / content_hash(bundle_folder)) == files(bundle_folder)


def test_the_command_adds_promotes_shows_lists_and_rolls_back(
    tmp_path: Path, bundle_folder: Path, opposite_folder: Path, capsys: Capture
) -> None:
    registry = str(tmp_path / "registry")
    first, second = content_hash(bundle_folder), content_hash(opposite_folder)

    def heed(*arguments: str) -> str:
        assert main(["registry", *arguments]) == 0
        return capsys.readouterr().out

    assert heed("add", registry, "mood", str(bundle_folder), "--promote") == f"mood@{first}\n"
    assert json.loads(heed("add", registry, "mood", str(opposite_folder), "--json"))["aliases"]["candidate"] == second
    assert heed("list", registry) == f"mood@{first}  production\nmood@{second}  candidate\n"
    assert heed("promote", registry, "mood", second[:10]) == f"mood@{second}\n"
    shown = json.loads(heed("show", registry, "mood", "--json"))
    assert (shown["version"], shown["aliases"]) == (second, ["production"])
    assert (shown["labels"], shown["max_tokens"]) == (["negative", "positive"], 64)
    assert "labels       [" in heed("show", registry, f"mood@{first}")
    assert heed("rollback", registry, "mood") == f"mood@{first}\n"
    listed = json.loads(heed("list", registry, "--json"))
    assert listed["mood"]["aliases"] == {"production": first, "previous": second}
    assert sorted(listed["mood"]["versions"]) == sorted([first, second])
    assert main(["evaluate", f"{registry}/mood@previous", "--data", "nowhere.jsonl"]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err
    assert load_bundle(Path(shown["folder"])).version == second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "nowhere"], "no registry, `heed registry add` makes one: nowhere"),
        (["list", "nothing://bucket"], "no store can be opened there (Protocol not known: nothing): nothing://bucket"),
        (["add", "r", "../mood", "b"], "letters, digits"),
        (["add", "r", "mood", "nowhere"], "no config.json in the folder: nowhere"),
        (["promote", ".", "mood", "production"], "no model mood in ., it has: none"),
        (["show", ".", "mood@x"], "no model mood in ., it has: none"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["registry", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("heed registry: ")
    assert message in error
    assert list(tmp_path.iterdir()) == []
