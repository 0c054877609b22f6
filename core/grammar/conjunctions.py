"""What a value may be, once references and the keywords of logic are resolved: a union of conjunctions.

    nodes ── Conjunctions.expand ──> [Conjunction, Conjunction, ...]     a value must satisfy one of them

A schema is logic: `$ref`, `allOf`, `anyOf`, `oneOf`, `not`, `nullable`. The rules of a grammar know "or" only. So each
value's schema is brought into disjunctive normal form: several conjunctions, of which one must hold.

    Conjunction    the nodes that must hold together, and the rivals: schemas that must not hold
    Conjunctions   makes them for one schema, and tells which values of an enumeration they leave
"""

from collections import deque
from typing import Any, Dict, FrozenSet, Hashable, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from core.grammar.validation import KINDS, MAX_REFERENCES, Node, Reader, comparable, kind_of

_MAX_BRANCHES = 300  # of one value, once unions within unions are multiplied out

# Without `type`, these keywords tell which types a schema is about.
_SPEAKS_OF = {
    "object": ("properties", "required", "additionalProperties", "patternProperties", "propertyNames",
               "minProperties", "maxProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "string": ("pattern", "minLength", "maxLength", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}  # fmt: skip
_OWN = sum(_SPEAKS_OF.values(), ("type", "enum", "const", "additionalItems", "unevaluatedProperties"))

_Path = FrozenSet[str]  # the places that led to a node
_Union = Tuple[List[Node], bool, _Path]  # its branches, whether just one may hold, and the path that led to it


class Conjunction(NamedTuple):
    """A value must satisfy the keywords of all nodes, and none of the rivals as a whole.

    The nodes hold no keyword of logic any more.
    """

    nodes: Tuple[Node, ...]
    rivals: Tuple[Node, ...] = ()

    def key(self) -> Hashable:
        """Return what tells two conjunctions of one schema apart."""
        return (tuple(node.where for node in self.nodes), frozenset(node.where for node in self.rivals))

    def all(self, keyword: str) -> List[Any]:
        """Return a keyword's values in all nodes that have it."""
        return [node.schema[keyword] for node in self.nodes if keyword in node.schema]

    def both(self, other: "Conjunction", rivals: Iterable[Node]) -> "Conjunction":
        """Return the conjunction of this, another one and further rivals."""
        nodes = self.nodes + tuple(node for node in other.nodes if node not in self.nodes)
        return Conjunction(nodes, self.rivals + other.rivals + tuple(rivals))

    def counts(self, least: str, most: str) -> Tuple[int, Optional[int]]:
        """Return the bounds of a length, by the keywords that give them; None for no upper one."""
        return int(max(self.all(least), default=0)), (int(min(self.all(most))) if self.all(most) else None)

    def kinds(self) -> List[str]:
        """Return the types that the keyword `type` leaves; `number` means any, integers included."""
        kinds = set(KINDS)
        for types in self.all("type"):
            names = set(types if isinstance(types, list) else [types])
            kinds &= names | ({"integer"} if "number" in names else set())
        if "number" in kinds:
            kinds.discard("integer")
        return [kind for kind in KINDS if kind in kinds]

    def written_kinds(self) -> List[str]:
        """Return the types to write: those that are allowed, or where none are named, those that keywords speak of."""
        kinds = self.kinds()
        spoken = [kind for kind, keywords in _SPEAKS_OF.items() if any(map(self.all, keywords))]
        return kinds if self.all("type") or not spoken else [kind for kind in kinds if kind in spoken]

    def is_open(self) -> bool:
        """Tell whether an object may have members that nothing declares: see the policy at the top of schema.py."""
        if self.all("additionalProperties"):
            return all(each is not False for each in self.all("additionalProperties"))
        closed = self.all("patternProperties") or False in self.all("unevaluatedProperties")
        return not closed and not any(self.all("properties"))

    def declared(self) -> List[str]:
        """Return the names of an object's declared members, in their order."""
        keywords = ("properties", "required")
        return list(dict.fromkeys(name for keyword in keywords for names in self.all(keyword) for name in names))

    def required(self) -> List[str]:
        """Return the names of the members that an object must have."""
        return [name for names in self.all("required") for name in names]


class Conjunctions:
    """Makes the conjunctions of one schema. What is worked out is remembered, by the places of the nodes."""

    def __init__(self, reader: Reader):
        self._reader = reader
        self._expanded: Dict[Hashable, List[Conjunction]] = {}
        self._valid: Dict[Hashable, Optional[List[Any]]] = {}

    def expand(self, nodes: Sequence[Node]) -> List[Conjunction]:
        """Return what a value that satisfies all of `nodes` may be: conjunctions, none of them plainly impossible.

        Raises APIError 400.
        """
        key = tuple(node.where for node in nodes)
        if key not in self._expanded:
            unique = {each.key(): each for each in self._unfold([(node, frozenset()) for node in nodes])}
            self._expanded[key] = [each for each in unique.values() if self._possible(each)]
        return self._expanded[key]

    # ---- the keywords of logic

    def _unfold(self, nodes: Iterable[Tuple[Node, _Path]]) -> List[Conjunction]:
        """Resolve references and the keywords of logic. With each node comes the path that led to it."""
        base: Dict[str, Node] = {}
        rivals: List[Node] = []
        unions: List[_Union] = []
        todo = deque(nodes)
        while todo:
            given, path = todo.popleft()
            if given.schema is False:
                return []
            if given.schema is True:
                continue
            self._check_path(given, path)
            path = path | {given.where}
            node = self._without_null(given, path, unions)
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
        return self._multiply(Conjunction(tuple(base.values()), tuple(rivals)), unions)

    def _check_path(self, node: Node, path: _Path) -> None:
        self._reader.check(node)
        if node.where in path or len(path) > MAX_REFERENCES:
            raise self._reader.refuse(node, "", "it refers to itself, or on and on, with nothing in between")

    def _without_null(self, node: Node, path: _Path, unions: List[_Union]) -> Optional[Node]:
        """Read OpenAPI's nullable as a union with null; the node itself is then a branch of it."""
        if node.schema.get("nullable") is not True:
            return node
        rest = {keyword: value for keyword, value in node.schema.items() if keyword != "nullable"}
        null = Node({"type": "null"}, node.where + "/nullable")
        unions.append(([Node(rest, node.where), null], False, path - {node.where}))
        return None

    def _conjuncts(self, node: Node) -> List[Node]:
        targets = [self._reader.target(node)] if "$ref" in node.schema else []
        return targets + self._children(node, "allOf")

    @staticmethod
    def _children(node: Node, keyword: str) -> List[Node]:
        return [node.at(keyword, index) for index in range(len(node.schema.get(keyword, ())))]

    def _multiply(self, base: Conjunction, unions: Sequence[_Union]) -> List[Conjunction]:
        """Return one conjunction for each choice of branches; for oneOf, the other branches become rivals."""
        found = [base]
        for children, exclusive, path in unions:
            branches = []
            for child in children:
                rivals = [other for other in children if exclusive and other is not child]
                branches += [(branch, rivals) for branch in self._unfold([(child, path)])]
            found = [each.both(branch, rivals) for each in found for branch, rivals in branches]
            found = [each for each in found if self._possible(each)]
            if len(found) > _MAX_BRANCHES:
                raise self._reader.grammar.refuse(
                    "The schema can't be honoured: its unions have more than %d branches." % _MAX_BRANCHES
                )
        return found

    def _possible(self, conjunction: Conjunction) -> bool:
        return bool(conjunction.kinds()) and self.values(conjunction) != []

    # ---- values

    def values(self, conjunction: Conjunction) -> Optional[List[Any]]:
        """Return the values of an enumeration that are valid; None for anything else."""
        if not any("enum" in node.schema or "const" in node.schema for node in conjunction.nodes):
            return None
        key = conjunction.key()
        if key not in self._valid:
            lists = conjunction.all("enum") + [[value] for value in conjunction.all("const")]
            shortest = min(lists, key=len)
            self._reader.grammar.spend(len(shortest))
            unique = {comparable(value): value for value in shortest}
            self._valid[key] = [value for value in unique.values() if self.fits(value, conjunction)]
        return self._valid[key]

    def few_values(self, conjunction: Conjunction) -> Optional[List[Any]]:
        """Return all valid values where there are but few: of an enumeration, or true, false and null; else None."""
        kinds = conjunction.kinds()
        if self.values(conjunction) is None and set(kinds) <= {"boolean", "null"}:
            constants = (False, True, None)
            return [value for value in constants if kind_of(value) in kinds and self.fits(value, conjunction)]
        return self.values(conjunction)

    def fits(self, value: Any, conjunction: Conjunction) -> bool:
        """Tell whether a value satisfies a conjunction."""
        if not all(self._reader.holds(value, node) for node in conjunction.nodes):
            return False
        return not any(self._reader.holds(value, rival) for rival in conjunction.rivals)
