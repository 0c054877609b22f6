"""Requests that must run alone: which backend is kept for them; no sockets here."""

import pytest
from pools import fall, names, pool_of, take, well

from core.balancing.queueing import Full
from core.balancing.request import Wish


def loner(pool, mark=b"a", **how):
    return take(pool, alone=mark, **how)


def test_who_must_run_alone_gets_an_idle_backend_that_others_keep_away_from():
    pool = pool_of(2)
    take(pool)  # at b0
    alone = loner(pool)
    assert alone.backend.url == "http://b1" and alone.decided.is_set()
    assert names(pool, 3) == "000"
    assert take(pool, Wish(works=False)).backend.url == "http://b0"
    pool.release(alone)
    assert names(pool, 1) == "1"


def test_without_an_idle_backend_one_is_kept_until_its_last_request_has_ended():
    pool = pool_of(2)
    first, second, third = take(pool), take(pool), take(pool)  # at b0, b1, b0
    alone = loner(pool)
    assert alone.waiting and pool.queued() == 1
    assert names(pool, 2) == "00"  # b1 has fewer to end
    pool.release(second)
    assert alone.backend.url == "http://b1" and alone.decided.is_set() and not pool.queued()
    assert [each["in_flight"] for each in pool.describe()] == [4, 1] and first.backend is third.backend


def test_another_that_becomes_idle_first_is_taken_instead():
    pool = pool_of(2)
    first, second = take(pool), take(pool)
    alone = loner(pool)  # b0 is kept
    pool.release(second)
    assert alone.backend.url == "http://b1"
    pool.release(first)
    assert names(pool, 1) == "0"


def test_a_look_up_keeps_a_backend_from_being_idle():
    pool = pool_of(1)
    look_up = take(pool, Wish(works=False))
    alone = loner(pool)
    assert alone.waiting
    pool.release(look_up)
    assert alone.backend


def test_those_that_must_run_alone_come_one_after_another_and_leave_half_of_the_backends_to_others():
    pool = pool_of(4)
    alone = [loner(pool, b"%d" % n) for n in range(3)]
    assert [bool(each.backend) for each in alone] == [True, True, False]
    assert take(pool).backend not in (alone[0].backend, alone[1].backend)
    pool.release(alone[0])
    assert alone[2].backend


def test_equal_ones_never_run_at_the_same_time():
    pool = pool_of(4)
    first, second, other = loner(pool, b"a"), loner(pool, b"a"), loner(pool, b"b")
    assert first.backend and other.backend and second.waiting
    pool.release(first)
    assert second.backend


def test_those_in_the_queue_get_what_is_kept_no_more():
    pool = pool_of(1, slots=2)
    running = take(pool)
    alone, waiting = loner(pool), take(pool)
    assert alone.waiting and waiting.waiting  # though a slot is free
    assert pool.leave(alone) and waiting.backend and not alone.waiting
    pool.release(running)


def test_a_kept_backend_that_falls_is_kept_no_more():
    pool = pool_of(2, slots=2)
    at_b0, at_b1 = take(pool), take(pool)
    alone = loner(pool)
    pool.failed(at_b0.backend, "reset")
    pool.release(at_b0)
    assert alone.waiting
    pool.release(at_b1)
    assert alone.backend.url == "http://b1"


def test_with_all_down_who_must_run_alone_waits_for_the_first_that_is_up_again():
    pool = pool_of(1)
    backend = pool.everyone()[0]
    fall(pool, backend)
    alone = loner(pool)
    assert alone.waiting and not loner(pool, b"b", hope=False).waiting
    for _ in range(2):
        pool.probing.probed(backend, well(), 30)
    assert alone.backend is backend


def test_the_queues_size_holds_for_those_that_must_run_alone_but_not_for_who_was_here_before():
    pool = pool_of(1, queue_size=1)
    take(pool)
    loner(pool, b"a")
    with pytest.raises(Full):
        loner(pool, b"b")
    assert loner(pool, b"c", again=True).waiting and pool.queued() == 2
