"""Serves the web page's files. They are read as package data, so that they are found in a zip file, too.

    wanted(request)     whether a request for / comes from a browser that wants a page
    Page.reply(…)       the page
    Page.routes()       its styles, scripts and icon;  operations() describes them

The files hold no secrets, so they need no key; what the page shows does. A browser runs only what comes from here, and
talks only to here: see Content-Security-Policy, levels 2 and 3, and Trusted Types.
"""

import functools
import gzip
import pkgutil
from typing import List, Tuple

from core.http.messages import Reply, Request
from core.http.openapi import Operation, Operations
from core.http.routing import Route
from core.http.schemas import STRING

_SCRIPTS = (
    "page", "admin", "answers", "chart", "chat", "dom", "english", "feed", "http", "japanese", "markdown", "messages",
    "now", "settings", "threads", "tryit", "words",
)  # fmt: skip
FILES = {"page.css": "text/css", "icon.svg": "image/svg+xml"}
FILES.update({name + ".js": "text/javascript" for name in _SCRIPTS})
_POLICY = "; ".join(
    [
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'",
        "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)  # fmt: skip
_HEADERS = (
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-cache"),
    ("Vary", "Accept, Accept-Encoding"),
)
_PACKED = _HEADERS + (("Content-Encoding", "gzip"),)


def operations() -> Operations:
    """Return what the OpenAPI document tells of the routes."""
    return {
        ("GET", "/page/" + name): Operation("A file of the web page", "Web page", {200: {kind: STRING}})
        for name, kind in FILES.items()
    }


def wanted(request: Request) -> bool:
    """Whether a request asks for HTML, as browsers do when they open a page; curl and API clients do not."""
    return "text/html" in request.headers.get("accept", "")


class Page:
    """The page's files, read and packed once."""

    def __init__(self) -> None:
        self._page = _read("page.html")
        self._files = {name: _read(name) for name in FILES}

    def reply(self, request: Request) -> Reply:
        """Return the page."""
        return _reply(self._page, "text/html", request)

    def routes(self) -> List[Route]:
        """Return the routes of all other files, below /page/."""
        return [Route("GET", "/page/" + name, functools.partial(self._file, name), public=True) for name in FILES]

    def _file(self, name: str, request: Request) -> Reply:
        return _reply(self._files[name], FILES[name], request)


def _reply(file: Tuple[bytes, bytes], kind: str, request: Request) -> Reply:
    packed = "gzip" in request.headers.get("accept-encoding", "")
    return Reply(file[packed], 200, kind + "; charset=utf-8", _PACKED if packed else _HEADERS)


def _read(name: str) -> Tuple[bytes, bytes]:
    """Return a file as it is, and packed."""
    data = pkgutil.get_data("core.page", name)
    if data is None:
        raise OSError("core/page/%s can't be read" % name)
    return data, gzip.compress(data)
