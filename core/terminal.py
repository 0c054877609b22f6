"""What programs show to a person: colours, and lines that are written anew. Both on a terminal only.

    is_fancy    whether a stream is a terminal that moves its cursor
    paint       a text in a colour, where the stream has colours
    harmless    a text from elsewhere, without what would command the terminal; one_line: in one line
    Live        lines that stay below what is printed, and are written anew
    Progress    how far something is, in words: share, rate, time left   (pure)

Colours follow NO_COLOR (https://no-color.org): where it is set and not empty, there are none. TERM=dumb means no
colours and no cursor. Live writes nothing where its stream is no terminal: a pipe gets whole lines only.
"""

import collections
import os
import re
import shutil
import sys
import unicodedata
from typing import Any, Deque, List, Optional, Sequence, Tuple

_COLOURS = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "dim": "2", "bold": "1"}
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_BAR = 20  # columns
_RATE_SECONDS = 10.0  # a rate is of so many of the last seconds


def is_fancy(stream: Any) -> bool:
    """Whether a stream is a terminal that understands ANSI's sequences."""
    return bool(stream.isatty()) and os.environ.get("TERM") != "dumb" and _understands_sequences()


def has_colours(stream: Any) -> bool:
    """Whether a stream is a terminal whose user does not mind colours."""
    return not os.environ.get("NO_COLOR") and is_fancy(stream)


def paint(text: str, colour: str, stream: Any = None) -> str:
    """Return a text in a colour, or as it is where the stream (standard output) has none."""
    if not text or not has_colours(stream or sys.stdout):
        return text
    return "\x1b[%sm%s\x1b[0m" % (_COLOURS[colour], text)


def harmless(text: str) -> str:
    """Return a text without control characters, but newlines and tabs, and without those that turn its direction."""
    return _CONTROLS.sub("", text)


def one_line(text: str) -> str:
    """Return a harmless text with a space for each run of spaces, tabs and newlines."""
    return " ".join(harmless(text).split())


def _understands_sequences() -> bool:
    if sys.platform != "win32":
        return True
    import ctypes

    kernel, mode = ctypes.windll.kernel32, ctypes.c_ulong()  # ENABLE_VIRTUAL_TERMINAL_PROCESSING of console modes
    handle = kernel.GetStdHandle(-11)
    return bool(kernel.GetConsoleMode(handle, ctypes.byref(mode)) and kernel.SetConsoleMode(handle, mode.value | 4))


# -------------------------------------------------------------------------------------------- lines below the rest


class Live:
    """Lines at the terminal's bottom that are written anew. Nothing where the stream is no terminal."""

    def __init__(self, stream: Any = None):
        self._stream = stream or sys.stdout
        self.works = is_fancy(self._stream)
        self._lines: List[str] = []

    def show(self, lines: Sequence[str]) -> None:
        """Show these lines in place of those before; none takes them away."""
        if self.works:
            room = shutil.get_terminal_size()
            fitting = [shortened(line, room.columns - 1) for line in lines[: max(1, room.lines - 1)]]
            if fitting != self._lines:
                self._write(self._erasing() + "\n".join(fitting))
                self._lines = fitting

    def say(self, line: str) -> None:
        """Print a line above those that are shown."""
        self._write(self._erasing() + line + "\n" + "\n".join(self._lines))

    def _erasing(self) -> str:
        """Return what takes the cursor to the first of the lines shown and erases them all."""
        if not self._lines:
            return ""
        return "\r" + ("\x1b[%dA" % (len(self._lines) - 1) if len(self._lines) > 1 else "") + "\x1b[J"

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def columns(text: str) -> int:
    """Return how many columns a text takes on a terminal: Chinese, Japanese and emoji take two for each character."""
    return sum(_columns_of(letter) for letter in text)


def _columns_of(letter: str) -> int:
    if unicodedata.combining(letter) or letter in "\u200d\ufe0f":
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def shortened(text: str, room: int) -> str:
    """Return a text cut to so many columns; the sequences of colours take none, and the last one is kept."""
    if columns(_SEQUENCE.sub("", text)) <= room:
        return text
    kept, used = [], 1  # for the ellipsis
    for part in _SEQUENCE_OR_LETTER.findall(text):
        width = 0 if part.startswith("\x1b") else columns(part)
        if used + width > room:
            break
        used += width
        kept.append(part)
    return "".join(kept) + "…" + ("\x1b[0m" if "\x1b" in text else "")


_SEQUENCE = re.compile("\x1b\\[[0-9;]*m")
_SEQUENCE_OR_LETTER = re.compile("\x1b\\[[0-9;]*m|.", re.DOTALL)


def bar(share: float) -> str:
    """Return a bar that is filled to a share from 0 to 1."""
    filled = int(max(0.0, min(1.0, share)) * _BAR)
    return "█" * filled + "░" * (_BAR - filled)


# ------------------------------------------------------------------------------------------------ progress


class Progress:
    """How far something has come that goes on byte by byte. Moments are in seconds, of any one clock.

    `total` is None where nobody knows it. What was there before `begin` bytes counts for the share, not for the rate.
    """

    def __init__(self, total: Optional[int], begin: int, now: float):
        self.total = total
        self.done = begin
        self._moments: Deque[Tuple[float, int]] = collections.deque([(now, begin)])

    def reach(self, done: int, now: float) -> None:
        """Note that so many bytes are done."""
        self.done = done
        self._moments.append((now, done))
        while len(self._moments) > 2 and self._moments[1][0] <= now - _RATE_SECONDS:
            self._moments.popleft()

    @property
    def share(self) -> Optional[float]:
        """What part is done, from 0 to 1."""
        return None if self.total is None else self.done / max(self.total, 1)

    def rate(self) -> float:
        """Return the bytes of a second, lately; 0 where nothing is known."""
        (first, before), (last, done) = self._moments[0], self._moments[-1]
        return max(0.0, (done - before) / (last - first)) if last > first else 0.0

    def sentence(self) -> str:
        """Return it in words: "1.1 of 2.5 GB, 45 %, 12.0 MB/s, 1 min 52 s left"."""
        parts = [size(self.done)]
        if self.total is not None:
            parts = ["%s of %s" % (size(self.done), size(self.total)), "%d %%" % int((self.share or 0) * 100)]
        rate = self.rate()
        if rate:
            parts.append("%s/s" % size(rate))
        if rate and self.total is not None:
            parts.append("%s left" % duration((self.total - self.done) / rate))
        return ", ".join(parts)


def size(count: float) -> str:
    """Return a number of bytes in words, by powers of ten as disks and networks are measured."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale * 0.9995:
            return "%.1f %s" % (count / scale, unit)
    return "%d bytes" % count


def duration(seconds: float) -> str:
    """Return a time in words, in one or two units."""
    whole = max(0, int(seconds + 0.5))
    if whole < 60:
        return "%d s" % whole
    if whole < 3600:
        return "%d min %d s" % divmod(whole, 60)
    return "%d h %d min" % (whole // 3600, whole % 3600 // 60)
