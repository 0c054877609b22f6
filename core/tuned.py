"""What `comeapi.py tune` has found out about a model on this machine: a small JSON file beside the model.

    save(model, version, choices) ──> MODEL.tune.json ──> read(model, version) ── apply(config, choices, named)

It says for which machine, model file and llama-cpp-python it is; where one of them has changed, it counts for nothing.
What the user asks for wins over it.
"""

import dataclasses
import json
import os
from typing import Any, Container, Dict, Tuple

from core import hardware
from core.models import ModelFile

TUNABLE = {
    "prompt_weights": str, "safe_mode": bool, "flash_attn": str, "cache_type_k": str, "cache_type_v": str,
    "backends": int, "slots": int,
}  # fmt: skip


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


def read(model: ModelFile, version: str) -> Tuple[Dict[str, Any], str]:
    """Return the choices for a model, and a note: where they come from, or why there are none ("" for no file)."""
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
    return choices, "Tuned: %s (%s)." % (", ".join("%s %s" % each for each in sorted(choices.items())), path)


def apply(config: Any, choices: Dict[str, Any], named: Container[str]) -> Any:
    """Return a frozen dataclass of settings with the choices, but for those settings that the user has named."""
    return dataclasses.replace(config, **{name: value for name, value in choices.items() if name not in named})


_SPOKEN = {"machine": "machine", "version": "llama-cpp-python", "size": "model file"}


def _key(model: ModelFile, version: str) -> Dict[str, Any]:
    machine = "%s, %d cores" % (hardware.processor().name, hardware.cores())
    return {"machine": machine, "version": version, "size": model.size}
