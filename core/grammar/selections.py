"""Some of a list, in the list's order: an object's members, and the different items of an enumeration.

    selection ── the body for what stands between an object's braces, or an array's brackets
"""

from typing import List, NamedTuple, Optional, Sequence

from core.grammar.rules import Rules


class Choice(NamedTuple):
    """One of the list: its body in GBNF, and whether it must be there."""

    text: str
    needed: bool


class Counts(NamedTuple):
    """How many there may be altogether: at least `low`, at most `high` (None: any number)."""

    low: int
    high: Optional[int]


def selection(
    grammar: Rules, name: str, choices: Sequence[Choice], extra: Optional[str], counts: Counts
) -> Optional[str]:
    """Return the body for the choices in their order, then extra ones (None: there are none); None for nothing valid.

    Raises APIError 400 where the grammar becomes too large.
    """
    return _Selection(grammar, name, extra, counts).body(choices)


class _Selection:
    def __init__(self, grammar: Rules, name: str, extra: Optional[str], counts: Counts):
        self._grammar = grammar
        self._name = name
        self._extra = extra
        self._low, self._high = counts
        self._space = grammar.basic("json-space")

    def body(self, choices: Sequence[Choice]) -> Optional[str]:
        """Return the body.

        The rules are as many as the choices, times the count where that matters: `chosen[count]` holds what begins with
        one of the choices from an index on when `count` have come before, or None where nothing would be valid.
        """
        low, high = self._low, self._high
        most = len(choices) + low if high is None else high
        cap = min(len(choices), most) if low or high is not None else 0
        needed = False
        chosen = [self._extras(count if cap else None) for count in range(cap + 1)]
        for index in range(len(choices) - 1, -1, -1):
            text, must = choices[index]
            shared = index > 0 and (not choices[index - 1].needed or cap > 0)
            here: List[Optional[str]] = []
            for count in range(cap + 1):
                may_end = not needed and (cap == 0 or count + 1 >= low)
                tail = self._tail(chosen[min(count + 1, cap)], may_end, cap == 0 or count < most)
                ways = [text + tail] if tail is not None else []
                ways += [way for way in [chosen[count]] if way is not None and not must]
                here.append(self._way(ways, shared))
            chosen = here
            needed = needed or must
        return self._whole(chosen[0] if high != 0 else None, needed or low > 0)

    def _whole(self, start: Optional[str], needed: bool) -> Optional[str]:
        if needed:
            return None if start is None else "%s %s" % (start, self._space)
        return "" if start is None else "(%s %s)?" % (start, self._space)

    def _way(self, ways: List[str], shared: bool) -> Optional[str]:
        """Return one of some ways on: a rule of its own where it is long, or stands in several places."""
        if not ways:
            return None
        body = " | ".join(ways)
        return body if len(ways) < 2 and not shared else self._grammar.rule(self._name + "-some", body)

    def _tail(self, following: Optional[str], may_end: bool, fits: bool) -> Optional[str]:
        """Return what follows a choice; None where it can't stand there."""
        if not fits:
            return None
        comma = '"," ' + self._space
        if following is None:
            return "" if may_end else None
        return (" (%s %s)?" if may_end else " %s %s") % (comma, following)

    def _extras(self, count: Optional[int]) -> Optional[str]:
        """Return the body for one or more extra ones after `count` choices (None: it makes no difference).

        Of extra members only one is sure to have a name of its own, so no more are relied on to reach the least.
        """
        if self._extra is None:
            return None
        before = count or 0
        if before + 1 < self._low or (self._high is not None and before >= self._high):
            return None
        further = self._grammar.rule(self._name + "-further", '"," %s %s' % (self._space, self._extra))
        most = None if self._high is None else self._high - before - 1
        return "%s %s" % (self._extra, self._grammar.repeat(further, 0, most))
