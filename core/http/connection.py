"""One client's connection: request after request, read, handed to the service, answered.

    socket ── Wire ── Connection ── Service.respond ── Reply | Stream
              bytes,    HTTP/1.1
              deadlines framing
"""

import contextlib
import http
import logging
import time
import traceback
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from typing import Any, Iterable, Optional, Tuple

from core.errors import APIError, HangUp, TimedOut
from core.http.bodies import read_body
from core.http.messages import Reply, Request, Stream, error_reply, internal_error
from core.http.requesthead import (
    bad_request,
    check_framing,
    check_host,
    has_body,
    request_headers,
    request_line,
    split_target,
    wants_close,
)  # fmt: skip
from core.http.sockets import Wire

log = logging.getLogger("comeapi.http")

_PHRASES = {status.value: status.phrase for status in http.HTTPStatus}
_PHRASES.update({413: "Content Too Large", 499: "Client Closed Request"})
_MAX_HEAD = 32 << 10
FIRST_REQUEST = 1.0  # seconds that a server which stops waits for the first request of a new connection
_NEXT_REQUEST = 0.1  # seconds that it waits for another one
_now = (0, "")  # the current second and its Date header: formatting it for every reply would cost more than the rest


def _date() -> str:
    global _now
    second = int(time.time())
    if _now[0] != second:
        _now = (second, formatdate(second, usegmt=True))
    return _now[1]


def reply_head(status: int, content_type: str, headers: Iterable[Tuple[str, str]], close: bool) -> bytes:
    """Return a reply's head up to its framing header, which the caller adds with the empty line."""
    lines = ["HTTP/1.1 %d %s" % (status, _PHRASES.get(status, "")), "Server: ComeAPI", "Date: " + _date()]
    if content_type:
        lines.append("Content-Type: " + content_type)
    lines += ["%s: %s" % pair for pair in headers]
    lines.append("Connection: close" if close else "Connection: keep-alive")
    return ("\r\n".join(lines) + "\r\n").encode("latin-1", "replace")


def _chunk(piece: bytes, chunked: bool) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece) if chunked and piece else piece


def is_chunked(request: Request) -> bool:
    """Whether a streamed answer is sent in chunks: in HTTP/1.0, it ends with its connection."""
    return request.version == "HTTP/1.1"


def framed(body: bytes) -> bytes:
    """Return a body with the end of the head that tells its length."""
    return b"Content-Length: %d\r\n\r\n" % len(body) + body


