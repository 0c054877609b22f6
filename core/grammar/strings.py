"""The bodies of rules for strings: any text, texts of some length, or a machine's (texts.py)."""

from typing import Optional

from core.grammar.conjunctions import Conjunction
from core.grammar.patterns import without
from core.grammar.values import Body, Values


class Strings:
    """Writes the rules for one schema's strings."""

    def __init__(self, values: Values):
        self._grammar = values.grammar
        self._texts = values.texts
        self._rivals = values.rivals

    def body(self, name: str, conjunction: Conjunction) -> Optional[Body]:
        """Return the body of a rule, None where no string is valid. Raises APIError 400, TooLarge."""
        low, high = conjunction.counts("minLength", "maxLength")
        if high is not None and low > high:
            return None
        machine = self._texts.exactly(conjunction)
        for rival in self._rivals.of(conjunction, "string"):
            machine = self._texts.counted(without(machine, self._texts.at_most(rival)))
        if machine is None:
            return self._of_length(low, high)
        if (low, high) != (0, None):
            machine = self._texts.bounded(machine, low, high)
        return None if machine.empty else Body(self._grammar.machine(name + "-text", machine, True))

    def _of_length(self, low: int, high: Optional[int]) -> Body:
        if (low, high) == (0, None):
            return Body(self._grammar.basic("json-string"))
        char = self._grammar.basic("json-char")
        text = '"\\"" %s "\\""' % self._grammar.repeat(char, low, high)
        return Body(self._grammar.rule("string-%d-%s" % (low, "" if high is None else high), text))
