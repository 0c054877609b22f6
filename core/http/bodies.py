"""A request's body: read within its limits, and within what all bodies together may take.

    BodyBudget                    the bytes of all bodies that are being read or held; more get 503
    read_body(request, …)         one body, by its Content-Length or in chunks (RFC 9112, section 7.1)

Bytes are counted as they come, so that senders who only announce a lot, or are slow, take nothing from others.
"""

import re
import threading
from typing import Any, Iterator

from core.errors import APIError, shown
from core.http.heads import MAX_HEADERS, has_body
from core.http.sockets import CONTINUE, Wire

_LONGEST_LINE = 256  # of a chunk's size and its extensions
_LONGEST_TRAILER = 32 << 10


class BodyBudget:
    """How many bytes of bodies a service may hold."""

    def __init__(self, most: int):
        self._most = self._left = most
        self._lock = threading.Lock()  # guards _left

    def take(self, size: int) -> None:
        """Count bytes in. Raises APIError 503 where they are too many."""
        with self._lock:
            if size > self._left:
                message = "The requests that are being answered hold %d MB already." % (self._most >> 20)
                raise APIError(503, message, "too_many_bodies", headers=[("Retry-After", "1")])
            self._left -= size

    def give_back(self, size: int) -> None:
        """Count bytes out."""
        with self._lock:
            self._left += size


def read_body(request: Any, limit: int, deadline: float, budget: BodyBudget) -> bytes:
    """Read a messages.Request's body of `limit` bytes at most; its `held` tells what it has taken from the budget.

    Raises APIError 400, 411, 413, 415 (RFC 9110, section 15.5.16), 503, HangUp, TimedOut.
    """
    headers = request.headers
    length = int(headers.get("content-length", 0))
    if length > limit:
        raise _too_large(limit)
    if not has_body(headers):
        if request.method in ("POST", "PUT", "PATCH") and "content-length" not in headers:
            raise APIError(411, "Send a Content-Length, or the body in chunks.", "length_required")
        return b""
    coding = headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise APIError(415, "Content-Encoding %s is not supported." % shown(coding), "content_encoding")
    wire = request.wire
    if headers.get("expect", "").lower() == "100-continue" and request.version == "HTTP/1.1":
        wire.write(CONTINUE)
    pieces = _chunks(wire, limit, deadline) if "transfer-encoding" in headers else wire.pieces(length, deadline)
    body = []
    for piece in pieces:
        budget.take(len(piece))
        request.held += len(piece)
        body.append(piece)
    return b"".join(body)


def _chunks(wire: Wire, limit: int, deadline: float) -> Iterator[bytes]:
    """Yield a chunked body's bytes; its trailers are dropped."""
    total = 0
    while True:
        size = _chunk_size(wire.read_line(_LONGEST_LINE, deadline))
        if size == 0:
            break
        total += size
        if total > limit:
            raise _too_large(limit)
        yield from wire.pieces(size, deadline)
        if wire.read_exactly(2, deadline) != b"\r\n":
            raise APIError(400, "A chunk is longer than its size says.", "bad_chunk")
    for _ in range(MAX_HEADERS):
        if not wire.read_line(_LONGEST_TRAILER, deadline):
            return
    raise APIError(400, "Too many trailers.", "bad_chunk")


def _chunk_size(line: bytes) -> int:
    text = line.partition(b";")[0].strip(b" \t")
    if b"\n" in line or b"\r" in line or not re.fullmatch(rb"[0-9A-Fa-f]{1,16}", text):
        raise APIError(400, "A chunk's size is not a hexadecimal number.", "bad_chunk")
    return int(text, 16)


def _too_large(limit: int) -> APIError:
    return APIError(413, "The body is larger than %d bytes." % limit, "body_too_large")
