"""From a JSON schema to a grammar: what a constrained answer may look like, in GBNF, llama.cpp's grammar language.

    a schema ── Reader ──> nodes ── Conjunctions ──> what a value may be ── Values ──> a queue of rules to write
            (validation)      (conjunctions, rivals)                   (values)              │
                                  Objects, Arrays, Strings, Numbers, enumerations here ──────┘ ──> Rules.text
                                  (objects)(arrays)(strings)(numbers)                             (rules)

The one law: every text that the grammar accepts is JSON and valid against the schema. Where a grammar can't hold to a
schema, APIError 400 names the keyword and its place; no keyword of validation is ever overlooked. The other way round,
the grammar may be narrower than the schema, where JSON Schema allows more than the schema's author can have meant:

- Properties come in the order they are declared in, additional ones after them. An object that declares properties is
  closed unless `additionalProperties` or `patternProperties` open it; one that declares none is open.
- A tuple (`prefixItems`) comes whole, and is closed unless `items` says how it goes on.
- Without `type`, the keywords tell the type: with `properties` it is an object, with `pattern` a string.
- Numbers have at most 15 digits before the point (more where a bound has more), 15 after it and an exponent of two: a
  weak model would go on for ever. Numbers with bounds or `multipleOf` have no exponent.
- Between JSON's tokens comes nothing, one blank, or a new line with an indent of at most 20.
- With an upper bound, strings and arrays hold at most 500,000 characters or items more than they must.
- `uniqueItems` is held for enumerated items, which then come in the order of the enumeration.
- `oneOf`: what two branches may share is left out: strings exactly, other values by whole types or by leaving out an
  optional property. A branch of which nothing remains is refused, and the error proposes `anyOf`. `not` is the same.

Each file that this one stands on says at its top which standards it follows.
"""

import sys
from typing import Any, Callable, Dict, List, Optional

from core.errors import APIError
from core.grammar.arrays import Arrays
from core.grammar.automata import ANY_TEXT, Machine, TooLarge, listed, product
from core.grammar.conjunctions import Conjunction
from core.grammar.free import holds_no
from core.grammar.kept import Kept, exact_key
from core.grammar.numbers import Numbers
from core.grammar.objects import Objects
from core.grammar.rules import Rules, json_literal, json_text, literal
from core.grammar.strings import Strings
from core.grammar.validation import Node
from core.grammar.values import Alternatives, Body, Values

JSON_OBJECT: Dict[str, Any] = {"type": "object"}  # what response_format json_object asks for

_FEW_VALUES = 16  # of an enumeration, side by side in one rule

# Of schemas and their texts: room for 35 of 500 properties, each of which takes 0.2 MB, and for many more usual ones.
_KEPT_BYTES = 1 << 23


class Grammar(Rules):
    """GBNF rules under construction, among them those for JSON schemas. `param` is the request's field in errors."""

    def schema(self, schema: Any, name: str = "value") -> str:
        """Add the rules for a JSON schema, which is the root that its references point into; returns the rule's name.

        Raises APIError 400 unsupported_schema.
        """
        return _Converter(self, schema, name).convert()

    def texts(self, schema: Any, name: str, closer: str) -> str:
        """Add the rules for the strings of a JSON schema, without quotes; returns the rule's name.

        None of them holds `closer`, which may follow. Raises APIError 400 unsupported_schema.
        """
        values = Values(self, schema, name)
        machines = [_plain_texts(values, each) for each in values.conjunctions.expand([Node(schema, "#")])]
        try:
            free = [product(machine, holds_no(closer), True) for machine in machines]
        except TooLarge:
            raise self.refuse("The texts of '%s' take too many states." % name)
        rules = [self.machine(name + "-text", values.texts.counted(each), False) for each in free if not each.empty]
        if not rules:
            raise self.refuse("No text of '%s' can be valid." % name)
        return self.rule(name + "-texts", " | ".join(rules))


def json_grammar(schema: Any, param: str = "response_format") -> str:
    """Return the whole grammar for one schema, kept from the last time or made.

    Raises APIError 400 unsupported_schema that names `param`.
    """

    def make() -> str:
        grammar = Grammar(param)
        return grammar.text(grammar.schema(schema))

    return kept_text("schema", schema, make)


_KEPT_TEXTS: Kept[str] = Kept(_KEPT_BYTES, sys.getsizeof)


