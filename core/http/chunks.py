"""The chunked coding of a body, read once for the server and for the client (RFC 9112, section 7.1).

    SIZE [; extensions] CRLF  SIZE bytes CRLF   …   0 CRLF  [trailers, a line each]  CRLF

    decoded(buffer, chunks, more)    the body's bytes, as they come
    Dechunker                        takes the coding off what is in a buffer;  ChunkRules say what it lets pass

A body that breaks the rules raises BadChunk. Each side answers in its own way: the server with 400 or 413 (bodies.py),
the client with Broken (answers.py). Extensions and trailers are dropped.
"""

from typing import Callable, Iterator, List, NamedTuple, Pattern

_MAX_TRAILERS = 100  # the empty line after them counts


class BadChunk(Exception):
    """A body that is not in the chunked coding. The message says why; `line` is the line that is wrong, if one is."""

    def __init__(self, message: str, line: bytes = b""):
        super().__init__(message)
        self.line = line


class ChunksTooLarge(BadChunk):
    """The chunks say that they hold more than their reader wants."""


class ChunkRules(NamedTuple):
    """What a reader lets pass. Lines are measured without their CRLF."""

    size: Pattern[bytes]  # a whole line of a chunk's size; the first group is the size, in hexadecimal digits
    longest_size: int  # bytes of such a line
    longest_trailer: int  # bytes of a trailer


class Dechunker:
    """Takes the chunked coding off one body, whose chunks may hold up to `most` bytes."""

    def __init__(self, rules: ChunkRules, most: float = float("inf")):
        self.done = False  # the line after the last trailer has come
        self._rules = rules
        self._allowed = most  # bytes of the chunks whose sizes are yet to come
        self._left = 0  # bytes of the present chunk that are yet to come, its CRLF included
        self._longest = rules.longest_size  # bytes of the next line
        self._in_trailers = False
        self._trailers = 0

    def decode(self, data: bytearray) -> bytes:
        """Take everything that can be decoded out of `data`, and return it. Raises BadChunk, ChunksTooLarge."""
        at, after = -1, 0
        pieces: List[bytearray] = []
        while at != after and not self.done:
            at = after
            after = self._take_bytes(data, at, pieces) if self._left else self._take_line(data, at)
        del data[:after]
        return b"".join(pieces)

    def _take_bytes(self, data: bytearray, at: int, pieces: List[bytearray]) -> int:
        """Take what is here of the present chunk, from `at` on; return where the rest of `data` begins."""
        if self._left > 2:
            piece = data[at : at + self._left - 2]
            pieces.append(piece)
            at += len(piece)
            self._left -= len(piece)
        if self._left > 2 or len(data) - at < 2:
            return at
        if not data.startswith(b"\r\n", at):
            raise BadChunk("a chunk is longer than its size says")
        self._left = 0
        return at + 2

    def _take_line(self, data: bytearray, at: int) -> int:
        """Take the line that begins at `at`, if all of it is here; return where the rest of `data` begins."""
        end = data.find(b"\r\n", at, at + self._longest + 2)
        if end < 0:
            if len(data) - at > self._longest:
                raise BadChunk("a line of the chunked body is too long")
            return at
        if self._in_trailers:
            self._take_trailer(end == at)
        else:
            self._take_size(bytes(data[at:end]))
        return end + 2

    def _take_size(self, line: bytes) -> None:
        match = self._rules.size.fullmatch(line)
        if not match:
            raise BadChunk("a chunk's size is not a hexadecimal number", line)
        size = int(match.group(1), 16)
        if size > self._allowed:
            raise ChunksTooLarge("the chunks are larger than their reader wants")
        self._allowed -= size
        self._left = size + 2 if size else 0
        if not size:
            self._in_trailers, self._longest = True, self._rules.longest_trailer

    def _take_trailer(self, empty: bool) -> None:
        self.done = empty
        self._trailers += 1
        if self._trailers >= _MAX_TRAILERS and not empty:
            raise BadChunk("too many trailers")


def decoded(buffer: bytearray, chunks: Dechunker, more: Callable[[], None]) -> Iterator[bytes]:
    """Yield a body's bytes out of a buffer; `more()` waits for bytes and adds them to it. Raises BadChunk."""
    while not chunks.done:
        piece = chunks.decode(buffer)
        if piece:
            yield piece
        elif not chunks.done:
            more()
