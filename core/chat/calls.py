"""Tool calls read a character at a time, as the model writes them.

    JsonObject    reads one JSON object
    Envelope      reads a call as {"name": ..., "arguments": {...}}
    Headed        reads a call as a name, then {...}

Each raises ValueError at the first character that shows that it is something else. tagged.py and notation.py read
arguments in other forms. Source: RFC 8259 for JSON.
"""

import json
import re
from typing import Callable, Collection, List, Optional

_SPACE = " \t\n\r"
_SCALAR = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?|true|false|null")
_SCALAR_CHARS = frozenset("-+.0123456789eEtrufalsn")


class JsonObject:
    """Reads one JSON object, a character at a time (RFC 8259): a pushdown automaton whose states are its methods.

    `member` names the outermost member whose value the last character belongs to; it is None between values. JSON
    forbids control characters in strings, but models write them (mostly line breaks): each is taken as its escape.
    """

    def __init__(self) -> None:
        self.done = False
        self.member: Optional[str] = None
        self._key = ""  # the outermost member's name: what was read of it, still escaped
        self._in_key = False
        self._due: List[str] = []  # the brackets that must close
        self._scalar_text = ""
        self._digits = 0  # of a \u escape, still to come
        self._state: Callable[[str], Optional[str]] = self._start

    def push(self, char: str) -> str:
        """Take a character and return it as JSON has it. Raises ValueError where no object goes on like this."""
        return self._state(char) or char

    def _start(self, char: str) -> None:
        if char in _SPACE:
            return
        if char != "{":
            raise ValueError("not an object")
        self._open(char)

    def _open(self, char: str) -> None:
        self._due.append("}" if char == "{" else "]")
        self._state = self._first_key if char == "{" else self._first_item

    def _close(self, char: str) -> None:
        if char != self._due.pop():
            raise ValueError("the wrong bracket")
        self.done = not self._due
        self._state = self._next

    def _first_key(self, char: str) -> None:
        if char == "}":
            self._close(char)
        else:
            self._before_key(char)

    def _before_key(self, char: str) -> None:
        if char in _SPACE:
            return
        if char != '"':
            raise ValueError("not a key")
        self._in_key = True
        if len(self._due) == 1:
            self._key = ""
        self._state = self._string

    def _colon(self, char: str) -> None:
        if char in _SPACE:
            return
        if char != ":":
            raise ValueError("no colon")
        self._state = self._value

    def _first_item(self, char: str) -> None:
        if char == "]":
            self._close(char)
        else:
            self._value(char)

    def _value(self, char: str) -> None:
        if char in _SPACE:
            return
        if len(self._due) == 1:
            self.member = json.loads('"%s"' % self._key)
        if char in "{[":
            self._open(char)
        elif char == '"':
            self._state = self._string
        elif char in _SCALAR_CHARS:
            self._scalar_text = char
            self._state = self._scalar
        else:
            raise ValueError("not a value")

    def _string(self, char: str) -> Optional[str]:
        if char == '"':
            self._state = self._colon if self._in_key else self._next
            self._in_key = False
            return None
        shown = json.dumps(char)[1:-1] if char < " " else char
        self._note_key(shown)
        if char == "\\":
            self._state = self._escape
        return shown

    def _escape(self, char: str) -> None:
        if char not in '"\\/bfnrtu':
            raise ValueError("not an escape")
        self._note_key(char)
        self._digits = 4
        self._state = self._hex if char == "u" else self._string

    def _hex(self, char: str) -> None:
        if char not in "0123456789abcdefABCDEF":
            raise ValueError("not a hexadecimal digit")
        self._note_key(char)
        self._digits -= 1
        if not self._digits:
            self._state = self._string

    def _note_key(self, text: str) -> None:
        if self._in_key and len(self._due) == 1:
            self._key += text

    def _scalar(self, char: str) -> None:
        if char in _SCALAR_CHARS:
            self._scalar_text += char
            return
        if not _SCALAR.fullmatch(self._scalar_text):
            raise ValueError("neither a number nor true, false or null")
        self._next(char)

    def _next(self, char: str) -> None:
        """After a value: a comma, or the bracket that is due."""
        if len(self._due) == 1:
            self.member = None
        self._state = self._next
        if char in _SPACE:
            return
        if char != ",":
            self._close(char)
        else:
            self._state = self._before_key if self._due[-1] == "}" else self._value


