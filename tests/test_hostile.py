"""Clients that mean harm, at a real server: slow ones, endless ones, bombs, and every kind of Unicode."""

from __future__ import annotations

import gzip
import json
import select
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server import Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
HEAD = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
GIVES_UP_S = 45  # HAProxy waits 10 s for headers and 16 kB, and 30 s for the next bytes of a body


@pytest.fixture(scope="module")
def server(bundle_folder: Path) -> Iterator[Server]:
    from server import Server

    with Server(f"mood={bundle_folder}", "--timeout-ms", "3000") as running:
        yield running


def answer_within(client: socket.socket, seconds: float) -> bytes:
    """What comes until the server closes; fails where it does not."""
    client.settimeout(seconds)
    said = b""
    while part := client.recv(65536):
        said += part
    return said


def received(client: socket.socket) -> bytes:
    """What has come already."""
    return client.recv(65536) if select.select([client], [], [], 0)[0] else b""


def status(said: bytes) -> int:
    return int(said.split()[1])


def is_well(server: Server) -> bool:
    started = time.monotonic()
    return server.classify(["a lovely film"]).status_code == 200 and time.monotonic() - started < 2


def test_three_hundred_clients_that_never_end_their_headers_keep_nobody_waiting_and_are_let_go(server: Server) -> None:
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(300)]
    for client in slow:
        client.sendall(HEAD + b"X-Slow: ")
    assert all(is_well(server) for _ in range(10))
    for client in slow[:20]:
        assert status(answer_within(client, GIVES_UP_S)) == 408
    for client in slow:
        client.close()


@pytest.mark.parametrize(("sent", "code"), [(8, 408), (50_000, 504)])
def test_a_body_that_stops_coming_is_answered_in_time_by_whoever_reads_it_and_its_connection_closed(
    server: Server, sent: int, code: int
) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(HEAD + b"Content-Length: 100000\r\n\r\n" + b'{"texts"'.ljust(sent))
        said = answer_within(client, GIVES_UP_S)
    assert status(said) == code  # HAProxy, after 10 s, up to 16 kB; then the replica, at the request's deadline
    assert is_well(server)


def test_a_chunked_body_without_an_end_is_a_413_and_nobody_goes_on_reading_it(server: Server) -> None:
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.settimeout(GIVES_UP_S)
        client.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        said = b""
        with pytest.raises(OSError, match=r"reset|pipe"):  # noqa: PT012
            while True:
                client.sendall(chunk)
                said += received(client)
    assert status(said) == 413
    assert is_well(server)


def test_headers_of_a_megabyte_are_refused(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        try:
            client.sendall(HEAD + b"X-Large: " + b"a" * 1_000_000 + b"\r\nContent-Length: 2\r\n\r\n{}")
            said = answer_within(client, GIVES_UP_S)
        except OSError:
            said = b"HTTP/1.1 400 closed"
    assert 400 <= status(said) < 500
    assert is_well(server)


def test_a_bomb_of_zeros_is_refused_before_it_is_unpacked(server: Server) -> None:
    bomb = gzip.compress(b"\0" * 500_000_000, compresslevel=9)
    assert len(bomb) < 1_000_000
    before = most_resident(server)
    response = httpx.post(
        f"{server.url}/v2/models/mood/infer", content=bomb, headers={"Content-Encoding": "gzip"}, timeout=30
    )
    assert response.status_code in (400, 413)
    assert most_resident(server) < before + 100_000
    assert is_well(server)


def most_resident(server: Server) -> int:
    """KB that the replica has ever had."""
    [pid] = server.replicas()
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])


@pytest.mark.parametrize(
    "text",
    [
        "\0 a film",
        "\u202ea film\u202c",
        "e" + "\u0301" * 40_000,
        "\U0010ffff\U000e0001",
        "👩‍👩‍👧‍👦" * 2000,
        "\ufeff \u200b\u00a0",
        "ﷺ" * 10_000,
    ],
    ids=["NUL", "right to left", "marks", "last", "joined", "invisible", "long when normalized"],
)
def test_text_of_every_kind_is_answered_with_offsets_inside_it(server: Server, text: str) -> None:
    answer = server.classify([text], on_long="truncate", explain=True)
    assert answer.status_code == 200
    [result] = answer.json()["results"]
    assert result["labels"]
    for token in result["explanation"]["tokens"]:
        assert token["text"] == text[token["start"] : token["end"]]


def test_offsets_count_characters_whatever_stands_before_the_word(server: Server) -> None:
    for before in ("", "\0 ", "👩‍👩‍👧‍👦 ", "\u202e", "e\u0301 ﷺ ", "日本 "):
        [result] = server.classify([before + "film"], explain=True).json()["results"]
        found = [token for token in result["explanation"]["tokens"] if token["end"] > len(before)]
        assert (found[0]["start"], found[-1]["end"]) == (len(before), len(before) + len("film")), before


def test_half_a_character_is_refused_by_name_and_not_repeated(server: Server) -> None:
    for body in (b'{"texts": ["a \\ud800 b"]}', b'{"texts": ["a \xed\xa0\x80 b"]}', b'{"texts": ["\xff"]}'):
        answer = httpx.post(f"{server.url}/v1/classify", content=body)
        assert answer.status_code in (400, 422)
        message = json.loads(answer.content)["error"]["message"]
        assert message
        assert "\ud800" not in message
        assert "ud800" not in message


def test_a_megabyte_of_marks_is_over_the_limit(server: Server) -> None:
    answer = server.classify(["e" + "\u0301" * 500_000])
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")
