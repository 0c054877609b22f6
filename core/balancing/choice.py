"""Which backends may take a request, before the policy chooses one of them: rules 1 to 3 of pool.py. Pure functions.

    find_able(backends, ticket)        rule 1          who could take it, up or not
    find_usable(backends, now)         rule 2          who is up, not stalled, and not ejected
    find_open(able, wish, now)         rules 2 and 3    who may take it now
    would_take(backend, …)             all of them      whether one backend may
"""

from typing import List, Sequence

from core.balancing.backends import Backend, Ticket
from core.balancing.request import Wish


def find_able(backends: Sequence[Backend], ticket: Ticket) -> List[Backend]:
    """Return those that fit a request and were not tried for it. The same as fits() of each, but faster."""
    able = [backend for backend in backends if not backend.draining]
    if ticket.resumes:
        able = [backend for backend in able if backend.carries]
    if ticket.tried:
        able = [backend for backend in able if backend not in ticket.tried]
    model = ticket.wish.model
    return [each for each in able if model in each.listed or each.may_have(model)] if model else able


def fits(backend: Backend, ticket: Ticket) -> bool:
    """Whether a backend may have the model, is not draining, and can go on with an answer where that is wanted."""
    able = not backend.draining and (backend.carries or not ticket.resumes)
    return able and backend.may_have(ticket.wish.model)


def find_open(backends: Sequence[Backend], wish: Wish, now: float) -> List[Backend]:
    """Return those of some able backends that may take a request now, all equally good by what they have loaded."""
    candidates = find_usable(backends, now)  # 2
    loaded = [each for each in candidates if each.model == wish.model or each.has_loaded(wish.model)]
    free = _free(loaded, wish)  # 3
    if free:
        return free
    return _free([backend for backend in candidates if backend.idle], wish) or (
        [] if loaded else _free(candidates, wish)
    )


def would_take(backend: Backend, backends: Sequence[Backend], ticket: Ticket, now: float) -> bool:
    """Whether a backend that has a free slot may take a request: whether find_open() would return it."""
    if not fits(backend, ticket) or backend in ticket.tried:
        return False
    vitals = backend.vitals
    well = vitals.up and not backend.stalled and not vitals.out(now)
    if well and backend.free and backend.has_loaded(ticket.wish.model):
        return True
    return backend in find_open(find_able(backends, ticket), ticket.wish, now)


def _free(backends: Sequence[Backend], wish: Wish) -> List[Backend]:
    if not wish.works:
        return [backend for backend in backends if not backend.kept_for]
    return [backend for backend in backends if backend.free]


def find_usable(backends: Sequence[Backend], now: float) -> List[Backend]:
    """Return those that are up; without the stalled and the ejected ones, where others are left."""
    up = [backend for backend in backends if backend.vitals.up]
    well = [each for each in up if not each.stalled and not (each.vitals.on_trial and each.vitals.out(now))]
    if well:
        return well
    up = [backend for backend in up if not backend.stalled] or up
    return [backend for backend in up if not backend.vitals.out(now)] or up
