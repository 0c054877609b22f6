"""The quick ways to choose a backend lead to the same as the rules."""

import random

from pools import Clock, pool_of

from core.balancing.backends import Ticket
from core.balancing.choice import find_able, find_open, find_usable, fits, would_take
from core.balancing.request import Wish
from core.places import Told


def shaken(chance):
    """Return backends in all kinds of states."""
    clock = Clock()
    models = [["a"], ["a.gguf", "b"], ["b", "a"], None]
    pool = pool_of(5, slots=2, models=[chance.choice(models) for _ in range(5)], clock=clock)
    for backend in pool.backends:
        backend.draining = chance.random() < 0.2
        backend.stalled = chance.random() < 0.2
        backend.carries = chance.random() < 0.5
        backend.in_flight = chance.randrange(3)
        backend.note_told(chance.choice([None, Told(2, 0), Told(2, 1), Told(2, 2)]))
        for _ in range(chance.choice([0, 0, 0, 1, 5])):
            backend.vitals.request_failed(clock.now, "broke", chance.random() < 0.3)
    return pool.backends, clock


def rules(backends, ticket, now):
    """Rules 1 to 3 of pool.py, word by word."""
    able = [backend for backend in backends if fits(backend, ticket) and backend not in ticket.tried]
    up = [backend for backend in able if backend.vitals.up]
    up = [backend for backend in up if not backend.stalled] or up
    up = [backend for backend in up if not backend.vitals.out(now)] or up
    loaded = [backend for backend in up if backend.has_loaded(ticket.wish.model)]
    idle = [backend for backend in up if backend.idle]
    for choice in (loaded, idle) if loaded else (idle, up):
        free = [backend for backend in choice if backend.free or not (ticket.wish.works or backend.kept_for)]
        if free:
            return free
    return []


def test_the_quick_ways_find_what_the_rules_say():
    chance, found = random.Random(15), 0
    for _ in range(3000):
        backends, clock = shaken(chance)
        tried = {backend for backend in backends if chance.random() < 0.2}
        wish = Wish(model=chance.choice(["", "a", "b", "c"]), works=chance.random() < 0.8)
        ticket = Ticket(wish, tried, resumes=chance.random() < 0.2)
        able = find_able(backends, ticket)
        expected = rules(backends, ticket, clock.now)
        assert find_open(able, wish, clock.now) == expected
        assert set(expected) <= set(find_usable(able, clock.now))
        for backend in backends:
            if backend.free and backend.vitals.up and not backend.draining:  # as where slots are handed out
                assert would_take(backend, backends, ticket, clock.now) == (backend in expected)
        found += bool(expected)
    assert 500 < found < 2900
