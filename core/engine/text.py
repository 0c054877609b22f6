"""From tokens' bytes to text that may be shown: whole characters only, and never a part of a stop string."""

import codecs
from typing import Sequence, Tuple


class TextOut:
    """Turns one sequence's token pieces into text, holding back what is not certain yet.

    Two things are held back: the first bytes of a character whose rest has not come (a token may end in the middle of
    one), and an end of the text that may be the beginning of a stop string (one may be spread over several tokens).
    """

    def __init__(self, stops: Sequence[str] = ()):
        self.stop_word = ""  # the stop string that has come; nothing more will
        self.has_line_break = False  # whether one has come
        self._stops = [stop for stop in stops if stop]
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._held = ""

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return bool(self.stop_word)

    def push(self, piece: bytes) -> str:
        """Take a token's bytes and return the text that has become certain."""
        self.has_line_break = self.has_line_break or b"\n" in piece
        return self._release(self._decode(piece))

    def finish(self) -> str:
        """Return what was held back, now that nothing more comes."""
        text = self._release(self._decode(b"", True))
        text, self._held = text + self._held, ""
        return text

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        at, self.stop_word = self._first_stop(text)
        keep = 0 if self.stopped else self._possible_stop(text)
        text = text[:at]
        self._held = text[len(text) - keep :] if keep else ""
        return text[: len(text) - keep]

    def _first_stop(self, text: str) -> Tuple[int, str]:
        """Return where the stop string begins that is complete first (else the text's length), and which it is."""
        places = [(text.find(stop), stop) for stop in self._stops]
        found = [(at + len(stop), at, stop) for at, stop in places if at >= 0]
        return min(found)[1:] if found else (len(text), "")

    def _possible_stop(self, text: str) -> int:
        """Return how many characters at the end may be the beginning of a stop string."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:size]):
                    longest = size
                    break
        return longest
