"""The pool: who takes a request, who waits, who comes when; no sockets here."""

import threading

import pytest
from conftest import in_parallel
from pools import Clock, WholePool, fall, names, pool_of, take, well

from core.balancing.policies import LeastBusy
from core.balancing.queueing import Full
from core.balancing.request import Wish
from core.balancing.specs import Spec

# ------------------------------------------------------------------------------------------------ the choice


def test_backends_that_are_up_are_taken_in_turn():
    assert names(pool_of(3), 6) == "012012"


def test_slots_are_never_exceeded_and_the_rest_waits():
    pool = pool_of(2, slots=2)
    tickets = [take(pool) for _ in range(6)]
    assert [ticket.backend.url[-1] for ticket in tickets[:4]] == ["0", "1", "0", "1"]
    assert [(ticket.backend, ticket.waiting) for ticket in tickets[4:]] == [(None, True)] * 2
    assert [each["in_flight"] for each in pool.describe()] == [2, 2] and pool.queued() == 2


def test_a_slot_that_becomes_free_goes_to_the_next_in_the_queue():
    pool = pool_of(1, slots=1)
    first, second, third = take(pool), take(pool), take(pool)
    pool.release(first)
    assert second.backend and second.decided.is_set() and not third.backend
    pool.release(first)  # harmless
    assert not third.backend
    pool.release(second)
    assert third.backend and pool.queued() == 0


def test_one_that_leaves_the_queue_is_not_given_a_slot():
    pool = pool_of(1, slots=1)
    first, second, third = take(pool), take(pool), take(pool)
    assert pool.leave(second)
    pool.release(first)
    assert not second.backend and third.backend
    assert not pool.leave(third)  # it has its backend already


def test_clients_take_turns_in_the_queue():
    pool = pool_of(1, slots=1)
    running = take(pool)
    greedy = [take(pool, Wish("greedy")) for _ in range(3)]
    modest = take(pool, Wish("modest"))
    order = []
    for _ in range(4):
        pool.release(running)
        (running,) = [each for each in greedy + [modest] if each.backend]
        order.append(running.wish.who)
    assert order == ["greedy", "modest", "greedy", "greedy"]


def test_a_full_queue_refuses_and_says_when_to_come_back():
    clock = Clock()
    pool = pool_of(2, slots=2, queue_size=3, clock=clock)
    running = [take(pool) for _ in range(4)]
    clock.now += 8
    pool.release(running[0])  # it has held its slot for 8 s
    for _ in range(4):
        take(pool)
    with pytest.raises(Full):
        take(pool)
    assert pool.retry_after() == 8  # (3 that wait + 1) × 8 s ÷ 4 slots


def test_a_client_with_less_in_a_full_queue_displaces_one_with_more():
    pool = pool_of(1, slots=1, queue_size=2)
    take(pool)
    greedy = [take(pool, Wish("greedy")) for _ in range(2)]
    modest = take(pool, Wish("modest"))
    assert modest.waiting and greedy[1].displaced and greedy[1].decided.is_set() and not greedy[1].waiting


def test_a_look_up_needs_no_slot():
    pool = pool_of(1, slots=1)
    take(pool)
    look = take(pool, Wish(works=False))
    assert look.backend
    pool.release(look)
    assert pool.describe()[0]["in_flight"] == 1


def test_a_backend_that_was_tried_is_not_taken_again_while_another_may_be():
    pool = pool_of(2, slots=1)
    first, second = take(pool), take(pool)
    waiting = take(pool, tried={first.backend})
    pool.release(first)
    assert not waiting.backend  # though it is free
    pool.release(second)
    assert waiting.backend is not None and waiting.backend.url == "http://b1"


def test_a_backend_that_is_down_is_the_last_resort():
    pool = WholePool([Spec("http://b0")])
    assert take(pool).backend.url == "http://b0"


def test_with_every_backend_tried_it_waits_where_there_is_hope_and_else_not():
    pool = pool_of(2)
    tried = set(pool.everyone())
    for backend in tried:
        fall(pool, backend)
    nowhere = take(pool, tried=tried, hope=False)
    assert nowhere.backend is None and not nowhere.waiting
    hopeful = take(pool, tried=tried)
    assert hopeful.waiting
    for backend in tried:
        pool.probing.probed(backend, well(), 30)
        pool.probing.probed(backend, well(), 30)
    assert hopeful.backend


def test_a_request_is_stranded_from_when_the_last_backend_went_down():
    clock = Clock()
    pool = pool_of(2, slots=1, clock=clock)
    take(pool), take(pool)
    waiting = take(pool)
    for backend in pool.everyone():
        assert pool.stranded(waiting) == 0
        clock.now += 5
        fall(pool, backend)
    clock.now += 7
    assert pool.stranded(waiting) == 7


def test_the_cursor_is_fair_under_many_threads():
    pool = pool_of(4, slots=10**6)
    chosen = []
    in_parallel(lambda _: chosen.extend(names(pool, 100)), range(8))
    assert {chosen.count(name) for name in "0123"} == {200}


