"""How many threads a step gets: those that others lend, and fewer where other processes want the cores."""

import threading

import pytest
from conftest import LASTING, PATIENCE, wait_until
from engines import RAMBLING, asked, launch, next_event, run

import core.engine.threads
from core.board import Board, BoardFile
from core.engine.company import FIRST_PERIOD, LONGEST_PERIOD, Company, Step
from core.engine.threads import Threads
from core.settings import EngineSettings


class Machine:
    """What steps take on a machine, by the number of threads; the clock goes on by as much."""

    def __init__(self, costs, most):
        self.costs, self.most, self.now = costs, most, 100.0
        self.company = Company()
        self.used = []

    def step(self, streams=4, rows=0, expected=0.0):
        count = self.company.threads(self.most)
        seconds = self.costs[count]
        self.used.append(count)
        self.now += seconds
        return self.company.observe(Step(streams, rows, seconds, expected or self.costs[count]), self.most, self.now)

    def run(self, seconds, **step):
        end, self.used = self.now + seconds, []
        while self.now < end:
            self.step(**step)
        return self.used

    def share(self, count):
        return self.used.count(count) / len(self.used)


QUIET = {1: 0.040, 2: 0.022, 3: 0.016, 4: 0.013}
COMPANY = {1: 0.050, 2: 0.8}


def test_on_a_quiet_machine_all_threads_are_used_but_for_a_trial_now_and_then():
    machine = Machine(QUIET, 4)
    machine.run(300)
    assert machine.company.held == 0 and machine.share(4) > 0.995
    assert set(machine.used) == {3, 4}


def test_company_that_was_there_before_is_found_out_by_a_trial():
    machine = Machine(COMPANY, 2)
    machine.run(30)
    assert machine.company.held == 1 and machine.used[-1] == 1
    machine.run(300)
    assert machine.share(1) > 0.995


def test_company_that_comes_costs_two_steps_and_when_it_goes_the_thread_is_back():
    machine = Machine(dict(QUIET), 2)
    machine.run(60)
    quiet, machine.costs = machine.costs, COMPANY
    assert not machine.step(expected=0.022) and not machine.step(expected=0.022)
    assert machine.company.held == 1
    machine.run(20)
    machine.costs = quiet
    machine.run(2 * LONGEST_PERIOD)
    assert machine.company.held == 0 and machine.used[-1] == 2


def test_steps_with_prompts_decide_no_trial_but_show_that_cores_are_missing():
    machine = Machine(COMPANY, 2)
    machine.run(FIRST_PERIOD * 3, rows=100)
    assert machine.company.held == 0
    machine.step(rows=100, expected=0.1)
    machine.step(rows=100, expected=0.1)
    assert machine.company.held == 1


def test_a_single_thread_is_never_held_back():
    machine = Machine({1: 0.05}, 1)
    machine.run(100, expected=0.001)
    assert set(machine.used) == {1}


def test_a_step_that_is_much_too_slow_teaches_nothing_until_it_is_the_rule():
    company = Company()
    assert company.observe(Step(4, 0, 0.1, 0.1), 2, 0.0)
    assert not company.observe(Step(4, 0, 1.0, 0.1), 2, 1.0)
    one = Company()
    assert one.observe(Step(4, 0, 1.0, 0.1), 1, 1.0)  # nothing can be done about it


@pytest.fixture
def board():
    file = BoardFile((1, 2))
    yield file.name
    file.close()


def test_an_engine_takes_the_threads_that_idle_backends_lend_and_gives_them_back(board):
    other = Board(board, 1, 2)
    threads = Threads(EngineSettings(threads=1, board=board + ":0"))
    assert threads.choose() == 3 and other.lent() == 0
    other.compute(60.0)
    assert threads.choose() == 1
    threads.close()
    assert other.lent() == 1


