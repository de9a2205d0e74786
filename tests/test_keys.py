"""API keys: made, kept as hashes, refused where they could be guessed, changed while the service runs."""

from __future__ import annotations

import hmac
import logging
import secrets
from typing import TYPE_CHECKING, Any

import pytest

from service.access import Access, Bucket
from service.app import application, build
from service.cli import main
from service.errors import RateLimited, Unauthorized
from service.keys import digest, new_key
from service.settings import Settings, load_settings

if TYPE_CHECKING:
    from pathlib import Path

KEY, OTHER = secrets.token_urlsafe(32), secrets.token_urlsafe(32)


def access(**settings: Any) -> Access:
    return Access(Settings(**settings))


def is_taken(found: Access, key: str) -> bool:
    try:
        found.caller(f"Bearer {key}")
    except Unauthorized:
        return False
    return True


def test_a_new_key_is_shown_once_and_a_file_keeps_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "mobile-app"]) == 0
    line, said = capsys.readouterr()
    key = said.split()[-1]
    assert key not in line
    (tmp_path / "keys").write_text(f"# who may ask\n\n{line}")
    assert access(api_keys_file=tmp_path / "keys").caller(f"Bearer {key}") == "mobile-app"


def test_a_key_cannot_have_a_name_that_is_no_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "mobile app"]) == 2
    assert capsys.readouterr().err.endswith("none of these: mobile app\n")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_each_of_several_keys_is_taken(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv("HEED_API_KEYS", f"{KEY}, ci sha256:{digest(OTHER).hex()}")
    found = Access(load_settings({}))
    assert found.caller(f"{scheme} {KEY}") == f"key-{digest(KEY).hex()[:8]}"
    assert found.caller(f"{scheme} {OTHER}") == "ci"


@pytest.mark.parametrize(
    "header", ["", KEY, f"Basic {KEY}", "Bearer", "Bearer ", f"Bearer {KEY}x", "Bearer \xe9", f"Bearer {KEY} {KEY}"]
)
def test_anything_else_is_refused_without_repeating_it(header: str) -> None:
    with pytest.raises(Unauthorized, match="send the header Authorization: Bearer KEY") as refused:
        access(api_keys=[KEY]).caller(header)
    assert KEY not in str(refused.value)


def test_every_key_is_compared_whichever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(known: bytes, given: bytes) -> bool:
        compared.append(known)
        return real(known, given)

    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare)
    found = access(api_keys=[KEY, OTHER])
    for key in (KEY, OTHER, "neither"):
        compared.clear()
        is_taken(found, key)
        assert compared == [digest(KEY), digest(OTHER)]


@pytest.mark.parametrize("weak", ["secret", "changeme" * 4, "a" * 40, "correct horse battery staple", "schlüssel" * 4])
def test_a_key_that_could_be_guessed_is_refused_without_repeating_it(
    monkeypatch: pytest.MonkeyPatch, weak: str
) -> None:
    monkeypatch.setenv("HEED_API_KEYS", f"{KEY},{weak}")
    with pytest.raises(ValueError, match="api_keys: key 2 of 2: it ") as refused:
        load_settings({})
    assert weak not in str(refused.value)
    assert KEY not in str(refused.value)


def test_a_variable_that_has_lost_its_keys_does_not_open_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEED_API_KEYS", " ")
    with pytest.raises(ValueError, match="api_keys: there is none in it"):
        load_settings({})


def test_a_key_is_no_flag_and_no_argument_of_serves_config() -> None:
    for read in (lambda: load_settings({"api_keys": KEY}), lambda: build({"api_keys": [KEY]})):
        with pytest.raises(ValueError, match="others can read a key here") as refused:
            read()
        assert KEY not in str(refused.value)
    assert load_settings({"api_keys": str(new_key("ci")[1])}).api_keys[0].startswith("ci sha256:")


def test_only_hashes_leave_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEED_API_KEYS", KEY)
    settings = load_settings({})
    [sent] = application(settings)._bound_deployment.init_args
    assert KEY not in repr((settings, sent))
    assert is_taken(Access(Settings(**sent)), KEY)


def test_an_error_of_another_setting_repeats_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEED_API_KEYS", KEY)
    for wrong in ({"port": "http"}, {"max_replicas": 1, "replicas": 2}):
        with pytest.raises(ValueError, match="port|max_replicas") as refused:
            Settings(**wrong)  # as a replica of Ray's would
        assert KEY not in str(refused.value)


