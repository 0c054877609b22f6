"""JSON schemas of bodies, in few words. They say what core/fields.py checks.

    body(title, required, optional)     an object; what is optional may be null, which means the same as missing
    whole, number, flag, choice …       a field's type, range and default

Unknown fields are allowed everywhere: a server ignores what it does not know. Source: JSON Schema 2020-12.
"""

from typing import Any, Dict, Optional
from typing import Sequence as Many

Schema = Dict[str, Any]
ANY: Schema = {}
STRING: Schema = {"type": "string"}  # may be empty
TEXT: Schema = {"type": "string", "minLength": 1}
OBJECT: Schema = {"type": "object"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}


def whole(low: int, high: int, default: Optional[int] = None) -> Schema:
    """Return the schema of a whole number from `low` to `high`."""
    return _with_default({"type": "integer", "minimum": low, "maximum": high}, default)


def number(low: float, high: float, default: Optional[float] = None) -> Schema:
    """Return the schema of a number from `low` to `high`."""
    return _with_default({"type": "number", "minimum": low, "maximum": high}, default)


def flag(default: bool) -> Schema:
    """Return the schema of true or false."""
    return _with_default(FLAG, default)


def choice(*values: str, default: Optional[str] = None) -> Schema:
    """Return the schema of one of some texts."""
    return _with_default({"type": "string", "enum": list(values)}, default)


def array(items: Schema, most: Optional[int] = None, least: int = 0) -> Schema:
    """Return the schema of an array."""
    bounds = {"minItems": least or None, "maxItems": most}
    return dict({"type": "array", "items": items}, **{name: each for name, each in bounds.items() if each is not None})


def either(*schemas: Schema) -> Schema:
    """Return the schema of what fits at least one of some schemas."""
    return {"anyOf": list(schemas)}


def json_text(schema: Schema) -> Schema:
    """Return the schema of a text that is JSON of this schema."""
    return {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}


def nullable(schema: Schema) -> Schema:
    """Return a schema that takes null, too."""
    if "anyOf" in schema:
        return dict(schema, anyOf=[*schema["anyOf"], {"type": "null"}])
    if "type" not in schema:
        return schema
    wider = dict(schema, type=[schema["type"], "null"])
    return dict(wider, enum=[*schema["enum"], None]) if "enum" in schema else wider


def told(schema: Schema, about: str) -> Schema:
    """Return a schema with a description."""
    return dict(schema, description=about)


def body(title: str, required: Dict[str, Schema], optional: Dict[str, Schema]) -> Schema:
    """Return the schema of a request's body, or of an object in it; one with a title gets a name in the document."""
    properties = dict(required, **{name: nullable(schema) for name, schema in optional.items()})
    return dict(_named(title), type="object", required=list(required), properties=properties)


def answer(title: str, optional: Many[str] = (), **properties: Schema) -> Schema:
    """Return the schema of an answer's body, which has all its properties but those that are `optional`."""
    required = [name for name in properties if name not in optional]
    return dict(_named(title), type="object", required=required, properties=properties)


def _named(title: str) -> Schema:
    return {"title": title} if title else {}


def _with_default(schema: Schema, default: Any) -> Schema:
    return schema if default is None else dict(schema, default=default)
