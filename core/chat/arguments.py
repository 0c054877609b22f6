"""The rules for a call's arguments, in the form that a syntax has for them.

    arguments        a function's parameters, a JSON schema ──> the name of a rule
    any_arguments    the same for parameters that no grammar can follow: whatever the form allows
    texts_of         which parameters are texts, and so stand as they are where arguments have tags

Arguments come in the order in which the parameters are declared.
"""

from typing import Any, Callable, Dict, FrozenSet, List, Tuple

from core.chat.syntaxes import JSON_TYPES, Notation, Syntax, Tags
from core.grammar.free import Free
from core.grammar.rules import literal
from core.grammar.schema import Grammar

_NOTES = frozenset(("title", "description", "default", "examples", "deprecated", "$comment"))  # they restrict nothing
_PLAIN = _NOTES | {"$schema", "$defs", "definitions", "type", "properties", "required", "additionalProperties"}

_ANY_TEXT = "any-text"

Schema = Dict[str, Any]


def arguments(grammar: Grammar, syntax: Syntax, parameters: Schema, name: str) -> str:
    """Add the rules for a function's arguments. Raises APIError 400 for parameters that no grammar can follow."""
    if syntax.tags:
        return _Tagged(grammar, syntax.tags).arguments(parameters, name)
    if syntax.notation:
        return _Noted(grammar, syntax.notation).value(_closed(parameters), _shared(parameters), name)
    if syntax.keywords:
        return _Keyworded(grammar).arguments(parameters, name)
    return grammar.schema(_closed(parameters), name)


def any_arguments(grammar: Grammar, syntax: Syntax) -> str:
    """Add the rules for arguments of any kind."""
    if syntax.tags:
        return _Tagged(grammar, syntax.tags).any()
    if syntax.keywords:
        return _Keyworded(grammar).any()
    return _Noted(grammar, syntax.notation).any_object() if syntax.notation else grammar.basic("json-object")


def texts_of(parameters: Schema) -> FrozenSet[str]:
    """Return the names of those parameters that are texts and nothing else."""
    properties = parameters.get("properties")
    if not isinstance(properties, dict):
        return frozenset()
    return frozenset(name for name, schema in properties.items() if _is_text(schema))


