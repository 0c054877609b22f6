"""Calls whose arguments are no JSON object, read a character at a time, as the model writes them.

    Lead      reads what both begin with: up to the function's name
    Tagged    reads a call such as <function=name><parameter=a>1</parameter></function>
    Noted     reads a call in Gemma's notation: call:name{a:1,b:<|"|>text<|"|>}

Their attributes are those of Envelope in calls.py, and each raises ValueError at the first character that shows that it
is no call. White space between tags says nothing.
"""

import json
import re
from typing import Any, Callable, Collection, List, Mapping, NoReturn

from core.chat.syntaxes import Notation, Syntax, Tags

_NAME = re.compile(r"[a-zA-Z0-9_-]+")
_LONGEST = 1000  # characters of a tag, and of what stands in it
MOST_LEVELS = 100  # of values within values


def begun(marker: str, text: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a marker."""
    for size in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0


def as_json(text: str) -> str:
    """Return a value's text as JSON: as it is, where it is JSON, else as a string."""
    try:
        json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return text


def _no_number(name: str) -> NoReturn:
    raise ValueError("%s is no JSON" % name)


class Lead:
    """Reads a call up to its function's name, and what stands between the name and the arguments."""

    def __init__(self, names: Collection[str], syntax: Syntax):
        self.name = ""
        self.done = False
        self.ready = False
        self.arguments = ""  # what has come of them and was not taken yet
        self._names = names
        _, _, whole = (syntax.before + syntax.head).partition(syntax.opener)
        self._before, after = [part.strip() for part in whole.split("%(name)s")]
        self._after, self._numbered, self._rest = after.partition("%(number)s")
        self._held = ""
        self._state: Callable[[], bool] = self._lead

    def push(self, char: str) -> None:
        """Take a character. Raises ValueError where this is no call of a known function."""
        self._held += char
        while self._state():  # a state returns whether there may be more to do with what is held
            pass

    def _expect(self, text: str) -> bool:
        """Take a text from what is held, after white space; whether it is complete. Raises ValueError for another."""
        held = self._held.lstrip()
        if held.startswith(text):
            self._held = held[len(text) :]
            return True
        if not text.startswith(held):
            raise ValueError("not a call")
        return False

    def _lead(self) -> bool:
        if not self._expect(self._before):
            return False
        self._state = self._take_name
        return True

    def _take_name(self) -> bool:
        held = self._held.lstrip()
        found = _NAME.match(held)
        name = found.group() if found else ""
        if len(name) == len(held):
            if not any(each.startswith(name) for each in self._names):
                raise ValueError("not the beginning of a known function's name")
            return False
        if name not in self._names:
            raise ValueError("not a known function's name")
        self.name, self._held = name, held[len(name) :]
        self._state = self._follow_name
        return True

    def _follow_name(self) -> bool:
        if not self._expect(self._after):
            return False
        self._state = self._number if self._numbered else self._end_head
        return True

    def _number(self) -> bool:
        self._held = self._held.lstrip("0123456789")
        self._state = self._end_head if self._held else self._number
        return bool(self._held)

    def _end_head(self) -> bool:
        if not self._expect(self._rest):
            return False
        self._begin()
        return True

    def _begin(self) -> None:
        """The arguments begin here."""
        raise NotImplementedError


class Tagged(Lead):
    """Reads one call. `texts` says for each function which of its parameters are texts, and so stand as they are.

    Of the others each value is JSON, or a text where it is none. A line break that the tags have beside a value is not
    part of it.
    """

    def __init__(self, names: Collection[str], texts: Mapping[str, Collection[str]], syntax: Syntax, tags: Tags):
        super().__init__(names, syntax)
        self._texts = texts
        self._tags = tags
        self._key_opener, self._closer = tags.key.strip(), tags.close.strip()
        self._end = next(line for line in syntax.tail.split("\n") if line)
        # What stands before a value, and whether a text follows it, where the tags tell.
        self._marks = [(_solid(before), is_text) for before, is_text in tags.befores()]
        self._some = False  # an argument has been read
        self._fresh = False  # a text begins here

    def _begin(self) -> None:
        self.ready, self.arguments = True, "{"
        self._state = self._between

    def _between(self) -> bool:
        held = self._held.lstrip()
        if held.startswith(self._end):
            self.arguments += "}"
            self.done = True
            return False
        if held.startswith(self._key_opener):
            self._held = held[len(self._key_opener) :]
            self._state = self._key
            return True
        if not self._end.startswith(held) and not self._key_opener.startswith(held):
            raise ValueError("neither an argument nor the end")
        return False

    def _key(self) -> bool:
        solid = _solid(self._held)
        for mark, is_text in self._marks:
            if solid.endswith(mark):
                key = self._held.partition(mark[0])[0].strip()
                self._open(key, key in self._texts.get(self.name, ()) if is_text is None else is_text)
                return True
        if len(self._held) > _LONGEST:
            raise ValueError("too long for an argument's name")
        return False

    def _open(self, key: str, is_text: bool) -> None:
        self.arguments += (", " if self._some else "") + json.dumps(key, ensure_ascii=False) + ": "
        self.arguments += '"' if is_text else ""
        self._held, self._some, self._fresh = "", True, True
        self._state = self._text if is_text else self._json

    def _text(self) -> bool:
        """Within a text: show it as it comes, but what may belong to its end."""
        if self._fresh and self._held and self._tags.value.endswith("\n"):
            self._held = self._held[1:] if self._held[0] == "\n" else self._held
        self._fresh = self._fresh and not self._held
        trail = "\n" if self._tags.close.startswith("\n") else ""
        text, closer, rest = self._held.partition(self._closer)
        if closer:
            text = text[: len(text) - len(trail)] if trail and text.endswith(trail) else text
            self._show(text)
            self.arguments += '"'
            self._held = rest
            self._state = self._between
            return True
        kept = max(begun(self._closer, text), begun(trail + self._closer, text))
        self._show(text[: len(text) - kept])
        self._held = text[len(text) - kept :]
        return False

    def _show(self, text: str) -> None:
        self.arguments += json.dumps(text, ensure_ascii=False)[1:-1]

    def _json(self) -> bool:
        text, closer, rest = self._held.partition(self._closer)
        if not closer:
            return False
        self.arguments += as_json(text.strip())
        self._held = rest
        self._state = self._between
        return True


def _solid(text: str) -> str:
    """Return a text without its white space."""
    return re.sub(r"\s", "", text)


class Noted(Lead):
    """Reads one call in Gemma's notation; its arguments are shown when they are complete."""

    def __init__(self, names: Collection[str], syntax: Syntax, notation: Notation):
        super().__init__(names, syntax)
        self._quote = notation.quote
        self._text = ""
        self._depth = 0
        self._quoted = False

    def _begin(self) -> None:
        self._state = self._value

    def _value(self) -> bool:
        """Take characters up to the bracket that closes the arguments."""
        if not self._text and self._held and self._held[0] != "{":
            raise ValueError("the arguments are one object")
        while self._held and not self.done:
            if self._held.startswith(self._quote):
                self._quoted = not self._quoted
                self._take(len(self._quote))
            elif self._quote.startswith(self._held):
                return False  # it may be a quote
            else:
                if not self._quoted:
                    self._depth += (self._held[0] in "{[") - (self._held[0] in "}]")
                self._take(1)
                self.done = not self._depth
        if self.done:
            self.arguments = json.dumps(_Notes(self._text, self._quote).read(), ensure_ascii=False)
            self.ready = True
        return False

    def _take(self, size: int) -> None:
        self._text += self._held[:size]
        self._held = self._held[size:]


class Cursor:
    """A place in a text that is read from its beginning; white space says nothing."""

    def __init__(self, text: str):
        self._text = text
        self._at = 0

    def _took(self, text: str) -> bool:
        self._space()
        if not self._text.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def _space(self) -> None:
        while self._text[self._at : self._at + 1].isspace():
            self._at += 1


class _Notes(Cursor):
    """A value in Gemma's notation. read() raises ValueError where it is none."""

    def __init__(self, text: str, quote: str):
        super().__init__(text)
        self._quote = quote

    def read(self) -> Any:
        """Return the value."""
        value = self._value(0)
        if self._at < len(self._text):
            raise ValueError("more than one value")
        return value

    def _value(self, level: int) -> Any:
        if level > MOST_LEVELS:
            raise ValueError("too deep")
        if self._took(self._quote):
            return self._until(self._quote)
        if self._took("{"):
            return dict(self._items("}", lambda: (self._until(":").strip(), self._value(level + 1))))
        if self._took("["):
            return self._items("]", lambda: self._value(level + 1))
        found = _SCALAR.match(self._text, self._at)
        if not found:
            raise ValueError("not a value")
        self._at = found.end()
        return json.loads(as_json(found.group().strip()))

    def _items(self, end: str, read: Callable[[], Any]) -> Any:
        items: List[Any] = []
        while not self._took(end):
            if items and not self._took(","):
                raise ValueError("no comma")
            items.append(read())
        return items

    def _until(self, end: str) -> str:
        at = self._text.find(end, self._at)
        if at < 0:
            raise ValueError("no end")
        text, self._at = self._text[self._at : at], at + len(end)
        return text


_SCALAR = re.compile(r"[^,{}\[\]]+")
