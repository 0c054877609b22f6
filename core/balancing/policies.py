"""Which of several backends that could all take a request gets it. Each policy is a class with one method.

    Policy       what a policy is
    RoundRobin   in turn, by weight
    LeastBusy    the fewest outstanding for its capacity
    Prefix       the one that has seen the longest beginning of the prompt, unless it is busier than the others

choose() is called under the pool's lock, which guards the policies' state as well, with backends that are up and have a
free slot, in the pool's order.
"""

import itertools
from bisect import bisect
from collections import OrderedDict
from typing import Callable, Dict, List, Protocol, Sequence, Set, Tuple

from core.balancing.homes import Candidate, Kind, home_of
from core.balancing.request import Wish

_ALMOST = 1e-9
Life = Tuple[int, object]  # a backend's number, and what tells one run of its process from the next


class Policy(Protocol):
    """Chooses one of several backends."""

    def choose(self, candidates: Sequence[Kind], wish: Wish) -> Kind:
        """Return one of the candidates, of which there is at least one."""


class RoundRobin:
    """A cursor that goes round. At each arrival a backend gets credit by its weight; a whole credit is a request."""

    def __init__(self) -> None:
        self._cursor = -1  # the number of the backend that was chosen last

    def choose(self, candidates: Sequence[Kind], wish: Wish) -> Kind:
        """Return the next backend after the cursor whose credit is enough. The heaviest backend's always is."""
        heaviest = max([backend.share for backend in candidates])
        turn = bisect([backend.number for backend in candidates], self._cursor)
        for backend in itertools.chain(candidates[turn:], candidates[:turn]):
            backend.credit += backend.share / heaviest
            if backend.credit >= 1 - _ALMOST:
                backend.credit -= 1
                self._cursor = backend.number
                return backend
        raise AssertionError("the heaviest backend's credit is always enough")


class LeastBusy:
    """The backend with the fewest requests outstanding for its capacity; the cursor breaks ties.

    A request that has just failed counts as outstanding for a while. Otherwise a backend that fails fast would be free
    again at once, and draw the requests.
    """

    def __init__(self) -> None:
        self._turns = RoundRobin()

    def choose(self, candidates: Sequence[Kind], wish: Wish) -> Kind:
        """Return the least busy backend."""
        loads = [backend.load for backend in candidates]
        least = min(loads) + _ALMOST
        return self._turns.choose([backend for backend, load in zip(candidates, loads) if load <= least], wish)


class Prefix:
    """The backend that has seen the longest beginning of the prompt, guarded by load.

    A backend's score is the share of the prompt that it has seen, less BETA × (load - mean) / max(1, mean). Load is the
    requests outstanding for its capacity, mean the mean load of all candidates. Of equal scores, the longest beginning
    wins, then the cursor decides.

    Where there are several balancers, wishes have a head. Then the conversation's home (homes.py) counts as if it had
    seen all, since another balancer may have sent the last turn there, and the draw decides in place of the cursor. A
    balancer that is alone does without: a draw by lot spreads conversations less evenly than the cursor.
    """

    BETA = 1.0
    REMEMBERED = 200_000  # beginnings: about 13 million characters of prompts, and 40 MB

    def __init__(self) -> None:
        self.hits = 0  # requests that went to a backend which had seen their beginning
        self._turns = RoundRobin()
        self._seen: "OrderedDict[int, Set[Life]]" = OrderedDict()  # beginning -> lives; the latest last

    def choose(self, candidates: Sequence[Kind], wish: Wish) -> Kind:
        """Return the backend with the highest score, and remember that it has seen this prompt."""
        matched = self._matched(wish.beginnings)
        lengths = [matched.get((backend.number, backend.life), 0) for backend in candidates]
        scores = self._scores(candidates, lengths, wish)
        best = max(scores) - _ALMOST
        good = [at for at, score in enumerate(scores) if score >= best]
        longest = max(lengths[at] for at in good)
        equal = [candidates[at] for at in good if lengths[at] == longest]
        chosen = home_of(equal, wish.head) if wish.head else self._turns.choose(equal, wish)
        self.hits += longest > 0
        self._remember(chosen, wish.beginnings)
        return chosen

    def _scores(self, candidates: Sequence[Kind], lengths: Sequence[int], wish: Wish) -> List[float]:
        loads = [backend.load for backend in candidates]
        weight = self.BETA / max(1.0, sum(loads) / len(loads))  # the mean itself is the same for all
        whole = len(wish.beginnings) or 1
        scores = [length / whole - load * weight for length, load in zip(lengths, loads)]
        if wish.head:
            at = candidates.index(home_of(candidates, wish.head))
            scores[at] = 1.0 - loads[at] * weight
        return scores

    def _matched(self, beginnings: Tuple[int, ...]) -> Dict[Life, int]:
        """Return how many of the beginnings backends have seen, those of which it is known that they have some."""
        matched: Dict[Life, int] = {}
        left: Set[Life] = set()
        for length, beginning in enumerate(beginnings):
            seen = self._seen.get(beginning, set())
            matched.update(dict.fromkeys(left - seen, length))
            left = left & seen if length else seen
            if not left:
                return matched
        matched.update(dict.fromkeys(left, len(beginnings)))
        return matched

    def _remember(self, chosen: Candidate, beginnings: Tuple[int, ...]) -> None:
        for beginning in reversed(beginnings):  # a short one is forgotten after the longer ones that begin with it
            self._seen.setdefault(beginning, set()).add((chosen.number, chosen.life))
            self._seen.move_to_end(beginning)
        while len(self._seen) > self.REMEMBERED:
            self._seen.popitem(last=False)


POLICIES: Dict[str, Callable[[], Policy]] = {"round-robin": RoundRobin, "least-busy": LeastBusy, "prefix": Prefix}
