"""A backend's slots, shared by balancers that know nothing of each other: who is let in, who is told what."""

import contextlib
import threading

import pytest
from conftest import PATIENCE

from core.errors import APIError
from core.places import BALANCER, FULL, SLOTS, Places, Told, read_told

A, B, C = ({BALANCER: name} for name in "abc")


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def inside():
    """Let requests in that stay until the test's end, or until the stack that inside() returns is closed."""
    with contextlib.ExitStack() as everyone:

        def enter(places, *headers):
            stack = everyone.enter_context(contextlib.ExitStack())
            for each in headers:
                stack.enter_context(places.place(each))
            return stack

        yield enter


def refused(places, headers):
    with pytest.raises(APIError) as error, places.place(headers):
        pass
    assert (error.value.status, error.value.code) == (503, "slots_full")
    assert dict(error.value.headers)[FULL]
    return True


def told(places, headers):
    return read_told(dict(places.told(headers))[SLOTS])


def test_a_balancer_is_refused_at_once_where_all_slots_are_taken(inside):
    places = Places(2)
    inside(places, A, B)
    assert refused(places, A) and refused(places, B) and places.free == 0 and places.most == 2


def test_a_slot_is_free_again_when_its_request_leaves(inside):
    places = Places(1)
    inside(places, A).close()
    inside(places, B)
    assert places.free == 0 and places.most == 1


def test_a_plain_client_is_never_refused_and_takes_a_slot_all_the_same(inside):
    places = Places(2)
    inside(places, {}, {}, {})
    assert refused(places, A) and places.free == 0 and told(places, A) == Told(2, 3)
    assert places.told({}) == []


def test_each_balancer_is_told_how_many_requests_the_others_have(inside):
    places = Places(8)
    inside(places, A, A, B, {})
    assert [told(places, each).others for each in (A, B, C)] == [2, 3, 4]
    assert [told(places, each).room for each in (A, B, C)] == [6, 5, 4]


@pytest.mark.parametrize(
    "text", ["", "free=1", "slots=0, others=0", "slots=4", "others=4", "slots=-1, others=x", "1" * 999]
)
def test_nonsense_tells_nothing(text):
    assert read_told(text) is None


def test_what_a_later_version_tells_as_well_is_ignored():
    assert read_told("colour=7, others=2, slots=8;q=1, free=3") == Told(8, 2)


# -------------------------------------------------------------------------------------------------- turns


def test_a_balancer_that_waits_is_let_in_before_one_that_would_have_more(inside):
    places = Places(2)
    one, _ = inside(places, A), inside(places, A)
    assert not places.wait(B, 0)
    one.close()
    assert refused(places, A) and places.wait(B, 0)
    inside(places, B)


def test_of_two_with_as_many_requests_the_one_that_waits_longer_comes_first(inside):
    clock = Clock()
    places = Places(1, clock)
    one = inside(places, A)
    for name in (B, C):
        clock.now += 0.01
        assert not places.wait(name, 0)
    one.close()
    assert refused(places, A) and refused(places, C)
    inside(places, B).close()
    inside(places, C)


def test_one_that_has_its_share_takes_no_slot_of_another_by_waiting(inside):
    places = Places(2)
    inside(places, A)
    one = inside(places, B)
    assert not places.wait(A, 0)
    one.close()  # B had one and A has one: the slot stays B's
    inside(places, B)


def test_a_turn_that_nobody_takes_ends_soon(inside):
    clock = Clock()
    places = Places(1, clock)
    one = inside(places, A)
    assert not places.wait(B, 0)
    one.close()
    clock.now += 0.05
    assert refused(places, A)
    clock.now += 0.2
    inside(places, A)


def test_a_plain_client_does_not_wait_for_anybodys_turn(inside):
    places = Places(1)
    one = inside(places, A)
    assert not places.wait(B, 0)
    one.close()
    inside(places, {})


def test_who_waits_is_woken_when_a_slot_is_free(inside):
    places = Places(1)
    one = inside(places, A)
    came = []
    waiting = threading.Thread(target=lambda: came.append(places.wait(B, PATIENCE)))
    waiting.start()
    one.close()
    waiting.join(PATIENCE)
    assert came == [True]


def test_balancers_that_wait_are_a_bounded_number(inside):
    places = Places(1)
    one = inside(places, A)
    for number in range(1000):
        assert not places.wait({BALANCER: str(number)}, 0)
    assert len(places._turns) <= 64
    one.close()


def test_a_balancer_is_told_how_many_have_called_lately():
    clock = Clock()
    places = Places(8, clock)
    assert [told(places, each).balancers for each in (A, B, A, C)] == [1, 2, 2, 3]
    clock.now += 100
    assert told(places, A).balancers == 3
    clock.now += 100
    assert told(places, A).balancers == 1
    for number in range(1000):
        assert told(places, {BALANCER: str(number)}).balancers <= 64
