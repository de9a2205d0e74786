"""GET /: a page to try the models in a browser. Its files are sent as they are; it asks the native API.

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
STYLE, SCRIPT = "text/css", "text/javascript"
FILES = {
    "/": ("index.html", "text/html"),
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
}


def routes(service: Service) -> list[Route]:
    """The page and what it is made of. It holds nothing of the service: it asks for a key where that wants one."""
    return [
        Route(path, counted(service, path, _file(*found), is_open=True), methods=["GET"])
        for path, found in FILES.items()
    ]


def _file(name: str, media_type: str) -> Handler:
    content = (FOLDER / name).read_bytes()

    async def handler(http: Request) -> Response:
        return Response(content, media_type=media_type, headers=HEADERS)

    return handler
