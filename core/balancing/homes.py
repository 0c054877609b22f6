"""Where conversations are at home: any balancer finds the same backend, and needs to ask nobody.

    Candidate    what policies must know of a backend
    home_of      the backend that wins the draw for a conversation
    seed_of      what a backend's name gives it in each draw

A conversation is known by its head (request.head_of). Each backend draws a number from its name and the head, and the
best one wins (rendezvous hashing: Thaler and Ravishankar 1998), weighted by capacity. Where a backend goes, only its
own conversations move; where one comes, only those that it wins, one of n.
"""

import hashlib
from math import log
from typing import Protocol, Sequence, TypeVar


class Candidate(Protocol):
    """What policies know of a backend."""

    number: int  # rising in the pool's order
    credit: float  # the cursor's: the part of a request that it has earned
    life: object  # changes when its process starts again, and so loses what it had in memory
    url: str
    seed: int  # seed_of its name, by which any balancer knows it

    @property
    def capacity(self) -> float:
        """How much it takes of all conversations: its slots, by its weight."""

    @property
    def share(self) -> float:
        """Its weight; less while it starts slowly."""

    @property
    def load(self) -> float:
        """Requests outstanding for its capacity."""


Kind = TypeVar("Kind", bound=Candidate)  # of backend
_PRIME = (1 << 61) - 1


def home_of(candidates: Sequence[Kind], head: int) -> Kind:
    """Return the backend that wins the draw. Where two tell the same name, their URLs decide."""
    draws = [-log((head * backend.seed % _PRIME + 1) / _PRIME) / backend.capacity for backend in candidates]
    best = min(draws)
    if draws.count(best) == 1:
        return candidates[draws.index(best)]
    equal = [backend for draw, backend in zip(draws, candidates) if draw == best]
    return max(equal, key=lambda backend: head * seed_of(backend.url) % _PRIME)


def seed_of(name: str) -> int:
    """Return the number that a backend's name gives it in each draw; the same in every process."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).digest(), "big")
