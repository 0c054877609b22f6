"""Signs of life in an answer: data is one; in a stream of events, keep-alives are none.

    Patience    how long a backend has been silent, counted while a request waits for it
    Pings       tells the keep-alives in a stream of server-sent events from its data

A keep-alive is a comment (`: ping`), or an event with the name `ping`, as in Anthropic's API. Data may come in pieces
of any size.

Source: the WHATWG standard for server-sent events, section 9.2.6 (interpreting an event stream).
"""

_KEPT = 64  # bytes of an unfinished line: enough to know what it is


class Patience:
    """Counts the seconds without a sign of life. `every_byte` says whether any byte is one."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.every_byte = True
        self.silent = 0.0

    @property
    def left(self) -> float:
        """The seconds that may still be waited."""
        return max(0.0, self.seconds - self.silent)

    def waited(self, seconds: float) -> None:
        """Bytes have come after so many seconds."""
        self.silent = 0.0 if self.every_byte else self.silent + seconds

    def renew(self) -> None:
        """A sign of life has come."""
        self.silent = 0.0


class Pings:
    """Reads a stream of server-sent events piece by piece."""

    def __init__(self) -> None:
        self._line = b""  # the beginning of the unfinished line
        self._in_ping = False  # the event that is being read has the name ping
        self._blank = True  # the last whole line was empty, or there was none

    @property
    def between(self) -> bool:
        """Whether the stream stands between two events, so that another one can be put there."""
        return self._blank and not self._line

    def life_in(self, piece: bytes) -> bool:
        """Whether a piece brings data, or a part of some."""
        *lines, rest = (self._line + piece).split(b"\n")
        alive = False
        for line in lines:
            alive = self._says_something(line.rstrip(b"\r")) or alive
        self._line = rest[:_KEPT]
        return bool(rest and self._is_data(rest)) or alive

    def _says_something(self, line: bytes) -> bool:
        """Take in a whole line."""
        name, _, value = line.partition(b":")
        self._blank = not line
        if not line:
            self._in_ping = False
        elif name == b"event":
            self._in_ping = value.strip() == b"ping"
        return self._is_data(line)

    def _is_data(self, line: bytes) -> bool:
        return line.startswith(b"data") and not self._in_ping