class Connection(BaseHTTPRequestHandler):
    """One client: request after request until either side closes.

    The framing is strict where leniency lets two servers disagree about where a request ends (RFC 9112, section 11.2).
    http.server's own reading is not used: it has no overall deadline, and takes more time than everything else here.
    """

    server: Any  # the _Server of server.py, which imports this file; its `service` answers

    def setup(self) -> None:
        """Count the connection in, now that its thread has begun."""
        self.service = self.server.service
        self.wire = Wire(self.request, self.service.config.write_timeout)
        self.service.connections.opened(self.request, self.wire)

    def finish(self) -> None:
        """Do nothing: the server closes the connection and counts it out."""

    def handle(self) -> None:
        """Answer requests until the client or an error ends the connection."""
        self.close_connection = False
        left = FIRST_REQUEST
        while not self.close_connection:
            patience = left if self.service.leaving.begun else self.service.config.idle_timeout
            if not self.wire.wait(time.monotonic() + patience):
                return
            left = _NEXT_REQUEST
            self.service.connections.begins(self.request)
            try:
                self.handle_one_request()
            finally:
                self.wire.end_record()
                self.service.connections.ends(self.request)

    # ---- one request

    def handle_one_request(self) -> None:
        """Read one request and answer it."""
        started = time.monotonic()
        request: Optional[Request] = None
        self._body_pending = True
        try:
            request = self._read_head()
            reply = self.service.respond(request, self._read_body)
        except APIError as error:
            reply = error_reply(error)
        except TimedOut:
            reply = error_reply(APIError(408, "The request took too long to arrive.", "request_timeout"))
        except HangUp:
            self.close_connection = True
            if request:  # it had arrived
                self.service.finished(request, 499, 0, time.monotonic() - started)
            return
        if request is None:  # nothing of it could be read
            request = Request("GET", "", "HTTP/1.1", {}, self.wire, self.client_address[0])
        self._answer(request, reply, started)

    def _answer(self, request: Request, reply: Any, started: float) -> None:
        # A body that was not read would be taken for the next request: so the connection ends.
        unread = self._body_pending
        self.close_connection = self.close_connection or unread or self.service.leaving.begun
        size = 0
        status = reply.status
        try:
            size = self._send(request, reply)
        except HangUp:
            self.close_connection = True
            status = 499
        finally:
            self.service.finished(request, status, size, time.monotonic() - started)
        if unread and status != 499:
            self.wire.linger()

    # ---- reading

    def _read_head(self) -> Request:
        """Read a request's head. Raises APIError for a bad one, HangUp, TimedOut."""
        self.close_connection = True  # until the head is known to be sound
        deadline = time.monotonic() + self.service.config.header_timeout
        head = self.wire.read_head(_MAX_HEAD, deadline).decode("latin-1").lstrip("\r\n")
        lines = head.split("\r\n")
        if head.count("\n") != len(lines) - 1:
            raise bad_request("Lines must end in CRLF.")
        method, target, version = request_line(lines[0])
        headers = request_headers(lines[1:])
        check_host(version, headers)
        target, host = split_target(target)
        if host:  # it takes the place of the header (RFC 9112, section 3.2.2)
            headers["host"] = host
        request = Request(method, target, version, headers, self.wire, self.client_address[0])
        check_framing(version, headers)
        self._body_pending = has_body(headers)
        self.close_connection = wants_close(version, headers)
        return request

    def _read_body(self, request: Request) -> bytes:
        """Read the body. Raises APIError 400, 411, 413, 503, HangUp, TimedOut."""
        config = self.service.config
        deadline = time.monotonic() + config.body_timeout
        body = read_body(request, config.max_body, deadline, self.service.bodies)
        self._body_pending = False
        return body

    # ---- writing

    def _send(self, request: Request, reply: Any) -> int:
        """Send a reply and return its body's size. Raises HangUp."""
        if isinstance(reply, Stream):
            with contextlib.closing(reply.chunks):
                if request.method != "HEAD":
                    return self._send_stream(request, reply)
            reply = Reply(b"", reply.status, reply.content_type, reply.headers)
        body = b"" if request.method == "HEAD" else reply.body
        framing = b"\r\n" if reply.status == 204 else b"Content-Length: %d\r\n\r\n" % len(reply.body)
        self.wire.write(self._reply_head(request, reply) + framing + body, last=True)
        return len(body)

    def _send_stream(self, request: Request, reply: Stream) -> int:
        """Send a stream piece by piece, its head with the first one."""
        try:
            first = self._next_piece(reply)
        except APIError as error:
            return self._send(request, error_reply(error))
        chunked = is_chunked(request)
        self.close_connection = self.close_connection or not chunked
        self.begin_stream(request, reply)
        head = self._reply_head(request, reply) + (b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"\r\n")
        return self.send_pieces(request, reply, head, first)

    def begin_stream(self, request: Request, reply: Stream) -> None:
        """Make ready for the pieces of a stream, and for what is sent while there are none."""
        self.wire.begin_answer(_chunk(reply.ping, is_chunked(request)) or None)
        if self.wire.record:
            self.wire.record.begins()
        if reply.alive:
            alive = _chunk(reply.alive, is_chunked(request))
            request.ping, request.ping_interval = lambda: self.wire.write(alive), self.service.config.ping_interval

    def send_pieces(self, request: Request, reply: Stream, head: bytes, piece: Optional[bytes]) -> int:
        """Send a stream's pieces, from this one on, and its end; return their size. Raises HangUp."""
        size, chunked = 0, is_chunked(request)
        while piece is not None:
            self.wire.write(head + _chunk(piece, chunked))
            head = b""
            size += len(piece)
            piece = self.next_piece_or_error(reply)
        self.wire.write(head + (b"0\r\n\r\n" if chunked else b""), last=True)
        return size

    def _next_piece(self, reply: Stream) -> Optional[bytes]:
        """Return the next bytes, or None at the end. Raises HangUp, APIError."""
        try:
            return next((piece for piece in reply.chunks if piece), None)
        except (APIError, HangUp):
            raise
        except Exception:
            log.error("a stream failed:\n%s", traceback.format_exc())
            raise internal_error()

    def next_piece_or_error(self, reply: Stream) -> Optional[bytes]:
        """Return the next bytes, which may tell of an error, or None at the end. Raises HangUp."""
        try:
            return self._next_piece(reply)
        except APIError as error:
            if reply.error_chunk is None:
                raise HangUp("cut, because the answer could not be finished: %s" % error)
            self.close_connection = True
            if self.wire.record:
                self.wire.record.fails()
            return reply.error_chunk(error)

    def _reply_head(self, request: Request, reply: Any) -> bytes:
        headers = [("X-Request-Id", request.id)]
        if not self.close_connection:
            headers.append(("Keep-Alive", self.service.keep_alive))
        headers += self.service.cors(request)
        headers += self.service.more(request)
        headers += reply.headers
        content_type = reply.content_type if reply.status != 204 else ""
        return reply_head(reply.status, content_type, headers, self.close_connection)
