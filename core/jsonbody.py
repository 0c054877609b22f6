"""Reading a body's JSON within bounds, which are checked before and while Python's own reader builds the values.

    bytes ── bounds by counting ── JSONDecoder ── bounds of each number ──> dict

json's decoder holds the GIL: a body of many small values would stall every stream. So their number is counted before,
by commas, colons and brackets. Where there are too many, they are counted again outside of strings, since a text that
holds many of them, such as a pasted table, is one value. Every step here is a few passes of C code over the bytes.
Source: RFC 8259; by its section 6, numbers are limited here to what a double can hold.
"""

import json
import math
import re
from typing import Any, Dict, NoReturn

from core.bounds import DEPTH, NUMBER, VALUES
from core.errors import APIError, json_type

_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(each for each in range(256) if each not in b"[]{}")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json(body: bytes) -> Dict[str, Any]:
    """Return a body as a JSON object. Raises APIError 400 for anything else, and what read_value() raises."""
    value = read_value(body)
    if not isinstance(value, dict):
        raise APIError(400, "The body must be a JSON object, not %s." % json_type(value), "invalid_json")
    return value


def read_value(body: bytes) -> Any:
    """Return a body's JSON value.

    Raises APIError 400 for what is none: for NaN, Infinity and numbers that no double holds, for half of a surrogate
    pair, and above the bounds of values, levels and digits (core/bounds.py).
    """
    _check_size(body)
    try:
        value = _DECODER.decode(body.decode("utf-8"))
        if _SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # refuses lone surrogates such as "\ud800"
    except UnicodeEncodeError:
        raise APIError(400, "The body holds half of a surrogate pair, which is no character.", "invalid_json")
    except (ValueError, RecursionError) as error:
        raise APIError(400, "The body is not valid JSON: %s" % error, "invalid_json")
    return value


# ------------------------------------------------------------------------------------------------- counting


def _check_size(body: bytes) -> None:
    """Refuse a body of too many values or levels, if it is JSON at all. Raises APIError 400."""
    if _values(body) > VALUES.most or _opened(body) > DEPTH.most:
        outside = _outside_strings(body)
        if _values(outside) > VALUES.most:
            raise _too_large(VALUES.most, VALUES.of)
        _check_depth(outside)


def _values(text: bytes) -> int:
    """Return how many values and names there are at most: each but the first stands after one of these."""
    return _opened(text) + text.count(b",") + text.count(b":")


def _opened(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{")


def _outside_strings(body: bytes) -> bytes:
    """Return a body without its strings' contents. Raises APIError 400 for too many strings."""
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # pairs first: one that is left escapes what follows
    if plain.count(b'"') > 2 * VALUES.most:
        raise _too_large(VALUES.most, VALUES.of)
    return b"".join(plain.split(b'"')[::2])


def _check_depth(outside: bytes) -> None:
    """Refuse too many levels: each pass takes the innermost pairs of brackets away. Raises APIError 400."""
    brackets = outside.translate(_BRACKETS, _NO_BRACKETS)
    for _ in range(DEPTH.most):
        rest = brackets.replace(b"[]", b"")
        if len(rest) == len(brackets):
            return  # all pairs are gone; brackets that are left can't be JSON
        brackets = rest
    if brackets:
        raise _too_large(DEPTH.most, DEPTH.of)


def _too_large(most: int, of: str) -> APIError:
    return APIError(400, "The body may hold at most %d %s." % (most, of), "too_large")


# -------------------------------------------------------------------------------------------------- numbers


def _whole(text: str) -> int:
    _check_number(text)
    return int(text)


def _fraction(text: str) -> float:
    _check_number(text)
    return float(text)


def _check_number(text: str) -> None:
    """Refuse a number that no double holds, and one that takes long to read. Raises APIError 400."""
    if len(text) > NUMBER.most:
        raise _too_large(NUMBER.most, NUMBER.of)
    if math.isinf(float(text)):
        message = "The body holds the number %s, which is too large for any field." % _brief(text)
        raise APIError(400, message, "invalid_json")


def _brief(text: str) -> str:
    return text if len(text) <= 24 else text[:20] + "…"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError("%s is not allowed" % name)


_DECODER = json.JSONDecoder(parse_int=_whole, parse_float=_fraction, parse_constant=_refuse_constant)
