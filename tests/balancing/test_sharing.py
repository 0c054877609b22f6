"""Slots that several balancers share: what a pool makes of what it is told, and two balancers before the same backends.

The backends count their requests with the code of real ones (core/places.py), and let each wait a moment.
"""

import contextlib
import threading

import pytest
from conftest import PATIENCE, call, in_parallel, wait_until
from pools import Clock, pool_of, take, well

from balancer import Balancer, Config
from core.balancing.policies import LeastBusy
from core.balancing.request import Wish
from core.http import server
from core.http.messages import json_reply
from core.http.routing import Route
from core.http.server import Service
from core.places import BALANCER, TURN, TURN_SECONDS, Places, Told

# ------------------------------------------------------------------------------------------------ the pool


def test_a_backend_gets_no_more_than_others_leave():
    pool = pool_of(2, slots=4)
    crowded, _ = pool.everyone()
    pool.told(crowded, Told(4, 3))
    order = "".join(take(pool).backend.url[-1] for _ in range(5))
    assert sorted(order) == list("01111") and take(pool).waiting


def test_the_option_bounds_what_a_backend_tells():
    pool = pool_of(1, slots=2)
    pool.told(pool.everyone()[0], Told(8, 3))
    take(pool), take(pool)
    assert take(pool).waiting


def test_a_backend_that_tells_nothing_is_used_as_before():
    pool = pool_of(1, slots=2)
    (backend,) = pool.everyone()
    pool.told(backend, Told(2, 2))
    assert take(pool).waiting
    pool.told(backend, None)  # another server is there now
    assert take(pool).backend is backend


def test_a_request_that_waits_is_woken_by_what_any_answer_tells():
    pool = pool_of(1, slots=2)
    (backend,) = pool.everyone()
    pool.told(backend, Told(2, 2))
    waiting = take(pool)
    pool.told(backend, Told(2, 1))
    assert waiting.backend is backend and waiting.decided.is_set()


def test_a_backend_that_has_refused_gets_nothing_before_it_tells_more():
    pool = pool_of(1, slots=4)
    (backend,) = pool.everyone()
    _, second = take(pool), take(pool)
    pool.told(backend, Told(4, 0), refused=True)  # it still works on two that have been given up
    pool.release(second)
    waiting = take(pool)
    assert waiting.waiting
    pool.told(backend, Told(4, 0))
    assert waiting.backend is backend


def test_a_balancer_waits_for_its_turn_while_requests_wait_and_others_have_the_slots():
    pool = pool_of(3, slots=1)
    for backend in pool.everyone()[:2]:
        pool.told(backend, Told(1, 1))
    assert pool.probing.turns_due() == []  # nobody waits
    take(pool)
    waiting = take(pool)
    due = pool.probing.turns_due()
    assert [backend.url for backend in due] == ["http://b0", "http://b1"] and pool.probing.turns_due() == []
    pool.probing.turned(due[1], Told(1, 0))
    assert waiting.backend is due[1]


def test_it_waits_only_where_a_request_could_go_and_at_few_backends_at_once():
    pool = pool_of(20, slots=1, models=[["a"]] * 10 + [["b"]] * 10)
    for backend in pool.everyone():
        pool.told(backend, Told(1, 1))
    take(pool, Wish(model="b"))
    due = pool.probing.turns_due()
    assert len(due) == 8 and all(backend.may_have("b") for backend in due)


def test_a_wait_that_fails_leads_to_a_probe():
    clock = Clock()
    pool = pool_of(1, slots=1, clock=clock)
    (backend,) = pool.everyone()
    pool.told(backend, Told(1, 1))
    take(pool)
    assert pool.probing.turns_due() == [backend]
    pool.probing.unturned(backend)
    clock.now += 1
    assert pool.probing.due(0) == [backend]


def test_a_crowded_backend_is_looked_at_every_second_while_nobody_waits():
    clock = Clock()
    pool = pool_of(2, slots=1, clock=clock)
    crowded = pool.everyone()[0]
    pool.told(crowded, Told(1, 1))
    assert pool.probing.looks_due() == []
    clock.now += 1
    assert pool.probing.looks_due() == [crowded] and pool.probing.looks_due() == []
    pool.probing.probed(crowded, well(1, quick=True, slots_told=Told(1, 0)), 30)
    clock.now += 1
    assert pool.probing.looks_due() == [] and not crowded.crowded


def test_the_least_busy_is_so_by_others_requests_too_as_long_as_that_is_fresh():
    clock = Clock()
    pool = pool_of(2, slots=8, clock=clock, policy=LeastBusy())
    busy, idle = pool.everyone()
    pool.told(busy, Told(8, 3))
    assert [take(pool).backend for _ in range(3)] == [idle] * 3
    clock.now += 10
    assert take(pool).backend is busy