def test_an_engine_that_begins_waits_until_its_threads_are_back(board, monkeypatch):
    monkeypatch.setattr(core.engine.threads, "PATIENCE", PATIENCE)
    settings = [EngineSettings(threads=number + 1, board="%s:%d" % (board, number)) for number in range(2)]
    first, second = map(Threads, settings)
    assert first.choose() == 3 and first.borrows
    counts = []
    beginning = threading.Thread(target=lambda: counts.append(second.choose()))
    beginning.start()
    wait_until(lambda: first._board.lent() == 0)
    assert not counts
    assert first.choose() == 1 and not first.borrows  # its next step
    beginning.join(PATIENCE)
    assert counts == [2]


def test_a_long_prompt_has_the_threads_that_others_leave_until_they_want_them_back(board):
    other = Board(board, 1, 2)
    threads = Threads(EngineSettings(threads=1, board=board + ":0"))
    assert threads.begin_aside(0, True) == 3 and not threads.wanted_back()
    other.compute(60.0)
    wait_until(threads.wanted_back)
    threads.end_aside()
    assert threads.choose(has_prompt_aside=True) == 1
    assert threads.begin_aside(3, True) == 1 and not threads.wanted_back()  # what was begun with 3 goes on with 3


def test_a_short_prompt_aside_has_what_idle_ones_lend_and_asks_those_that_compute_for_nothing(board):
    other = Board(board, 1, 2)
    threads = Threads(EngineSettings(threads=1, board=board + ":0"))
    assert threads.choose() == 3 and threads.begin_aside(0, False) == 3
    other.compute(60.0)
    wait_until(threads.wanted_back)
    assert threads.choose() == 1 and threads.begin_aside(0, False) == 1
    other.give_way(PATIENCE)
    assert threads._board.left() == 0  # the other one computes on


def test_a_long_prompt_asks_nobody_for_threads_where_cores_are_missing(board):
    other = Board(board, 1, 2)
    threads = Threads(EngineSettings(threads=1, board=board + ":0"))
    threads.choose()
    threads._company.held = 1
    threads.choose(has_prompt_aside=True)
    assert threads.begin_aside(0, True) == 2
    other.compute(60.0)
    other.give_way(PATIENCE)
    assert threads._board.left() == 0 and not threads.wanted_back()


def test_streams_of_one_engine_give_way_to_a_long_prompt_of_another_and_go_on(board, monkeypatch):
    turns = []
    take_turn = Board.take_turn
    monkeypatch.setattr(Board, "take_turn", lambda *arguments: turns.append(take_turn(*arguments)) or turns[-1])
    settings = dict(LASTING, siding="on", step_target=0.02)
    engines = [launch(threads=1, board=board + ":0", **settings), launch(threads=2, board=board + ":1", **settings)]
    prompt = "The little fox went home. Ben saw a big red ball in the garden. " * 40
    try:
        alone = run(engines[0], prompt=prompt, max_tokens=5)[0]
        stream = asked(max_tokens=8000, sampling=RAMBLING)
        engines[1].submit(stream)
        next_event(stream)
        turns.clear()
        assert run(engines[0], prompt=prompt, max_tokens=5, cache_prompt=False)[0] == alone
        assert turns.count(2) > len(turns) / 2, turns
        seen = stream.generated
        wait_until(lambda: stream.generated > seen + 10)
        engines[1].cancel(stream)
    finally:
        for engine in engines:
            engine.stop()


def test_answers_are_the_same_with_threads_that_are_lent(board, monkeypatch):
    monkeypatch.setattr(Company, "threads", lambda company, most: most)  # whatever else this machine does
    other = Board(board, 1, 2)
    engine = launch(threads=1, board=board + ":0")
    try:
        alone = run(engine, max_tokens=40)
        assert engine.tally.threads == 3
        other.compute(60.0)
        again = run(engine, max_tokens=40)
        assert engine.tally.threads == 1
    finally:
        engine.stop()
    assert again[0] == alone[0]