def kept_text(kind: str, wanted: Any, make: Callable[[], str]) -> str:
    """Return a grammar's text, made only if it is not kept from an earlier request that wanted the same.

    `wanted` is a JSON value that says all that the text depends on; `kind` tells those of different callers apart. What
    `make` raises passes through.
    """
    key = exact_key(wanted)
    return make() if key is None else _KEPT_TEXTS.get(kind + key, make)


def _plain_texts(values: Values, conjunction: Conjunction) -> Machine:
    """Return the machine for the strings that satisfy a conjunction. Raises APIError 400, TooLarge."""
    if conjunction.rivals:
        raise values.reader.refuse(conjunction.rivals[0], "", "texts without quotes can't be told apart")
    listed_ones = values.conjunctions.values(conjunction)
    if listed_ones is not None:
        return listed(text for text in listed_ones if isinstance(text, str))
    low, high = conjunction.counts("minLength", "maxLength")
    return values.texts.bounded(values.texts.exactly(conjunction) or ANY_TEXT, low, high)


class _Converter:
    """Adds the rules for one schema to a grammar: takes each from the queue in values.py and has its body written."""

    def __init__(self, grammar: Rules, schema: Any, name: str):
        self._grammar = grammar
        self._root = Node(schema, "#")
        self._values = Values(grammar, schema, name)
        self._conjunctions = self._values.conjunctions
        numbers = Numbers(self._values)
        self._writers: Dict[str, Callable[[str, Conjunction], Optional[Body]]] = {
            "object": Objects(self._values).body, "array": Arrays(self._values).body,
            "string": Strings(self._values).body, "integer": numbers.integer, "number": numbers.number,
            "boolean": self._boolean, "null": self._null,
        }  # fmt: skip

    def convert(self) -> str:
        """Add the rules and return the first one's name. Raises APIError 400."""
        alternatives = self._conjunctions.expand([self._root])
        if not alternatives:
            raise self._values.reader.refuse(self._root, "", "no value can be valid")
        first = self._values.rule(alternatives)
        for name, each in self._values.unwritten():
            try:
                self._values.written(name, self._bodies(name, each))
            except TooLarge:
                raise self._values.refuse(name, "", "pattern, format, lengths or bounds take too many states")
        self._values.check_finite()
        return first

    def _bodies(self, name: str, alternatives: Alternatives) -> List[Body]:
        """Return a rule's bodies. Raises APIError 400, TooLarge."""
        if len(alternatives) > 1:
            rules = list(dict.fromkeys(self._values.rule([each]) for each in alternatives))
            return [Body(rule, [rule]) for rule in rules]
        conjunction = alternatives[0]
        values = self._conjunctions.values(conjunction)
        if values is not None:
            return [self._enumeration(name, values)]
        bodies = [self._writers[kind](name, conjunction) for kind in conjunction.written_kinds()]
        possible = [body for body in bodies if body]
        if not possible:
            raise self._impossible(name, conjunction)
        return possible

    def _impossible(self, name: str, conjunction: Conjunction) -> APIError:
        if not conjunction.rivals:
            return self._values.refuse(name, "", "no value can be valid")
        rival, refuse = conjunction.rivals[0], self._values.reader.refuse
        if rival.where.endswith("/not"):
            return refuse(rival, "", "nothing but what 'not' forbids would be left, or it can't be told apart")
        return refuse(rival, "", "this branch of 'oneOf' can't be told apart from another one; use 'anyOf'")

    def _enumeration(self, name: str, values: List[Any]) -> Body:
        texts = [json_text(value) for value in values]
        if len(texts) <= _FEW_VALUES:
            return Body(" | ".join(map(literal, texts)))
        machine = listed(texts)  # one path through many words is faster than many words side by side
        return Body(self._grammar.machine(name + "-text", machine, False))

    def _boolean(self, name: str, conjunction: Conjunction) -> Optional[Body]:
        return self._constants([True, False], conjunction)

    def _null(self, name: str, conjunction: Conjunction) -> Optional[Body]:
        return self._constants([None], conjunction)

    def _constants(self, values: List[Any], conjunction: Conjunction) -> Optional[Body]:
        valid = [value for value in values if self._conjunctions.fits(value, conjunction)]
        return Body(" | ".join(map(json_literal, valid))) if valid else None
