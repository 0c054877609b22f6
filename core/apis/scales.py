"""How much of each LoRA adapter a request asks for: [{"id", "scale"}], as in llama.cpp's server."""

from typing import Any, Tuple

from core import fields
from core.adapters import MOST_SCALE
from core.bounds import ADAPTERS
from core.errors import APIError, json_type


def read_scales(value: Any, count: int, field: str = "lora") -> Tuple[float, ...]:
    """Return how much of each of `count` adapters an array of {"id", "scale"} asks for. Raises APIError 400."""
    if not isinstance(value, list):
        message = "'%s' must be an array of {\"id\": number, \"scale\": number}, not %s." % (field, json_type(value))
        raise APIError(400, message, "invalid_value", field)
    ADAPTERS.check(len(value), field)
    scales = [0.0] * count
    for index, each in enumerate(value):
        with fields.named(("%s[%d].%%s" % (field, index)).__mod__):
            number, scale = _scale(each, count)
        scales[number] = scale
    return tuple(scales)


def _scale(value: Any, count: int) -> Tuple[int, float]:
    if not isinstance(value, dict):
        raise APIError(400, "'id' is missing: each must be an object.", "missing_field", "id")
    number = fields.integer(value, "id", -1, -1, 1 << 31)
    if not 0 <= number < count:
        message = "'id' must be an adapter's number; there are %d adapters here." % count
        raise APIError(400, message, "invalid_value", "id")
    return number, fields.number(value, "scale", 0.0, -MOST_SCALE, MOST_SCALE) or 0.0
