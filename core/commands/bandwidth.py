"""How many bytes of memory this machine reads in a second, measured in about one second.

A model reads all its weights for each token (for each step: answers that are generated at once share it). So the
bandwidth bounds the tokens per second: no processor is faster than its memory.

The C library's memchr looks for a byte that is not there: it reads with the processor's widest instructions and writes
nothing, and ctypes lets other threads run meanwhile. The buffers are larger than caches are.
"""

import ctypes
import sys
import threading
import time
from typing import Any, List, Optional

from core import hardware
from core.memory import available_memory

_ROUNDS, _SECONDS = 3, 0.2  # the best round counts: other programs use the memory, too
_TOTAL = 512 << 20  # bytes; larger than the last cache of nearly all processors
_LEAST = 16 << 20  # bytes of one thread; less would measure a cache


def read_bandwidth() -> Optional[float]:
    """Return the bytes read in a second by all cores together; None where memory is too short to measure."""
    threads = hardware.cores()
    size = min(_TOTAL, (available_memory() or _TOTAL) // 4) // threads
    return max(_rounds(threads, size)) if size >= _LEAST else None


def _rounds(threads: int, size: int) -> List[float]:
    """Let so many threads read so many bytes each again and again. Returns each round's bytes in a second."""
    search, together = _memchr(), threading.Barrier(threads)
    rates = [[0.0] * threads for _ in range(_ROUNDS)]

    def read(number: int) -> None:
        buffer = (ctypes.c_char * size)()
        ctypes.memset(buffer, 1, size)  # else all pages are the same one
        for rate in rates:
            together.wait()
            begun, passes, took = time.monotonic(), 0, 0.0
            while took < _SECONDS:
                search(buffer, 0, size)
                passes += 1
                took = time.monotonic() - begun
            rate[number] = passes * size / took

    readers = [threading.Thread(target=read, args=(number,)) for number in range(threads)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return [sum(rate) for rate in rates]


def _memchr() -> Any:
    library = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
    function = library.memchr
    function.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    function.restype = ctypes.c_void_p
    return function
