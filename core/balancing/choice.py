"""Which backends may take a request, before the policy chooses one of them: rules 1 to 3 of pool.py. Pure functions.

    find_able(backends, ticket)        rule 1          who could take it, up or not
    find_usable(backends, now)         rule 2          who is up, not stalled, and not ejected
    find_open(able, wish, now)    rules 2 and 3   who may take it now
"""

from typing import List, Sequence

from core.balancing.backends import Backend, Ticket
from core.balancing.request import Wish


def find_able(backends: Sequence[Backend], ticket: Ticket) -> List[Backend]:
    """Return those that fit a request and were not tried for it."""
    return [backend for backend in backends if fits(backend, ticket) and backend not in ticket.tried]


def fits(backend: Backend, ticket: Ticket) -> bool:
    """Whether a backend may have the model, is not draining, and can go on with an answer where that is wanted."""
    able = not backend.draining and (backend.carries or not ticket.resumes)
    return able and backend.may_have(ticket.wish.model)


def find_open(backends: Sequence[Backend], wish: Wish, now: float) -> List[Backend]:
    """Return those of some able backends that may take a request now, all equally good by what they have loaded."""
    candidates = find_usable(backends, now)  # 2
    loaded = [backend for backend in candidates if backend.has_loaded(wish.model)]
    idle = [backend for backend in candidates if not backend.in_flight]
    for choice in (loaded, idle) if loaded else (idle, candidates):  # 3
        free = [backend for backend in choice if backend.free or not (wish.works or backend.kept_for)]
        if free:
            return free
    return []


def find_usable(backends: Sequence[Backend], now: float) -> List[Backend]:
    """Return those that are up; without the stalled and the ejected ones, where others are left."""
    up = [backend for backend in backends if backend.vitals.up]
    up = [backend for backend in up if not backend.stalled] or up
    return [backend for backend in up if not backend.vitals.out(now)] or up
