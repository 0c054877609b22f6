"""The bodies of rules for arrays: items one by one, then as many others as the bounds allow; or different items."""

from typing import List, NamedTuple, Optional

from core.grammar.conjunctions import Conjunction
from core.grammar.rules import json_literal
from core.grammar.selections import Choice, Counts, selection
from core.grammar.validation import comparable, item_schemas, prefix
from core.grammar.values import Alternatives, Body, Values


class _Items(NamedTuple):
    """What an array's first items may be, one by one, what all others may be, and how many items there may be."""

    first: List[Alternatives]
    rest: Alternatives
    high: Optional[int]


class Arrays:
    """Writes the rules for one schema's arrays."""

    def __init__(self, values: Values):
        self._values = values
        self._grammar = values.grammar
        self._conjunctions = values.conjunctions

    def body(self, name: str, conjunction: Conjunction) -> Optional[Body]:
        """Return the body of a rule, None where no array is valid. Raises APIError 400, TooLarge."""
        if not self._values.rivals.all_apart(conjunction, "array"):
            return None
        low, high = conjunction.counts("minItems", "maxItems")
        items = self._items(conjunction, low, high)
        if items.high is not None and low > items.high:
            return None
        if any(conjunction.all("uniqueItems")) and items.high not in (0, 1):
            return self._unique(name, conjunction, items, low)
        first = [self._values.rule(alternatives) for alternatives in items.first]
        rest = self._values.rule(items.rest) if items.rest else None
        needs = first + ([rest] if rest and low > len(first) else [])
        return Body(self._sequence(name, first, rest, Counts(low, items.high)), needs)

    def _items(self, conjunction: Conjunction, low: int, high: Optional[int]) -> _Items:
        nodes = conjunction.nodes
        count = max(prefix(node)[1] for node in nodes) if nodes else 0
        first: List[Alternatives] = []
        while len(first) < count and len(first) != high:
            here = [each for node in nodes for each in item_schemas(node, len(first))]
            alternatives = self._conjunctions.expand(here)
            if not alternatives:
                return _Items(first, [], len(first))
            first.append(alternatives)
        others = [each for node in nodes for each in item_schemas(node, count)]
        if len(first) == high or (count and not others and low <= count):
            return _Items(first, [], len(first))
        rest = self._conjunctions.expand(others)
        return _Items(first, rest, high if rest else len(first))

    def _sequence(self, name: str, first: List[str], rest: Optional[str], counts: Counts) -> str:
        """Return the body for an array: all of `first`, and as many of `rest` as bring it within the bounds."""
        space = self._grammar.basic("json-space")
        comma = ' "," %s ' % space
        start = '"[" %s ' % space
        low, high = counts
        if rest is None or high == 0:
            return start + comma.join(first) + (" " + space + ' "]"' if first else ' "]"')
        further = self._grammar.rule(name + "-further", comma.strip() + " " + rest)
        written = max(len(first), 1)
        repeated = self._grammar.repeat(further, max(low - written, 0), None if high is None else high - written)
        body = "%s %s %s" % (comma.join(first or [rest]), repeated, space)
        return start + (body if first or low else "(%s)?" % body) + ' "]"'

    def _unique(self, name: str, conjunction: Conjunction, items: _Items, low: int) -> Optional[Body]:
        """Return the body for different items: some of an enumeration, in its order."""
        lists = [values for values in map(self._conjunctions.few_values, items.rest) if values is not None]
        if items.first or len(lists) < len(items.rest):
            place = next(node for node in conjunction.nodes if node.schema.get("uniqueItems"))
            message = "'uniqueItems' is supported for enumerated items only"
            raise self._values.reader.refuse(place, "uniqueItems", message)
        unique = {comparable(value): value for values in lists for value in values}
        choices = [Choice(json_literal(value), False) for value in unique.values()]
        inner = selection(self._grammar, name, choices, None, Counts(low, items.high))
        return None if inner is None else Body('"[" %s %s "]"' % (self._grammar.basic("json-space"), inner))
