"""Keys and `heed serve` as a whole: let in through HAProxy, in HTTP and gRPC, and nowhere to be read."""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from clients import TRITON, python_with, run_client
from server import Server
from test_access import ASKED, TRITONS

from service.guard import processes_of
from service.keys import new_key

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the first run makes the client's environment
PLAIN = secrets.token_urlsafe(32)
SERVES_OWN_WORDS = """
import sys, ray
from ray import serve
from ray.serve.context import _get_global_client
ray.init(address=sys.argv[1], namespace="serve", log_to_driver=False, configure_logging=False)
print(serve.status(), _get_global_client().get_serve_details())
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys"


@pytest.fixture(scope="module")
def named(keys: Path) -> str:
    """The key of the file."""
    key, line = new_key("app")
    keys.write_text(f"{line}\n")
    return key


@pytest.fixture(scope="module")
def server(bundle_folder: Path, keys: Path, named: str) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEED_API_KEYS", PLAIN)
        running = Server(f"mood={bundle_folder}", "--api-keys-file", str(keys), grpc=True)
    with running:
        yield running


def environment(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def test_either_key_is_let_in_and_nobody_else(server: Server, named: str) -> None:
    for key, status in ((PLAIN, 200), (named, 200), (f"{named}x", 401)):
        headers = {"Authorization": f"Bearer {key}"}
        for path, body in ASKED.items():
            assert httpx.post(server.url + path, json=body, headers=headers, timeout=60).status_code == status
    assert httpx.post(f"{server.url}/v1/classify", content=b" " * 10_000_000).status_code == 401
    assert httpx.get(f"{server.url}/health/ready").status_code == 200


def test_tritons_client_over_grpc_sends_it_as_metadata(server: Server, named: str) -> None:
    found = run_client(python_with(*TRITON), TRITONS, "grpc", f"127.0.0.1:{server.grpc_port}", named)
    assert found == [True, True, "negative", "StatusCode.UNAUTHENTICATED"]


def test_no_key_is_in_a_log_a_metric_an_answer_a_process_or_serves_own_words(
    server: Server, keys: Path, named: str
) -> None:
    known = (PLAIN, named)
    headers = {"Authorization": f"Bearer {named}"}
    said = [
        httpx.get(f"{server.url}{path}", headers=headers).text
        for path in ("/metrics", "/v1/models", "/info", "/openapi.json", "/v2", f"/{named}")
    ]
    said += [httpx.post(f"{server.url}/v1/classify", json={named: 1}, headers=headers).text, *server.log]
    pids = processes_of(str(server.folder))
    assert len(pids) > 3
    said += [Path(f"/proc/{pid}/{what}").read_text(errors="replace") for pid in pids for what in ("environ", "cmdline")]
    addresses = re.findall(r"--gcs-address=([\d.:]+)", "\n".join(said).replace("\0", "\n"))
    command = [sys.executable, "-c", SERVES_OWN_WORDS, addresses[0]]
    words = subprocess.run(command, env=environment(server.replicas()[0]), capture_output=True, text=True, check=True)
    assert "heed" in words.stdout
    said += [words.stdout, words.stderr]
    keys.write_text(f"{keys.read_text()}{named}\n")  # a broken file, which is logged
    logs: list[bytes] = []
    end = time.monotonic() + 30
    while not any(b"the keys stay as they are" in log for log in logs):
        assert time.monotonic() < end
        time.sleep(0.1)
        logs = [file.read_bytes() for file in (server.folder / "ray").rglob("*.*") if file.is_file()]
    assert not [text for text in said if any(key in text for key in known)]
    assert not [log for log in logs if any(key.encode() in log for key in known)]