def test_slots_are_never_exceeded_under_many_threads():
    pool, most, all_taken = pool_of(2, slots=3), [], threading.Barrier(6)

    def work(number):
        ticket = take(pool, Wish(str(number % 3)))
        assert not ticket.decided or ticket.decided.wait(30)
        all_taken.wait(30)  # six at once, not one more
        most.append(max(each["in_flight"] for each in pool.describe()))
        pool.release(ticket)

    assert in_parallel(work, range(24)) == [None] * 24
    assert max(most) <= 3 and [each["in_flight"] for each in pool.describe()] == [0, 0]


def test_an_answer_leaves_a_backend_only_for_one_with_the_same_model():
    pool = pool_of(2)
    one, other = pool.everyone()
    ticket = take(pool)
    pool.probing.probed(other, well(carries=True, fingerprint="b"), 30)
    assert not pool.has_place_beside(ticket, "a") and pool.has_place_beside(ticket, "b")
    assert pool.has_place_beside(ticket)  # it is not known what has begun it
    pool.probing.probed(other, well(carries=True), 30)
    assert pool.has_place_beside(ticket, "a")  # an older version does not tell


# -------------------------------------------------------------------------------------------------- models


def test_a_request_goes_where_its_model_is():
    pool = pool_of(3, models=[["a"], ["b"], ["a", "b"]])
    assert names(pool, 4, wish=Wish(model="b.gguf")) in ("1111", "1112")


def test_who_has_the_model_loaded_comes_first_then_who_is_idle():
    pool = pool_of(3, slots=2, models=[["a", "b"], ["b", "a"], ["b", "a"]])
    assert names(pool, 2, wish=Wish(model="a")) == "00"
    assert names(pool, 1, wish=Wish(model="a")) == "1"  # full: an idle one swaps
    assert names(pool, 2, wish=Wish(model="b")) == "22"
    assert names(pool, 1, wish=Wish(model="a")) == "1"  # it has been told to load a
    waiting = take(pool, Wish(model="b"))
    assert waiting.waiting  # 0 and 1 are at work with another model, and would have to stop it


def test_a_model_that_nobody_has_loaded_is_loaded_by_an_idle_one_or_else_by_any():
    pool = pool_of(2, models=[["a", "c"], ["b", "c"]])
    busy = take(pool, Wish(model="a")).backend
    assert take(pool, Wish(model="c")).backend is not busy


def test_a_server_that_does_not_tell_its_models_takes_every_name():
    pool = pool_of(1)
    assert take(pool, Wish(model="whatever")).backend and pool.knows("whatever")


def test_the_models_are_a_union_and_others_are_unknown():
    pool = pool_of(2, models=[["a.gguf", "b.gguf"], ["b.gguf"]])
    models = pool.models()
    assert list(models) == ["a.gguf", "b.gguf"]
    assert models["b.gguf"]["backends"] == ["http://b0", "http://b1"] and models["b.gguf"]["loaded"]
    assert pool.knows("a") and pool.knows("b.gguf") and not pool.knows("c")


def test_a_model_is_everywhere_where_every_backend_may_have_it_and_need_not_load_it():
    one, two = pool_of(2, models=[["a.gguf"], ["a"]]), pool_of(2, models=[["a", "b"], ["a"]])
    assert one.is_everywhere("a") and one.is_everywhere("A.gguf:latest") and not one.is_everywhere("b")
    assert two.is_everywhere("a") and not two.is_everywhere("b")
    take(two, Wish(model="b"))  # the first one loads it
    assert not two.is_everywhere("a")
    assert pool_of(2).is_everywhere("whatever")  # none of them tells what it has


def test_a_model_whose_only_backend_is_down_is_still_known_and_waited_for():
    pool = pool_of(2, models=[["a"], ["b"]])
    fall(pool, pool.find("http://b1"))
    assert pool.knows("b") and "b" not in pool.models()
    assert take(pool, Wish(model="b")).backend.url == "http://b1"  # the last resort


# ---------------------------------------------------------------------------------- what requests tell of backends


def test_five_failed_requests_eject_a_backend_but_never_the_last_one():
    pool = pool_of(2)
    bad, good = pool.everyone()
    for _ in range(5):
        pool.answered(bad, 0.1, 500)
    assert names(pool, 3) == "111" and pool.describe()[0]["state"] == "ejected"
    for _ in range(5):
        pool.answered(good, 0.1, 500)
    assert len(set(names(pool, 4))) == 2  # both are ejected: better than nobody


@pytest.mark.parametrize("status", [200, 400, 404, 429, 503])
def test_a_clients_own_error_and_a_full_backend_are_no_failures(status):
    pool = pool_of(2)
    for _ in range(20):
        pool.answered(pool.everyone()[0], 0.1, status)
    assert pool.describe()[0]["state"] == "up" and pool.describe()[0]["error_count"] == 0


def test_a_backend_that_fails_fast_does_not_draw_the_requests():
    clock = Clock()
    pool = WholePool([Spec("http://b%d" % i, slots=8) for i in range(2)], LeastBusy(), clock=clock)
    for backend in pool.probing.due(0):
        pool.probing.probed(backend, well(8), 30)
    order = []
    for _ in range(12):  # nobody finishes on 0, everything fails at once on 1
        ticket = take(pool)
        order.append(ticket.backend.url[-1])
        if order[-1] == "1":
            pool.answered(ticket.backend, 0.001, 500)
            pool.release(ticket)
    assert order.count("1") <= 6
