"""Prompt lookup: what it guesses, and that guessing changes no answer."""

import random

import pytest
from conftest import in_parallel
from engines import DEMO, GREEDY, STORY, cells_are_known, launch, run
from gguf import write_recurrent, write_windowed

import core.engine.draftmodel
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


# ------------------------------------------------------------------------------------------- a small model's guesses


@pytest.mark.parametrize("settings", [{}, {"draft_max": 8}, {"draft_p_min": 0.9}, {"slots": 1}], ids=str)
def test_a_draft_model_changes_no_answer_and_saves_steps(settings):
    plain, guessing = launch(), launch(model_draft=DEMO.path, **settings)
    try:
        for prompt in (REPEATING, STORY):
            for sampling in (GREEDY, Sampling(temperature=0.7, seed=11), Sampling(temperature=1.5, seed=2), CHORUS):
                expected = run(plain, prompt=prompt, max_tokens=60, sampling=sampling)
                answer = run(guessing, prompt=prompt, max_tokens=60, sampling=sampling)
                assert answer[:2] == expected[:2] and answer[2].reason == expected[2].reason
        counts = guessing.tally.counts
        assert 0 < counts["drafts_accepted"] <= counts["drafts"]
        assert counts["steps"] + counts["drafts_accepted"] == plain.tally.counts["steps"]
        assert cells_are_known(guessing)
    finally:
        plain.stop()
        guessing.stop()


def test_the_model_itself_guesses_what_it_says():
    engine = launch(model_draft=DEMO.path)
    try:
        run(engine, max_tokens=60)
        assert engine.tally.counts["drafts_accepted"] == engine.tally.counts["drafts"] > 30
    finally:
        engine.stop()


def test_streams_side_by_side_are_guessed_for_together_and_long_texts_when_they_are_read(monkeypatch):
    monkeypatch.setattr(core.engine.draftmodel, "_CATCH_UP", 16)
    plain, guessing = launch(), launch(model_draft=DEMO.path)
    prompts = [STORY * (1 + 3 * number) for number in range(4)]
    try:
        expected = [run(plain, prompt=prompt, max_tokens=40)[0] for prompt in prompts]
        assert in_parallel(lambda prompt: run(guessing, prompt=prompt, max_tokens=40)[0], prompts) == expected
        assert guessing.tally.counts["drafts_accepted"] > 0
    finally:
        plain.stop()
        guessing.stop()


def test_guesses_of_another_model_that_are_mostly_wrong_change_no_answer(tmp_path):
    wrong = str(tmp_path / "wrong.gguf")
    write_windowed(wrong)
    plain, guessing = launch(), launch(model_draft=wrong)
    try:
        assert run(guessing, max_tokens=60)[:2] == run(plain, max_tokens=60)[:2]
        counts = guessing.tally.counts
        assert counts["drafts_accepted"] < counts["drafts"] / 2 and cells_are_known(guessing)
    finally:
        plain.stop()
        guessing.stop()


def write_stranger(path):
    """Write the demo model with another text for one of its tokens."""
    with open(DEMO.path, "rb") as file:
        data = file.read()
    at = data.index(b"ing", data.index(b"tokenizer.ggml.tokens"))
    path.write_bytes(data[:at] + b"gni" + data[at + 3 :])


@pytest.mark.parametrize(
    "write, why",
    [
        (write_stranger, "its vocabulary is another one"),
        (lambda path: write_recurrent(str(path)), "its cells can't be given up one by one"),
        (lambda path: path.write_bytes(b"GGUF"), "can't be loaded"),
    ],
    ids=["another vocabulary", "one state", "no model"],
)
def test_a_model_that_can_not_guess_is_named_and_the_other_one_works_without(tmp_path, caplog, write, why):
    write(tmp_path / "strange.gguf")
    engine = launch(model_draft=str(tmp_path / "strange.gguf"))
    try:
        assert run(engine, max_tokens=10)[2].completion_tokens == 10
        assert engine.tally.counts["drafts"] == 0
        assert "strange.gguf" in caplog.text and why in caplog.text
    finally:
        engine.stop()


def test_a_draft_model_that_breaks_costs_no_answer(monkeypatch):
    engine = launch(model_draft=DEMO.path)
    try:
        expected = run(engine, max_tokens=20)[0]
        draft = engine._running.resident.draft_model
        monkeypatch.setattr(draft._context, "decode", lambda runs: (1, []))
        assert run(engine, max_tokens=20)[0] == expected
    finally:
        engine.stop()
