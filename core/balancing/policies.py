"""Which of several backends that could all take a request gets it. Each policy is a class with one method.

    Policy       what a policy is
    Candidate    what it must know of a backend
    RoundRobin   in turn, by weight
    LeastBusy    the fewest outstanding for its capacity
    Prefix       the one that has seen the longest beginning of the prompt, unless it is busier than the others

choose() is called under the pool's lock, which guards the policies' state as well, with backends that are up and have a
free slot, in the pool's order.
"""

from collections import OrderedDict
from typing import Callable, Dict, Protocol, Sequence, Set, Tuple, TypeVar

from core.balancing.request import Wish

_ALMOST = 1e-9


class Candidate(Protocol):
    """What policies know of a backend."""

    number: int  # rising in the pool's order
    credit: float  # the cursor's; requests that are owed to it
    life: object  # changes when its process starts again, and so loses what it had in memory

    @property
    def share(self) -> float:
        """Its weight; less while it starts slowly."""

    @property
    def load(self) -> float:
        """Requests outstanding for its capacity."""


One = TypeVar("One", bound=Candidate)


class Policy(Protocol):
    """Chooses one of several backends."""

    def choose(self, candidates: Sequence[One], wish: Wish) -> One:
        """Return one of the candidates, of which there is at least one."""


class RoundRobin:
    """A cursor that goes round. Each arrival gives a backend credit by its weight; a whole one is a request."""

    def __init__(self) -> None:
        self._cursor = -1  # the number of the backend that was chosen last

    def choose(self, candidates: Sequence[One], wish: Wish) -> One:
        """Return the next backend after the cursor whose credit is enough; the heaviest's is at each arrival."""
        heaviest = max(each.share for each in candidates)
        turn = next((i for i, each in enumerate(candidates) if each.number > self._cursor), 0)
        for each in list(candidates[turn:]) + list(candidates[:turn]):
            each.credit += each.share / heaviest
            if each.credit >= 1 - _ALMOST:
                each.credit -= 1
                self._cursor = each.number
                return each
        raise AssertionError("the heaviest backend's credit is always enough")


class LeastBusy:
    """Fewest outstanding for its capacity; the cursor breaks ties.

    What has failed a moment ago counts as outstanding for a while, so that a backend that fails fast does not draw
    the requests by being free again at once.
    """

    def __init__(self) -> None:
        self._turns = RoundRobin()

    def choose(self, candidates: Sequence[One], wish: Wish) -> One:
        """Return the least busy backend."""
        least = min(each.load for each in candidates)
        return self._turns.choose([each for each in candidates if each.load <= least + _ALMOST], wish)


class Prefix:
    """The backend that has seen the longest beginning of the prompt, guarded by load.

    A backend's score is the share of the prompt that it has seen, less BETA × (load - mean) / max(1, mean), where load
    is what is outstanding for its capacity, and mean that of all candidates. What it has seen breaks ties, then the
    cursor.
    """

    BETA = 1.0
    REMEMBERED = 200_000  # beginnings: about 13 million characters of prompts, and 40 MB

    def __init__(self) -> None:
        self.hits = 0  # requests that went to a backend which had seen their beginning
        self._turns = RoundRobin()
        self._seen: "OrderedDict[int, Set[Tuple[int, object]]]" = OrderedDict()  # beginning -> lives; the latest last

    def choose(self, candidates: Sequence[One], wish: Wish) -> One:
        """Return the backend with the highest score, and remember that it has seen this prompt."""
        matched = self._matched(candidates, wish.beginnings)
        loads = {each.number: each.load for each in candidates}
        mean = sum(loads.values()) / len(candidates)

        def score(each: Candidate) -> float:
            share = matched[each.number] / len(wish.beginnings) if wish.beginnings else 0.0
            return share - self.BETA * (loads[each.number] - mean) / max(1.0, mean)

        best = max(score(each) for each in candidates)
        good = [each for each in candidates if score(each) >= best - _ALMOST]
        longest = max(matched[each.number] for each in good)
        chosen = self._turns.choose([each for each in good if matched[each.number] == longest], wish)
        self.hits += matched[chosen.number] > 0
        self._remember(chosen, wish.beginnings)
        return chosen

    def _matched(self, candidates: Sequence[Candidate], beginnings: Tuple[int, ...]) -> Dict[int, int]:
        """Return how many of the beginnings each backend has seen in its present life, by number."""
        matched = {each.number: 0 for each in candidates}
        left = {(each.number, each.life) for each in candidates}
        for length, beginning in enumerate(beginnings, 1):
            left &= self._seen.get(beginning, set())
            if not left:
                break
            for number, _ in left:
                matched[number] = length
        return matched

    def _remember(self, chosen: Candidate, beginnings: Tuple[int, ...]) -> None:
        for beginning in reversed(beginnings):  # a short one is forgotten after the longer ones that begin with it
            self._seen.setdefault(beginning, set()).add((chosen.number, chosen.life))
            self._seen.move_to_end(beginning)
        while len(self._seen) > self.REMEMBERED:
            self._seen.popitem(last=False)


POLICIES: Dict[str, Callable[[], Policy]] = {"round-robin": RoundRobin, "least-busy": LeastBusy, "prefix": Prefix}
