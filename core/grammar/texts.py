"""Which texts a string may have: patterns, formats, lengths and enumerations of one conjunction, as a machine.

    Texts ── exactly    by patterns and formats; None where any text will do
          ── at_most    all that are valid, and perhaps some more: to tell strings apart
"""

import functools
from typing import List, Optional

from core.grammar.automata import ANY_TEXT, Machine, listed, product, within
from core.grammar.conjunctions import Conjunction, Conjunctions
from core.grammar.patterns import format_machine
from core.grammar.validation import Reader


class Texts:
    """Makes the machines for one schema's strings. All its methods raise APIError 400 and TooLarge."""

    def __init__(self, reader: Reader, conjunctions: Conjunctions):
        self._reader = reader
        self._conjunctions = conjunctions

    def exactly(self, conjunction: Conjunction) -> Optional[Machine]:
        """Return the machine for the texts that patterns and formats allow; None for all."""
        return self._all_of(self._patterns(conjunction) + self._formats(conjunction))

    def at_most(self, conjunction: Conjunction) -> Machine:
        """Return a machine for all texts that are valid, and perhaps some more: `format` is left out."""
        values = self._conjunctions.values(conjunction)
        if values is not None:
            return self.counted(listed(value for value in values if isinstance(value, str)))
        machine = self._all_of(self._patterns(conjunction)) or ANY_TEXT
        low, high = conjunction.counts("minLength", "maxLength")
        return self.bounded(machine, low, high) if (low, high) != (0, None) else machine

    def names(self, machine: Machine, conjunction: Optional[Conjunction]) -> Machine:
        """Return the machine for those of its texts that are valid by `propertyNames`; None: by none."""
        valid = self.at_most(conjunction) if conjunction else listed([])
        for each in self._formats(conjunction) if conjunction else []:
            valid = self.shared(valid, each)
        return self.shared(machine, valid)

    def shared(self, one: Machine, other: Machine) -> Machine:
        """Return the machine for the texts of both."""
        return self.counted(product(one, other, True))

    def bounded(self, machine: Machine, low: int, high: Optional[int]) -> Machine:
        """Return the machine for the texts of `low` to `high` characters; None for any number."""
        return self.counted(within(machine, low, high))

    def counted(self, machine: Machine) -> Machine:
        """Return a machine, once what it took is counted."""
        self._reader.grammar.spend(machine.cost)
        return machine

    def _patterns(self, conjunction: Conjunction) -> List[Machine]:
        holders = [node for node in conjunction.nodes if "pattern" in node.schema]
        return [self._reader.pattern(node, "pattern", node.schema["pattern"]) for node in holders]

    @staticmethod
    def _formats(conjunction: Conjunction) -> List[Machine]:
        machines = [format_machine(name) for name in conjunction.all("format")]
        return [machine for machine in machines if machine]

    def _all_of(self, machines: List[Machine]) -> Optional[Machine]:
        return functools.reduce(self.shared, machines) if machines else None
