"""What was made once, kept for the next time: an agent sends the same thirty tools with every turn.

    Kept         a bounded store: values by keys, the least recently used one goes first
    exact_key    a key for a JSON value: two different values never have the same one

Its users are schema.py (a schema to a grammar's text), gbnf.py (a grammar's text to a grammar) and patterns.py (a
pattern to a machine).
"""

import json
import sys
import threading
from collections import OrderedDict
from typing import Any, Callable, Generic, Optional, Tuple, TypeVar

Value = TypeVar("Value")

_BYTES_OF_ENTRY = 250  # of the store itself, for each value: measured with tracemalloc (CPython 3.11), rounded up


class Kept(Generic[Value]):
    """Values by their keys, in at most `limit` bytes, the keys' included. Many threads may use it.

    `size` tells how many bytes a value takes. A value must never change: all who ask for it get the same one.
    """

    def __init__(self, limit: int, size: Callable[[Value], int]):
        self._limit = limit
        self._size = size
        self._lock = threading.Lock()  # guards the two below
        self._entries: "OrderedDict[str, Tuple[Value, int]]" = OrderedDict()  # the least recently used one first
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """How many bytes are taken."""
        with self._lock:
            return self._bytes

    def get(self, key: str, make: Callable[[], Value]) -> Value:
        """Return a key's value, made if it is not there. What `make` raises passes through, and nothing is kept.

        It is made outside of the lock, so that nobody waits for a value of another key. Two threads that ask for the
        same new value at once both make it.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry:
                self._entries.move_to_end(key)
                return entry[0]
        value = make()
        self._keep(key, value)
        return value

    def _keep(self, key: str, value: Value) -> None:
        """Keep a value, unless it is larger than the limit alone; forget others to make room."""
        size = sys.getsizeof(key) + self._size(value) + _BYTES_OF_ENTRY
        if size > self._limit:
            return
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = (value, size)
            self._bytes += size
            while self._bytes > self._limit:
                _, (_, freed) = self._entries.popitem(last=False)
                self._bytes -= freed


def exact_key(value: Any) -> Optional[str]:
    """Return a text that only this JSON value has; None for one that is nested too deeply to be written.

    The order of an object's members is part of it: a schema's grammar follows that order. So is how a number is
    written, 1 or 1.0.
    """
    try:
        return json.dumps(value, ensure_ascii=False, check_circular=False, separators=(",", ":"))
    except RecursionError:
        return None
