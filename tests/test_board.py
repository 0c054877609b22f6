"""Cores that idle backends lend each other, by a file that all of them map."""

import subprocess
import sys
import threading

import pytest
from conftest import PATIENCE, ROOT, wait_until

from core.board import Board, BoardFile


@pytest.fixture
def file():
    file = BoardFile((2, 3, 1))
    yield file
    file.close()


@pytest.fixture
def board(file):
    return file.name


def test_those_who_do_not_compute_lend_all_their_threads(board):
    first, second = Board(board, 0, 2), Board(board, 1, 3)
    assert (first.lent(), second.lent()) == (4, 3)
    second.compute(PATIENCE)
    assert (first.lent(), second.lent()) == (1, 3)
    second.rest()
    wait_until(lambda: first.lent() == 4)


def test_a_lease_ends_by_itself(board):
    first, second = Board(board, 0, 2), Board(board, 1, 3)
    second.compute(0.01)
    wait_until(lambda: first.lent() == 4)


def test_whoever_begins_waits_for_those_who_compute_with_its_threads(board):
    first, second = Board(board, 0, 2), Board(board, 1, 3)
    first.compute(PATIENCE, borrows=True)
    waiting = threading.Thread(target=second.reclaim, args=(PATIENCE, PATIENCE))
    waiting.start()
    wait_until(lambda: first.lent() == 1)  # its lease is there: nobody takes its threads from now on
    assert waiting.is_alive()
    first.compute(PATIENCE)
    waiting.join(PATIENCE / 2)
    assert not waiting.is_alive()
    second.reclaim(PATIENCE, PATIENCE)  # it computes already: it waits for nobody
    first.compute(PATIENCE, borrows=True)
    second.reclaim(PATIENCE, PATIENCE)


@pytest.mark.parametrize("lease, patience", [(0.01, PATIENCE), (PATIENCE, 0.01)])
def test_nobody_waits_longer_than_the_lease_or_its_own_patience(board, lease, patience):
    first, second = Board(board, 0, 2), Board(board, 1, 3)
    first.compute(lease, borrows=True)
    second.reclaim(PATIENCE, patience)
    assert first.lent() == 1


def test_the_only_one_that_computes_lends_its_threads_as_soon_as_it_rests(board):
    first, second = Board(board, 0, 2), Board(board, 1, 3)
    second.compute(PATIENCE)
    second.rest()
    assert first.lent() == 4
    first.compute(PATIENCE)
    second.compute(PATIENCE)
    second.rest()
    assert first.lent() == 1  # its client may ask again at once
    wait_until(lambda: first.lent() == 4)


@pytest.fixture
def three(board):
    """A backend with a long prompt, and two that compute."""
    boards = [Board(board, seat, threads) for seat, threads in enumerate((2, 3, 1))]
    boards[0].asks = True
    for each in boards:
        each.compute(PATIENCE)
    return boards


def in_background(work, *arguments):
    thread = threading.Thread(target=work, args=arguments)
    thread.start()
    return thread


def test_a_long_prompt_has_the_threads_of_all_that_give_way_for_one_turn(three):
    first, second, third = three
    taking = in_background(first.take_turn, PATIENCE, PATIENCE)
    giving = [in_background(each.give_way, PATIENCE) for each in (second, third)]
    taking.join(PATIENCE / 2)
    assert not taking.is_alive() and all(each.is_alive() for each in giving)
    assert (first.left(), first.lent()) == (4, 0)  # they are not idle: between two turns, they compute themselves
    first.compute(PATIENCE)
    for each in giving:
        each.join(PATIENCE / 2)
        assert not each.is_alive()
    second.reclaim(PATIENCE, PATIENCE)
    assert first.left() == 1


def test_a_turn_begins_when_the_others_steps_are_over_or_after_a_while_without_them(three):
    first, second, third = three
    third.rest()
    assert first.take_turn(PATIENCE, 0.01) == 0
    taking = in_background(first.take_turn, PATIENCE, PATIENCE)
    wait_until(lambda: first.left() == 1)
    assert taking.is_alive()
    in_background(second.give_way, 0.01).join(PATIENCE)
    taking.join(PATIENCE / 2)
    assert not taking.is_alive()


def test_those_with_long_prompts_of_their_own_give_no_way_and_nobody_waits_for_them(three):
    first, second, third = three
    third.rest()
    second.asks = True
    second.compute(PATIENCE)
    second.give_way(PATIENCE)
    assert first.take_turn(PATIENCE, PATIENCE) in (0, 1)  # the third one's lease is just ending
    assert first.left() <= 1


def test_nobody_gives_way_for_long_to_one_that_has_ended(three):
    first, second, _ = three
    first.take_turn(0.01, 0)
    second.give_way(PATIENCE)
    second.compute(PATIENCE)
    first.compute(0.01)
    wait_until(lambda: second.left() == 2)
    second.give_way(PATIENCE)


def test_a_process_sees_what_another_one_notes(file):
    first = Board(file.name, 0, 2)
    code = "import sys, core.board; core.board.Board(sys.argv[1], 1, 3).compute(%d)" % PATIENCE
    command = [sys.executable, "-c", code, file.name]
    subprocess.run(command, cwd=ROOT, timeout=PATIENCE, check=True, pass_fds=file.descriptors)
    assert first.lent() == 1


def test_one_that_starts_again_or_leaves_has_no_lease(board):
    first, second = Board(board, 0, 2), Board(board, 1, 3)
    second.compute(PATIENCE)
    Board(board, 1, 3)
    assert first.lent() == 4
    second.compute(PATIENCE)
    second.close()
    assert first.lent() == 4


def test_there_is_no_seat_beyond_the_last(board):
    with pytest.raises(ValueError, match="no seat 3"):
        Board(board, 3, 2)
