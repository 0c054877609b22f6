"""Special tokens in a client's text are plain text: only the chat template's own ones mark roles and turns.

    a client's strings ── broken ──> the template ── a prompt's text ── split ──> (text, Plain text, text, ...)

First, special tokens in a client's strings are broken: after its first character each gets MARK, a character that no
text holds. All other text stays as it is, so templates that look for it find it. Special tokens that are whole in what
the template writes are then the template's own. Text between two of them is made plain if a broken one is in it:
llama.cpp then reads no special token from it (core/ask.py, Plain).

Second, a template may delete or replace text, and so put a special token together from a client's pieces. If a client's
text holds a character that any special token begins or ends with, the template renders once more, with MARK around each
such character. A special token that was made of a client's characters is not there this time: then it was forged, and
the request is refused. (A template that writes a token's first and last character itself, around a client's text, is
not noticed; none is known.)
"""

import functools
import re
from typing import Any, Callable, Dict, Iterator, List, Match, Sequence, Tuple

from core.ask import Part, Plain, Prompt
from core.errors import APIError

MARK = "\ufdd0"  # a noncharacter (Unicode 23.7): for internal use, never for interchange
_ESCAPED = "\\ufdd0"  # as a template may write it, in JSON for ASCII
_NOTHING = "(?!)"  # a regular expression that matches nowhere
_CHUNK = 1 << 16  # characters in one search, during which other threads wait
Change = Callable[[str], str]


class Markers:
    """One vocabulary's special tokens, by their texts.

    `controls` are those that llama.cpp reads from a text only where it is told to; `stubborn` those that it reads from
    any text, so that plain text must be cut within them.
    """

    def __init__(self, controls: Sequence[str], stubborn: Sequence[str] = ()):
        texts = [text for text in (*controls, *stubborn) if len(text) > 1]
        self._ends = sorted({char for text in texts for char in (text[0], text[-1])})
        self._firsts = sorted({text[0] for text in texts})
        self._longest = max(map(len, texts), default=0)
        self._pattern = re.compile(_any_of(texts) if texts else _NOTHING)
        self._stubborn = frozenset(stubborn)

    def prompt(self, render: Callable[[Change], str]) -> Prompt:
        """Return the prompt that a template makes; `render` renders it, every client's string changed by a function.

        Raises APIError 400 where the template makes special tokens of the client's text.
        """
        suspects: List[str] = []

        def broken(text: str) -> str:
            text = text.replace(MARK, "\ufffd") if MARK in text else text
            if any(char in text for char in self._ends):
                suspects.append(text)
                text = self._broken(text)
            return text

        rendered = render(broken)
        if not suspects:
            return rendered
        if self._count(rendered) > self._count(render(self._guarded)):
            message = "The chat template makes special tokens out of the messages' text."
            raise APIError(400, message, "template_error", "messages")
        return self._split(rendered)

    # ---- a client's strings

    def _broken(self, text: str) -> str:
        pieces, start = [], 0
        for match in self._found(text):
            pieces += [text[start : match.start() + 1], MARK]
            start = match.start() + 1
        return "".join(pieces) + text[start:]

    def _guarded(self, text: str) -> str:
        text = text.replace(MARK, "\ufffd")
        for char in self._ends:
            text = text.replace(char, MARK + char + MARK)
        return text

    # ---- a prompt's text

    def _found(self, text: str) -> Iterator[Match[str]]:
        """Yield the special tokens in a text, from left to right."""
        start = 0
        while start < len(text):
            end = min(start + _CHUNK, len(text))
            match = self._pattern.search(text, start, end + self._longest - 1)
            start = match.end() if match else end
            if match:
                yield match

    def _count(self, text: str) -> int:
        return sum(1 for _ in self._found(text))

    def _split(self, text: str) -> Prompt:
        """Return a prompt whose parts with broken special tokens are plain."""
        parts: List[Part] = []
        solid = start = 0  # where the text begins that is not in parts yet, and what follows the last special token
        for end, following in [match.span() for match in self._found(text)] + [(len(text), len(text))]:
            between = text[start:end]
            clean = self._clean(between)
            if clean != between:
                parts += [text[solid:start]] + self._plain(clean)
                solid = end
            start = following
        parts.append(text[solid:])
        return text if len(parts) == 1 else tuple(part for part in parts if part)

    def _clean(self, text: str) -> str:
        text = text.replace(MARK, "")
        for char in self._firsts if _ESCAPED in text else ():
            text = text.replace(char + _ESCAPED, char)
        return text

    def _plain(self, text: str) -> List[Part]:
        """Return plain parts, cut within what llama.cpp would read from plain text, too."""
        ends = [match.start() + 1 for match in self._found(text) if match.group() in self._stubborn]
        return [Plain(text[start:end]) for start, end in zip([0] + ends, ends + [len(text)])]


@functools.lru_cache(maxsize=8)
def markers_of(controls: Tuple[str, ...], stubborn: Tuple[str, ...]) -> Markers:
    """Return the markers of a vocabulary, made once."""
    return Markers(controls, stubborn)


def text_of(prompt: Prompt) -> str:
    """Return a prompt without token ids as one text."""
    parts = (prompt,) if isinstance(prompt, str) else prompt
    return "".join(part.text if isinstance(part, Plain) else str(part) for part in parts)


def change_all(value: Any, change: Change) -> Any:
    """Return a JSON value with each text in it changed, names of members included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): change_all(each, change) for key, each in value.items()}
    return [change_all(each, change) for each in value] if isinstance(value, list) else value


def _any_of(texts: Sequence[str]) -> str:
    """Return a regular expression that matches the longest of some texts: a tree, which fails at the first misfit."""
    tree: Dict[str, Any] = {}
    for text in texts:
        node = tree
        for char in text:
            node = node.setdefault(char, {})
        node[""] = {}
    return _branches(tree)


def _branches(tree: Dict[str, Any]) -> str:
    written = [re.escape(char) + _branches(below) for char, below in sorted(tree.items()) if char]
    if not written:
        return ""
    return "(?:%s)%s" % ("|".join(written), "?" if "" in tree else "")
