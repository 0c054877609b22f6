"""Prompt lookup: what it guesses, and that guessing changes no answer."""

import random

from engines import DEMO, GREEDY, STORY, launch, run

from core.engine.drafting import Lookup
from core.sampling import Sampling


def test_what_followed_the_same_tokens_before_is_guessed():
    tokens = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3]
    assert Lookup().guess(tokens, 3) == []  # nothing is known yet
    lookup = Lookup()
    lookup.guess(tokens[:-1], 3)
    assert lookup.guess(tokens, 3) == [4, 5, 6]
    assert lookup.guess(tokens, 0) == []


def test_the_longer_match_and_the_latest_occurrence_win():
    lookup = Lookup()
    tokens = [9, 1, 2, 3, 50, 8, 1, 2, 3, 60, 9, 1, 2]
    lookup.guess(tokens, 1)
    assert lookup.guess(tokens + [3], 1) == [50]  # four tokens match there, three at the later place
    lookup = Lookup()
    tokens = [1, 2, 3, 50, 1, 2, 3, 60, 1, 2]
    lookup.guess(tokens, 1)
    assert lookup.guess(tokens + [3], 1) == [60]


def test_tokens_that_come_a_few_at_a_time_are_learned_all():
    rng = random.Random(4)
    tokens = [rng.randrange(5) for _ in range(400)]
    whole, stepwise = Lookup(), Lookup()
    end = 0
    while end < len(tokens):
        end = min(len(tokens), end + rng.randrange(1, 5))
        stepwise.guess(tokens[:end], 1)
    whole.guess(tokens, 1)
    assert whole._ends == stepwise._ends


REPEATING = "The fox said: I like the red apple. The owl said: I like the red apple. The bear said: I like"
CHORUS = Sampling(temperature=0.9, seed=3, grammar='root ::= ("The red fox ran home" [.!] " ")+')


def test_guessing_changes_no_answer_and_saves_steps():
    plain, guessing = launch(), launch(draft_max=8)
    try:
        for prompt in (REPEATING, STORY, "1 2 3 4 5 6 1 2 3 4 5 6 1 2 3"):
            for sampling in (GREEDY, Sampling(temperature=0.7, seed=11), CHORUS):
                expected = run(plain, prompt=prompt, max_tokens=60, sampling=sampling)
                answer = run(guessing, prompt=prompt, max_tokens=60, sampling=sampling)
                assert answer[:2] == expected[:2] and answer[2].reason == expected[2].reason
        assert guessing.tally.counts["drafts_accepted"] > 0
        assert guessing.tally.counts["steps"] < plain.tally.counts["steps"]
        assert guessing.tally.counts["steps"] + guessing.tally.counts["drafts_accepted"] == plain.tally.counts["steps"]
    finally:
        plain.stop()
        guessing.stop()


def test_guesses_leave_no_cells_behind():
    engine = launch(draft_max=8)
    try:
        for seed in range(6):
            run(engine, prompt=REPEATING, max_tokens=50, sampling=Sampling(temperature=1.0, seed=seed), stop=["owl"])
        slots = range(engine.settings.slots)
        known = [len(engine._scheduler.cells(slot)) for slot in slots]
        assert [engine._running.resident.context.positions(slot) for slot in slots] == known
    finally:
        engine.stop()


def test_many_streams_are_not_guessed_for():
    engine = launch(draft_max=8, slots=1)
    try:
        run(engine, model=DEMO, prompt=REPEATING, max_tokens=30)
        assert engine.tally.counts["drafts"] == 0
    finally:
        engine.stop()
