"""Cores that idle backends lend: a file that all backends of one plan map, in which each says when it computes.

    make_board(threads) ──> path     by whoever starts them, and removes the file
    Board(path, seat, threads)   ── compute(seconds): a lease ──> the others see it
                                 ── lent(): the threads of those without a lease
                                 ── reclaim(): a lease, and a wait for who computes with threads that were lent

A lease ends by itself, so that a backend that was killed or stopped lends its cores, too. There is no lock: where two
begin in the same moment, one step of each has too many threads, and the next has not.
"""

import mmap
import os
import struct
import tempfile
import time
from typing import Iterator, Sequence, Tuple

# The end of the lease, in seconds by time.monotonic(); the number of threads; whether it computes with others' threads.
# Its size is that of earlier versions: a backend that is upgraded reads the file that comeapi.py has made before.
_SEAT = struct.Struct("=di?3x")
_LINGER = 0.1  # seconds; whoever has just computed is likely to go on: a client reads its answer, and asks again
_LOOK = 0.001  # seconds between two looks whether threads are back


class Board:
    """One backend's view of the file. `threads` are its own share of the cores. Raises OSError, ValueError."""

    def __init__(self, path: str, seat: int, threads: int):
        with open(path, "r+b") as file:
            self._seats = os.fstat(file.fileno()).st_size // _SEAT.size
            self._map = mmap.mmap(file.fileno(), self._seats * _SEAT.size)
        if not 0 <= seat < self._seats:
            raise ValueError("%s has %d seats: there is no seat %d" % (path, self._seats, seat))
        self._seat = seat
        self._threads = threads
        self._computes = False
        self._write(0.0)

    def compute(self, seconds: float, borrows: bool = False) -> None:
        """Take a lease: this backend computes for so many seconds at most; `borrows`: with others' threads, too."""
        self._computes = True
        self._write(time.monotonic() + seconds + _LINGER, borrows)

    def reclaim(self, seconds: float, patience: float) -> None:
        """Take a lease after a rest; wait until nobody borrows threads any more, `patience` seconds at most."""
        if self._computes:
            return
        self.compute(seconds)
        until = time.monotonic() + patience
        while time.monotonic() < until and self._borrowed():
            time.sleep(_LOOK)

    def rest(self) -> None:
        """Let the lease end: this backend has nothing to compute. An idle one may say so as often as it likes.

        It ends at once where nobody else computes: then one client asks, and its next request may come to another one.
        """
        if self._computes:
            self._computes = False
            now = time.monotonic()
            alone = all(end < now for end, _, _ in self._others())
            self._write(now if alone else now + _LINGER)

    def _borrowed(self) -> bool:
        now = time.monotonic()
        return any(borrows and end > now for end, _, borrows in self._others())

    def lent(self) -> int:
        """Return how many threads the backends have that do not compute now."""
        now = time.monotonic()
        return sum(threads for end, threads, _ in self._others() if end < now)

    def close(self) -> None:
        """Leave the file; the cores are lent from now on."""
        self._write(0.0)
        self._map.close()

    def _others(self) -> Iterator[Tuple[float, int, bool]]:
        """Return what is in each other one's seat."""
        return (_SEAT.unpack_from(self._map, seat * _SEAT.size) for seat in range(self._seats) if seat != self._seat)

    def _write(self, end: float, borrows: bool = False) -> None:
        _SEAT.pack_into(self._map, self._seat * _SEAT.size, end, self._threads, borrows)


def make_board(threads: Sequence[int]) -> str:
    """Make a file with a seat for each backend, by their threads, and return its path. Raises OSError."""
    file, path = tempfile.mkstemp(prefix="comeapi-", suffix=".board")
    with os.fdopen(file, "wb") as board:
        board.write(b"".join(_SEAT.pack(0.0, each, False) for each in threads))
    return path
