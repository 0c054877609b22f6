"""LoRA adapters as --lora names them: FILE, FILE:SCALE, NAME=FILE or NAME=FILE:SCALE, with commas between several."""

import os
import re
from typing import NamedTuple, Tuple

MOST_SCALE = 1000.0
_NAME = re.compile(r"[\w.-]+")


class Adapter(NamedTuple):
    """A LoRA adapter. One that was given a name is used only where that is asked for."""

    name: str
    path: str
    scale: float
    named: bool

    def text(self) -> str:
        """Return it as the option takes it."""
        return "%s%s:%g" % (self.name + "=" if self.named else "", self.path, self.scale)


def read_adapters(text: str) -> Tuple[Adapter, ...]:
    """Return the adapters of FILE, FILE:SCALE, NAME=FILE or NAME=FILE:SCALE, or of several with commas between them."""
    parts = [text] if os.path.isfile(_scaled(text)[0]) else text.split(",")
    return tuple(_adapter(part) for part in parts)


def checked_adapters(text: str) -> str:
    """Return adapters with their whole paths. Raises ValueError where there is no such file."""
    adapters = read_adapters(text)
    for adapter in adapters:
        if not os.path.isfile(adapter.path):
            raise ValueError("there is no file %s" % adapter.path)
        if not abs(adapter.scale) <= MOST_SCALE:
            raise ValueError("the scale %g is not from -%g to %g" % (adapter.scale, MOST_SCALE, MOST_SCALE))
    return ",".join(adapter.text() for adapter in adapters)


def _adapter(text: str) -> Adapter:
    name, _, file = text.partition("=")
    named = bool(file) and bool(_NAME.fullmatch(name)) and not os.path.isfile(_scaled(text)[0])
    path, scale = _scaled(file if named else text)
    return Adapter(name if named else os.path.splitext(os.path.basename(path))[0], os.path.abspath(path), scale, named)


def _scaled(text: str) -> Tuple[str, float]:
    """Return the path and the scale of FILE or FILE:SCALE; the scale is 1 where none is given."""
    path, colon, scale = text.rpartition(":")
    try:
        return (path, float(scale)) if colon and not os.path.exists(text) else (text, 1.0)
    except ValueError:  # C:\file
        return text, 1.0
