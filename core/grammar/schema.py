"""From a JSON schema to a grammar: what a constrained answer may look like, in GBNF, llama.cpp's grammar language.

    schema ── Reader ── _Converter ── rules ── Grammar.text ── llama.cpp's grammar sampler
          (validation)     │        (grammar)
                           ├── strings by pattern, format, excluded names ── Machine (patterns, machines)
                           └── numbers within bounds, multiples           ── Machine (digits, machines)

The one law: every text that the grammar accepts is JSON and valid against the schema. A schema that can not be held to
gets APIError 400 that names the keyword and its place; never is a keyword of validation overlooked. The other way round
the grammar may be narrower than the schema, where JSON Schema is wider than anybody means:

- Properties come in the order they are declared in, additional ones after them. An object that declares properties is
  closed unless `additionalProperties` or `patternProperties` open it; one that declares none is open.
- A tuple (`prefixItems`) comes whole, and is closed unless `items` says how it goes on.
- Without `type`, the keywords tell: `properties` speaks of an object, `pattern` of a string.
- Numbers have at most 15 digits before the point (more where a bound has more), 15 after it and an exponent of two: a
  weak model would go on for ever. Numbers with bounds or `multipleOf` have no exponent.
- Between tokens stands nothing, a blank, or a line's end and an indent of at most 20. Nothing else.
- Texts and arrays hold at most 500,000 characters or items more than they must, where they have an upper bound.
- `uniqueItems` is held for enumerated items, which then come in the order of the enumeration.
- `oneOf`: what two branches may share is left out, strings exactly, other values by whole types or by leaving out an
  optional property. A branch of which nothing remains is refused: `anyOf` is what such a schema means. `not` likewise.

Named in brackets are the rooms of core/ that this one stands on; each says at its top which standards it follows.
"""

import functools
import json
import math
from collections import deque
from fractions import Fraction
from typing import (
    Any,
    Deque,
    Dict,
    FrozenSet,
    Hashable,
    Iterable,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)  # fmt: skip

from core.errors import APIError
from core.grammar.automata import ANY_TEXT, MAX_STATES, Machine, TooLarge, listed, product, within
from core.grammar.digits import DIGITS, MAX_DIGITS, Bounds, common_multiple, decimals, exact, number_machines
from core.grammar.patterns import format_machine, without
from core.grammar.rules import Rules, literal
from core.grammar.validation import (
    KINDS,
    MAX_REFERENCES,
    Node,
    Reader,
    comparable,
    item_schemas,
    kind_of,
    number_limits,
    prefix,
)  # fmt: skip

JSON_OBJECT: Dict[str, Any] = {"type": "object"}  # what response_format json_object asks for

_MAX_BRANCHES = 300  # of one value, once unions within unions are multiplied out
_STEPS_OF_COMPARISON = 12  # of two branches


class Grammar(Rules):
    """GBNF rules under construction, among them those for JSON schemas. `param` is the request's field in errors."""

    def schema(self, schema: Any, name: str = "value") -> str:
        """Add the rules for a JSON schema, which is the root that its references point into; returns the rule's name.

        Raises APIError 400 unsupported_schema.
        """
        return _Converter(self, schema, name).convert()


def json_grammar(schema: Any, param: str = "response_format") -> str:
    """Return the whole grammar for one schema. Raises APIError 400 unsupported_schema that names `param`."""
    grammar = Grammar(param)
    return grammar.text(grammar.schema(schema))


# -------------------------------------------------------------------------------------------- conjunctions


class _Flat(NamedTuple):
    """A conjunction: a value must satisfy the keywords of all nodes, and none of the rivals as a whole.

    References, allOf, anyOf and oneOf have been resolved; a value that may be one of several has several of these.
    """

    nodes: Tuple[Node, ...]
    rivals: Tuple[Node, ...] = ()

    def key(self) -> Hashable:
        """Return what tells two conjunctions of one schema apart."""
        return (tuple(node.where for node in self.nodes), frozenset(node.where for node in self.rivals))

    def all(self, keyword: str) -> List[Any]:
        """Return a keyword's values in all nodes that have it."""
        return [node.schema[keyword] for node in self.nodes if keyword in node.schema]

    def both(self, other: "_Flat", rivals: Iterable[Node]) -> "_Flat":
        """Return the conjunction of this, another one and further rivals."""
        nodes = self.nodes + tuple(node for node in other.nodes if node not in self.nodes)
        return _Flat(nodes, self.rivals + other.rivals + tuple(rivals))


