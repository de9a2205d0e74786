"""A registry in an object store: what a folder does, over HTTP to a server that speaks S3 (model/stored.py)."""

from __future__ import annotations

import json
import shutil
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
from model.registry import RegisteredModel, RegistryError, registered, registry_of
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
    with pytest.raises(RegistryError, match="has 0 versions"):
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
    with pytest.raises(RegistryError, match="another retraining of this model has finished meanwhile"):
        late.push()
    late.pull()
    assert noted(here) == "one\ntwo\n"
    note(here, "three")
    here.mood.pull()  # of a run that was killed before it could push: the next goes on from there
    here.mood.push()
    there.mood.pull()
    assert noted(there) == "one\ntwo\nthree\n"


def test_a_copy_of_a_version_that_is_gone_goes_with_the_next(
    machines: list[Machine], variant: Callable[[float], Path]
) -> None:
    here, there = machines
    first, second, third = (here.mood.add(variant(factor)) for factor in (1.0, 1.1, 1.2))
    copy = there.mood.bundle(first)
    for version in (second, third):
        here.mood.promote(version)
    assert here.mood.collect(0) == [first]
    assert there.mood.bundle("production").name == third
    assert not copy.exists()
    shutil.rmtree(there.cache)
    assert there.mood.bundle("production").is_dir()


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
