"""A server's answer to a request: its head, how its body is framed, and the body, whole or as it comes (RFC 9112).

    read_head(method) ── status, headers ── pieces() | read_and_close(most, within) ── the connection is kept or closed
                         header(name)

A server is not trusted. Each part of an answer has its bounds, which stand below: heads in bytes, headers and seconds,
interim heads in number, lines of chunks in bytes, trailers in number. A body has those that its reader gives.
Header lines and chunks are read by heads.py and chunks.py, as the server reads those of a request.
"""

import re
import time
from typing import Callable, Dict, Iterator, List, Optional

from core.http.chunks import BadChunk, ChunkRules, Dechunker, decoded
from core.http.failures import Broken, Slow, TooLarge
from core.http.heads import MAX_HEADERS, Header, Malformed, TooManyHeaders, parse_headers, tokens, whole_number
from core.http.outgoing import RECV, OutgoingConnection, Wait

_MAX_HEAD = 65536  # bytes
_MAX_INTERIM = 8  # heads of status 1xx before the answer's
_HEAD_SECONDS = 10.0  # from a head's first byte to its last
RULES = ChunkRules(re.compile(rb"[ \t]*([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?"), 4096, 4096)
_BEGINNING = b"HTTP/1."
_KEPT = re.compile(r"\btimeout=([0-9]{1,6})\b", re.IGNORECASE)  # seconds (RFC 2068, section 19.7.1.1)
_STATUS_LINE = re.compile(r"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r\n]*)?")


