"""JSON schemas as they were given: finding their parts, refusing what is wrong in them, and validating values.

    Node                     a schema within the whole one, and its place there
    Reader                   a whole schema: its size, its keywords' shapes, references and patterns; validates values
    prefix, item_schemas     what a node says about an array's items
    number_limits            what nodes say about a number
    kind_of, comparable      what a value is, and which values are the same

For a keyword that is malformed, or that no grammar can follow, APIError 400 names it and its place.
Sources: JSON Schema 2020-12, and what draft 4, draft 7 and OpenAPI 3.0 write otherwise.
"""

import sys
from fractions import Fraction
from typing import Any, Callable, Dict, Hashable, Iterable, List, NamedTuple, Optional, Set, Tuple
from urllib.parse import unquote

from core.errors import APIError
from core.grammar.automata import Machine, TooLarge
from core.grammar.digits import exact
from core.grammar.patterns import BadPattern, pattern_machine
from core.grammar.rules import Rules

_MAX_DEPTH = 100  # levels of brackets in a schema
_MAX_NODES = 50000  # values in a schema
MAX_REFERENCES = 60  # in a row
_STEPS_OF_CHECK = 2  # of one value against one node

KINDS = ("object", "array", "string", "integer", "number", "boolean", "null")
_REFUSED = (
    "if", "contains", "dependentSchemas", "dependentRequired", "dependencies",
    "propertyDependencies", "$dynamicRef", "$recursiveRef", "extends", "disallow", "divisibleBy",
)  # fmt: skip


class Node(NamedTuple):
    """A schema within the whole one, and its place there as a JSON pointer."""

    schema: Any
    where: str

    def at(self, *path: Any) -> "Node":
        """Return the node below this one."""
        schema, where = self.schema, self.where
        for key in path:
            schema = schema[key]
            where += "/" + str(key).replace("~", "~0").replace("/", "~1")
        return Node(schema, where)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


def _is_schema(value: Any) -> bool:
    return isinstance(value, (dict, bool))


def _is_map(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_schema, value.values()))


def _are_schemas(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_schema, value))


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _are_types(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in KINDS for name in names)


_SHAPES: Dict[str, Tuple[Callable[[Any], bool], str]] = {
    "type": (_are_types, "one of %s, or an array of them" % ", ".join(KINDS)),
    "enum": (lambda value: isinstance(value, list) and bool(value), "an array with at least one value"),
    "$ref": (lambda value: isinstance(value, str), "a string"),
    "pattern": (lambda value: isinstance(value, str), "a string"),
    "format": (lambda value: isinstance(value, str), "a string"),
    "required": (_are_names, "an array of strings"),
    "properties": (_is_map, "an object of schemas"),
    "patternProperties": (_is_map, "an object of schemas"),
    "items": (lambda value: _is_schema(value) or value == [] or _are_schemas(value), "a schema or an array of them"),
    "multipleOf": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    "uniqueItems": (lambda value: isinstance(value, bool), "true or false"),
    "nullable": (lambda value: isinstance(value, bool), "true or false"),
    "unevaluatedItems": (lambda value: value is True, "true; anything else is not supported"),
    "unevaluatedProperties": (lambda value: isinstance(value, bool), "true or false; schemas are not supported"),
}
_SHAPES.update({each: (_are_schemas, "an array of schemas") for each in ("allOf", "anyOf", "oneOf", "prefixItems")})
_SHAPES.update(
    {each: (_is_schema, "a schema") for each in ("not", "additionalProperties", "additionalItems", "propertyNames")}
)
_SHAPES.update(
    {
        each: (_is_count, "a whole number, not negative")
        for each in ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
    }
)
_SHAPES.update({each: (_is_number, "a number") for each in ("minimum", "maximum")})
_SHAPES.update(
    {
        each: (lambda value: _is_number(value) or isinstance(value, bool), "a number (or true or false, as in draft 4)")
        for each in ("exclusiveMinimum", "exclusiveMaximum")
    }
)


def kind_of(value: Any) -> str:
    """Return a JSON value's type; a number without decimals is an integer, as JSON Schema counts it."""
    if value is None:
        return "null"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    kinds = ((bool, "boolean"), (int, "integer"), (str, "string"), (list, "array"), (dict, "object"))
    return next(kind for type_, kind in kinds if isinstance(value, type_))


def comparable(value: Any) -> Hashable:
    """Return something that is equal for two JSON values if, and only if, JSON Schema takes them for equal."""
    if isinstance(value, dict):
        return frozenset((key, comparable(each)) for key, each in value.items())
    if isinstance(value, list):
        return tuple(map(comparable, value))
    return ("boolean", value) if isinstance(value, bool) else value


