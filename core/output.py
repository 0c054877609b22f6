"""Standard output and standard error that never block and never raise, whatever happens to their reader.

A full disk, a closed pipe, a pipe that nobody reads, a terminal stopped by Ctrl-S: with Python's own streams, each of
them ends the thread that prints, or blocks it for ever. Here a print only puts text into a bounded queue; one thread
for each stream writes it. Text is dropped where the queue is full, or where the system refuses it. When writing works
again, the next print says how many lines were lost.

    open_descriptors()    make descriptors 0, 1 and 2 exist: else a socket gets such a number, and a client gets prints
    install()             make Writers of sys.stdout and sys.stderr
    Writer                the stream
    flush(seconds)        wait for what is queued, but not for long; done at exit, too
"""

import atexit
import collections
import contextlib
import os
import sys
import threading
import time
from typing import Any, Deque, List, Tuple

MOST = 1 << 20  # characters that wait to be written
AT_ONCE = 1 << 16  # characters in one write
EXIT_SECONDS = 1.0
_EACH = 64  # what a text counts besides its characters, so that many small texts are bounded, too
_RETRY_SECONDS = 0.05  # between tries, where another program has made the terminal non-blocking


class Writer:
    """A text stream in front of another one, as print() and logging use it. Any thread may write; lines stay whole."""

    errors = "replace"

    def __init__(self, stream: Any, most: int = MOST):
        self._stream = stream
        self._most = most
        # Not through the buffer: a thread that waits inside its lock aborts the interpreter's shutdown. With
        # PYTHONUNBUFFERED there is none: `buffer` is the raw file itself.
        buffer = getattr(stream, "buffer", None)
        self._raw = getattr(buffer, "raw", buffer)
        # Guards all below. Its lock is reentrant: a collected object's warning may be printed in the middle of a write.
        self._changed = threading.Condition()
        self._texts: Deque[Tuple[str, int]] = collections.deque()  # each with its number of lines
        self._size = 0
        self._line = ""  # the beginning of a line
        self._lost = 0  # lines
        self._writing = False
        self._thread: Any = None

    @property
    def encoding(self) -> str:
        """The character set of the stream behind."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def writable(self) -> bool:
        """Whether it can be written to: always."""
        return True

    def isatty(self) -> bool:
        """Whether a person sees it."""
        with contextlib.suppress(OSError, ValueError):
            return bool(self._stream.isatty())
        return False

    def fileno(self) -> int:
        """The descriptor of the stream behind."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Queue a text up to its last newline; the rest waits for one, or for flush()."""
        with self._changed:
            whole, newline, self._line = (self._line + text).rpartition("\n")
            self._put(whole + newline)
            if len(self._line) > AT_ONCE:
                self.flush()
        return len(text)

    def flush(self) -> None:
        """Queue the beginning of a line, too."""
        with self._changed:
            text, self._line = self._line, ""
            self._put(text)

    def drain(self, deadline: float) -> None:
        """Wait until everything is written, or until a moment of time.monotonic()."""
        self.flush()
        with self._changed:
            done = self._changed.wait_for
            done(lambda: not self._texts and not self._writing, max(0.0, deadline - time.monotonic()))

    def _put(self, text: str) -> None:
        """Queue a text, or drop it. The caller holds the lock."""
        if not text:
            return
        if self._size + len(text) + 2 * _EACH > self._most:
            self._lost += _lines(text)
            return
        if self._lost:
            self._append("(%d lines of output were lost)\n" % self._lost, self._lost)
            self._lost = 0
        self._append(text, _lines(text))
        if self._thread is None:
            thread = threading.Thread(target=self._main, name="output", daemon=True)
            with contextlib.suppress(RuntimeError):  # no more threads: the next text tries again
                thread.start()
                self._thread = thread
        self._changed.notify_all()

    def _append(self, text: str, lines: int) -> None:
        self._texts.append((text, lines))
        self._size += len(text) + _EACH

    # ---- the thread

    def _main(self) -> None:
        while True:
            text, lines = self._next()
            written = self._try_to_write(text)
            with self._changed:
                self._lost += 0 if written else lines
                self._writing = False
                self._changed.notify_all()

    def _next(self) -> Tuple[str, int]:
        """Wait for text and take as much as one write takes. Returns it, and its number of lines."""
        with self._changed:
            self._changed.wait_for(lambda: self._texts)
            taken: List[str] = []
            lines = 0
            while self._texts and sum(map(len, taken)) < AT_ONCE:
                text, count = self._texts.popleft()
                self._size -= len(text) + _EACH
                taken.append(text)
                lines += count
            self._writing = True
            return "".join(taken), lines

    def _try_to_write(self, text: str) -> bool:
        try:
            if self._raw is None:
                self._stream.write(text)
                self._stream.flush()
            else:
                _write_bytes(self._raw, text.encode(self.encoding, "replace"))
            return True
        except (OSError, ValueError, LookupError):
            return False  # no room, nobody reads, or closed


def _write_bytes(raw: Any, data: bytes) -> None:
    """Write everything to a raw file, which may take a part of it, or None of it while it would block."""
    left = memoryview(data)
    while left:
        count = raw.write(left)
        if count is None:
            time.sleep(_RETRY_SECONDS)
        else:
            left = left[count:]


def _lines(text: str) -> int:
    return max(1, text.count("\n"))


def open_descriptors() -> None:
    """Open each of the descriptors 0, 1 and 2 that is closed on the null device. To be called before all else."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                opened = os.open(os.devnull, os.O_RDWR)
                if opened != number:
                    os.dup2(opened, number)
                    os.close(opened)


def install() -> None:
    """Put Writers in front of sys.stdout and sys.stderr, whether they are there or not."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed when Python started, or a Windows program without a console
            stream = open(os.devnull, "w", encoding="utf-8")
        setattr(sys, name, Writer(stream))
    atexit.register(_end)


def flush(seconds: float = EXIT_SECONDS) -> None:
    """Wait until all that was printed is written, for so many seconds at most."""
    deadline = time.monotonic() + seconds
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Writer):
            stream.drain(deadline)


def _end() -> None:
    """Write what is queued, and take the Writers away.

    Python flushes its streams once more at the end. By then it may have stopped a Writer's thread that held the lock:
    so it must not find the Writers.
    """
    flush()
    sys.stdout = sys.stderr = None  # type: ignore[assignment]
