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
    credit: float  # the cursor's: the part of a request that it has earned
    life: object  # changes when its process starts again, and so loses what it had in memory

    @property
    def share(self) -> float:
        """Its weight; less while it starts slowly."""

    @property
    def load(self) -> float:
        """Requests outstanding for its capacity."""


Kind = TypeVar("Kind", bound=Candidate)  # of backend


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
        heaviest = max(backend.share for backend in candidates)
        turn = next((i for i, backend in enumerate(candidates) if backend.number > self._cursor), 0)
        for backend in list(candidates[turn:]) + list(candidates[:turn]):
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
        least = min(backend.load for backend in candidates)
        return self._turns.choose([backend for backend in candidates if backend.load <= least + _ALMOST], wish)


class Prefix:
    """The backend that has seen the longest beginning of the prompt, guarded by load.

    A backend's score is the share of the prompt that it has seen, less BETA × (load - mean) / max(1, mean). Load is the
    requests outstanding for its capacity, mean the mean load of all candidates. Of equal scores, the longest beginning
    wins, then the cursor decides.
    """

    BETA = 1.0
    REMEMBERED = 200_000  # beginnings: about 13 million characters of prompts, and 40 MB

    def __init__(self) -> None:
        self.hits = 0  # requests that went to a backend which had seen their beginning
        self._turns = RoundRobin()
        self._seen: "OrderedDict[int, Set[Tuple[int, object]]]" = OrderedDict()  # beginning -> lives; the latest last

    def choose(self, candidates: Sequence[Kind], wish: Wish) -> Kind:
        """Return the backend with the highest score, and remember that it has seen this prompt."""
        matched = self._matched(candidates, wish.beginnings)
        loads = {backend.number: backend.load for backend in candidates}
        mean = sum(loads.values()) / len(candidates)

        def score(backend: Candidate) -> float:
            share = matched[backend.number] / len(wish.beginnings) if wish.beginnings else 0.0
            return share - self.BETA * (loads[backend.number] - mean) / max(1.0, mean)

        best = max(score(backend) for backend in candidates)
        good = [backend for backend in candidates if score(backend) >= best - _ALMOST]
        longest = max(matched[backend.number] for backend in good)
        chosen = self._turns.choose([backend for backend in good if matched[backend.number] == longest], wish)
        self.hits += matched[chosen.number] > 0
        self._remember(chosen, wish.beginnings)
        return chosen

    def _matched(self, candidates: Sequence[Candidate], beginnings: Tuple[int, ...]) -> Dict[int, int]:
        """Return how many of the beginnings each backend has seen in its present life, by number."""
        matched = {backend.number: 0 for backend in candidates}
        left = {(backend.number, backend.life) for backend in candidates}
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