class Reader:
    """A whole schema: finds its parts, refuses what is wrong or not supported, and validates values."""

    def __init__(self, grammar: Rules, root: Any):
        self.grammar = grammar
        self._root = root
        self._patterns: Set[str] = set()  # that have been counted
        self._enumerations: Dict[int, Tuple[Set[Hashable], List[Any]]] = {}  # by the list's identity, which it keeps
        self._comparables: Dict[int, Tuple[Hashable, Any]] = {}  # likewise, of lists and objects
        self._check_size()

    # ---- errors

    def refuse(self, node: Node, keyword: str, what: str) -> APIError:
        """Return the error that names a keyword and its place."""
        place = node.where + ("/" + keyword.replace("~", "~0").replace("/", "~1") if keyword else "")
        return self.grammar.refuse("The schema can't be honoured: at %s, %s." % (place, what))

    def check(self, node: Node) -> None:
        """Refuse a node with a keyword that is malformed or not supported."""
        for keyword, value in node.schema.items():
            if keyword in _REFUSED:
                raise self.refuse(node, keyword, "'%s' is not supported" % keyword)
            if keyword in _SHAPES and not _SHAPES[keyword][0](value):
                raise self.refuse(node, keyword, "'%s' must be %s" % (keyword, _SHAPES[keyword][1]))

    def _check_size(self) -> None:
        """Refuse what is too deep or too large, before anything walks through it recursively."""
        level, count, depth = [self._root], 0, 0
        while level:
            self._check_numbers(level)
            count += len(level)
            depth += 1
            if depth > _MAX_DEPTH or count > _MAX_NODES:
                limit = "more than %d levels deep" % _MAX_DEPTH if depth > _MAX_DEPTH else "too large"
                raise self.grammar.refuse("The schema can't be honoured: it is %s." % limit)
            inner = (each.values() if isinstance(each, dict) else each for each in level)
            level = [
                value for values in inner if not isinstance(values, (str, int, float, type(None))) for value in values
            ]
        if not _is_schema(self._root):
            raise self.grammar.refuse("The schema must be an object, or true.")

    def _check_numbers(self, values: List[Any]) -> None:
        """Refuse numbers above a double's range: exact sums of thousands of digits take minutes."""
        if any(isinstance(value, (int, float)) and not abs(value) <= sys.float_info.max for value in values):
            raise self.grammar.refuse("The schema can't be honoured: it holds a number above 1.8e308.")

    # ---- references

    def target(self, node: Node) -> Node:
        """Return what a node's $ref points to. Raises APIError 400."""
        reference = node.schema["$ref"]
        base, _, fragment = reference.partition("#")
        known = self._root.get("$id") if isinstance(self._root, dict) else None
        if (base and base != known) or (fragment and not fragment.startswith("/")):
            raise self.refuse(node, "$ref", "only references within the schema, like #/$defs/name, are supported")
        found = Node(self._root, "#")
        for key in unquote(fragment).split("/")[1:]:
            found = self._step(node, found, key.replace("~1", "/").replace("~0", "~"))
        if not _is_schema(found.schema):
            raise self.refuse(node, "$ref", "'%s' is not a schema" % reference[:200])
        return found

    def _step(self, node: Node, found: Node, key: str) -> Node:
        try:
            return found.at(int(key) if isinstance(found.schema, list) and key.isdigit() else key)
        except (KeyError, IndexError, ValueError, TypeError):
            raise self.refuse(node, "$ref", "'%s' points to nothing" % node.schema["$ref"][:200])

    # ---- patterns

    def pattern(self, node: Node, keyword: str, text: str) -> Machine:
        """Return a pattern's machine. Raises APIError 400."""
        try:
            machine = pattern_machine(text)
        except BadPattern as error:
            raise self.refuse(node, keyword, "the pattern is not supported: " + str(error))
        except TooLarge:
            raise self.refuse(node, keyword, "the pattern takes too many states; make its repetitions shorter")
        if text not in self._patterns:
            self._patterns.add(text)
            self.grammar.spend(machine.cost)
        return machine

    def _matches(self, node: Node, keyword: str, pattern: str, text: str) -> bool:
        self.grammar.spend(len(text))
        return self.pattern(node, keyword, pattern).accepts(text)

    # ---- validating

    def holds(self, value: Any, node: Node, level: int = 0) -> bool:
        """Tell whether a value is valid. `format` is not looked at: it is an annotation by the standard."""
        if isinstance(node.schema, bool):
            return node.schema
        self.grammar.spend(_STEPS_OF_CHECK)
        if level > MAX_REFERENCES + _MAX_DEPTH:
            raise self.refuse(node, "", "it refers to itself with nothing in between")
        self.check(node)
        if node.schema.get("nullable") is True and value is None:
            return True
        valid = lambda some, below: self.holds(some, below, level + 1)  # noqa: E731
        checks = (Reader._holds_any, Reader._holds_logic, _CHECKS_OF[kind_of(value)])
        return all(check(self, value, node, valid) for check in checks)

    def _holds_any(self, value: Any, node: Node, valid: Callable[[Any, Node], bool]) -> bool:
        schema = node.schema
        if "type" in schema:
            types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
            if kind_of(value) not in types and not (kind_of(value) == "integer" and "number" in types):
                return False
        if "const" in schema and self._comparable(schema["const"]) != self._comparable(value):
            return False
        return "enum" not in schema or self._comparable(value) in self._enumerated(schema["enum"])

    def _comparable(self, value: Any) -> Hashable:
        """Return comparable(value), worked out only once for what may be large."""
        if not isinstance(value, (list, dict)):
            return comparable(value)
        if id(value) not in self._comparables:
            self._comparables[id(value)] = (comparable(value), value)
        return self._comparables[id(value)][0]

    def _enumerated(self, values: List[Any]) -> Set[Hashable]:
        if id(values) not in self._enumerations:
            self.grammar.spend(len(values))
            self._enumerations[id(values)] = (set(map(comparable, values)), values)
        return self._enumerations[id(values)][0]

    def _holds_logic(self, value: Any, node: Node, valid: Callable[[Any, Node], bool]) -> bool:
        schema = node.schema
        if "$ref" in schema and not valid(value, self.target(node)):
            return False
        counts = {
            keyword: sum(valid(value, node.at(keyword, index)) for index in range(len(schema[keyword])))
            for keyword in ("allOf", "anyOf", "oneOf")
            if keyword in schema
        }
        if counts.get("allOf", 0) < len(schema.get("allOf", ())) or counts.get("anyOf", 1) < 1:
            return False
        return counts.get("oneOf", 1) == 1 and not ("not" in schema and valid(value, node.at("not")))

    def _holds_string(self, value: str, node: Node, valid: Callable[[Any, Node], bool]) -> bool:
        schema = node.schema
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
            return False
        return "pattern" not in schema or self._matches(node, "pattern", schema["pattern"], value)

    def _holds_number(self, value: Any, node: Node, valid: Callable[[Any, Node], bool]) -> bool:
        low, high, above, below = number_limits([node])
        number = exact(value)
        if (low is not None and number < low) or (high is not None and number > high):
            return False
        if (above and number == low) or (below and number == high):
            return False
        return "multipleOf" not in node.schema or (number / exact(node.schema["multipleOf"])).denominator == 1

    def _holds_array(self, value: List[Any], node: Node, valid: Callable[[Any, Node], bool]) -> bool:
        schema = node.schema
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            return False
        if schema.get("uniqueItems") and len(set(map(comparable, value))) < len(value):
            return False
        return all(valid(each, rule) for index, each in enumerate(value) for rule in item_schemas(node, index))

    def _holds_object(self, value: Dict[str, Any], node: Node, valid: Callable[[Any, Node], bool]) -> bool:
        schema = node.schema
        if not schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value)):
            return False
        if not set(schema.get("required", ())) <= set(value):
            return False
        if "propertyNames" in schema and not all(valid(name, node.at("propertyNames")) for name in value):
            return False
        return all(valid(value[name], rule) for name in value for rule in self.member(node, name))

    # ---- what a node says about an object's members

    def member(self, node: Node, name: str) -> List[Node]:
        """Return what a node says about the value under a name."""
        found = [node.at("properties", name)] if name in node.schema.get("properties", ()) else []
        for text in node.schema.get("patternProperties", ()):
            if self._matches(node.at("patternProperties"), text, text, name):
                found.append(node.at("patternProperties", text))
        if not found and "additionalProperties" in node.schema:
            found.append(node.at("additionalProperties"))
        return found


