"""The rows of one decode: tokens, each at a position of a slot."""

import array
import ctypes
from typing import Any, Dict, NamedTuple
from typing import Sequence as Many

import llama_cpp


class Run(NamedTuple):
    """Consecutive tokens of one slot, the first at position `start`. The last `logits` of them want logits."""

    slot: int
    start: int
    tokens: Many[int]
    logits: int = 0


class Batch:
    """Rows for one llama_decode, filled with whole blocks of memory: row by row would cost 0.5 µs each."""

    def __init__(self, rows: int, slots: int):
        self._tokens = (ctypes.c_int32 * rows)()
        self._positions = (ctypes.c_int32 * rows)()
        self._counts = (ctypes.c_int32 * rows)(*([1] * rows))
        self._ids = (ctypes.POINTER(ctypes.c_int32) * rows)()
        self._logits = (ctypes.c_int8 * rows)()
        self._slots = (ctypes.c_int32 * slots)(*range(slots))
        self._size = 0
        self.native = llama_cpp.llama_batch()
        columns: Dict[str, Any] = {
            "token": self._tokens, "pos": self._positions, "n_seq_id": self._counts, "seq_id": self._ids,
            "logits": self._logits,
        }  # fmt: skip
        for name, column in columns.items():
            setattr(self.native, name, ctypes.cast(ctypes.byref(column), type(getattr(self.native, name))))

    def clear(self) -> None:
        """Begin a new batch."""
        self._size = 0

    def add(self, run: Run) -> int:
        """Add a run of tokens. Returns the batch's size then."""
        first, count = self._size, len(run.tokens)
        self._put(self._tokens, first, array.array("i", run.tokens))
        self._put(self._positions, first, array.array("i", range(run.start, run.start + count)))
        address = ctypes.addressof(self._slots) + run.slot * ctypes.sizeof(ctypes.c_int32)
        self._put(self._ids, first, array.array(_POINTER_CODE, [address]) * count)
        self._put(self._logits, first, array.array("b", bytes(count - run.logits) + b"\1" * run.logits))
        self._size += count
        self.native.n_tokens = self._size
        return self._size

    @staticmethod
    def _put(column: Any, first: int, values: array.array) -> None:
        address, count = values.buffer_info()
        size = values.itemsize
        if first + count > len(column):
            raise ValueError("a batch of %d rows can't take %d more at %d" % (len(column), count, first))
        ctypes.memmove(ctypes.addressof(column) + first * size, address, count * size)


_POINTER_CODE = "Q" if ctypes.sizeof(ctypes.c_void_p) == 8 else "I"
