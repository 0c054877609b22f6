"""Who is in the pool: added, drained and replaced; no sockets here."""

from pools import names, pool_of, take, well

from core.balancing.specs import Spec


def test_a_backend_that_is_drained_gets_no_more_requests_and_leaves_after_its_last():
    pool = pool_of(2)
    ticket = take(pool)
    assert pool.membership.drain(ticket.backend.url, remove=True)
    assert names(pool, 2) == "11" and len(pool.describe()) == 2 and pool.describe()[0]["state"] == "draining"
    pool.release(ticket)
    assert [each["url"] for each in pool.describe()] == ["http://b1"]
    assert not pool.membership.drain("http://b0")


def test_a_backend_that_is_added_again_while_it_drains_stays():
    pool = pool_of(2)
    ticket = take(pool)
    pool.membership.drain("http://b0", remove=True)
    pool.membership.add(Spec("http://b0"))
    pool.release(ticket)
    assert len(pool.describe()) == 2 and pool.describe()[0]["state"] == "up"


def test_a_new_backend_takes_those_who_wait():
    pool = pool_of(1, slots=1)
    take(pool)
    waiting = take(pool)
    pool.membership.add(Spec("http://b1"))
    (added,) = pool.probing.due(0)
    pool.probing.probed(added, well(), 30)
    assert waiting.backend is added


def test_more_slots_take_those_who_wait():
    pool = pool_of(1, slots=1)
    take(pool)
    waiting = take(pool)
    pool.membership.add(Spec("http://b0", slots=2, weight=3.0))
    assert waiting.backend and pool.describe()[0]["weight"] == 3.0
    pool.probing.probed(waiting.backend, well(slots=9), 30)
    assert pool.describe()[0]["capacity"] == 2  # what the option says holds


def test_a_source_replaces_only_what_it_has_brought():
    pool = pool_of(1)
    pool.membership.replace([Spec("http://b0"), Spec("http://d1"), Spec("http://d2")], "dns")
    assert [each["url"] for each in pool.describe()] == ["http://b0", "http://d1", "http://d2"]
    pool.membership.add(Spec("http://d2", weight=5.0))  # by hand
    pool.membership.replace([Spec("http://d2"), Spec("http://d3")], "dns")
    assert [each["url"] for each in pool.describe()] == ["http://b0", "http://d2", "http://d3"]
    assert pool.describe()[1]["weight"] == 5.0
    pool.membership.replace([], "dns")
    assert [each["url"] for each in pool.describe()] == ["http://b0"]