class Envelope:
    """Reads a call as {"name": ..., "arguments": {...}}; Llama's word for the arguments is "parameters", and Command's
    for the name "tool_name".

    `name` is set once it is certain. `ready` is set once the arguments have begun as well: from then on it is a call.
    `done` says that it has ended. With `strict`, the first member must be the name or the type, and no unknown one may
    come before it is ready, so that an answer that is just JSON is soon known to be content.
    """

    _NAMES = ("name", "tool_name")
    _ARGUMENTS = ("arguments", "parameters")
    _MEMBERS = _NAMES + ("type", "id") + _ARGUMENTS
    FIRST = ("name", "type")  # what an object begins with that may be a call without any opener

    def __init__(self, names: Collection[str], strict: bool):
        self.name = ""
        self.done = False
        self.arguments = ""  # what has come of them and was not taken yet
        self._begun = False
        self._names = names
        self._strict = strict
        self._first = True
        self._object = JsonObject()
        self._name_text = ""

    @property
    def ready(self) -> bool:
        """Whether it is certain that this is a call."""
        return bool(self.name) and self._begun

    def push(self, char: str) -> None:
        """Take a character. Raises ValueError where this is no call of a known function."""
        before = self._object.member
        shown = self._object.push(char)
        member = self._object.member
        if before in self._NAMES and member is None:
            self._end_name()
        if before is None and member is not None:
            self._begin(member, char)
        if member in self._NAMES:
            self._name_text += shown
        elif member in self._ARGUMENTS:
            self.arguments += shown
        if self._object.done:
            self._end()

    def _begin(self, member: str, char: str) -> None:
        """A member's value begins with this character."""
        expected = self.FIRST if self._first else self._MEMBERS
        if self._strict and not self.ready and member not in expected:
            raise ValueError("not a call's member")
        self._first = False
        if member in self._NAMES and (self.name or char != '"'):
            raise ValueError("the name is one string")
        if member in self._ARGUMENTS:
            if self._begun or char != "{":
                raise ValueError("the arguments are one object")
            self._begun = True

    def _end_name(self) -> None:
        name = json.loads(self._name_text)
        if name not in self._names:
            raise ValueError("not a known function's name")
        self.name = name

    def _end(self) -> None:
        if not self.name:
            raise ValueError("no name")
        if not self._begun:  # models leave out the arguments of a function that has none
            self._begun, self.arguments = True, "{}"
        self.done = True


class Headed:
    """Reads a call as a head with the function's name, then its arguments, a JSON object. Attributes as Envelope's."""

    _LONGEST = 300  # characters of a head

    def __init__(self, names: Collection[str], named: str, head_end: str):
        """`named` is a regular expression for a head before its end, whose first group is the name."""
        self.name = ""
        self.done = False
        self.arguments = ""
        self.ready = False
        self._names = names
        self._pattern = re.compile(named, re.DOTALL)
        self._head_end = head_end
        self._head = ""
        self._object = JsonObject()

    def push(self, char: str) -> None:
        """Take a character. Raises ValueError where this is no call of a known function."""
        if not self.name:
            self._push_head(char)
            return
        shown = self._object.push(char)
        if self.ready or char not in _SPACE:
            self.ready = True
            self.arguments += shown
        self.done = self._object.done

    def _push_head(self, char: str) -> None:
        self._head += char
        if len(self._head) > self._LONGEST:
            raise ValueError("too long for a head")
        if self._head.endswith(self._head_end):
            found = self._pattern.fullmatch(self._head[: -len(self._head_end)])
            if not found or found.group(1) not in self._names:
                raise ValueError("not a known function's name")
            self.name = found.group(1)