def _is_text(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.get("type") == "string"


def _closed(schema: Schema) -> Schema:
    """Return parameters without room for members that they don't name, where they are a plain list of members.

    JSON schemas leave such room unless they say otherwise; functions have no use for arguments that they don't know.
    """
    if "additionalProperties" in schema or not _is_plain(schema):
        return schema
    return dict(schema, additionalProperties=False)


def _is_plain(schema: Schema) -> bool:
    """Whether parameters are a plain list of members, and all that are required are in it."""
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not set(schema) <= _PLAIN or not isinstance(properties, dict) or not isinstance(required, list):
        return False
    return all(isinstance(name, str) and name in properties for name in required)


def _shared(schema: Schema) -> Schema:
    """Return the definitions that references in a schema's members point to."""
    return {name: schema[name] for name in ("$defs", "definitions") if name in schema}


def _members(grammar: Grammar, schema: Schema) -> List[Tuple[str, Any, bool]]:
    """Return the members of an object: name, schema and whether it is required. Raises APIError 400 for another."""
    if not _is_plain(schema) or schema.get("additionalProperties"):
        raise grammar.refuse("This model's way of writing calls takes plain 'properties' only.")
    required = schema.get("required", [])
    return [(name, each, name in required) for name, each in schema.get("properties", {}).items()]


def _list(grammar: Grammar, name: str, members: List[Tuple[str, bool]], comma: str, end: str) -> str:
    """Return the rule for members in their order, each a body and whether it is required, with commas between.

    Of each there are two: of what may stand first, and of what follows others.
    """
    rest = first = end
    for body, required in reversed(members):
        more = grammar.rule(name + "-rest", "%s %s %s" % (comma, body, rest))
        begin = grammar.rule(name + "-first", "%s %s" % (body, rest))
        rest = more if required else grammar.rule(name + "-rest", "%s | %s" % (more, rest))
        first = begin if required else grammar.rule(name + "-first", "%s | %s" % (begin, first))
    return first


class _Tagged:
    """Arguments with tags of their own."""

    def __init__(self, grammar: Grammar, tags: Tags):
        self._grammar = grammar
        self._tags = tags
        self._closer = tags.close.strip()
        self._rest = tags.close.partition(self._closer)[2]

    def arguments(self, schema: Schema, name: str) -> str:
        """Add the rules for arguments."""
        shared = _shared(schema)
        parts = []
        for key, each, required in _members(self._grammar, schema):
            rule = self._grammar.rule("%s-%s" % (name, key), self._argument(key, each, shared))
            parts.append(rule if required else rule + "?")
        return self._grammar.rule(name, " ".join(parts) or '""')

    def _argument(self, key: str, schema: Any, shared: Schema) -> str:
        tags = self._tags
        head = self._head(key, schema)
        if not _is_text(schema):
            whole = dict(shared, **schema) if isinstance(schema, dict) else schema
            return "%s %s %s" % (head, self._grammar.schema(whole, key), literal(tags.close))
        if set(schema) <= _NOTES | {"type"}:
            return "%s %s" % (head, self._any_text())
        return "%s %s %s" % (head, self._grammar.texts(schema, key, self._closer), literal(tags.close))

    def _head(self, key: str, schema: Any) -> str:
        """Return what stands before a value; any type but a text's where its schema does not tell."""
        tags, kind = self._tags, schema.get("type") if isinstance(schema, dict) else None
        kind = "number" if kind == "integer" else kind
        if not tags.typed or kind in JSON_TYPES:
            return literal(tags.key + key + tags.before(str(kind)))
        heads = [literal(tags.key + key + tags.before(each)) for each in JSON_TYPES if each != "string"]
        return "(%s)" % " | ".join(heads)

    def _any_text(self) -> str:
        """Return the rule for a text and its closing tag; all such texts share it."""
        if not self._grammar.has(_ANY_TEXT):
            free = Free(self._grammar, "text", {self._closer: literal(self._rest) if self._rest else ""}, False)
            self._grammar.define(_ANY_TEXT, free.text())
        return _ANY_TEXT

    def any(self) -> str:
        """Return the rule for any arguments; their values are read as JSON, or as texts."""
        tags = self._tags
        each = '%s [a-zA-Z0-9_.$-]{1,64} %s %s' % (
            literal(tags.key), literal(tags.before("string")), self._any_text(),
        )  # fmt: skip
        return self._grammar.rule("arguments", "(%s)*" % each)


class _Keyworded:
    """Arguments in Python's notation. Their values are JSON."""

    def __init__(self, grammar: Grammar):
        self._grammar = grammar

    def arguments(self, schema: Schema, name: str) -> str:
        """Add the rules for arguments."""
        shared, members = _shared(schema), []
        for key, each, required in _members(self._grammar, schema):
            whole = dict(shared, **each) if isinstance(each, dict) else each
            rule = self._grammar.schema(whole, "%s-%s" % (name, key))
            members.append(("%s %s" % (literal(key + "="), rule), required))
        return self._grammar.rule(name, _list(self._grammar, name, members, '", "', '""'))

    def any(self) -> str:
        """Return the rule for any arguments."""
        each = '[a-zA-Z_] [a-zA-Z0-9_]{0,63} "=" %s' % self._grammar.basic("json-value")
        return self._grammar.rule("arguments", '(%s (", " %s)*)?' % (each, each))


class _Noted:
    """Arguments in Gemma's notation."""

    def __init__(self, grammar: Grammar, notation: Notation):
        self._grammar = grammar
        self._quote = notation.quote

    def value(self, schema: Any, shared: Schema, name: str) -> str:
        """Add the rules for a value of a schema."""
        kind = schema.get("type") if isinstance(schema, dict) else None
        writers: Dict[Any, Callable[[Schema, Schema, str], str]] = {
            "string": self._text, "object": self._object, "array": self._array,
        }  # fmt: skip
        if kind in ("integer", "number", "boolean", "null"):
            return self._grammar.schema(dict(shared, **schema), name)
        if not isinstance(kind, str) or kind not in writers:
            raise self._grammar.refuse("This model's way of writing calls takes values with one 'type' only.")
        return writers[kind](schema, shared, name)

    def _text(self, schema: Schema, shared: Schema, name: str) -> str:
        quote = literal(self._quote)
        if set(schema) <= _NOTES | {"type"}:
            return self._grammar.rule("text", "%s %s" % (quote, self._any_text()))
        return self._grammar.rule(name, "%s %s %s" % (quote, self._grammar.texts(schema, name, self._quote), quote))

    def _any_text(self) -> str:
        """Return the rule for a text and the quote after it; all such texts share it."""
        if not self._grammar.has(_ANY_TEXT):
            self._grammar.define(_ANY_TEXT, Free(self._grammar, "text", {self._quote: ""}, False).text())
        return _ANY_TEXT

    def _object(self, schema: Schema, shared: Schema, name: str) -> str:
        members = []
        for key, each, required in _members(self._grammar, schema):
            rule = self.value(each, shared, "%s-%s" % (name, key))
            members.append(("%s %s" % (literal(key + ":"), rule), required))
        return self._grammar.rule(name, '"{" ' + _list(self._grammar, name, members, '","', '"}"'))

    def _array(self, schema: Schema, shared: Schema, name: str) -> str:
        if not set(schema) <= _NOTES | {"type", "items"}:
            raise self._grammar.refuse("This model's way of writing calls takes arrays of plain 'items' only.")
        items = schema.get("items")
        item = self._any() if items is None else self.value(items, shared, name + "-item")
        return self._grammar.rule(name, '"[" (%s ("," %s)*)? "]"' % (item, item))

    def any_object(self) -> str:
        """Return the rule for any object."""
        self._any()
        return "any-object"

    def _any(self) -> str:
        """Return the rule for any value."""
        grammar = self._grammar
        if not grammar.has("any-value"):
            scalar = '%s | "true" | "false" | "null"' % grammar.basic("json-number")
            grammar.define("any-value", '%s %s | any-object | any-array | %s' % (
                literal(self._quote), self._any_text(), scalar,
            ))  # fmt: skip
            member = '[a-zA-Z_] [a-zA-Z0-9_-]{0,63} ":" any-value'
            grammar.define("any-object", '"{" (%s ("," %s)*)? "}"' % (member, member))
            grammar.define("any-array", '"[" (any-value ("," any-value)*)? "]"')
        return "any-value"
