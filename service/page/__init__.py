"""GET /: a page to try the models in a browser. Its files are sent as they are; it asks the native API.

Whoever does not say that it reads HTML is no browser: a client of KServe's V1 asks there whether the server is alive.

Nothing else is fetched: neither fonts nor scripts from anywhere. The browser is told to hold it to that.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.routing import Route

from service.http import counted

if TYPE_CHECKING:
    from starlette.requests import Request

    from service.http import Handler
    from service.routes import Service

FOLDER = Path(__file__).parent
HTML, STYLE, SCRIPT = "text/html", "text/css", "text/javascript"
FILES = {
    "/page/page.css": ("page.css", STYLE),
    **{f"/page/{name}": (name, SCRIPT) for name in ("page.js", "ask.js", "rows.js", "text.js")},
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",  # no text can become markup, ours neither
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # a new version of the service has a new page
    "Vary": "Accept",
}


def routes(service: Service, otherwise: Handler) -> list[Route]:
    """The page and what it is made of; otherwise answers those who do not ask for HTML.

    It holds nothing of the service: it asks for a key where that wants one.
    """
    index = _file("index.html", HTML)

    async def root(http: Request) -> Response:
        return await (index if HTML in http.headers.get("accept", "") else otherwise)(http)

    handlers = {"/": root, **{path: _file(*found) for path, found in FILES.items()}}
    return [
        Route(path, counted(service, path, handler, is_open=True), methods=["GET"])
        for path, handler in handlers.items()
    ]


def _file(name: str, media_type: str) -> Handler:
    content = (FOLDER / name).read_bytes()

    async def handler(http: Request) -> Response:
        return Response(content, media_type=media_type, headers=HEADERS)

    return handler
