"""The rules for one schema's values: named at once, written later, from a queue.

    Values ── rule            the name of the rule for a value; its body comes later
           ── unwritten       the rules whose bodies are still to be written
           ── written, part   take what was written, and which rules it needs
           ── check_finite    refuses a rule that needs itself: no answer by it would end

However long a chain of references is, nothing recurses. This is also what the writers of bodies (strings.py,
numbers.py, arrays.py, objects.py) share: the grammar, the schema's reader and what its values may be.
"""

from collections import deque
from typing import Any, Deque, Dict, Hashable, Iterator, List, NamedTuple, Sequence, Set, Tuple

from core.errors import APIError
from core.grammar.conjunctions import Conjunction, Conjunctions
from core.grammar.rivals import Rivals
from core.grammar.rules import Rules
from core.grammar.texts import Texts
from core.grammar.validation import Node, Reader

Alternatives = List[Conjunction]  # a value must satisfy one of them


class Body(NamedTuple):
    """A rule's body in GBNF for values of one type, and the rules that none of these values can do without."""

    text: str
    needs: Sequence[str] = ()


class Values:
    """The rules for one schema's values under construction."""

    def __init__(self, grammar: Rules, root: Any, name: str):
        """`name` is the first rule's, where the schema gives no better one. Raises APIError 400."""
        self.grammar = grammar
        self.reader = Reader(grammar, root)
        self.conjunctions = Conjunctions(self.reader)
        self.texts = Texts(self.reader, self.conjunctions)
        self.rivals = Rivals(self.reader, self.conjunctions, self.texts)
        self._name = name
        self._rules: Dict[Hashable, str] = {}
        self._pending: Deque[Tuple[str, Alternatives]] = deque()
        self._needs: Dict[str, Sequence[Sequence[str]]] = {}  # by rule, for each of its alternatives
        self._places: Dict[str, Node] = {}

    def rule(self, alternatives: Alternatives) -> str:
        """Return the name of the rule for a value that is one of some alternatives, to be written later."""
        key = tuple(each.key() for each in alternatives)
        if key not in self._rules:
            place = next((node for each in alternatives for node in each.nodes), Node(True, "#"))
            if not any(each.nodes or each.rivals for each in alternatives):
                name = self.grammar.basic("json-value")
                self._needs[name] = [[]]
            else:
                words = [word for word in place.where.split("/")[1:] if not word.isdigit()]
                name = self.grammar.reserve(words[-1] if words else self._name)
                self._pending.append((name, alternatives))
            self._rules[key] = name
            self._places[name] = place
        return self._rules[key]

    def unwritten(self) -> Iterator[Tuple[str, Alternatives]]:
        """Yield the rules that have no body yet. More may be named while this goes on: they come, too."""
        while self._pending:
            yield self._pending.popleft()

    def written(self, name: str, bodies: Sequence[Body]) -> None:
        """Take the bodies of a rule, one for each alternative."""
        self._needs[name] = [body.needs for body in bodies]
        self.grammar.define(name, " | ".join(body.text for body in bodies))

    def part(self, owner: str, part: str, rules: Sequence[str]) -> str:
        """Note that a part of a rule's value needs one of some rules; `owner` is the rule. Returns the part's name."""
        self._needs[part] = [[rule] for rule in rules]
        self._places[part] = self._places[owner]
        return part

    def refuse(self, name: str, keyword: str, what: str) -> APIError:
        """Return the error that names a keyword in the schema of a rule's value, "" for none."""
        return self.reader.refuse(self._places[name], keyword, what)

    def check_finite(self) -> None:
        """Raise APIError 400 for a rule without finite values: one that needs itself, at once or through others."""
        finite: Set[str] = set()
        waiting = list(self._needs)
        while waiting:
            for name in reversed(waiting):  # what was written later is mostly what was needed earlier
                if any(finite.issuperset(needs) for needs in self._needs[name]):
                    finite.add(name)
            rest = [name for name in waiting if name not in finite]
            if len(rest) == len(waiting):
                raise self.refuse(rest[0], "", "a value that is valid would never end: it requires itself")
            waiting = rest
