"""Free text up to a trigger, then a grammar."""

import random

import pytest

from core.grammar import gbnf
from core.grammar.free import Free, holds_no
from core.grammar.schema import Grammar
from core.grammar.stacks import Stacks

LETTERS = "ab<x> "


def stands(grammar, text):
    """Return where a text leads in a grammar: None where it does not fit, else whether it may end there."""
    stacks = Stacks(gbnf.read(grammar), {})
    for char in text:
        after = stacks.after(0, char.encode())
        if after is None:
            return None
        stacks.move(after)
    return stacks.may_end()


def free(triggers, ends=True, words=None):
    """Return free text's grammar; after each trigger comes a digit, after each word a point, then free text again."""
    grammar = Grammar()
    names = {**{trigger: grammar.reserve("trigger") for trigger in triggers}}
    firsts = {word: grammar.reserve("word") for word in words or ()}
    text = Free(grammar, "free", names, ends)
    for name in names.values():
        grammar.define(name, "[0-9] " + text.text())
    for name in firsts.values():
        grammar.define(name, '"." ' + text.text())
    return grammar.text(text.start(firsts))


def expected(text, triggers, words=()):
    """Say by searching whether a text is free text, as stands() does."""
    start = text.lstrip(" ")
    for word in words:
        if start.startswith(word):
            text = start[len(word) :]
            if not text:
                return False
            if text[0] != ".":
                return None
            text = text[1:]
            break
    while True:
        ends = sorted((text.find(trigger) + len(trigger), trigger) for trigger in triggers if trigger in text)
        if not ends:
            return True
        text = text[ends[0][0] :]
        if not text:
            return False
        if not text[0].isdigit():
            return None
        text = text[1:]


@pytest.mark.parametrize("triggers", [["<x>"], ["<<x"], ["aab", "ab<"], ["abab", "ba "], ["<a>", "<b>"]])
def test_free_text_is_free_up_to_a_trigger_and_after_what_follows_it(triggers):
    rng, grammar = random.Random(1), free(triggers)
    seen = set()
    for _ in range(400):
        pieces = [rng.choice([*LETTERS, *triggers, "7", rng.choice(triggers)[:-1]]) for _ in range(rng.randint(0, 8))]
        text = "".join(pieces)
        assert stands(grammar, text) == expected(text, triggers), text
        seen.add(expected(text, triggers))
    assert seen == {None, False, True}


def test_words_are_triggers_at_the_beginning_only():
    rng, grammar = random.Random(2), free(["<x>"], words=["<a>", "<ab"])
    for _ in range(600):
        text = "".join(rng.choice([" ", "<", "a", "b", ">", ".", "<a>", "<x>", "1"]) for _ in range(rng.randint(0, 6)))
        assert stands(grammar, text) == expected(text, ["<x>"], ["<a>", "<ab"]), text


def test_free_text_ends_only_where_it_may():
    assert stands(free(["<x>"]), "so <") is True and stands(free(["<x>"], ends=False), "so <") is False


@pytest.mark.parametrize("closer", ["</p>", "aa", "aba", "\n<"])
def test_a_text_that_does_not_hold_its_closer_is_told_apart_from_it(closer):
    rng, machine = random.Random(3), holds_no(closer)
    for _ in range(500):
        text = "".join(rng.choice("ab<\n/p>") for _ in range(rng.randint(0, 8)))
        assert machine.accepts(text) == ((text + closer).find(closer) == len(text)), text


def test_texts_without_quotes_follow_their_schema_and_never_hold_what_follows_them():
    grammar = Grammar()
    rule = grammar.texts({"type": "string", "pattern": "^[<x>]*$", "maxLength": 5}, "text", "<x>")
    grammar = grammar.text(rule)
    assert stands(grammar, "<x") and stands(grammar, ">>>>>") and stands(grammar, "")
    assert stands(grammar, "<x>") is None and stands(grammar, "a") is None and stands(grammar, "xxxxxx") is None
