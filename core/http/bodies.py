"""A request's body: read within its limits, and within what all bodies together may take.

    BodyBudget                    the bytes of all bodies that are being read or held; more get 503
    read_body(request, …)         one body, by its Content-Length or in chunks (RFC 9112, section 7.1)

Bytes are counted when they arrive, not when they are announced: so a client that announces a large body, or sends it
slowly, takes nothing from other clients.
"""

import re
import threading
from typing import Iterator

from core.errors import APIError, shown
from core.http.chunks import BadChunk, ChunkRules, ChunksTooLarge, Dechunker
from core.http.messages import Request
from core.http.requesthead import has_body
from core.http.sockets import CONTINUE, Wire

RULES = ChunkRules(re.compile(rb"[ \t]*([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?"), 256, 32 << 10)


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


def read_body(request: Request, limit: int, deadline: float, budget: BodyBudget) -> bytes:
    """Read a request's body of `limit` bytes at most; count what it takes from the budget in `request.held`.

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
    """Yield a chunked body's bytes. Raises APIError 400, 413, HangUp, TimedOut."""
    try:
        yield from wire.decoded(Dechunker(RULES, limit), deadline)
    except ChunksTooLarge:
        raise _too_large(limit)
    except BadChunk as error:
        message = str(error)
        raise APIError(400, "%s%s." % (message[0].upper(), message[1:]), "bad_chunk")


def _too_large(limit: int) -> APIError:
    return APIError(413, "The body is larger than %d bytes." % limit, "body_too_large")