def test_a_pool_is_shared_for_a_while_after_a_backend_has_told_of_other_balancers():
    clock = Clock()
    pool = pool_of(1, clock=clock)
    (backend,) = pool.everyone()
    pool.told(backend, Told(4, 0, 1))
    assert not pool.shared
    pool.probing.probed(backend, well(slots_told=Told(4, 0, 2)), 30)
    assert pool.shared
    clock.now += 121
    assert not pool.shared


# ------------------------------------------------------------------------------------ two balancers, four backends


class Slotted:
    """A backend with `slots`, whose requests take `seconds` each."""

    def __init__(self, slots, seconds=0.02):
        self.places = Places(slots)
        self.seconds = seconds
        self.refused = 0
        self.done = 0
        told = {"status": "ok", "slots": slots, "pid": id(self)}
        routes = [
            Route("GET", "/health", lambda request: json_reply(told)),
            Route("GET", "/models", lambda request: json_reply({"models": [{"name": "m", "loaded": True}]})),
            Route("GET", TURN, self.turn),
            Route("POST", "/generate", self.generate),
        ]
        more = lambda request: self.places.told(request.headers)  # noqa: E731
        self.service = Service(server.ServerConfig(port=0), routes, more=more).start()

    def turn(self, request):
        came = request.wait(lambda seconds: self.places.wait(request.headers, seconds), TURN_SECONDS)
        return json_reply({"turn": came})

    def generate(self, request):
        self.refused += 1
        with self.places.place(request.headers):
            self.refused -= 1
            threading.Event().wait(self.seconds)
        self.done += 1
        return json_reply({"response": "word"})


@pytest.fixture
def made():
    """Make backends and balancers that end with the test: made(number of backends, slots, number of balancers)."""
    with contextlib.ExitStack() as stack:

        def maker(count, slots, balancers, **how):
            backends = [Slotted(slots) for _ in range(count)]
            for each in backends:
                stack.callback(each.service.drain, 0)
            urls = tuple(each.service.url for each in backends)
            fronts = [Balancer(Config(port=0, backend=urls, **how)).start() for _ in range(balancers)]
            for each in fronts:
                stack.callback(each.stop, 0)
                wait_until(lambda each=each: each.status()["healthy_backends"] == count)
            return backends, fronts

        yield maker


def ask(front):
    return call(front.url + "/generate", {"prompt": "Once"})


def test_two_balancers_overfill_no_backend_and_lose_no_request(made):
    backends, fronts = made(4, 2, 2)

    def client(number):
        return [ask(fronts[number % 2]).status for _ in range(12)]

    assert in_parallel(client, range(12)) == [[200] * 12] * 12
    assert sum(each.done for each in backends) == 144
    assert [each.places.most for each in backends] == [2, 2, 2, 2]
    assert sum(each.refused for each in backends) > 0  # they did get in each other's way


def test_a_balancer_that_always_has_a_queue_does_not_keep_the_slots_from_another(made):
    _, (greedy, modest) = made(2, 1, 2)
    over = threading.Event()

    def client(_):
        while not over.is_set():
            assert ask(greedy).status == 200

    crowd = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for each in crowd:
        each.start()
    try:
        wait_until(lambda: greedy.status()["queued"] >= 4)
        answers = [ask(modest) for _ in range(10)]
    finally:
        over.set()
        for each in crowd:
            each.join(PATIENCE)
    waits = sorted(int(each.headers["X-ComeAPI-Queue-Ms"]) for each in answers)
    assert [each.status for each in answers] == [200] * 10
    assert waits[5] < 500, waits  # each request takes 20 ms; without turns it waits for the end of the crowd


def test_refusals_for_want_of_a_slot_are_no_failures_and_cost_no_retries(made):
    backends, (front,) = made(3, 1, 1, retries=0, retry_budget=0.0)
    with contextlib.ExitStack() as stack:
        for each in backends[:2]:
            stack.enter_context(each.places.place({}))  # a plain client's, of which the balancer has heard nothing
        answers = [ask(front) for _ in range(3)]
    assert [each.status for each in answers] == [200] * 3
    assert backends[2].done == 3
    assert [each["error_count"] for each in front.status()["backends"]] == [0, 0, 0]


def test_a_request_waits_in_the_queue_while_others_have_all_slots_and_goes_when_one_is_free(made):
    (backend,), (front,) = made(1, 1, 1)
    with contextlib.ExitStack() as stack:
        stack.enter_context(backend.places.place({BALANCER: "another"}))
        answers = []
        asking = threading.Thread(target=lambda: answers.append(ask(front)))
        asking.start()
        wait_until(lambda: front.status()["queued"] == 1)
        assert front.status()["backends"][0]["others"] == 1
    asking.join(PATIENCE)
    assert answers[0].status == 200 and backend.places.most == 1


def test_clients_see_nothing_of_it(made):
    (backend,), (front,) = made(1, 1, 1)
    answers = [ask(front), call(front.url + "/generate", {"prompt": "x"}, {BALANCER: "me"}), ask(backend.service)]
    for each in answers:
        assert each.status == 200
        assert not [name for name in each.headers if name.lower() in ("x-comeapi-slots", "x-comeapi-full")]
