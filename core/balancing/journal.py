"""What is known of the requests in flight, in memory that outlives this process: another one can go on with them.

    Journal(fd)         shared memory of SLOTS slots with SLOT bytes each; what was never written takes no memory
      .take(…)          a slot for a request
      .left()           the slots that a process before this one has not given back
    Slot.commit(…)      notes, and the bytes that its client is sent next: both or neither
    Slot.read()         an Entry

A slot has 16 words of 8 bytes at the beginning of the memory, and its bytes behind those of all slots:

    used, serial, adoptions, size of the request, commits | cell 0 | cell 1        the request | notes … | next bytes

A process may be killed between any two instructions. So whatever is written counts only when `commits` does, a single
store, which says by its last bit which cell is true: how many notes there are, and the next bytes. These stand behind
the notes, where the bytes before them stood: those are all in the kernel when the next ones are noted.
"""

import collections
import mmap
from typing import Deque, List, NamedTuple, Optional

SLOTS = 512  # requests; further ones are not noted
SLOT = 1 << 20  # bytes: a request and its notes, some 30 bytes a token; a longer one is noted no more
_WORDS = 16  # of a slot
_HEADS = SLOTS * _WORDS * 8  # bytes
SIZE = _HEADS + SLOTS * SLOT
_USED, _SERIAL, _ADOPTIONS, _REQUEST, _COMMITS = range(5)  # words
_CELLS = (8, 12)  # words; a cell: size of the notes, size of the next bytes, their end, flags
_KEPT = 64 << 10  # bytes of a slot that keep their memory for the next request

BEGUN = 1  # the answer's head has gone to the client, or is among the next bytes
LAST = 2  # the next bytes are the answer's last ones
FAILED = 4  # the client has been told that the answer broke off


class Entry(NamedTuple):
    """What a slot tells. `end` is how many bytes the connection will have carried with the `next_bytes`."""

    serial: int
    adoptions: int
    request: bytes
    notes: bytes
    next_bytes: bytes
    end: int
    flags: int


class Journal:
    """The memory, as a file's descriptor. Any thread may take slots. Raises OSError, ValueError, OverflowError."""

    def __init__(self, fd: int):
        self.memory = mmap.mmap(fd, SIZE)
        self.words = memoryview(self.memory).cast("Q")
        slots = [Slot(self, number) for number in range(SLOTS)]
        self._left = [slot for slot in slots if slot.used]
        self._free: Deque[Slot] = collections.deque(slot for slot in slots if not slot.used)
        self.last_serial = max(slot.serial for slot in slots)

    def left(self) -> List["Slot"]:
        """Return the slots that were in use when this process began."""
        return self._left

    def take(self, serial: int, request: bytes, notes: bytes, end: int) -> Optional["Slot"]:
        """Return a slot in which a request is noted; None where it does not fit, or all are taken."""
        try:
            slot = self._free.pop()  # the last one that was given back: it has its memory
        except IndexError:
            return None
        if slot.begin(serial, request, notes, end):
            return slot
        self._free.append(slot)
        return None

    def give_back(self, slot: "Slot") -> None:
        """Take a slot back: its request is over, or can't be noted any more."""
        slot.clear()
        self._free.append(slot)


class Slot:
    """One request's part of the memory. One thread writes at a time."""

    def __init__(self, journal: Journal, number: int):
        self._memory = journal.memory
        self._words = journal.words
        self._word = number * _WORDS
        self._at = _HEADS + number * SLOT
        self._notes = self._at + self._words[self._word + _REQUEST]  # where they begin
        self._top = self._cell()[0]  # the size of the notes
        self._reached = self._at  # how far this process has written

    @property
    def used(self) -> bool:
        """Whether a request is noted here."""
        return bool(self._words[self._word + _USED])

    @property
    def serial(self) -> int:
        """The serial number of the request that is noted here, or was."""
        return self._words[self._word + _SERIAL]

    def begin(self, serial: int, request: bytes, notes: bytes, end: int) -> bool:
        """Note a request; False where it does not fit."""
        if len(request) > SLOT:
            return False
        self._notes, self._top = self._at + len(request), 0
        self._memory[self._at : self._notes] = request
        self._words[self._word + _SERIAL] = serial
        self._words[self._word + _ADOPTIONS] = 0
        self._words[self._word + _REQUEST] = len(request)
        fits = self.commit(notes, b"", end, 0)
        self._words[self._word + _USED] = int(fits)
        return fits

    def commit(self, notes: bytes, next_bytes: bytes, end: int, flags: int) -> bool:
        """Note more of an answer, and what goes to the client next; False where it does not fit: then nothing is."""
        start = self._notes + self._top
        middle = start + len(notes)
        stop = middle + len(next_bytes)
        if stop > self._at + SLOT:
            return False
        self._memory[start:middle] = notes
        self._memory[middle:stop] = next_bytes
        self._reached = max(self._reached, stop)
        words, commits = self._words, self._words[self._word + _COMMITS] + 1
        cell = self._word + _CELLS[commits & 1]
        self._top += len(notes)
        words[cell], words[cell + 1], words[cell + 2], words[cell + 3] = self._top, len(next_bytes), end, flags
        words[self._word + _COMMITS] = commits
        return True

    def adopt(self) -> None:
        """Count that a process goes on with a request of another one."""
        self._words[self._word + _ADOPTIONS] += 1

    def acquit(self) -> None:
        """Count from 0 again: the answer has grown since."""
        self._words[self._word + _ADOPTIONS] = 0

    def read(self) -> Entry:
        """Return what is noted."""
        size, next_size, end, flags = self._cell()
        middle = self._notes + size
        return Entry(
            self.serial,
            self._words[self._word + _ADOPTIONS],
            self._memory[self._at : self._notes],
            self._memory[self._notes : middle],
            self._memory[middle : middle + next_size],
            end,
            flags,
        )

    def clear(self) -> None:
        """Forget the request; much memory is given back to the system."""
        self._words[self._word + _USED] = 0
        if self._reached > self._at + _KEPT:
            self._reached = self._at
            self._memory.madvise(mmap.MADV_REMOVE, self._at + _KEPT, SLOT - _KEPT)

    def _cell(self) -> List[int]:
        cell = self._word + _CELLS[self._words[self._word + _COMMITS] & 1]
        return list(self._words[cell : cell + 4])