def test_a_key_under_a_name_that_is_no_setting_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "heed.yaml").write_text(f"api_key: {KEY}\n")
    with pytest.raises(ValueError, match="api_key: Extra inputs are not permitted$"):
        load_settings({}, tmp_path / "heed.yaml")


def test_a_file_is_read_again_when_a_link_to_it_moves(tmp_path: Path) -> None:
    for version, key in (("one", KEY), ("two", OTHER)):  # as Kubernetes keeps a Secret
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys").write_text(f"app sha256:{digest(key).hex()}\n")
    (tmp_path / "data").symlink_to("one")
    (tmp_path / "keys").symlink_to("data/keys")
    found = access(api_keys_file=tmp_path / "keys")
    assert (is_taken(found, KEY), is_taken(found, OTHER)) == (True, False)
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").rename(tmp_path / "data")
    found.look()
    assert (is_taken(found, KEY), is_taken(found, OTHER)) == (False, True)


@pytest.mark.parametrize("broken", [f"app sha256:{digest(OTHER).hex()}\n{OTHER}\n", "\xff\xfe", None])
def test_a_broken_file_keeps_the_keys_and_is_logged_without_its_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str | None
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"app sha256:{digest(KEY).hex()}\n")
    found = access(api_keys_file=file)
    if broken is None:
        file.unlink()
    else:
        file.write_text(broken, encoding="latin-1")
    for _ in range(3):
        found.look()
    assert (is_taken(found, KEY), is_taken(found, OTHER)) == (True, False)
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]  # once
    assert str(file) in record.getMessage()
    assert OTHER not in record.getMessage()
    with pytest.raises(ValueError, match=str(file)):
        access(api_keys_file=file)


def test_the_last_key_can_be_taken_out_and_then_nobody_is_let_in(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"app sha256:{digest(KEY).hex()}\n")
    found = access(api_keys_file=file)
    file.write_text("# none\n")
    found.look()
    assert not is_taken(found, KEY)
    with pytest.raises(ValueError, match=f"the file has no key, .*: {file}"):
        access(api_keys_file=file)


def test_a_bucket_gives_its_burst_at_once_and_then_its_rate() -> None:
    bucket = Bucket(rate=10, burst=30, now=100)
    assert [bucket.take(15, 100), bucket.take(15, 100)] == [0, 0]
    assert bucket.take(5, 100) == pytest.approx(0.5)
    assert bucket.take(5, 100.4) == pytest.approx(0.1)  # what was refused has cost nothing
    assert bucket.take(5, 100.5) == 0
    assert bucket.take(30, 200) == 0  # it never holds more than the burst
    assert bucket.take(1, 200) == pytest.approx(0.1)


def test_a_key_gets_its_rate_its_other_keys_share_it_and_its_neighbours_have_their_own() -> None:
    keys = [f"app sha256:{digest(KEY).hex()}", f"app sha256:{digest(OTHER).hex()}"]
    now = 0.0
    settings = Settings(api_keys=keys, replicas=2, texts_per_second_per_key=20, max_texts_per_request=50)
    found = Access(settings, lambda: now)
    name = found.caller(f"Bearer {KEY}")
    found.charge(name, 50)  # of this replica: half of the burst, which is the largest request for each
    with pytest.raises(RateLimited, match="again in 5 s"):
        found.charge(found.caller(f"Bearer {OTHER}"), 50)
    found.charge("neighbour", 50)
    now = 5.0  # at half of the rate
    found.charge(name, 50)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"texts_per_second_per_key": 5}, "is for keys, set api_keys_file or leave it out: 5.0"),
        ({"texts_burst_per_key": 5}, "needs texts_per_second_per_key, set that or leave it out: 5"),
        (
            {"texts_burst_per_key": 500, "texts_per_second_per_key": 5, "api_keys_file": "keys"},
            "never let in the largest request: raise it to 1000, or lower max_texts_per_request=1000: 500",
        ),
        ({"cors_origins": "https://a.org/"}, "in small letters: https://a.org/"),
        ({"cors_origins": "a.org"}, "in small letters: a.org"),
    ],
)
def test_limits_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_settings(settings)
