"""A registry in an object store: what a folder does, over HTTP to a server that speaks S3 (model/stored.py)."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from model import object_store
from model.location import LocationError, local_folder, parse_location
from model.manifest import content_hash
from model.object_store import ObjectStore
from model.registry import ABANDONED_AFTER_S, RegisteredModel, RegistryError, registered, registry_of
from service.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Serve


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A URL in a bucket of a server."""
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fs = fsspec.filesystem("s3")
        fs.mkdir("models")
        yield "s3://models"
        fs.clear_instance_cache()
    server.stop()


@dataclass
class Machine:
    """One that reads and writes the registry, with copies of its own."""

    url: str
    cache: Path
    patch: pytest.MonkeyPatch

    def use(self) -> None:
        self.patch.setenv("HEED_CACHE", str(self.cache))

    @property
    def mood(self) -> RegisteredModel:
        self.use()
        return registered(registry_of(self.url), "mood")


@pytest.fixture(params=["s3", "memory"])
def machines(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Machine]:
    """Two machines of one registry, and nothing in it."""
    root = request.getfixturevalue("s3") if request.param == "s3" else "memory://models"
    url = f"{root}/{tmp_path.name}"
    return [Machine(url, tmp_path / f"cache{i}", monkeypatch) for i in range(2)]


def test_what_one_machine_adds_and_promotes_another_reads_whole(machines: list[Machine], bundle_folder: Path) -> None:
    here, there = machines
    version = here.mood.add(bundle_folder)
    assert here.mood.promote(version) == {"production": version}
    copy = there.mood.bundle("production")
    assert copy.is_relative_to(there.cache)
    assert content_hash(copy) == version
    assert sorted(path.name for path in copy.rglob("*")) == sorted(path.name for path in bundle_folder.rglob("*"))
    assert there.mood.versions() == [version]
    assert there.mood.bundle(version[:8]) == copy


def test_aliases_move_and_back_and_old_versions_go_and_none_that_an_alias_names(
    machines: list[Machine], variant: Callable[[float], Path]
) -> None:
    here, there = machines
    first, second, third = (here.mood.add(variant(factor)) for factor in (1.0, 1.1, 1.2))
    here.mood.promote(first)
    there.mood.promote(second, instead_of=first)
    with pytest.raises(RegistryError, match="another version in production meanwhile"):
        here.mood.promote(third, instead_of=first)
    assert here.mood.rollback() == {"production": first, "previous": second}
    assert there.mood.bundle("previous").name == second
    assert here.mood.collect(0) == [third]
    assert set(there.mood.versions()) == {first, second}
    with pytest.raises(RegistryError, match="a version whose files are missing"):
        there.mood.promote(third)


def test_writers_of_several_machines_take_turns(machines: list[Machine], variant: Callable[[float], Path]) -> None:
    models = [machine.mood for machine in machines]
    first, second = (models[0].add(variant(factor)) for factor in (1.0, 1.1))
    models[0].promote(first)
    models[0].promote(second)
    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(models[i % 2].rollback) for i in range(11)]
    assert all(future.result() for future in done)
    assert models[1].aliases() == {"production": first, "previous": second}  # 11 times, none lost


