"""The cells of one slot as bytes: out of one context, into another with any number of slots. numpy, no llama_cpp."""

from typing import Any

import numpy

from core.errors import APIError

_MAGIC = 0xAF143CD8  # io_magic in llama.cpp's llama-context.cpp
_MOST_SLOTS = 256


class BadCells(ValueError):
    """Bytes that are no cells of one slot; the message says why."""


class SavedCells:
    """The cells of one slot, as llama_state_seq_get_data writes them, for a context of any number of slots.

    With kv_unified off they begin with words of 32 bits: a magic number, the slot, the number of slots, and then for
    each slot how many cells it gives and the cells; all slots but the one give none. For another number of slots, words
    that are 0 are left out before, and added after. Raises APIError 500 for anything else.
    """

    SPARE = 4 * _MOST_SLOTS  # bytes; zeros for as many slots as a context may have

    def __init__(self, buffer: Any, size: int, slots: int, slot: int):
        words = buffer[: 4 * (4 + slot)].view(numpy.uint32)
        magic, origin, streams, count = words[0], words[1], words[2], words[3 + slot]
        if magic != _MAGIC or streams != slots or words[3 : 3 + slot].any() or not count:
            raise APIError(500, "This llama.cpp writes cells in a form that is not known.", "cells_unknown")
        words[slot:] = magic, origin, 1, count
        self._buffer = buffer[4 * slot :]
        self._size = size - 4 * (slots - 1)

    @classmethod
    def of(cls, body: Any) -> "SavedCells":
        """Return the cells that body() gave, or a context of another number of slots, without its first two words.

        Raises BadCells.
        """
        size = len(body) + 8
        buffer = numpy.zeros(-(-size // 4) * 4 + cls.SPARE, numpy.uint8)
        buffer[8:size] = numpy.frombuffer(body, numpy.uint8)
        words = buffer[: 4 * (3 + _MOST_SLOTS)].view(numpy.uint32)
        words[0] = _MAGIC
        slots = int(words[2])
        counts = words[3 : 3 + min(slots, _MOST_SLOTS)]
        if not 1 <= slots <= _MOST_SLOTS or size < 4 * (3 + slots) or not counts.any():
            raise BadCells("its cells are in a form that is not known")
        return cls(buffer, size, slots, int(counts.nonzero()[0][0]))

    def body(self) -> Any:
        """Return an array of the bytes for a context of one slot, without the first two words."""
        return self.state(1)[8:]

    def check(self, count: int) -> None:
        """Raise BadCells unless these are `count` cells of one sequence, at the positions from 0 on."""
        found = int(self._buffer[12:16].view(numpy.uint32)[0])
        if found != count or self._size < 16 + 12 * count:
            raise BadCells("it holds %d cells and %d tokens" % (found, count))
        places = self._buffer[16 : 16 + 12 * count].view(numpy.int32).reshape(count, 3)  # position, sequences, sequence
        if (numpy.sort(places[:, 0]) != numpy.arange(count)).any() or (places[:, 1] != 1).any():
            raise BadCells("its cells are in a form that is not known")

    def state(self, slots: int) -> Any:
        """Return the bytes that llama_state_seq_set_data takes in a context of so many slots."""
        self._buffer[:16].view(numpy.uint32)[2] = slots
        return self._buffer[: self._size + 4 * (slots - 1)]