_CHECKS_OF: Dict[str, Callable[..., bool]] = {
    "string": Reader._holds_string,
    "array": Reader._holds_array,
    "object": Reader._holds_object,
    "integer": Reader._holds_number,
    "number": Reader._holds_number,
    "boolean": lambda *_: True,
    "null": lambda *_: True,
}


def prefix(node: Node) -> Tuple[str, int]:
    """Return the keyword that lists an array's first items one by one, and how many it lists."""
    keyword = "items" if isinstance(node.schema.get("items"), list) else "prefixItems"
    return keyword, len(node.schema.get(keyword, ()))


def item_schemas(node: Node, index: int) -> List[Node]:
    """Return what a node says about an array's item."""
    keyword, count = prefix(node)
    if index < count:
        return [node.at(keyword, index)]
    others = "additionalItems" if keyword == "items" else "items"
    return [node.at(others)] if others in node.schema else []


def number_limits(nodes: Iterable[Node]) -> Tuple[Optional[Fraction], Optional[Fraction], bool, bool]:
    """Return the lowest and the highest number that nodes allow, and whether these themselves are left out."""
    lows: List[Tuple[Fraction, bool]] = []
    highs: List[Tuple[Fraction, bool]] = []
    for node in nodes:
        for limits, keyword, excluding in (
            (lows, "minimum", "exclusiveMinimum"),
            (highs, "maximum", "exclusiveMaximum"),
        ):
            exclusive = node.schema.get(excluding, False)
            if keyword in node.schema:
                limits.append((exact(node.schema[keyword]), exclusive is True))
            if not isinstance(exclusive, bool):
                limits.append((exact(exclusive), True))
    low = max(lows) if lows else (None, False)
    high = min(highs, key=lambda limit: (limit[0], not limit[1])) if highs else (None, False)
    return low[0], high[0], low[1], high[1]
