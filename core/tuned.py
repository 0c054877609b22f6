"""What `comeapi.py tune` has found out about a model on this machine: a small JSON file beside the model.

    save(model, version, choices) ──> MODEL.tune.json ──> read(model, version, named) ──> settings

It says for which machine, model file and llama-cpp-python it is; where one of them has changed, it counts for nothing.
What the user asks for wins over it.
"""

import json
import os
from typing import AbstractSet, Any, Dict, Tuple

from core import hardware
from core.models import ModelFile

TUNABLE = {
    "prompt_weights": str, "safe_mode": bool, "flash_attn": str, "cache_type_k": str, "cache_type_v": str,
    "backends": int, "slots": int,
}  # fmt: skip
_TOGETHER = ({"backends", "slots"}, {"cache_type_k", "cache_type_v"})  # who names one of them, wants no choice of both


def path_of(model: ModelFile) -> str:
    """Return the path of a model's file."""
    return os.path.splitext(model.path)[0] + ".tune.json"


def save(model: ModelFile, version: str, choices: Dict[str, Any], figures: Any) -> str:
    """Write a model's choices, and the figures that they are made by; return the path. Raises OSError."""
    path = path_of(model)
    temporary = path + ".new"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(dict(_key(model, version), choices=choices, figures=figures), file, indent=1)
    os.replace(temporary, path)
    return path


def read(model: ModelFile, version: str, named: AbstractSet[str]) -> Tuple[Dict[str, Any], str]:
    """Return the choices for a model, but for settings that the user has named, and a note.

    It says what was chosen and where that stands, or why it does not count; "" where there is nothing to say.
    """
    path = path_of(model)
    try:
        with open(path, encoding="utf-8") as file:
            kept = json.load(file)
        choices = {name: value for name, value in kept["choices"].items() if type(value) is TUNABLE[name]}
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}, "%s can't be read: tune again." % path
    for name, value in _key(model, version).items():
        if kept.get(name) != value:
            return {}, "%s is for another %s (%s): tune again." % (path, _SPOKEN[name], kept.get(name))
    choices = _free(choices, named)
    if not choices:
        return {}, ""
    return choices, "Tuned: %s (%s)." % (", ".join("%s %s" % each for each in sorted(choices.items())), path)


def _free(choices: Dict[str, Any], named: AbstractSet[str]) -> Dict[str, Any]:
    """Return the choices that the user has left open."""
    taken = set(named).union(*(together for together in _TOGETHER if together & named))
    return {name: value for name, value in choices.items() if name not in taken}


_SPOKEN = {"machine": "machine", "version": "llama-cpp-python", "size": "model file"}


def _key(model: ModelFile, version: str) -> Dict[str, Any]:
    machine = "%s, %d cores" % (hardware.processor().name, hardware.cores())
    return {"machine": machine, "version": version, "size": model.size}
