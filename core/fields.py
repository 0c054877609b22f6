"""Reading a JSON request's fields: each with its type, its bounds and its default.

A field that is missing or null has its default. A wrong one raises APIError 400 that names it in `param`, as the OpenAI
API does. Fields that nobody reads are ignored.
"""

import contextlib
import sys
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, overload

from core.bounds import STOP_LENGTH, STOPS, Bound
from core.errors import APIError, json_type

_MISSING = object()
Body = Dict[str, Any]


def text(body: Body, name: str, default: Any = _MISSING) -> Any:
    """Return a text that is not empty. Raises APIError 400."""
    value = _get(body, name, default)
    if value is default:
        return value
    if not isinstance(value, str):
        raise _wrong(name, "must be a string, not %s" % json_type(value))
    if not value:
        raise _wrong(name, "must not be empty")
    return value


def any_text(body: Body, name: str) -> str:
    """Return a text, which may be empty; a missing one is empty, too. Raises APIError 400 for another type."""
    return text(body, name, "") if body.get(name) != "" else ""


@overload
def integer(body: Body, name: str, default: int, low: int, high: int) -> int: ...


@overload
def integer(body: Body, name: str, default: None, low: int, high: int) -> Optional[int]: ...


def integer(body: Body, name: str, default: Optional[int], low: int, high: int) -> Optional[int]:
    """Return a whole number from `low` to `high`; 3.0 counts as one. Raises APIError 400."""
    value = _get(body, name, default)
    if value is default:
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(name, "must be a whole number, not %s" % (value if isinstance(value, float) else json_type(value)))
    if not low <= value <= high:
        raise _wrong(name, "must be from %d to %d, not %s" % (low, high, _brief(value)))
    return value


def number(body: Body, name: str, default: Optional[float], low: float, high: float) -> Optional[float]:
    """Return a number from `low` to `high`. Raises APIError 400."""
    value = _get(body, name, default)
    if value is default:
        return value
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise _wrong(name, "must be a number, not %s" % json_type(value))
    if not low <= value <= high or not abs(value) <= sys.float_info.max:
        raise _wrong(name, "must be from %g to %g, not %s" % (low, high, _brief(value)))
    return float(value)


def flag(body: Body, name: str, default: bool) -> bool:
    """Return true or false. Raises APIError 400."""
    value = _get(body, name, default)
    if not isinstance(value, bool):
        raise _wrong(name, "must be true or false, not %s" % json_type(value))
    return value


def texts(body: Body, name: str, most: Bound = STOPS, longest: Bound = STOP_LENGTH) -> List[str]:
    """Return a list of texts, given as one or as an array, within bounds. Raises APIError 400."""
    value = _get(body, name, [])
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise _wrong(name, "must be a string or an array of strings, none of them empty")
    most.check(len(value), name)
    longest.check(max(map(len, value), default=0), name)
    return value


def mapping(body: Body, name: str) -> Optional[Body]:
    """Return an object, or None where there is none. Raises APIError 400."""
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        raise _wrong(name, "must be an object, not %s" % json_type(value))
    return value


@contextlib.contextmanager
def named(own: Callable[[str], str]) -> Iterator[None]:
    """Make errors about a translated body name the fields that the client sent: `own` translates a path back."""
    try:
        yield
    except APIError as error:
        if error.param is None:
            raise
        path = own(error.param)
        if path == error.param:
            raise
        message = error.message.replace(error.param, path)
        raise APIError(error.status, message, error.code, path, error.type, error.headers, error.more)


def own_path(paths: Mapping[str, str], path: str) -> str:
    """Return a path with its beginning replaced, the longest one of whole names that `paths` knows."""
    end = len(path)
    while end > 0 and path[:end] not in paths:
        end = max(path.rfind(".", 0, end), path.rfind("[", 0, end))
    return paths[path[:end]] + path[end:] if end > 0 else path


def _get(body: Body, name: str, default: Any) -> Any:
    value = body.get(name)
    if value is not None:
        return value
    if default is _MISSING:
        raise APIError(400, "The field '%s' is missing." % name, "missing_field", name)
    return default


def _wrong(name: str, what: str) -> APIError:
    return APIError(400, "'%s' %s." % (name, what), "invalid_value", name)


def _brief(value: Any) -> str:
    digits = str(value) if not isinstance(value, int) or value.bit_length() < 256 else "a larger number"
    return digits[:40]
