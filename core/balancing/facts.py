"""What a server says of itself in JSON: the part that is taken over, checked.

    read_facts       its JSON object, whatever is in it
    good_name        a name that can be written into JSON, a header and metrics; else None
    read_models      the models of a list, each with its "name"
    slots_of         a number of slots that a server can have; else None
    life_of          what changes when the server starts again; else None
    reason           why it is not well, in one short line
    is_wedged        whether it says that its engine has stopped
    figures_of       what it counts: tokens, memory

A server may say anything: a name of a megabyte, "\\ud800", 1e999, a list of 900 levels. What is kept here can be
written into any answer of ours; what could not is left out.
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Union

MOST_MODELS = 1000
_MOST_COUNT = 1 << 53  # what JavaScript, too, can tell from the next number
MOST_NAME = 1024  # characters; some servers name a model by its file's path
MOST_SLOTS = 100_000
_MOST_TEXT = 4096
_MOST_DEPTH = 6
_MOST_FIELDS = 100  # of an object or a list inside a model's entry
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def read_facts(body: bytes) -> Dict[str, Any]:
    """Return the JSON object that a server has sent, or an empty one; never raises.

    More is taken than from a client (core/jsonbody.py), since one strange field must not hide the others.
    """
    try:
        value = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError, MemoryError):  # a number of 5,000 digits is a ValueError, too
        return {}
    return value if isinstance(value, dict) else {}


def good_name(value: Any) -> Optional[str]:
    """Return a name as it is; None for what is no text, empty, too long, or has unprintable characters."""
    fits = isinstance(value, str) and 0 < len(value) <= MOST_NAME and not _CONTROL.search(value)
    return value if fits else None


def read_models(body: Dict[str, Any]) -> Optional[List[Dict[str, Any]]]:
    """Return the models of {"models": [{"name"}]} or OpenAI's {"data": [{"id"}]}, each with a "name"; else None.

    Where both are there, the list counts that says which models are loaded: our backends' `data` tells less. Those
    without a good name, and those after the first 1,000, are left out.
    """
    lists = [("data", "id"), ("models", "name")]
    for field, key in reversed(lists) if _tells_what_is_loaded(body.get("models")) else lists:
        models = body.get(field)
        if isinstance(models, list):
            named = [each for each in models if isinstance(each, dict) and good_name(each.get(key))]
            return [dict(_kept(each, _MOST_DEPTH), name=each[key]) for each in named[:MOST_MODELS]]
    return None


def _tells_what_is_loaded(models: Any) -> bool:
    return isinstance(models, list) and any(isinstance(each, dict) and "loaded" in each for each in models)


def slots_of(value: Any) -> Optional[int]:
    """Return a number of slots, from 1 to 100,000; None for anything else, true and 1e999 among them."""
    return value if type(value) is int and 1 <= value <= MOST_SLOTS else None


def life_of(value: Any) -> Any:
    """Return a process' number or name as it is; None for anything else."""
    return value if isinstance(value, int) else good_name(value)


def reason(status: int, facts: Dict[str, Any]) -> str:
    """Return what a /health answer says is wrong."""
    error = facts.get("error")
    for text in (error.get("message") if isinstance(error, dict) else None, facts.get("status")):
        if text and isinstance(text, str):
            return _CONTROL.sub(" ", text[:200])
    return "status %d" % status


def is_wedged(facts: Dict[str, Any]) -> bool:
    """Whether a backend of ours says that its engine has stopped, so that requests there get no answer."""
    error = facts.get("error")
    return "wedged" in (facts.get("status"), error.get("code") if isinstance(error, dict) else None)


@dataclass(frozen=True)
class Figures:
    """What a backend tells of its work, None where it does not: tokens since its start, megabytes, and a share."""

    prompt_tokens: Optional[int] = None  # evaluated
    cached_tokens: Optional[int] = None  # of prompts, not evaluated again
    generated_tokens: Optional[int] = None
    memory_mb: Optional[float] = None
    load_progress: Optional[float] = None  # of the model that is being loaded, 0 to 1


def figures_of(facts: Dict[str, Any]) -> Figures:
    """Return the figures in a /health answer."""
    return Figures(
        _count(facts.get("prompt_tokens")),
        _count(facts.get("cached_tokens")),
        _count(facts.get("generated_tokens")),
        _number(facts.get("memory_mb")),
        _number(facts.get("load_progress")),
    )


def _number(value: Any) -> Union[int, float, None]:
    """Return a number from 0 to 2^53; None for anything else, true and 1e999 among them."""
    return value if type(value) in (int, float) and 0 <= value <= _MOST_COUNT else None


def _count(value: Any) -> Optional[int]:
    number = _number(value)
    return number if isinstance(number, int) else None


def _kept(value: Any, depth: int) -> Any:
    """Return a JSON value that can be written again: at most `depth` levels, no half characters, no infinity."""
    if isinstance(value, str):
        return value[:_MOST_TEXT].encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 63 else None
    if not depth or value is None:
        return None
    if isinstance(value, dict):
        return {_kept(key, 1): _kept(each, depth - 1) for key, each in list(value.items())[:_MOST_FIELDS]}
    return [_kept(each, depth - 1) for each in value[:_MOST_FIELDS]]