Need = List[List[str]]  # the rules that a value can't do without: for each alternative of its rule
_SPEAKS_OF = {
    "object": ("properties", "required", "additionalProperties", "patternProperties", "propertyNames",
               "minProperties", "maxProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "string": ("pattern", "minLength", "maxLength", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}  # fmt: skip
_OWN = sum(_SPEAKS_OF.values(), ("type", "enum", "const", "additionalItems", "unevaluatedProperties"))


# ------------------------------------------------------------------------------------------- the converter


class _Converter(Reader):
    """Adds the rules for one schema to a grammar.

    Rules are named at once and written later, from a queue: however long a chain of references is, nothing recurses.
    """

    def __init__(self, grammar: Grammar, root: Any, name: str):
        super().__init__(grammar, root)
        self._name = name
        self._rules: Dict[Hashable, str] = {}
        self._pending: Deque[Tuple[str, List[_Flat]]] = deque()
        self._needs: Dict[str, Need] = {}
        self._places: Dict[str, Node] = {}
        self._expanded: Dict[Hashable, List[_Flat]] = {}
        self._valid: Dict[Hashable, Optional[List[Any]]] = {}

    def convert(self) -> str:
        """Add the rules and return the first one's name. Raises APIError 400."""
        root = Node(self._root, "#")
        flats = self._expand([root])
        if not flats:
            raise self.refuse(root, "", "no value can be valid")
        first = self._rule(flats)
        while self._pending:
            name, flats = self._pending.popleft()
            try:
                body, self._needs[name] = self._body(name, flats)
            except TooLarge:
                raise self.refuse(self._places[name], "", "pattern, format, lengths or bounds take too many states")
            self._grammar.define(name, body)
        self._check_finite()
        return first

    def _check_finite(self) -> None:
        """Refuse a rule without finite values: one that needs itself, at once or through others."""
        finite: Set[str] = set()
        waiting = list(self._needs)
        while waiting:
            for name in reversed(waiting):  # what was written later is mostly what was needed earlier
                if any(finite.issuperset(needs) for needs in self._needs[name]):
                    finite.add(name)
            rest = [name for name in waiting if name not in finite]
            if len(rest) == len(waiting):
                raise self.refuse(
                    self._places[rest[0]], "", "a value that is valid would never end: it requires itself"
                )
            waiting = rest

    def _rule(self, flats: List[_Flat]) -> str:
        """Return the name of the rule for a value that is one of `flats`, to be written later."""
        key = tuple(flat.key() for flat in flats)
        if key not in self._rules:
            place = next((node for flat in flats for node in flat.nodes), Node(True, "#"))
            if not any(flat.nodes or flat.rivals for flat in flats):
                name = self._grammar.basic("json-value")
                self._needs[name] = [[]]
            else:
                words = [word for word in place.where.split("/")[1:] if not word.isdigit()]
                name = self._grammar.reserve(words[-1] if words else self._name)
                self._pending.append((name, flats))
            self._rules[key] = name
            self._places[name] = place
        return self._rules[key]

    # ---- conjunctions

    def _expand(self, nodes: Sequence[Node]) -> List[_Flat]:
        """Return what a value that satisfies all of `nodes` may be: conjunctions, none of them plainly impossible."""
        key = tuple(node.where for node in nodes)
        if key not in self._expanded:
            unique = {flat.key(): flat for flat in self._unfold([(node, frozenset()) for node in nodes])}
            self._expanded[key] = [flat for flat in unique.values() if self._possible(flat)]
        return self._expanded[key]

    def _unfold(self, nodes: Iterable[Tuple[Node, FrozenSet[str]]]) -> List[_Flat]:
        """Resolve references and the keywords of logic. With each node comes the path that led to it."""
        base: Dict[str, Node] = {}
        rivals: List[Node] = []
        unions: List[Tuple[List[Node], bool, FrozenSet[str]]] = []
        todo = deque(nodes)
        while todo:
            node, path = todo.popleft()
            if node.schema is False:
                return []
            if node.schema is True:
                continue
            self._check_path(node, path)
            path = path | {node.where}
            node = self._without_null(node, path, unions)
            if node is not None:
                todo.extendleft((each, path) for each in reversed(self._conjuncts(node)))
                unions += [
                    (self._children(node, each), each == "oneOf", path)
                    for each in ("anyOf", "oneOf")
                    if each in node.schema
                ]
                rivals += [node.at("not")] if "not" in node.schema else []
                own = {keyword: value for keyword, value in node.schema.items() if keyword in _OWN}
                if own:
                    base.setdefault(node.where, Node(own, node.where))
        return self._multiply(_Flat(tuple(base.values()), tuple(rivals)), unions)

    def _check_path(self, node: Node, path: FrozenSet[str]) -> None:
        self.check(node)
        if node.where in path or len(path) > MAX_REFERENCES:
            raise self.refuse(node, "", "it refers to itself, or on and on, with nothing in between")

    def _without_null(self, node: Node, path: FrozenSet[str], unions: List[Any]) -> Optional[Node]:
        """Read OpenAPI's nullable as a union with null; the node itself is then a branch of it."""
        if node.schema.get("nullable") is not True:
            return node
        rest = {keyword: value for keyword, value in node.schema.items() if keyword != "nullable"}
        null = Node({"type": "null"}, node.where + "/nullable")
        unions.append(([Node(rest, node.where), null], False, path - {node.where}))
        return None

    def _conjuncts(self, node: Node) -> List[Node]:
        targets = [self.target(node)] if "$ref" in node.schema else []
        return targets + self._children(node, "allOf")

    @staticmethod
    def _children(node: Node, keyword: str) -> List[Node]:
        return [node.at(keyword, index) for index in range(len(node.schema.get(keyword, ())))]

    def _multiply(self, base: _Flat, unions: Sequence[Tuple[List[Node], bool, FrozenSet[str]]]) -> List[_Flat]:
        """Return one conjunction for each choice of branches; for oneOf, the other branches become rivals."""
        flats = [base]
        for children, exclusive, path in unions:
            branches = []
            for child in children:
                rivals = [other for other in children if exclusive and other is not child]
                branches += [(flat, rivals) for flat in self._unfold([(child, path)])]
            flats = [flat.both(branch, rivals) for flat in flats for branch, rivals in branches]
            flats = [flat for flat in flats if self._possible(flat)]
            if len(flats) > _MAX_BRANCHES:
                raise self._grammar.refuse(
                    "The schema can't be honoured: its unions have more than %d branches." % _MAX_BRANCHES
                )
        return flats

    def _possible(self, flat: _Flat) -> bool:
        return bool(self._kinds(flat)) and self._values(flat) != []

    @staticmethod
    def _kinds(flat: _Flat) -> List[str]:
        """Return the types that the keyword `type` leaves; `number` means any, integers included."""
        kinds = set(KINDS)
        for types in flat.all("type"):
            names = set(types if isinstance(types, list) else [types])
            kinds &= names | ({"integer"} if "number" in names else set())
        if "number" in kinds:
            kinds.discard("integer")
        return [kind for kind in KINDS if kind in kinds]

    def _values(self, flat: _Flat) -> Optional[List[Any]]:
        """Return the values of an enumeration that are valid; None for anything else."""
        if not any("enum" in node.schema or "const" in node.schema for node in flat.nodes):
            return None
        key = flat.key()
        if key not in self._valid:
            lists = flat.all("enum") + [[value] for value in flat.all("const")]
            shortest = min(lists, key=len)
            self._grammar.spend(len(shortest))
            unique = {comparable(value): value for value in shortest}
            self._valid[key] = [value for value in unique.values() if self._fits(value, flat)]
        return self._valid[key]

    def _fits(self, value: Any, flat: _Flat) -> bool:
        if not all(self.holds(value, node) for node in flat.nodes):
            return False
        return not any(self.holds(value, rival) for rival in flat.rivals)

    # ---- bodies

    def _body(self, name: str, flats: List[_Flat]) -> Tuple[str, Need]:
        """Return a rule's body, and what it needs. Raises APIError 400, TooLarge."""
        if len(flats) > 1:
            rules = list(dict.fromkeys(self._rule([flat]) for flat in flats))
            return " | ".join(rules), [[rule] for rule in rules]
        values = self._values(flats[0])
        if values is not None:
            return self._enumeration(name, values), [[]]
        writers = {
            "object": self._object, "array": self._array, "string": self._string, "integer": self._number,
            "number": self._number, "boolean": self._constant, "null": self._constant,
        }  # fmt: skip
        found = [writers[kind](name, flats[0], kind) for kind in self._written_kinds(flats[0])]
        possible = [pair for pair in found if pair]
        if not possible:
            raise self._impossible(flats[0], self._places[name])
        return " | ".join(body for body, _ in possible), [needs for _, needs in possible]

    def _impossible(self, flat: _Flat, place: Node) -> APIError:
        if not flat.rivals:
            return self.refuse(place, "", "no value can be valid")
        rival = flat.rivals[0]
        if rival.where.endswith("/not"):
            return self.refuse(rival, "", "nothing but what 'not' forbids would be left, or it can't be told apart")
        return self.refuse(rival, "", "this branch of 'oneOf' can't be told apart from another one; use 'anyOf'")

    def _written_kinds(self, flat: _Flat) -> List[str]:
        """Return the types to write: those that are allowed, or where none are named, those that keywords speak of."""
        kinds = self._kinds(flat)
        spoken = [kind for kind in _SPEAKS_OF if any(flat.all(keyword) for keyword in _SPEAKS_OF[kind])]
        return kinds if flat.all("type") or not spoken else [kind for kind in kinds if kind in spoken]

    def _enumeration(self, name: str, values: List[Any]) -> str:
        texts = [_dumps(value) for value in values]
        if len(texts) <= 16:
            return " | ".join(map(literal, texts))
        machine = listed(texts)  # one path through many words is faster than many words side by side
        return self._grammar.machine(name + "-text", machine, False)

    def _constant(self, name: str, flat: _Flat, kind: str) -> Optional[Tuple[str, List[str]]]:
        values = [value for value in ((True, False) if kind == "boolean" else (None,)) if self._fits(value, flat)]
        return (" | ".join(literal(_dumps(value)) for value in values), []) if values else None

    # ---- strings

    def _string(self, name: str, flat: _Flat, kind: str) -> Optional[Tuple[str, List[str]]]:
        low, high = _counts(flat, "minLength", "maxLength")
        if high is not None and low > high:
            return None
        machine = self._texts(flat)
        for rival in self._rivals(flat, "string"):
            machine = self._made(without(machine, self._texts_at_most(rival)))
        if machine is None:
            if (low, high) == (0, None):
                return self._grammar.basic("json-string"), []
            char = self._grammar.basic("json-char")
            body = '"\\"" %s "\\""' % self._grammar.repeat(char, low, high)
            return self._grammar.rule("string-%d-%s" % (low, "" if high is None else high), body), []
        if (low, high) != (0, None):
            machine = self._made(within(machine, low, high))
        return None if machine.empty else (self._grammar.machine(name + "-text", machine, True), [])

    def _texts(self, flat: _Flat, formats: bool = True) -> Optional[Machine]:
        """Return the machine for the texts that patterns and formats allow; None for all."""
        machines = [
            self.pattern(node, "pattern", node.schema["pattern"]) for node in flat.nodes if "pattern" in node.schema
        ]
        if formats:
            machines += filter(None, map(format_machine, flat.all("format")))
        return functools.reduce(self._shared, machines) if machines else None

    def _shared(self, one: Machine, other: Machine) -> Machine:
        return self._made(product(one, other, True))

    def _made(self, machine: Machine) -> Machine:
        """Count what a machine took. Raises APIError 400."""
        self._grammar.spend(machine.cost)
        return machine

    def _texts_at_most(self, flat: _Flat) -> Machine:
        """Return a machine for all texts that are valid, and perhaps some more."""
        values = self._values(flat)
        if values is not None:
            return self._made(listed(value for value in values if isinstance(value, str)))
        machine = self._texts(flat, False) or ANY_TEXT
        low, high = _counts(flat, "minLength", "maxLength")
        return self._made(within(machine, low, high)) if (low, high) != (0, None) else machine

    # ---- numbers

    def _number(self, name: str, flat: _Flat, kind: str) -> Optional[Tuple[str, List[str]]]:
        if not all(self._apart(flat, rival, "number", 0) for rival in self._rivals(flat, "number")):
            return None
        low, high, above, below = number_limits(flat.nodes)
        steps = [exact(step) for step in flat.all("multipleOf")] + ([Fraction(1)] if kind == "integer" else [])
        if low is None and high is None and steps in ([], [1]):
            return self._grammar.basic("json-" + ("integer" if steps else "number")), []
        step = functools.reduce(common_multiple, steps) if steps else Fraction(0)
        places = self._decimals(name, [limit for limit in (low, high) if limit is not None], step, above or below)
        unit = 10**places
        if above:
            low = Fraction(math.floor(low * unit) + 1, unit)
        if below:
            high = Fraction(math.ceil(high * unit) - 1, unit)
        parts = []
        for sign, machine in number_machines(Bounds(low, high, step), places):
            if not self._made(machine).empty:
                digits = self._grammar.machine(name + "-digits", machine, False)
                parts.append("%s %s" % (literal(sign), digits) if sign else digits)
        return (" | ".join(parts), []) if parts else None

    def _decimals(self, name: str, limits: List[Fraction], step: Fraction, exclusive: bool) -> int:
        """Return how many digits after the point to write."""
        whole = max([len(str(int(abs(limit)))) for limit in limits] + [1])
        if step and decimals(step) is not None:
            return decimals(step)
        if whole > MAX_DIGITS and all(abs(limit) >= 10**MAX_DIGITS for limit in limits):
            return 0
        needed = max([decimals(limit) for limit in limits] + [0])
        if exclusive and whole + needed > DIGITS:
            # Numbers beyond 15 digits may be read as the bound itself, which is left out.
            raise self.refuse(self._places[name], "", "an exclusive bound has more than %d digits" % DIGITS)
        return max(needed, DIGITS - whole, 0)

    # ---- arrays

    def _array(self, name: str, flat: _Flat, kind: str) -> Optional[Tuple[str, List[str]]]:
        if not all(self._apart(flat, rival, "array", 0) for rival in self._rivals(flat, "array")):
            return None
        low, high = _counts(flat, "minItems", "maxItems")
        first, rest, high = self._items(flat, low, high)
        if high is not None and low > high:
            return None
        if any(flat.all("uniqueItems")) and high not in (0, 1):
            return self._unique(name, flat, first, rest, low, high)
        rules = [self._rule(flats) for flats in first]
        further = self._rule(rest) if rest else None
        needs = rules + ([further] if further and low > len(rules) else [])
        return self._sequence(name, rules, further, low, high), needs

    def _items(
        self, flat: _Flat, low: int, high: Optional[int]
    ) -> Tuple[List[List[_Flat]], List[_Flat], Optional[int]]:
        """Return what an array's first items may be, one by one, what all others may be, and how many there may be."""
        count = max(prefix(node)[1] for node in flat.nodes) if flat.nodes else 0
        first: List[List[_Flat]] = []
        while len(first) < count and len(first) != high:
            flats = self._expand([each for node in flat.nodes for each in item_schemas(node, len(first))])
            if not flats:
                return first, [], len(first)
            first.append(flats)
        others = [each for node in flat.nodes for each in item_schemas(node, count)]
        if len(first) == high or (count and not others and low <= count):
            return first, [], len(first)
        rest = self._expand(others)
        return first, rest, high if rest else len(first)

    def _sequence(self, name: str, first: List[str], rest: Optional[str], low: int, high: Optional[int]) -> str:
        """Return the body for an array: all of `first`, and as many of `rest` as bring it within the bounds."""
        space = self._grammar.basic("json-space")
        comma = ' "," %s ' % space
        start = '"[" %s ' % space
        if rest is None or high == 0:
            return start + comma.join(first) + (" " + space + ' "]"' if first else ' "]"')
        further = self._grammar.rule(name + "-further", comma.strip() + " " + rest)
        left = max(low - max(len(first), 1), 0), None if high is None else high - max(len(first), 1)
        body = "%s %s %s" % (comma.join(first or [rest]), self._grammar.repeat(further, *left), space)
        return start + (body if first or low else "(%s)?" % body) + ' "]"'

    def _unique(
        self, name: str, flat: _Flat, first: List[List[_Flat]], rest: List[_Flat], low: int, high: Optional[int]
    ) -> Optional[Tuple[str, List[str]]]:
        """Return the body for different items: some of an enumeration, in its order."""
        lists = [values for values in map(self._finite, rest) if values is not None]
        if first or len(lists) < len(rest):
            place = next(node for node in flat.nodes if node.schema.get("uniqueItems"))
            raise self.refuse(place, "uniqueItems", "'uniqueItems' is supported for enumerated items only")
        unique = {comparable(value): value for values in lists for value in values}
        pairs = [(literal(_dumps(value)), False) for value in unique.values()]
        inner = self._some_of(name, pairs, None, low, high)
        return None if inner is None else ('"[" %s %s "]"' % (self._grammar.basic("json-space"), inner), [])

    def _finite(self, flat: _Flat) -> Optional[List[Any]]:
        """Return all values where there are but few; None otherwise."""
        kinds = self._kinds(flat)
        if self._values(flat) is None and set(kinds) <= {"boolean", "null"}:
            return [value for value in (False, True, None) if kind_of(value) in kinds and self._fits(value, flat)]
        return self._values(flat)

    # ---- objects

    def _object(self, name: str, flat: _Flat, kind: str) -> Optional[Tuple[str, List[str]]]:
        forbidden = self._forbidden(flat)
        if forbidden is None:
            return None
        names = list(
            dict.fromkeys(key for keyword in ("properties", "required") for each in flat.all(keyword) for key in each)
        )
        required = {key for keys in flat.all("required") for key in keys}
        members: List[Tuple[str, str, bool]] = []
        for key in names:
            flats = [] if key in forbidden else self._member_flats(flat, key)
            if flats:
                members.append((key, self._rule(flats), key in required))
            elif key in required:
                return None
        extra = self._extra(name, flat, set(names) | forbidden)
        low, high = _counts(flat, "minProperties", "maxProperties")
        if not members and extra == "json-member" and (low, high) == (0, None):
            return self._grammar.basic("json-object"), []
        colon = self._grammar.basic("json-colon")
        pairs = [("%s %s %s" % (literal(_dumps(key)), colon, rule), needed) for key, rule, needed in members]
        if extra and low > len(pairs) + 1 and (high is None or high >= low):
            raise self.refuse(
                self._places[name], "minProperties", "more than one member without a name can't be required"
            )
        needs = [rule for _, rule, needed in members if needed]
        if low > len(needs):  # one of the others, at least
            needs.append(
                self._need_one(name, [rule for _, rule, needed in members if not needed] + ([extra] if extra else []))
            )
        inner = self._some_of(name, pairs, extra, low, high)
        return None if inner is None else ('"{" %s %s "}"' % (self._grammar.basic("json-space"), inner), needs)

    def _need_one(self, name: str, rules: List[str]) -> str:
        """Return what stands for needing one of some rules: no rule's name has a blank in it."""
        need = name + " one of " + " ".join(rules)
        self._needs[need] = [[rule] for rule in rules]
        self._places[need] = self._places[name]
        return need

    def _member_flats(self, flat: _Flat, key: str) -> List[_Flat]:
        for node in flat.nodes:
            if "propertyNames" in node.schema and not self.holds(key, node.at("propertyNames")):
                return []
        return self._expand([each for node in flat.nodes for each in self.member(node, key)])

    def _extra(self, name: str, flat: _Flat, excluded: Set[str]) -> Optional[str]:
        """Return the rule for a member that is not declared; None where there may be none."""
        patterns = [
            (self.pattern(node.at("patternProperties"), text, text), node, text)
            for node in flat.nodes
            for text in node.schema.get("patternProperties", ())
        ]
        rules = []
        for index, (machine, owner, text) in enumerate(patterns):
            others = [each for number, (each, _, _) in enumerate(patterns) if number != index]
            below = [node.at("additionalProperties") for node in flat.nodes
                     if node is not owner and "additionalProperties" in node.schema]  # fmt: skip
            nodes = [owner.at("patternProperties", text)] + below
            rules.append(self._extra_rule(name, flat, machine, others, excluded, nodes))
        if self._is_open(flat):
            nodes = [node.at("additionalProperties") for node in flat.nodes if "additionalProperties" in node.schema]
            rules.append(self._extra_rule(name, flat, None, [each for each, _, _ in patterns], excluded, nodes))
        found = [rule for rule in rules if rule]
        if len(found) < 2:
            return found[0] if found else None
        extra = self._grammar.rule(name + "-extra", " | ".join(found))
        self._needs[extra] = [[rule] for rule in found]
        self._places[extra] = self._places[name]
        return extra

    @staticmethod
    def _is_open(flat: _Flat) -> bool:
        """Tell whether there may be members that nothing declares: see the policy at the top of this file."""
        if flat.all("additionalProperties"):
            return all(each is not False for each in flat.all("additionalProperties"))
        closed = flat.all("patternProperties") or False in flat.all("unevaluatedProperties")
        return not closed and not any(flat.all("properties"))

    def _extra_rule(
        self, name: str, flat: _Flat, machine: Optional[Machine], others: List[Machine], excluded: Set[str],
        nodes: List[Node],
    ) -> Optional[str]:  # fmt: skip
        """Return the rule for members named as `machine` (None: any) says, and not as `others` or `excluded` do."""
        flats = self._expand(nodes)
        if not flats:
            return None
        for each in flat.nodes:
            if "propertyNames" in each.schema:
                machine = self._names(machine or ANY_TEXT, each.at("propertyNames"))
        for other in others:
            machine = self._made(without(machine, other))
        if excluded:
            machine = self._made(product(machine or ANY_TEXT, listed(sorted(excluded)), False))
        if machine is None:
            key = self._grammar.basic("json-string")
        elif machine.empty:
            return None
        else:
            key = self._grammar.machine(name + "-key", machine, True)
        value = self._rule(flats)
        if (key, value) == ("json-string", "json-value"):
            member = self._grammar.basic("json-member")
        else:
            body = "%s %s %s" % (key, self._grammar.basic("json-colon"), value)
            member = self._grammar.rule(name + "-member", body)
        self._needs[member] = [[value]]
        self._places[member] = self._places[name]
        return member

    def _names(self, machine: Machine, node: Node) -> Machine:
        """Return the machine for those names that are valid. Raises APIError 400, TooLarge."""
        flats = [flat for flat in self._expand([node]) if "string" in self._kinds(flat)]
        if len(flats) > 1 or any(flat.rivals for flat in flats):
            raise self.refuse(node, "", "'propertyNames' with several alternatives is not supported")
        valid = self._texts_at_most(flats[0]) if flats else listed([])
        formats = map(format_machine, flats[0].all("format") if flats else [])
        for each in filter(None, formats):
            valid = self._shared(valid, each)
        return self._shared(machine, valid)

    def _some_of(
        self, name: str, pairs: List[Tuple[str, bool]], extra: Optional[str], low: int, high: Optional[int]
    ) -> Optional[str]:
        """Return the body for members (or items) in their order, each needed or not, then extra ones; None for nothing.

        The rules are as many as the members, times the count where that matters: `chosen[count]` holds what begins
        with one of the members from an index on when `count` have come before, or None where nothing would be valid.
        """
        space = self._grammar.basic("json-space")
        most = len(pairs) + low if high is None else high
        cap = min(len(pairs), most) if low or high is not None else 0
        needed = 0
        chosen = [self._extras(name, extra, count if cap else None, low, high) for count in range(cap + 1)]
        for index in range(len(pairs) - 1, -1, -1):
            text, must = pairs[index]
            shared = index > 0 and (not pairs[index - 1][1] or cap > 0)
            here: List[Optional[str]] = []
            for count in range(cap + 1):
                after = min(count + 1, cap)
                tail = self._tail(
                    chosen[after], not needed and (cap == 0 or count + 1 >= low), cap == 0 or count < most
                )
                ways = [text + tail] if tail is not None else []
                ways += [way for way in [chosen[count]] if way is not None and not must]
                body = " | ".join(ways)
                simple = len(ways) < 2 and not shared
                here.append((body if simple else self._grammar.rule(name + "-some", body)) if ways else None)
            chosen = here
            needed += must
        start = chosen[0] if high != 0 else None
        if not needed and low == 0:
            return "" if start is None else "(%s %s)?" % (start, space)
        return None if start is None else "%s %s" % (start, space)

    def _tail(self, following: Optional[str], may_end: bool, fits: bool) -> Optional[str]:
        """Return what follows a member; None where it can't stand there."""
        if not fits:
            return None
        comma = '"," ' + self._grammar.basic("json-space")
        if following is None:
            return "" if may_end else None
        return (" (%s %s)?" if may_end else " %s %s") % (comma, following)

    def _extras(
        self, name: str, extra: Optional[str], count: Optional[int], low: int, high: Optional[int]
    ) -> Optional[str]:
        """Return the body for one or more extra members after `count` others (None: it makes no difference).

        Of extra members only one is sure to have a name of its own, so no more are relied on to reach the least.
        """
        if extra is None:
            return None
        before = count or 0
        if before + 1 < low or (high is not None and before >= high):
            return None
        further = self._grammar.rule(name + "-further", '"," %s %s' % (self._grammar.basic("json-space"), extra))
        return "%s %s" % (extra, self._grammar.repeat(further, 0, None if high is None else high - before - 1))

    # ---- rivals: what a value must not be

    def _rivals(self, flat: _Flat, kind: str) -> List[_Flat]:
        """Return those conjunctions that a value of a type must not satisfy."""
        flats = [each for rival in flat.rivals for each in self._expand([rival])]
        return [
            each for each in flats if set(self._kinds(each)) & ({"integer", "number"} if kind == "number" else {kind})
        ]

    def _forbidden(self, flat: _Flat) -> Optional[Set[str]]:
        """Return the optional members that an object must leave out, so that it is none of the rivals; None where that
        is not enough."""
        forbidden: Set[str] = set()
        own = {key for keys in flat.all("required") for key in keys}
        for rival in self._rivals(flat, "object"):
            theirs = [key for keys in rival.all("required") for key in keys]
            if not forbidden & set(theirs) and not self._apart(flat, rival, "object", 0):
                optional = [key for key in theirs if key not in own]
                if not optional:
                    return None
                forbidden.add(optional[0])
        return forbidden

    def _apart(self, flat: _Flat, rival: _Flat, kind: str, level: int) -> bool:
        """Tell whether it is sure that no written value of `flat`, of one type, satisfies `rival`."""
        self._grammar.spend(_STEPS_OF_COMPARISON)
        values = self._values(rival)
        if values is not None:
            return not any(self._fits(value, _Flat(flat.nodes)) for value in values)
        tests = {"object": self._objects_apart, "array": self._arrays_apart, "string": self._strings_apart,
                 "number": self._numbers_apart, "integer": self._numbers_apart}  # fmt: skip
        return kind in tests and tests[kind](flat, rival, level)

    def _numbers_apart(self, flat: _Flat, rival: _Flat, level: int) -> bool:
        both = number_limits(flat.nodes + rival.nodes)
        if both[0] is None or both[1] is None:
            return False
        return both[0] > both[1] or (both[0] == both[1] and (both[2] or both[3]))

    def _strings_apart(self, flat: _Flat, rival: _Flat, level: int) -> bool:
        try:
            return self._shared(self._texts_at_most(flat), self._texts_at_most(rival)).empty
        except TooLarge:
            self._grammar.spend(MAX_STATES)
            return False

    def _arrays_apart(self, flat: _Flat, rival: _Flat, level: int) -> bool:
        low, high = _counts(_Flat(flat.nodes + rival.nodes), "minItems", "maxItems")
        return high is not None and low > high

    def _objects_apart(self, flat: _Flat, rival: _Flat, level: int) -> bool:
        names = dict.fromkeys(
            key for keyword in ("properties", "required") for each in flat.all(keyword) for key in each
        )
        own = {key for keys in flat.all("required") for key in keys}
        theirs = {key for keys in rival.all("required") for key in keys}
        if not self._is_open(flat) and not flat.all("patternProperties") and theirs - set(names):
            return True
        return any(self._members_apart(flat, rival, key, level) for key in names if key in own)

    def _members_apart(self, flat: _Flat, rival: _Flat, key: str, level: int) -> bool:
        theirs = [each for node in rival.nodes for each in self.member(node, key)]
        if not theirs or level > 5:
            return False
        here = self._expand([each for node in flat.nodes for each in self.member(node, key)])
        return all(self._values_apart(one, other, level + 1) for one in here for other in self._expand(theirs))

    def _values_apart(self, flat: _Flat, rival: _Flat, level: int) -> bool:
        values = self._finite(flat)
        if values is not None:
            return not any(self._fits(value, _Flat(rival.nodes)) for value in values)
        shared = {"integer" if kind == "number" else kind for kind in self._kinds(flat)}
        shared &= {"integer" if kind == "number" else kind for kind in self._kinds(rival)}
        return all(self._apart(flat, rival, kind, level) for kind in shared)


def _counts(flat: _Flat, least: str, most: str) -> Tuple[int, Optional[int]]:
    """Return the bounds of a length; None for no upper one."""
    return int(max(flat.all(least), default=0)), (int(min(flat.all(most))) if flat.all(most) else None)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
