"""The header lines of an HTTP message, read once for the server and for the client (RFC 9110, section 5).

    parse_headers(lines)    the headers as they were sent, and by name, with repeated ones joined
    tokens(value)           a header's list, such as Connection's
    whole_number(value)     what Content-Length holds
    remembered(function)    a pure function that remembers its results for short texts

Both sides refuse the same lines, by raising Malformed. Each answers in its own way: the server with 400 or 431
(requesthead.py), the client with Broken (answers.py). Texts are decoded as Latin-1, so that every byte is a character.
"""

import functools
import re
from typing import Callable, Dict, FrozenSet, List, Optional, Sequence, Tuple, TypeVar

from core.errors import shown

T = TypeVar("T")
MAX_HEADERS = 100  # as many as Python's own client and server take
TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
Header = Tuple[str, str]  # a name and a value, as they were sent
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # all but the tab (RFC 9110, section 5.5)
_WHOLE = re.compile(r"[0-9]{1,18}")  # fits into 64 bits, and takes no time to read
_REMEMBERED, _SHORT = 1024, 256  # texts, and the characters of each, so that memory is bounded


class Malformed(Exception):
    """A header line that no HTTP message may hold. The message says why; `line` is the line."""

    def __init__(self, message: str, line: str = ""):
        super().__init__(message)
        self.line = line


class TooManyHeaders(Malformed):
    """More than MAX_HEADERS header lines."""


def remembered(function: Callable[[str], T]) -> Callable[[str], T]:
    """Make a pure function remember its results for the short texts that it was called with last.

    A kept-alive connection brings the same lines with each message. What the function raises is not remembered.
    """
    known = functools.lru_cache(_REMEMBERED)(function)

    @functools.wraps(function)
    def call(text: str) -> T:
        return known(text) if len(text) <= _SHORT else function(text)

    return call


def parse_headers(lines: Sequence[str], single: FrozenSet[str] = frozenset()) -> Tuple[List[Header], Dict[str, str]]:
    """Return the headers as they were sent, and their values by lower-case name.

    The values of a repeated header are joined by ', ' (RFC 9110, section 5.2). Those that `single` names may not be
    repeated. Raises Malformed, TooManyHeaders.
    """
    if len(lines) > MAX_HEADERS:
        raise TooManyHeaders("More than %d headers." % MAX_HEADERS)
    sent: List[Header] = []
    by_name: Dict[str, str] = {}
    for line in lines:
        header, name = _header(line)
        sent.append(header)
        if name not in by_name:
            by_name[name] = header[1]
        elif name in single:
            raise Malformed("The header %s may be sent only once." % name, line)
        else:
            by_name[name] += ", " + header[1]
    return sent, by_name


@remembered
def _header(line: str) -> Tuple[Header, str]:
    """Return a line's header, and its name in lower case. Raises Malformed."""
    name, colon, value = line.partition(":")
    value = value.strip(" \t")
    if not colon or not TOKEN.fullmatch(name):
        raise Malformed("A header line is not 'Name: value'.", line)
    if _CONTROL.search(value):
        raise Malformed("The header %s holds a control character." % shown(name.lower()), line)
    return (name, value), name.lower()


@remembered
def tokens(value: str) -> FrozenSet[str]:
    """Return what a header's list holds, in lower case."""
    return frozenset(token.strip().lower() for token in value.split(","))


def whole_number(value: str) -> Optional[int]:
    """Return a header's whole number of at most 18 digits; None for anything else."""
    return int(value) if _WHOLE.fullmatch(value) else None
