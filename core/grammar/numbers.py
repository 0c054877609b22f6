"""The bodies of rules for numbers: any, or those within bounds and multiples, as machines over digits (digits.py)."""

import functools
import math
from fractions import Fraction
from typing import List, Optional

from core.grammar.conjunctions import Conjunction
from core.grammar.digits import DIGITS, MAX_DIGITS, Bounds, common_multiple, decimals, exact, number_machines
from core.grammar.rules import literal
from core.grammar.validation import number_limits
from core.grammar.values import Body, Values


class Numbers:
    """Writes the rules for one schema's numbers."""

    def __init__(self, values: Values):
        self._values = values
        self._grammar = values.grammar

    def integer(self, name: str, conjunction: Conjunction) -> Optional[Body]:
        """Return the body of a rule for integers, None where none is valid. Raises APIError 400, TooLarge."""
        return self._body(name, conjunction, [Fraction(1)])

    def number(self, name: str, conjunction: Conjunction) -> Optional[Body]:
        """Return the body of a rule for numbers, None where none is valid. Raises APIError 400, TooLarge."""
        return self._body(name, conjunction, [])

    def _body(self, name: str, conjunction: Conjunction, steps: List[Fraction]) -> Optional[Body]:
        """Return the body for multiples of all `steps`."""
        if not self._values.rivals.all_apart(conjunction, "number"):
            return None
        limits = number_limits(conjunction.nodes)
        multiples = [exact(step) for step in conjunction.all("multipleOf")] + steps
        if limits[:2] == (None, None) and multiples in ([], [1]):
            return Body(self._grammar.basic("json-integer" if multiples else "json-number"))
        low, high, above, below = limits
        step = functools.reduce(common_multiple, multiples) if multiples else Fraction(0)
        places = self._decimals(name, [limit for limit in (low, high) if limit is not None], step, above or below)
        unit = 10**places
        if low is not None and above:
            low = Fraction(math.floor(low * unit) + 1, unit)
        if high is not None and below:
            high = Fraction(math.ceil(high * unit) - 1, unit)
        return self._within(name, Bounds(low, high, step), places)

    def _within(self, name: str, bounds: Bounds, places: int) -> Optional[Body]:
        parts = []
        for sign, machine in number_machines(bounds, places):
            if not self._values.texts.counted(machine).empty:
                digits = self._grammar.machine(name + "-digits", machine, False)
                parts.append("%s %s" % (literal(sign), digits) if sign else digits)
        return Body(" | ".join(parts)) if parts else None

    def _decimals(self, name: str, limits: List[Fraction], step: Fraction, exclusive: bool) -> int:
        """Return how many digits after the point to write."""
        whole = max([len(str(int(abs(limit)))) for limit in limits] + [1])
        if step:
            return decimals(step)
        if whole > MAX_DIGITS and all(abs(limit) >= 10**MAX_DIGITS for limit in limits):
            return 0
        needed = max([decimals(limit) for limit in limits] + [0])
        if exclusive and whole + needed > DIGITS:
            # Numbers beyond 15 digits may be read as the bound itself, which is left out.
            raise self._values.refuse(name, "", "an exclusive bound has more than %d digits" % DIGITS)
        return max(needed, DIGITS - whole, 0)
