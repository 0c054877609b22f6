"""Threads that run for ever: what they survive, what they say of it, and when they are late."""

import logging
import threading

import pytest
from conftest import PATIENCE, wait_until

from core.loops import LogOnce, Loop, describe


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def loop():
    loops = []

    def make(step, interval=0.01, **how):
        loops.append(Loop("test", interval, step, **how))
        return loops[-1]

    yield make
    for each in loops:
        each.stop(PATIENCE)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("can't start new thread"), MemoryError(), RecursionError(), OSError(24, "Too many open files"),
     UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")],
)  # fmt: skip
def test_a_loop_survives_what_its_step_raises_and_says_so_once(loop, caplog, error):
    rounds, well = [], threading.Event()

    def step():
        rounds.append(1)
        if len(rounds) < 5:
            raise error
        well.set()

    loop(step).start()
    assert well.wait(PATIENCE)
    told = [record for record in caplog.records if "test loop failed" in record.getMessage()]
    assert len(told) == 1 and type(error).__name__ in told[0].getMessage()


def test_a_different_failure_is_told_too(caplog):
    once = LogOnce(logging.getLogger("test"), most=2)
    for message in ("a", "b", "a", "b", "c", "a"):
        once.error(message)
    assert [record.getMessage() for record in caplog.records] == ["a", "b", "c", "a"]  # after two, it forgets


def test_a_loop_is_late_after_three_intervals_and_one_step_without_a_good_one(loop):
    clock, fail, rounds = Clock(), threading.Event(), []

    def step():
        rounds.append(1)
        if fail.is_set():
            raise OSError()

    made = loop(step, step_seconds=5.0, clock=clock)
    made.interval, made._patience = 0.01, 3 * 10 + 5.0  # as if the interval were 10
    made.start()
    wait_until(lambda: rounds)
    assert not made.late() and made.age() == 0
    fail.set()
    count = len(rounds)
    wait_until(lambda: len(rounds) > count + 2)
    clock.now += 35
    assert not made.late()
    clock.now += 1
    count = len(rounds)
    wait_until(lambda: len(rounds) > count + 2)  # it runs, and fails: that is no beat
    assert made.late() and describe([made]) == {"test": {"age": 36.0, "late": True}}
    fail.clear()
    wait_until(lambda: not made.late())


def test_a_loop_that_hangs_is_late(loop):
    clock, release = Clock(), threading.Event()
    made = loop(lambda: release.wait(PATIENCE), interval=1.0, step_seconds=2.0, clock=clock).start()
    clock.now += 4
    assert not made.late()
    clock.now += 2
    assert made.late()
    release.set()


def test_a_stopped_loop_begins_no_further_step(loop):
    rounds = []
    made = loop(lambda: rounds.append(1)).start()
    wait_until(lambda: rounds)
    made.stop(PATIENCE)
    count = len(rounds)
    assert made.stopped and not threading.Event().wait(0.05) and len(rounds) == count
