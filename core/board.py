"""Cores that backends lend each other: a file that all backends of one plan map, in which each says when it computes.

    BoardFile(threads).name ──> name     by whoever starts them; they inherit its descriptors
    Board(name, seat, threads)   ── compute(seconds): a lease ──> the others see it
                                 ── lent(): the threads of those that have nothing to compute
                                 ── reclaim(): a lease, and a wait for who computes with threads that were lent

A long prompt gets the cores of those that compute, too, between any two of their steps:

    backend 1    step ── take_turn() ░░ all threads ░░░░ compute() ── step ── take_turn() ░░░░
    backend 2    step ── give_way() ···················  reclaim() ── step ── give_way() ·····

A lease ends by itself, so that a backend that was killed or stopped lends its cores, too. There is no lock: where two
begin in the same moment, one step of each has too many threads, and the next has not.
"""

import mmap
import os
import struct
import tempfile
import time
from typing import IO, Callable, Iterator, NamedTuple, Sequence, Tuple

# The size is that of earlier versions: a backend that is upgraded reads the file that comeapi.py has made before.
_SEAT = struct.Struct("=di????")
_LINGER = 0.1  # seconds; whoever has just computed is likely to go on: a client reads its answer, and asks again
_LOOK = 0.001  # seconds between two looks at what others do
_NEARLY = 0.1  # seconds; so long the others wait for the beginning of a long prompt's turn, after a step of theirs


class _Seat(NamedTuple):
    """What a backend says of itself."""

    end: float  # of its lease, in seconds by time.monotonic()
    threads: int
    borrows: bool = False  # it computes with others' threads, too
    asks: bool = False  # it has a long prompt, and asks the others to give way
    turn: bool = False  # the prompt is evaluated now
    gives_way: bool = False  # it has something to compute, and waits


class Board:
    """One backend's view of the file. `threads` are its own share of the cores. Raises OSError, ValueError.

    `name` is the file's path, or the number of an inherited descriptor.
    """

    def __init__(self, name: str, seat: int, threads: int):
        inherited = name.isdigit()
        with open(int(name) if inherited else name, "r+b", closefd=not inherited) as file:
            self._seats = os.fstat(file.fileno()).st_size // _SEAT.size
            self._map = mmap.mmap(file.fileno(), self._seats * _SEAT.size)
        if not 0 <= seat < self._seats:
            raise ValueError("%s has %d seats: there is no seat %d" % (name, self._seats, seat))
        self._seat = seat
        self._threads = threads
        self._computes = False
        self.asks = False  # there is a long prompt; told with all that follows
        self._write(0.0)

    def compute(self, seconds: float, borrows: bool = False) -> None:
        """Take a lease: this backend computes for so many seconds at most; `borrows`: with others' threads, too."""
        self._computes = True
        self._write(seconds + _LINGER, borrows=borrows)

    def reclaim(self, seconds: float, patience: float) -> None:
        """Take a lease after a rest; wait until nobody borrows threads any more, `patience` seconds at most."""
        if self._computes:
            return
        self.compute(seconds)
        self._wait(patience, lambda seat: seat.borrows)

    def take_turn(self, seconds: float, patience: float) -> int:
        """Take a lease for the long prompt, until compute(); return how many threads the others leave it.

        Waits `patience` seconds at most until all others have given way, or have such a prompt themselves.
        """
        self._computes = True
        self._write(seconds, turn=True)
        self._wait(patience, lambda seat: not seat.asks)
        left = self.left()
        self._write(seconds, borrows=left > 0, turn=True)
        return left

    def give_way(self, patience: float) -> None:
        """Where another one asks for it, lend the threads between two steps, `patience` seconds at most."""
        if self._computes and not self.asks and any(seat.asks for seat in self._leases()):
            self._computes = False
            self._write(0.0, gives_way=True)
            self._wait(_NEARLY, lambda seat: seat.asks and not seat.turn)
            self._wait(patience, lambda seat: seat.turn)

    def rest(self) -> None:
        """Let the lease end: this backend has nothing to compute. An idle one may say so as often as it likes.

        It ends at once where nobody else computes: then one client asks, and its next request may come to another one.
        """
        if self._computes:
            self._computes = False
            self._write(_LINGER if any(True for _ in self._leases()) else 0.0)

    def lent(self) -> int:
        """Return how many threads the backends have that have nothing to compute now."""
        now = time.monotonic()
        return sum(seat.threads for seat in self._others() if seat.end < now and not seat.gives_way)

    def left(self) -> int:
        """Return how many threads the backends have that do not compute now: those that give way, too."""
        now = time.monotonic()
        return sum(seat.threads for seat in self._others() if seat.end < now)

    def close(self) -> None:
        """Leave the file; the cores are lent from now on."""
        self._write(0.0)
        self._map.close()

    def _wait(self, patience: float, hinders: Callable[[_Seat], bool]) -> None:
        """Wait until nobody computes who hinders this one, `patience` seconds at most."""
        until = time.monotonic() + patience
        while time.monotonic() < until and any(map(hinders, self._leases())):
            time.sleep(_LOOK)

    def _leases(self) -> Iterator[_Seat]:
        """Return the seats of the others that compute now."""
        now = time.monotonic()
        return (seat for seat in self._others() if seat.end > now)

    def _others(self) -> Iterator[_Seat]:
        numbers = (number for number in range(self._seats) if number != self._seat)
        return (_Seat(*_SEAT.unpack_from(self._map, number * _SEAT.size)) for number in numbers)

    def _write(self, seconds: float, borrows: bool = False, turn: bool = False, gives_way: bool = False) -> None:
        seat = _Seat(time.monotonic() + seconds if seconds else 0.0, self._threads, borrows, self.asks, turn, gives_way)
        _SEAT.pack_into(self._map, self._seat * _SEAT.size, *seat)


class BoardFile:
    """The file, with a seat for each backend, by their threads, as who starts them has it. Raises OSError.

    Where descriptors are inherited, the file is in no folder: nobody removes it, as systemd-tmpfiles does with what is
    old, before a backend is started again; and nothing is left of it after a SIGKILL. Elsewhere it has a path.
    """

    def __init__(self, threads: Sequence[int]):
        self._file = _file_of_no_folder() if os.name == "posix" else _file_with_path()
        self._file.write(b"".join(_SEAT.pack(*_Seat(0.0, each)) for each in threads))
        self._file.flush()

    @property
    def name(self) -> str:
        """What the backends' --board calls it."""
        return str(self._file.name)

    @property
    def descriptors(self) -> Tuple[int, ...]:
        """What the backends are to inherit."""
        return (self._file.fileno(),) if self.name.isdigit() else ()

    def close(self) -> None:
        """Remove it. Backends that still map it may go on."""
        self._file.close()
        if not self.name.isdigit():
            os.remove(self.name)


def _file_of_no_folder() -> IO[bytes]:
    if hasattr(os, "memfd_create"):  # Linux; works also where every folder is read-only
        return os.fdopen(os.memfd_create("comeapi-board", os.MFD_CLOEXEC), "w+b")
    return tempfile.TemporaryFile()


def _file_with_path() -> IO[bytes]:
    return tempfile.NamedTemporaryFile(prefix="comeapi-", suffix=".board", delete=False)
