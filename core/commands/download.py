"""One file from a web server into a folder: resumed after a cut, checked, and given its name only when it is whole.

    Download(web, file, folder, watch).run()

    1  There is such a file already             → it is checked, and left
    2  NAME.part is there from an earlier try   → the rest is asked for (Range); its beginning is hashed meanwhile
    3  The server sends the rest (206)          → it is added, where it is the rest of the same file
       the whole file (200)                     → it begins anew
       that there is no such rest (416)         → it begins anew
    4  The connection is cut, or stands still   → 2, after 1, 2, 4 … s; TRIES times without a byte, and it gives up
    5  All is here                              → size and SHA-256 are checked, where they are known; then its name

NAME.part.json remembers where a part is from, and its ETag: by If-Range (RFC 9110, section 13.1.5) a server sends the
rest only of the very same file. Without a strong ETag, a part is gone on with only where a SHA-256 will prove the
whole. A file with a wrong SHA-256 is deleted; if it came in several parts, it is first fetched once more, whole.
"""

import errno
import http.client
import os
import re
import shutil
import time
from typing import Any, Callable, Iterator, NamedTuple, Optional

from core.commands.hub import RemoteFile
from core.commands.partial import Busy, Partial, digest_of
from core.commands.web import Web, WebError, failure, host_of
from core.models import inspect
from core.terminal import size

TRIES = 6  # in a row without a byte
RESERVE = 64 << 20  # bytes that stay free on the disk
_PIECE = 1 << 18
_LONGEST_WAIT = 30.0
_LONGEST_RETRY_AFTER = 300.0
_MAGIC = b"GGUF"
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


class BadDownload(Exception):
    """A file can't be had; the message says why, and what to do."""


class Watcher:
    """Is told how a download goes. These do nothing; pull.py's shows it."""

    def begin(self, name: str, done: int, total: Optional[int]) -> None:
        """So many bytes are here, of so many (None: unknown); more begin to come."""

    def reach(self, done: int) -> None:
        """So many bytes are here."""

    def note(self, sentence: str) -> None:
        """Something is to be said."""


class _Start(NamedTuple):
    """Where a response begins in the file, and how long the whole file is (None: unknown)."""

    offset: int
    total: Optional[int]