class Answer:
    """A server's answer: its head, then its body. close() it where it is not read to its end.

    `wait` is called as outgoing.plain_wait is. `timeout` is the seconds without a byte, `deadline` the moment
    (time.monotonic) by which all is to be here. `keep` gets the connection back where it is good for another request.
    """

    def __init__(
        self,
        connection: OutgoingConnection,
        wait: Wait,
        timeout: float,
        deadline: float,
        keep: Callable[[OutgoingConnection], None],
    ):
        self.status = 0
        self.headers: List[Header] = []
        self._named: Dict[str, str] = {}  # the headers by name, in lower case
        self.length: Optional[int] = None  # of the body; None where its end is known only when it comes
        self._connection = connection
        self._wait = wait
        self._timeout = timeout
        self._deadline = deadline
        self._keep = keep
        self._open = True  # the connection is still this answer's
        self._reusable = True
        self._interim = 0
        self._minor = ""  # the minor version of its HTTP/1
        self._chunked = False

    def header(self, name: str) -> str:
        """Return a header's value, several joined by ', ', or an empty text. The name is in lower case."""
        return self._named.get(name, "")

    def read_and_close(self, most: Optional[int] = None, within: Optional[float] = None) -> bytes:
        """Return the whole body: `most` bytes, and `within` seconds from now, where these are given.

        Raises Broken, TooLarge, Slow, and what `wait` raises.
        """
        if within is not None:
            self._deadline = min(self._deadline, time.monotonic() + within)
        try:
            return b"".join(self.pieces() if most is None else self._pieces_up_to(most))
        finally:
            self.close()

    def pieces(self) -> Iterator[bytes]:
        """Yield the body's bytes as they come. Raises Broken, Slow, and what `wait` raises."""
        if self._chunked:
            yield from self._chunked_pieces()
        elif self.length is None:
            yield from self._pieces_to_the_end()
        else:
            yield from self._counted_pieces(self.length)
        self._release()

    def close(self) -> None:
        """Give up on the rest, if there is one; the server sees its connection close."""
        if self._open:
            self._open = False
            self._connection.close()

    # ---- the request, and the head

    def send(self, data: bytes) -> None:
        """Send the request; where the answer comes before its end, the rest is not sent.

        A server may answer 413 and close while it is being sent a large body: that is the answer (RFC 9112, section
        9.5). Where the connection ends, what the server has said before is still to be read. Raises Broken, Slow, and
        what `wait` raises.
        """
        left = memoryview(data)
        while True:
            sent = self._connection.send(left)
            left = left[sent or 0 :]
            if not left:
                return
            if sent is None or (not sent and self._comes_early()):
                self._reusable = False
                return

    def _comes_early(self) -> bool:
        """Wait until there is room to send more; return whether the answer begins instead."""
        patience = max(0.0, min(self._timeout, self._deadline - time.monotonic()))
        if not self._wait(self._connection.sock, patience, sending=True):
            raise Slow("it takes nothing of the request for %g s" % patience)
        while self.status < 200 and self._connection.has_early():
            self._read_head_once()
        return self.status >= 200

    def read_head(self, method: str) -> None:
        """Read status and headers. Raises Broken, Slow, and what `wait` raises."""
        while self.status < 200:  # 100 Continue and its like come before the answer
            self._read_head_once()
        self._frame(method)

    def _read_head_once(self) -> None:
        """Read one head, which may be an interim one."""
        lines = self._head_bytes().decode("latin-1").split("\r\n")
        status = _STATUS_LINE.fullmatch(lines[0])
        if not status:
            raise Broken("no answer: %r is not HTTP/1.1" % _bytes(lines[0]))
        self._minor, self.status = status.group(1), int(status.group(2))
        self._interim += self.status < 200
        if self.status == 101 or self._interim > _MAX_INTERIM:
            raise Broken("no answer: status %d, which nobody asked for" % self.status)
        try:
            self.headers, self._named = parse_headers(lines[1:])
        except TooManyHeaders:
            raise Broken("the answer has more than %d headers" % MAX_HEADERS)
        except Malformed as error:
            raise Broken("malformed headers: %r" % _bytes(error.line))

    def _head_bytes(self) -> bytes:
        """Return a head without its empty line, as soon as it is here. Its last byte must follow its first one soon."""
        buffer, searched, patience = self._connection.buffer, 0, self._deadline
        while True:
            end = buffer.find(b"\r\n\r\n", max(0, searched - 3))
            size = len(buffer) if end < 0 else end
            if size > _MAX_HEAD or not buffer.startswith(_BEGINNING[: len(buffer)]):
                raise Broken("no answer: %r" % bytes(buffer[:80]))
            if end >= 0:
                return self._connection.take(end + 4)[:-4]
            if buffer and not searched:
                patience = min(patience, time.monotonic() + _HEAD_SECONDS)
            searched = len(buffer)
            if not self._receive(patience):
                raise Broken("no answer: %r" % bytes(buffer[:80]) if buffer else "no answer: closed")

    def _frame(self, method: str) -> None:
        """Find out how the body ends (RFC 9112, section 6.3), and whether the connection may be used again."""
        options = tokens(self.header("connection"))
        lasting = self._minor == "1" or "keep-alive" in options
        self._reusable = self._reusable and lasting and "close" not in options
        kept = _KEPT.search(self.header("keep-alive"))
        if kept:
            self._connection.may_idle(float(kept.group(1)))
        coding, length = self._named.get("transfer-encoding"), self._named.get("content-length")
        if method == "HEAD" or self.status in (204, 304):
            self.length = 0
        elif coding is not None:
            if coding.lower() != "chunked" or self._minor == "0":
                raise Broken("the answer is in %r, which nobody asked for" % coding[:80])
            self._chunked = True
            self._reusable = self._reusable and length is None  # two framings: one may be an attack (RFC 9112, 6.3)
        elif length is not None:
            self.length = _length(length)
        else:
            self._reusable = False

    # ---- the body

    def _pieces_up_to(self, most: int) -> Iterator[bytes]:
        size = 0
        for piece in self.pieces():
            size += len(piece)
            if size > most:
                raise TooLarge("the answer is larger than %d bytes" % most)
            yield piece

    def _counted_pieces(self, left: int) -> Iterator[bytes]:
        while left:
            if not self._connection.buffer:
                self._need("%d bytes of the answer are missing" % left)
            piece = self._connection.take(left)
            left -= len(piece)
            yield piece

    def _chunked_pieces(self) -> Iterator[bytes]:
        missing = "the answer ended in the middle of its chunks"
        try:
            yield from decoded(self._connection.buffer, Dechunker(RULES), lambda: self._need(missing))
        except BadChunk as error:
            raise Broken("malformed chunks: %s%s" % (error, ": %r" % error.line[:20] if error.line else ""))

    def _pieces_to_the_end(self) -> Iterator[bytes]:
        while True:
            if self._connection.buffer:
                yield self._connection.take(RECV)
            elif not self._receive(self._deadline):
                return

    def _need(self, missing: str) -> None:
        if not self._receive(self._deadline):
            raise Broken(missing)

    def _receive(self, deadline: float) -> bool:
        """Wait for bytes until a moment of time.monotonic(), and no longer than the timeout; False at the end.

        Raises Broken, Slow, and what `wait` raises.
        """
        left = deadline - time.monotonic()
        late = "no byte for %g s" % self._timeout if self._timeout <= left else "the answer does not end in time"
        if left <= 0:
            raise Slow(late)
        return self._connection.receive(self._wait, min(self._timeout, left), late)

    def _release(self) -> None:
        """Let go of the connection, which may be good for another request."""
        if self._reusable and not self._connection.buffer:
            self._open = False
            self._keep(self._connection)
        else:
            self.close()


def _length(text: str) -> int:
    """Return what Content-Length says; the same several times counts as once (RFC 9110, section 8.6). Raises Broken."""
    said = {part.strip(" \t") for part in text.split(",")}
    length = whole_number(said.pop())
    if said or length is None:
        raise Broken("Content-Length is %r" % text[:80])
    return length


def _bytes(line: str) -> bytes:
    """Return the beginning of a line as it came, for a message."""
    return line[:80].encode("latin-1")
