"""The cells of one slot as bytes: out of one context, into another with any number of slots. numpy, no llama_cpp."""

from typing import Any

import numpy

from core.errors import APIError


class SavedCells:
    """The cells of one slot, as llama_state_seq_get_data writes them, for a context of any number of slots.

    With kv_unified off they begin with words of 32 bits: a magic number, the slot, the number of slots, and then for
    each slot how many cells it gives and the cells; all slots but the one give none. For another number of slots, words
    that are 0 are left out before, and added after. Raises APIError 500 for anything else.
    """

    SPARE = 4 * 256  # bytes; zeros for as many slots as a context may have

    def __init__(self, buffer: Any, size: int, slots: int, slot: int):
        words = buffer[: 4 * (4 + slot)].view(numpy.uint32)
        magic, origin, streams, count = words[0], words[1], words[2], words[3 + slot]
        if streams != slots or words[3 : 3 + slot].any() or not count:
            raise APIError(500, "This llama.cpp writes cells in a form that is not known.", "cells_unknown")
        words[slot:] = magic, origin, 1, count
        self._buffer = buffer[4 * slot :]
        self._size = size - 4 * (slots - 1)

    def state(self, slots: int) -> Any:
        """Return the bytes that llama_state_seq_set_data takes in a context of so many slots."""
        self._buffer[:16].view(numpy.uint32)[2] = slots
        return self._buffer[: self._size + 4 * (slots - 1)]
