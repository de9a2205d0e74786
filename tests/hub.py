"""A Hugging Face hub on the loopback interface: the routes that huggingface_hub asks for a model's files."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"  # the only one, of main and v1
TOKEN = "hf_of_a_reader"  # of repositories whose owner is "private"
ROUTE = re.compile(
    r"/api/models/(?P<listed>[^/]+/[^/]+)(/revision/(?P<at>[^/]+))?"
    r"|/api/models/(?P<tree>[^/]+/[^/]+)/tree/[^/]+"
    r"|/(?P<repo>[^/]+/[^/]+)/resolve/[^/]+/(?P<file>[^/]+)"
)


class Hub:
    """Serves folders by OWNER/REPO until it is left; `asked` holds what was asked for."""

    def __init__(self, repos: dict[str, Path]) -> None:
        self.repos, self.asked = repos, list[str]()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        hub = self
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def downloaded(self) -> list[str]:
        """Names of the files that were sent, in order of the alphabet."""
        return sorted(line.rsplit("/", 1)[1] for line in self.asked if line.startswith("GET ") and "/resolve/" in line)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """One request."""
        self.asked.append(f"{request.command} {request.path}")
        route = ROUTE.fullmatch(request.path.partition("?")[0])
        repo = route and (route["listed"] or route["tree"] or route["repo"])
        folder = self.repos.get(repo or "")
        secret = bool(repo and repo.startswith("private/"))
        if route is None or folder is None or (secret and request.headers["Authorization"] != f"Bearer {TOKEN}"):
            send(request, 401, error="RepoNotFound")
        elif route["at"] not in (None, "main", "v1", COMMIT):
            send(request, 404, error="RevisionNotFound")
        elif route["repo"]:
            send(request, 200, (folder / route["file"]).read_bytes())
        else:
            files = sorted(file for file in folder.iterdir() if file.is_file())
            tree = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": etag(f.name)} for f in files]
            info = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": f.name} for f in files]}
            send(request, 200, json.dumps(tree if route["tree"] else info).encode())


def etag(text: Any) -> str:
    """A hash of what is sent."""
    return hashlib.sha1(text if isinstance(text, bytes) else str(text).encode()).hexdigest()


def send(request: BaseHTTPRequestHandler, status: int, body: bytes = b"", error: str = "") -> None:
    """A response with the headers that the library reads."""
    request.send_response(status)
    headers = {"Content-Length": len(body), "ETag": f'"{etag(body)}"', "X-Repo-Commit": COMMIT, "X-Error-Code": error}
    for name, value in headers.items():
        if value:
            request.send_header(name, str(value))
    request.end_headers()
    if request.command == "GET":
        request.wfile.write(body)
