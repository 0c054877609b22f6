"""A thought with a budget: counted in tokens, ended between characters, and followed by the answer."""

import pytest

from core.ask import Budget
from core.engine.thought import Thought

ENDING = [1000, 1001]
PIECES = {1000: b"Enough.", 1001: b"</think>"}


def thought(tokens, pieces=(), **more):
    """Return a thought, of whose tokens the first stand for these pieces of text."""
    known = {**PIECES, **dict(enumerate(pieces))}
    budget = Budget(tokens, **dict({"opener": "<think>\n", "closer": "</think>", "begun": True}, **more))
    return Thought(budget, ENDING, known.__getitem__)


def due_after(tokens, pieces, **more):
    """Return what is due before the first of some pieces and after each of them."""
    pieces = [piece if isinstance(piece, bytes) else piece.encode() for piece in pieces]
    it = thought(tokens, pieces, **more)
    due = [it.due]
    for index in range(len(pieces)):
        it.take(index)
        due.append(it.due)
    return due


def test_the_end_comes_when_the_tokens_are_used_up():
    assert due_after(3, ["a", "b", "c"]) == [None, None, None, 1000]


def test_the_whole_ending_is_due_and_then_nothing():
    it = thought(1, [b"a", b"b"])
    it.take(0)
    seen = []
    while it.due is not None:
        seen.append(it.due)
        it.take(it.due)
    it.take(1)
    assert (seen, it.due) == (ENDING, None)


def test_a_thought_that_ends_by_itself_is_left_alone():
    assert due_after(3, ["a", "</thi", "nk>", "b", "c", "d"]) == [None] * 7


def test_no_budget_at_all_ends_it_at_once():
    assert due_after(0, []) == [1000]


def test_no_half_of_a_character_is_left_behind():
    assert due_after(1, [b"\xe3", b"\x81", b"\x82"]) == [None, None, None, 1000]


@pytest.mark.parametrize("pieces, due", [
    (["<think>\n", "a", "b"], [None, None, None, 1000]),
    (["\n", "<th", "ink>", "\n", "a"], [None, None, None, None, None, 1000]),  # what follows the opener counts
    (["Hi", "<think>", "a", "b", "c"], [None] * 6),  # further on it is text
    (["<b>", "a", "b", "c"], [None] * 5),
])  # fmt: skip
def test_a_thought_may_begin_with_the_answer(pieces, due):
    assert due_after(2, pieces, begun=False) == due


def test_thoughts_that_come_again_share_the_budget():
    pieces = ["a", "</think>", "Hi", "<think>\n", "b", "c"]
    assert due_after(3, pieces, often=True) == [None] * 5 + [1000, None]
    pieces = ["Hi", "<think>\n", "a", "b"]
    assert due_after(2, pieces, begun=False, often=True) == [None] * 4 + [1000]


def test_an_ending_that_a_grammar_does_not_take_is_given_up():
    it = thought(1, [b"a", b"b"])
    it.take(0)
    it.take(1)
    assert it.due is None