def test_the_turn_of_a_writer_that_was_killed_ends(
    machines: list[Machine], bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mood = machines[0].mood
    version = mood.add(bundle_folder)
    monkeypatch.setattr(object_store, "LEASE_S", 0.5)
    ObjectStore(machines[0].url).create("mood/.lock", b"killed")
    with ThreadPoolExecutor(3) as pool:
        done = [pool.submit(mood.promote, version) for _ in range(3)]
    assert [future.result() for future in done] == [{"production": version}] * 3
    assert "mood/.lock" not in ObjectStore(machines[0].url).files("")


def test_files_that_are_missing_or_changed_are_refused_and_no_copy_of_them_stays(
    machines: list[Machine], bundle_folder: Path
) -> None:
    here, there = machines
    version, store = here.mood.add(bundle_folder), ObjectStore(here.url)
    weights = f"mood/{version}/model.safetensors"
    whole = store.read(weights) or b""
    store.write(weights, whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(RegistryError, match=f"the files of .*mood@{version} are not those that were added"):
        there.mood.bundle(version)
    store.remove(weights)
    with pytest.raises(RegistryError, match="files are missing|not those that were added"):
        there.mood.bundle(version)
    assert list((there.cache).rglob("*.json")) == []


def test_what_is_not_there_or_cannot_be_asked_is_said(
    machines: list[Machine], bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = machines[0].url
    with pytest.raises(LocationError, match=f"no model mood in {url}, it has: none"):
        local_folder(parse_location(f"{url}/mood@production"))
    machines[0].mood.add(bundle_folder)
    with pytest.raises(LocationError, match=f"{url}/mood has no production, it has: none"):
        local_folder(parse_location(f"{url}/mood@production"))
    ObjectStore(url).write("mood/aliases.json", b"{")
    with pytest.raises(RegistryError, match=f"not JSON .*: {url}/mood/aliases.json"):
        machines[1].mood.promote("candidate")
    if url.startswith("s3"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        fsspec.filesystem("s3").clear_instance_cache()
        with pytest.raises(RegistryError, match="the store cannot be asked .*127.0.0.1:9"):
            machines[0].mood.aliases()
        fsspec.filesystem("s3").clear_instance_cache()


def test_the_commands_take_a_url_for_a_registry(
    machines: list[Machine], bundle_folder: Path, opposite_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, versions = machines[0].url, [content_hash(bundle_folder), content_hash(opposite_folder)]
    machines[0].use()

    def heed(*arguments: str) -> str:
        assert main(["registry", *arguments]) == 0
        return capsys.readouterr().out

    assert heed("add", url, "mood", str(bundle_folder), "--promote") == f"mood@{versions[0]}\n"
    time.sleep(1 - time.time() % 1)  # S3 tells in whole seconds when a file was written
    assert heed("add", url, "mood", str(opposite_folder)) == f"mood@{versions[1]}\n"
    assert heed("list", url) == f"mood@{versions[0]}  production\nmood@{versions[1]}  candidate\n"
    assert json.loads(heed("show", url, "mood", "--json"))["labels"] == ["negative", "positive"]
    assert heed("promote", url, "mood", "candidate") == f"mood@{versions[1]}\n"
    assert heed("rollback", url, "mood") == f"mood@{versions[0]}\n"
    assert main(["evaluate", f"{url}/mood@production", "--data", "nowhere.jsonl"]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err


def test_records_of_retrainings_go_on_elsewhere_and_two_at_once_do_not_mix(machines: list[Machine]) -> None:
    here, there = machines

    def note(machine: Machine, line: str) -> RegisteredModel:
        model = machine.mood
        log = model.folder / "data" / "log.jsonl"
        (model.folder / "data" / "rows").mkdir(parents=True, exist_ok=True)
        (model.folder / "data" / "rows" / f"{line}.jsonl").write_text(line)
        log.write_text((log.read_text() if log.exists() else "") + line + "\n")
        return model

    def noted(machine: Machine) -> str:
        return (machine.mood.folder / "data" / "log.jsonl").read_text()

    note(here, "one").push()
    there.mood.pull()
    assert noted(there) == "one\n"
    assert (there.mood.folder / "data" / "rows" / "one.jsonl").read_text() == "one"
    note(there, "two").push()
    late = note(here, "late")
    with pytest.raises(RegistryError, match="another retraining of this model has begun or ended meanwhile"):
        late.push()
    late.pull()
    assert noted(here) == "one\ntwo\n"
    note(here, "three")
    here.mood.pull()  # of a run that was killed before it could push: the next goes on from there
    here.mood.push()
    there.mood.pull()
    assert noted(there) == "one\ntwo\nthree\n"


def test_a_copy_of_a_version_that_is_gone_goes_after_a_day(
    machines: list[Machine], variant: Callable[[float], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = machines
    first, second, third = (here.mood.add(variant(factor)) for factor in (1.0, 1.1, 1.2))
    copy = there.mood.bundle(first)
    for version in (second, third):
        here.mood.promote(version)
    assert here.mood.collect(0) == [first]
    in_a_day = time.time() + ABANDONED_AFTER_S
    monkeypatch.setattr(time, "time", lambda: in_a_day)
    assert there.mood.bundle("production").name == third
    assert not copy.exists()
    shutil.rmtree(there.cache)
    assert there.mood.bundle("production").is_dir()


def test_an_object_whose_name_is_no_path_is_never_written(machines: list[Machine], bundle_folder: Path) -> None:
    here, there = machines
    version, outside = here.mood.add(bundle_folder), here.cache.parent / "outside"
    for odd in (f"/{outside}", "../../../outside"):
        ObjectStore(here.url).write(f"mood/{version}/{odd}", b"harm")
        with pytest.raises(RegistryError, match="an object whose name is no path"):
            there.mood.bundle(version)
        ObjectStore(here.url).remove(f"mood/{version}/{odd}")
    assert not outside.exists()


def test_a_version_that_was_never_finished_is_none_and_goes_after_a_day(
    machines: list[Machine], bundle_folder: Path, opposite_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, store = machines[0], ObjectStore(machines[0].url)
    here.mood.promote(here.mood.add(bundle_folder))
    begun = here.mood.add(opposite_folder)
    store.remove(f"mood/{begun}/config.json")
    assert begun not in here.mood.versions()
    assert here.mood.collect(0) == []
    assert store.has(f"mood/{begun}/model.safetensors")
    in_a_day = time.time() + ABANDONED_AFTER_S
    monkeypatch.setattr(time, "time", lambda: in_a_day)
    assert here.mood.collect(0) == []
    assert not store.has(f"mood/{begun}/model.safetensors")


def test_a_store_in_which_no_turns_can_be_taken_is_said_to_be_none(
    machines: list[Machine], bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mood = machines[0].mood
    version = mood.add(bundle_folder)
    monkeypatch.setattr(ObjectStore, "create", lambda *_: True)
    with pytest.raises(RegistryError, match="writers cannot take turns"):
        mood.promote(version)


WITHOUT_END = """
import sys
from pathlib import Path
from model import object_store
from model.registry import registered, registry_of
object_store.LEASE_S = 2.0
mood = registered(registry_of(sys.argv[1]), "mood")
while True:
    for bundle in sys.argv[2:]:
        version = mood.add(Path(bundle))
        for write in (lambda: mood.promote(version), mood.rollback, lambda: mood.collect(0)):
            write()
            print("written", flush=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_writer_killed_at_any_moment_leaves_a_store_that_loads_and_takes_the_next(
    s3: str, tmp_path: Path, variant: Callable[[float], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "LEASE_S", 2.0)
    machine = Machine(f"{s3}/{tmp_path.name}", tmp_path / "cache", monkeypatch)
    bundles = [variant(factor) for factor in (1.0, 1.1, 1.2)]
    for bundle in bundles[:2]:
        machine.mood.promote(machine.mood.add(bundle))
    command = [sys.executable, "-c", WITHOUT_END, machine.url, *map(str, bundles)]
    written, rng = 0, random.Random(0)
    for _ in range(15):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            time.sleep(rng.uniform(4, 9))
            writer.kill()
            assert writer.stdout is not None
            written += writer.stdout.read().count("written")
        shutil.rmtree(machine.cache)
        assert all(content_hash(machine.mood.bundle(version)) == version for version in machine.mood.versions())
        assert machine.mood.version("production") in machine.mood.versions()
    assert written > 2
    assert machine.mood.promote(machine.mood.add(bundles[1]))["production"] == content_hash(bundles[1])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_service_follows_what_is_promoted_in_a_store(
    machines: list[Machine], serve: Serve, bundle_folder: Path, opposite_folder: Path
) -> None:
    here, there = machines
    first = here.mood.add(bundle_folder)
    here.mood.promote(first)
    if here.url.startswith("memory"):
        pytest.skip("other processes see nothing of it")
    there.use()
    server = serve(f"{here.url}/mood@production", "--registry-poll-s", "0.5")

    def version() -> str:
        answer: str = server.classify(["a good film"]).json()["version"]
        return answer

    assert version() == first
    second = here.mood.add(opposite_folder)
    here.mood.promote(second)
    until = time.monotonic() + 60
    while version() != second and time.monotonic() < until:
        time.sleep(0.2)
    assert version() == second