class Download:
    """One file's way into a folder. `sleep` waits so many seconds between tries."""

    def __init__(
        self, web: Web, file: RemoteFile, folder: str, watcher: Watcher, sleep: Callable[[float], None] = time.sleep
    ):
        self._web = web
        self._file = file
        self._path = os.path.join(folder, file.name)
        self._watcher = watcher
        self._sleep = sleep
        self._part = Partial(self._path + ".part")

    @property
    def left(self) -> Optional[int]:
        """The bytes that are still to come; None where nobody knows. Nothing is asked of the server."""
        if os.path.exists(self._path):
            return 0
        return None if self._file.size is None else max(0, self._file.size - self._part.size())

    def run(self) -> bool:
        """Fetch the file; False where it was there already. Raises BadDownload, OSError."""
        if os.path.exists(self._path):
            self._check_present()
            return False
        try:
            with self._part.held(self._file.url, self._file.sha256):
                self._fetch_rightly()
                self._part.finish(self._path)
        except Busy as busy:
            raise BadDownload(str(busy))
        return True

    def _fetch_rightly(self) -> None:
        """Get all bytes into the part, and see that they are the right ones. Raises BadDownload, OSError."""
        self._part.resume(self._file.size)
        self._fetch()
        if self._part.pieced and self._wrong():
            self._watcher.note("%s: its parts do not fit together; once more" % self._file.name)
            self._part.clear()
            self._fetch()
        wrong = self._wrong()
        if wrong:
            self._part.delete()
            raise BadDownload("%s is not what it should be: %s; it was deleted" % (self._file.name, wrong))

    def _wrong(self) -> str:
        """Return what is wrong with all that has come, "" for nothing."""
        found, wanted = self._part.digest.hexdigest(), self._file.sha256
        if wanted and found != wanted:
            return "its SHA-256 is %s, not %s" % (found, wanted)
        problem = "" if wanted else inspect(self._part.path).problem
        return problem if "cut short" in problem else ""  # a later part of a model has no header of its own

    def _check_present(self) -> None:
        """Raise BadDownload where the file that is there is not the one that is wanted."""
        have, name = os.path.getsize(self._path), self._file.name
        advice = "; move %s away, then repeat this" % self._path
        if self._file.size is not None and have != self._file.size:
            raise BadDownload("another %s is there: %s, not %s%s" % (name, size(have), size(self._file.size), advice))
        if self._file.sha256:
            self._watcher.note("%s is there; checking it" % name)
            if digest_of(self._path).hexdigest() != self._file.sha256:
                raise BadDownload("the %s that is there has another SHA-256%s" % (name, advice))

    # ---- tries

    def _fetch(self) -> None:
        """Get all bytes into the part, by as many tries as that takes. Raises BadDownload, OSError."""
        failures = 0
        while True:
            before = self._part.at
            try:
                self._try_once()
                return
            except WebError as error:
                failures = 0 if self._part.at > before else failures + 1
                if not error.passing or failures >= TRIES:
                    kept = "; %s are kept: repeat this to go on" % size(self._part.at) if self._part.at else ""
                    raise BadDownload("%s%s" % (error, kept))
                self._wait(error, failures)

    def _wait(self, error: WebError, failures: int) -> None:
        delay = min(2.0 ** max(failures - 1, 0), _LONGEST_WAIT)
        if error.wait is not None:
            delay = min(max(error.wait, 1.0), _LONGEST_RETRY_AFTER)
        self._watcher.note("%s; going on in %g s" % (error, delay))
        self._sleep(delay)

    def _try_once(self) -> None:
        """Ask for what is missing, and take it. Raises WebError, BadDownload, OSError."""
        if self._part.at and self._part.at == self._file.size:
            return
        try:
            response = self._web.open(self._file.url, self._part.range_headers())
        except WebError as error:
            if error.status != 416:
                raise _explained(error, self._file)
            self._part.clear()  # there is no such rest: it is not the same file any more
            raise WebError("%s has no rest for what is here" % host_of(self._file.url), passing=True)
        with response:
            self._take(response)

    def _take(self, response: Any) -> None:
        start = self._start(response)
        if start.offset != self._part.at:
            self._part.clear()
        self._part.etag = _strong_etag(response)
        self._watcher.begin(self._file.name, self._part.at, start.total)
        self._require_room(start.total)
        for piece in _pieces(response, self._file.url):
            self._add(piece, start.total)
        if start.total is not None and self._part.at < start.total:
            raise WebError("the connection was cut after %s" % size(self._part.at), passing=True)

    def _add(self, piece: bytes, total: Optional[int]) -> None:
        if self._part.at == 0 and not piece.startswith(_MAGIC[: len(piece)]):
            raise BadDownload("what %s sends is no GGUF file (it begins with %r)" % (self._host, piece[:16]))
        if total is not None and self._part.at + len(piece) > total:
            self._part.delete()
            raise BadDownload("%s sends more than the %d bytes of %s" % (self._host, total, self._file.name))
        try:
            self._part.add(piece)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise BadDownload("the disk is full; %s are kept: make room, and repeat this" % size(self._part.at))
            raise
        self._watcher.reach(self._part.at)

    def _start(self, response: Any) -> _Start:
        """Return where a response begins. Raises WebError, BadDownload where it is not what was asked for."""
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise BadDownload("%s sends the file in a coding that nobody asked for" % self._host)
        start = _whole(response) if response.status == 200 else _rest(response, self._host)
        wanted = self._file.size
        if start.total is not None and wanted is not None and start.total != wanted:
            figures = (self._host, start.total, self._file.name, wanted)
            raise BadDownload("%s has %d bytes for %s, but its repository says %d" % figures)
        if start.offset not in (0, self._part.at):
            raise BadDownload("%s sends another part of the file than was asked for" % self._host)
        return _Start(start.offset, wanted if start.total is None else start.total)

    def _require_room(self, total: Optional[int]) -> None:
        """Raise BadDownload where the disk lacks room for the rest."""
        if total is not None:
            require_room(os.path.dirname(self._path), total - self._part.at, self._file.name)

    @property
    def _host(self) -> str:
        return host_of(self._file.url)


def require_room(folder: str, needed: int, name: str) -> None:
    """Raise BadDownload where a folder's disk has no room for so many more bytes."""
    free = shutil.disk_usage(folder).free
    if needed + RESERVE > free:
        figures = "%s needs %s more, and %s has %s free" % (name, size(needed), folder, size(free))
        raise BadDownload("the disk is too small: %s. Make room, or choose another folder with --models" % figures)


# ------------------------------------------------------------------------------------------------ responses


def _whole(response: Any) -> _Start:
    length = response.headers.get("Content-Length", "")
    return _Start(0, int(length) if length.isdigit() and len(length) < 19 else None)


def _rest(response: Any, host: str) -> _Start:
    match = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if response.status != 206 or not match:
        raise BadDownload("%s answered %d, not the file" % (host, response.status))
    first, last, total = match.groups()
    if total != "*" and int(last) != int(total) - 1:
        raise BadDownload("%s sends another part of the file than was asked for" % host)
    return _Start(int(first), int(last) + 1)


def _strong_etag(response: Any) -> str:
    etag = response.headers.get("ETag", "").strip()
    return etag if re.fullmatch(r'"[\x21\x23-\x7e]{1,200}"', etag) else ""


def _pieces(response: Any, url: str) -> Iterator[bytes]:
    """Yield a body as it comes. Raises WebError where it is cut or stands still."""
    while True:
        try:
            piece = response.read1(_PIECE)
        except http.client.HTTPException as error:
            raise WebError("the connection to %s was cut (%s)" % (host_of(url), type(error).__name__), passing=True)
        except OSError as error:
            raise failure(error, url)
        if not piece:
            return
        yield piece


def _explained(error: WebError, file: RemoteFile) -> WebError:
    reasons = {
        401: "this file asks for a token: set HF_TOKEN",
        403: "access is refused; accept the terms at the repository's page, and set HF_TOKEN",
        404: "there is no such file: %s" % file.url,
        410: "there is no such file any more: %s" % file.url,
    }
    if error.status not in reasons:
        return error
    return WebError("%s: %s" % (error, reasons[error.status]), error.status)
