"""Digits: numbers within bounds, and multiples, as machines over their decimal writings; all of it exact.

    bounds, step ── number_machines ── _Digits, once for each sign ── Machine

A double holds any 15 digits exactly. So at most 15 are written before the point (more where a bound has more), and as
many after it as the caller says. No number here has an exponent.
"""

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any, Hashable, Iterator, NamedTuple, Optional, Tuple

from core.grammar.automata import Machine, explore

MAX_DIGITS = 40  # of a bound; one with more digits is taken for no bound
DIGITS = 15  # any number of so many digits is exact in a double

Span = Optional[Tuple[int, int]]  # of numbers, both ends included; None for none


def exact(value: Any) -> Fraction:
    """Return a number as it was written."""
    return Fraction(Decimal(repr(value)) if isinstance(value, float) else value)


def common_multiple(one: Fraction, other: Fraction) -> Fraction:
    """Return the least number that is a multiple of both."""
    top, bottom = one.numerator * other.denominator, other.numerator * one.denominator
    return Fraction(top * bottom // math.gcd(top, bottom), one.denominator * other.denominator)


def decimals(value: Fraction) -> int:
    """Return how many digits after the point it takes to write a number that was read from JSON."""
    return next(places for places in range(400) if (value * 10**places).denominator == 1)


class Bounds(NamedTuple):
    """The lowest and the highest number, both included, None for no bound; and a step that it must be a multiple of.

    A step of 0 allows any number.
    """

    low: Optional[Fraction]
    high: Optional[Fraction]
    step: Fraction


def number_machines(bounds: Bounds, places: int) -> Iterator[Tuple[str, Machine]]:
    """Yield the machines for numbers with at most `places` decimals, each with the sign to write first, "" or "-".

    One may be empty. Raises TooLarge.
    """
    unit = 10**places
    step = bounds.step * unit
    low = None if bounds.low is None else math.ceil(bounds.low * unit)
    high = None if bounds.high is None else math.floor(bounds.high * unit)
    for sign, first, last in (("", low, high), ("-", _negated(high), _negated(low))):
        first = max(first if first is not None else 0, 1 if sign else 0)
        cap = (10 ** max(DIGITS, len(str(first // unit)) + 1)) * unit - 1
        last = cap if last is None or last >= 10**MAX_DIGITS * unit else last
        if first <= last:
            yield sign, _Digits(first, last, int(step), places).machine()


def _negated(value: Optional[int]) -> Optional[int]:
    return None if value is None else -value


class _Digits:
    """The decimal writings of the numbers from `low` to `high` that are multiples of `step`, all of them counted in
    units of ten to the minus `places`, not negative.

    A state is what the digits still to come may amount to. Before the point: for each number of further digits a
    span, and the rest that is left of dividing by the step. After it: the digits still allowed, one span, the rest.
    """

    def __init__(self, low: int, high: int, step: int, places: int):
        self._unit = 10**places
        self._places = places
        self._step = step
        self._cycle = step // math.gcd(step, 10) if places == 0 else step
        digits = max(1, len(str(high // self._unit)))
        self._start = ((None,) + tuple(self._clip((low, high), count) for count in range(1, digits + 1)), 0)

    def machine(self) -> Machine:
        """Return the machine for the writings. Raises TooLarge."""
        return explore(("start",) + self._start, self._edges, self._ends)

    def _clip(self, span: Tuple[int, int], digits: int) -> Span:
        low, high = max(span[0], 0), min(span[1], 10**digits * self._unit - 1)
        return (low, high) if low <= high else None

    def _ends(self, state: Tuple[Any, ...]) -> bool:
        span = state[2] if state[0] == "fraction" else state[1][0]
        started = state[0] != "fraction" or state[1] < self._places
        return started and span is not None and span[0] == 0 and state[-1] == 0

    def _edges(self, state: Tuple[Any, ...]) -> Iterator[Tuple[int, int, Hashable]]:
        if state[0] == "fraction":
            return self._after_the_point(*state[1:])
        return self._before_the_point(*state)

    def _before_the_point(self, kind: str, spans: Tuple[Span, ...], rest: int) -> Iterator[Tuple[int, int, Hashable]]:
        if self._places and spans[0]:
            yield 0x2E, 0x2E, ("fraction", self._places, spans[0], rest)
        for digit in range(10):
            following = tuple(self._cut(span, digit, 10**count * self._unit) for count, span in enumerate(spans[1:]))
            if kind == "start" and digit == 0:
                following = following[:1]  # 0 stands alone before the point
            if any(following):
                yield 0x30 + digit, 0x30 + digit, ("whole", following, self._rest(rest * 10 + digit * self._unit))

    def _after_the_point(self, left: int, span: Span, rest: int) -> Iterator[Tuple[int, int, Hashable]]:
        unit = 10 ** (left - 1) if left else 0
        for digit in range(10 if left else 0):
            following = self._cut(span, digit, unit)
            if following:
                over = (rest + digit * unit) % self._step if self._step else 0
                yield 0x30 + digit, 0x30 + digit, ("fraction", left - 1, following, over)

    def _cut(self, span: Span, digit: int, unit: int) -> Span:
        """Return what is left of a span after a digit that is worth `unit`."""
        if span is None:
            return None
        low, high = max(span[0] - digit * unit, 0), min(span[1] - digit * unit, unit - 1)
        return (low, high) if low <= high else None

    def _rest(self, value: int) -> int:
        """Return the rest of dividing by the step, or a smaller one after which the same digits can follow."""
        rest = value % self._step if self._step else 0
        return rest and (rest % self._cycle or self._cycle)
