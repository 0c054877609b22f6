"""Reads calls whose arguments are in Python's notation, a character at a time: name(a="text", b=3, c=[True, None]).

    Keyworded     one call, with the attributes of Envelope in calls.py
    read_values   keyword arguments as an object

Models mix JSON's words into it, and write line breaks in texts: all of that is taken. Source: LFM2's templates, and the
Python language reference for string literals.
"""

import json
import math
import re
from typing import Any, Callable, Collection, Dict, List

from core.chat.syntaxes import Syntax
from core.chat.tagged import MOST_LEVELS, Cursor, Lead

_KEY = re.compile(r"\s*([^\s=(){}\[\],'\"]+)\s*=")
_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_LONGEST_NUMBER = 300  # characters
_WORDS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
_WORD = re.compile(r"(?:%s)(?!\w)" % "|".join(_WORDS))
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.DOTALL)
_PLAIN = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "/": "/", "\n": ""}


class Keyworded(Lead):
    """Reads one call. Its arguments are shown when they are complete."""

    def __init__(self, names: Collection[str], syntax: Syntax):
        super().__init__(names, syntax)
        self._text = ""
        self._depth = 1
        self._quote = ""  # that ends the text in which it stands
        self._escaped = False

    def _lead(self) -> bool:
        """Calls stand in an array: a bracket or a comma comes before each."""
        held = self._held.lstrip()
        if not held:
            return False
        self._held = held[1:] if held[0] in "[," else held
        self._state = self._take_name
        return bool(self._held)

    def _begin(self) -> None:
        self._state = self._value

    def _value(self) -> bool:
        """Take characters up to the bracket that closes the arguments."""
        while self._held and not self.done:
            char, self._held = self._held[0], self._held[1:]
            if self._quote:
                self._within_text(char)
            elif char in "\"'":
                self._quote = char
            else:
                self._depth += (char in "([{") - (char in ")]}")
                self.done = not self._depth
            self._text += "" if self.done else char
        if self.done:
            self.arguments = json.dumps(read_values(self._text), ensure_ascii=False)
            self.ready = True
        return False

    def _within_text(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == self._quote:
            self._quote = ""


def read_values(text: str) -> Dict[str, Any]:
    """Return keyword arguments as an object. Raises ValueError where they are none."""
    return _Values(text).read()


class _Values(Cursor):
    """Keyword arguments on their way."""

    def read(self) -> Dict[str, Any]:
        """Return all of them."""
        return dict(self._items("", lambda: (self._key(), self._value(0))))

    def _key(self) -> str:
        found = _KEY.match(self._text, self._at)
        if not found:
            raise ValueError("no argument's name")
        self._at = found.end()
        return found.group(1)

    def _value(self, level: int) -> Any:
        if level > MOST_LEVELS:
            raise ValueError("too deep")
        self._space()
        if self._next() in ('"', "'"):
            return self._string()
        for opener, closer in (("[", "]"), ("(", ")")):
            if self._took(opener):
                return self._items(closer, lambda: self._value(level + 1))
        if self._took("{"):
            return dict(self._items("}", lambda: self._member(level + 1)))
        return self._scalar()

    def _member(self, level: int) -> Any:
        self._space()
        key = self._string()
        if not self._took(":"):
            raise ValueError("no colon")
        return key, self._value(level)

    def _items(self, end: str, read: Callable[[], Any]) -> List[Any]:
        """Read values with commas between, up to an end; "" means that of the text."""
        items: List[Any] = []
        while not self._ended(end):
            if items and not self._took(","):
                raise ValueError("no comma")
            if items and self._ended(end):  # Python takes a comma after the last one
                break
            items.append(read())
        return items

    def _ended(self, end: str) -> bool:
        if end:
            return self._took(end)
        self._space()
        return self._at == len(self._text)

    def _string(self) -> str:
        quote = self._next()
        found = re.compile(r"(?:[^\\%s]|\\.)*" % quote, re.DOTALL).match(self._text, self._at + 1)
        if quote not in ('"', "'") or not found or self._text[found.end() : found.end() + 1] != quote:
            raise ValueError("no string")
        self._at = found.end() + 1
        text = _ESCAPE.sub(_unescaped, found.group())
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # JSON's escapes come in pairs

    def _scalar(self) -> Any:
        word, number = (pattern.match(self._text, self._at) for pattern in (_WORD, _NUMBER))
        found = word or number
        if not found:
            raise ValueError("not a value")
        self._at = found.end()
        return _WORDS[word.group()] if word else _number(found.group())

    def _next(self) -> str:
        return self._text[self._at : self._at + 1] or "\0"


def _number(text: str) -> Any:
    """Return a number. Raises ValueError for one that JSON can't have."""
    value = float(text) if set(text) & set(".eE") else int(text) if len(text) <= _LONGEST_NUMBER else math.inf
    if value in (math.inf, -math.inf):
        raise ValueError("JSON has no such number")
    return value


def _unescaped(escape: Any) -> str:
    """Return what an escape in a string stands for; Python leaves unknown ones as they are."""
    text = escape.group(1)
    if text[0] in "ux" and len(text) > 1:
        return chr(int(text[1:], 16))
    if text in "\\'\"":
        return str(text)
    return _PLAIN.get(text, "\\" + text)
