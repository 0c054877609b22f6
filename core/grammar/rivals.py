"""What a value must not be: `not`, and the other branches of `oneOf`. They are a conjunction's rivals.

A grammar can't say "but not". So a rule may be written only where it is sure that none of its values satisfies a rival:

    Rivals ── of          a conjunction's rivals of one type, with references and logic resolved
           ── apart       whether it is sure that no value satisfies both, by values, bounds, patterns or members
           ── forbidden   the optional members that an object leaves out, so that it is none of its rivals
"""

from typing import Callable, Dict, List, Optional, Set

from core.grammar.automata import MAX_STATES, TooLarge
from core.grammar.conjunctions import Conjunction, Conjunctions
from core.grammar.texts import Texts
from core.grammar.validation import Reader, number_limits

_STEPS_OF_COMPARISON = 12  # of two conjunctions
_MAX_LEVELS = 5  # of members within members that are compared

_Test = Callable[[Conjunction, Conjunction, int], bool]


class Rivals:
    """Tells the values of one schema apart. All its methods raise APIError 400."""

    def __init__(self, reader: Reader, conjunctions: Conjunctions, texts: Texts):
        self._reader = reader
        self._conjunctions = conjunctions
        self._texts = texts
        self._tests: Dict[str, _Test] = {
            "object": self._objects_apart, "array": self._arrays_apart, "string": self._strings_apart,
            "number": self._numbers_apart, "integer": self._numbers_apart,
        }  # fmt: skip

    def of(self, conjunction: Conjunction, kind: str) -> List[Conjunction]:
        """Return those conjunctions that a value of a type must not satisfy."""
        kinds = {"integer", "number"} if kind == "number" else {kind}
        found = [each for rival in conjunction.rivals for each in self._conjunctions.expand([rival])]
        return [each for each in found if kinds & set(each.kinds())]

    def all_apart(self, conjunction: Conjunction, kind: str) -> bool:
        """Tell whether it is sure that no value of a type that satisfies a conjunction satisfies one of its rivals."""
        return all(self._apart(conjunction, rival, kind, 0) for rival in self.of(conjunction, kind))

    def forbidden(self, conjunction: Conjunction) -> Optional[Set[str]]:
        """Return the optional members that an object must leave out, so that it is none of its rivals.

        None where that is not enough.
        """
        forbidden: Set[str] = set()
        own = set(conjunction.required())
        for rival in self.of(conjunction, "object"):
            theirs = rival.required()
            if not forbidden & set(theirs) and not self._apart(conjunction, rival, "object", 0):
                optional = [key for key in theirs if key not in own]
                if not optional:
                    return None
                forbidden.add(optional[0])
        return forbidden

    def _apart(self, conjunction: Conjunction, rival: Conjunction, kind: str, level: int) -> bool:
        """Tell whether it is sure that no written value of a conjunction, of one type, satisfies the rival."""
        self._reader.grammar.spend(_STEPS_OF_COMPARISON)
        values = self._conjunctions.values(rival)
        if values is not None:
            return not any(self._conjunctions.fits(value, Conjunction(conjunction.nodes)) for value in values)
        return kind in self._tests and self._tests[kind](conjunction, rival, level)

    @staticmethod
    def _numbers_apart(conjunction: Conjunction, rival: Conjunction, level: int) -> bool:
        low, high, above, below = number_limits(conjunction.nodes + rival.nodes)
        if low is None or high is None:
            return False
        return low > high or (low == high and (above or below))

    def _strings_apart(self, conjunction: Conjunction, rival: Conjunction, level: int) -> bool:
        try:
            return self._texts.shared(self._texts.at_most(conjunction), self._texts.at_most(rival)).empty
        except TooLarge:
            self._reader.grammar.spend(MAX_STATES)
            return False

    @staticmethod
    def _arrays_apart(conjunction: Conjunction, rival: Conjunction, level: int) -> bool:
        low, high = Conjunction(conjunction.nodes + rival.nodes).counts("minItems", "maxItems")
        return high is not None and low > high

    def _objects_apart(self, conjunction: Conjunction, rival: Conjunction, level: int) -> bool:
        names = conjunction.declared()
        own = set(conjunction.required())
        closed = not conjunction.is_open() and not conjunction.all("patternProperties")
        if closed and set(rival.required()) - set(names):
            return True
        return any(self._members_apart(conjunction, rival, key, level) for key in names if key in own)

    def _members_apart(self, conjunction: Conjunction, rival: Conjunction, key: str, level: int) -> bool:
        theirs = [each for node in rival.nodes for each in self._reader.member(node, key)]
        if not theirs or level > _MAX_LEVELS:
            return False
        here = self._conjunctions.expand(
            [each for node in conjunction.nodes for each in self._reader.member(node, key)]
        )
        return all(
            self._values_apart(one, other, level + 1) for one in here for other in self._conjunctions.expand(theirs)
        )

    def _values_apart(self, conjunction: Conjunction, rival: Conjunction, level: int) -> bool:
        values = self._conjunctions.few_values(conjunction)
        if values is not None:
            return not any(self._conjunctions.fits(value, Conjunction(rival.nodes)) for value in values)
        theirs = _with_numbers_alike(rival)
        shared = [kind for kind in _with_numbers_alike(conjunction) if kind in theirs]
        return all(self._apart(conjunction, rival, kind, level) for kind in shared)


def _with_numbers_alike(conjunction: Conjunction) -> List[str]:
    return ["integer" if kind == "number" else kind for kind in conjunction.kinds()]
