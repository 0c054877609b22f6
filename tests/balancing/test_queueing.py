"""The queue: first come first served for each client, clients in turn, and who is refused when it is full."""

import pytest

from core.balancing.queueing import FairQueue, Full


def drained(queue):
    return [queue.pop(lambda item: True) for _ in range(len(queue))]


def test_one_clients_requests_are_served_in_their_order():
    queue = FairQueue(10)
    for item in "abc":
        queue.push("me", item)
    assert drained(queue) == ["a", "b", "c"] and queue.pop(lambda item: True) is None


def test_clients_take_turns_however_many_requests_one_of_them_has():
    queue = FairQueue(100)
    for number in range(5):
        queue.push("greedy", "g%d" % number)
    queue.push("modest", "m0")
    queue.push("third", "t0")
    queue.push("modest", "m1")
    assert drained(queue) == ["g0", "m0", "t0", "g1", "m1", "g2", "g3", "g4"]


def test_an_item_that_does_not_fit_holds_up_nobody():
    queue = FairQueue(10)
    queue.push("a", "rare model")
    queue.push("a", "a1")
    queue.push("b", "b1")
    assert queue.pop(lambda item: item != "rare model") == "a1"
    assert queue.pop(lambda item: item != "rare model") == "b1"
    assert queue.pop(lambda item: item != "rare model") is None
    assert drained(queue) == ["rare model"]


def test_one_that_waits_again_comes_first_in_its_line():
    queue = FairQueue(10)
    queue.push("me", "new")
    queue.push("me", "again", first=True)
    assert drained(queue) == ["again", "new"]


def test_one_that_leaves_is_gone_and_leaves_but_once():
    queue = FairQueue(10)
    for item in "abc":
        queue.push("me", item)
    assert queue.remove("me", "b") and not queue.remove("me", "b") and not queue.remove("you", "a")
    assert len(queue) == 2 and drained(queue) == ["a", "c"]


def test_a_full_queue_refuses_the_client_that_has_most_in_it():
    queue = FairQueue(3)
    for number in range(3):
        queue.push("greedy", number)
    with pytest.raises(Full):
        queue.push("greedy", 3)
    assert len(queue) == 3


def test_in_a_full_queue_the_greediest_clients_last_request_makes_room():
    queue = FairQueue(4)
    for number in range(4):
        assert queue.push("greedy", number) is None
    assert queue.push("modest", "m0") == 3
    assert queue.push("modest", "m1") is not None  # 3 against 1 becomes 2 against 2
    with pytest.raises(Full):
        queue.push("modest", "m2")
    assert drained(queue) == [0, "m0", 1, "m1"]


def test_a_queue_without_room_refuses_all():
    with pytest.raises(Full):
        FairQueue(0).push("me", "a")
