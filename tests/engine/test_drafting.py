"""Prompt lookup: what it guesses, where it pays, and that guessing changes no answer."""

import random

import pytest
from conftest import in_parallel
from engines import DEMO, GREEDY, RAMBLING, STORY, asked, cells_are_known, launch, next_event, run
from gguf import write_recurrent, write_windowed

import core.engine.drafting
import core.engine.draftmodel
from core.engine.drafting import Lookup, worthwhile
from core.engine.pace import Pace
from core.engine.stepping import Stepping
from core.sampling import Sampling


def test_what_followed_the_same_tokens_before_is_guessed():
    tokens = [1, 2, 3, 4, 5, 6, 7, 1, 2]
    lookup = Lookup()
    assert lookup.guess(tokens, 3) == []  # two tokens may be anywhere
    assert lookup.guess(tokens + [3], 3) == [4, 5, 6]
    assert lookup.guess(tokens + [3], 0) == []
    assert lookup.guess(tokens + [3, 4, 5], 3) == [6, 7, 1]
    assert lookup.guess(tokens + [3, 4, 5, 8], 3) == []


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
    assert (whole._ends, whole._recent, whole._run) == (stepwise._ends, stepwise._recent, stepwise._run)


def test_a_long_text_is_read_in_parts_and_guessed_for_when_it_is_read(monkeypatch):
    monkeypatch.setattr(core.engine.drafting, "_AT_ONCE", 4)
    tokens, lookup = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3], Lookup()
    assert [lookup.guess(tokens, 2) for _ in range(3)] == [[], [], [4, 5]]


def after(*runs):
    """Return a lookup which has seen runs of such lengths, and is in a new one."""
    lookup, text = Lookup(), list(range(10, 200))
    for number, length in enumerate(runs):
        text += text[: 3 + length] + [1000 + number]
    text += text[:3]
    assert lookup.guess(text, 1)
    return lookup, text


def test_a_guess_is_the_likelier_the_longer_the_text_has_come_as_before():
    lookup, text = after()
    chances = []
    for length in range(6):
        lookup.guess(text + text[3 : 3 + length], 1)
        chances += lookup.chances(1)
    assert chances == sorted(chances) and chances[0] == 0.5 and 0.8 < chances[-1] < 1


def test_a_text_whose_repetitions_ended_soon_is_trusted_less_far_than_one_whose_went_on():
    soon, on = after(*[2] * 20)[0].chances(8), after(*[30] * 20)[0].chances(8)
    assert soon[1] > 0.9 > 0.1 > soon[2] and on[7] > 0.9
    assert soon == sorted(soon, reverse=True) and on == sorted(on, reverse=True)


def test_only_the_last_repetitions_count():
    assert after(*[2] * 20, *[30] * 32)[0].chances(4) == after(*[30] * 32)[0].chances(4)


@pytest.mark.parametrize(
    "price, chance, count",
    [
        (lambda guesses: 10.0, 0.5, 15),  # rows cost nothing, as on a GPU
        (lambda guesses: 10.0 * (1 + guesses), 0.99, 0),  # a row costs a token
        (lambda guesses: 10.0 * (1 + 0.9 * guesses), 0.99, 4),
        (lambda guesses: 10.0 + (9.0 * guesses if guesses < 15 else 70.0), 0.95, 15),  # a block of 16 is cheaper
        (lambda guesses: 10.0 + (9.0 * guesses if guesses < 15 else 70.0), 0.8, 0),
    ],
)
def test_as_much_is_guessed_as_makes_the_step_the_fastest(price, chance, count):
    assert worthwhile([[chance**each for each in range(1, 16)]], price) == [count]


def test_what_gains_less_than_three_per_cent_is_not_worth_it():
    assert worthwhile([[0.5]], lambda guesses: 1.0 + 0.46 * guesses) == [0]
    assert worthwhile([[0.5]], lambda guesses: 1.0 + 0.45 * guesses) == [1]


def test_the_likeliest_guesses_of_all_streams_share_the_rows_that_pay():
    chances = [[0.9, 0.8, 0.2, 0.1], [], [0.85, 0.7, 0.6, 0.5]]
    assert worthwhile(chances, lambda guesses: 1.0 if guesses <= 5 else 9.0) == [2, 0, 3]
    assert worthwhile([[], []], lambda guesses: 1.0) == [0, 0]


def test_guesses_cost_what_they_were_seen_to_cost_and_prompts_rows_before_that():
    pace = Pace(512)
    assert pace.price(1, 3) == 0.0  # nothing is known yet
    pace.observe(1, 0, 0.020)
    pace.observe(0, 64, 0.320)
    assert pace.price(1, 3) == pytest.approx(0.035) and pace.expect(1, 0, 3) == pytest.approx(0.035)
    pace.observe(1, 0, 0.060, guesses=3)
    assert (pace.price(1, 3), pace.price(1, 2)) == (0.060, pytest.approx(0.030))
    for _ in range(Pace.LASTING):
        pace.observe(1, 0, 0.020)
    assert pace.price(1, 3) == pytest.approx(0.035)  # a new try


def test_where_no_prompts_row_is_known_guesses_cost_a_part_of_a_streams_step():
    pace = Pace(512)
    pace.observe(1, 0, 0.020)
    pace.observe(4, 0, 0.060)
    each = 0.020 * Pace.CHEAPEST
    assert pace.price(1, 10) == pytest.approx(0.020 + 10 * each)
    assert pace.price(4, 10) == pytest.approx(0.060 + 10 * each * 0.75)
    pace.observe(0, 64, 0.320)
    assert pace.price(1, 10) == pytest.approx(0.070)


def test_with_several_streams_guesses_cost_what_another_number_of_them_did():
    pace = Pace(512)
    pace.observe(4, 0, 0.1)
    pace.observe(0, 64, 0.32)
    assert pace.price(4, 12) == pytest.approx(0.16)
    pace.observe(4, 0, 0.3, guesses=10)
    assert (pace.price(4, 10), pace.price(4, 12)) == (0.3, pytest.approx(0.34))
    for _ in range(Pace.LASTING):
        pace.observe(4, 0, 0.1)
    assert pace.price(4, 12) == pytest.approx(0.16)


# ------------------------------------------------------------------------------------------- in the engine


@pytest.fixture
def price(monkeypatch):
    """Set what steps cost: a function of their streams and guesses; at first the same with any guesses."""

    def put(function):
        monkeypatch.setattr(Pace, "price", lambda _pace, streams, guesses: function(streams, guesses))

    put(lambda streams, guesses: 0.01)
    return put


REPEATING = "The fox said: I like the red apple. The owl said: I like the red apple. The bear said: I like"
CHORUS = Sampling(temperature=0, grammar='root ::= ("The red fox ran home" [.!] " ")+')
SEEDED = Sampling(temperature=0.9, seed=3, grammar=CHORUS.grammar)


@pytest.mark.parametrize("settings", [{}, {"draft_max": 8}, {"slots": 1}], ids=str)
def test_guessing_changes_no_answer_and_saves_steps(settings, price):
    plain, guessing = launch(draft_max=0), launch(**settings)
    try:
        for prompt in (REPEATING, STORY, "1 2 3 4 5 6 1 2 3 4 5 6 1 2 3"):
            for sampling in (GREEDY, Sampling(temperature=0.7, seed=11), CHORUS, SEEDED):
                expected = run(plain, prompt=prompt, max_tokens=60, sampling=sampling)
                answer = run(guessing, prompt=prompt, max_tokens=60, sampling=sampling)
                assert answer[:2] == expected[:2] and answer[2].reason == expected[2].reason
        assert guessing.tally.counts["drafts_accepted"] > 0
        assert guessing.tally.counts["steps"] < plain.tally.counts["steps"]
        assert guessing.tally.counts["steps"] + guessing.tally.counts["drafts_accepted"] == plain.tally.counts["steps"]
    finally:
        plain.stop()
        guessing.stop()


def test_streams_side_by_side_are_guessed_for_and_answered_as_without(price):
    plain, guessing = launch(draft_max=0), launch()
    ask = {"max_tokens": 60, "sampling": CHORUS}
    prompts = [REPEATING + " the %s apple. I like" % color for color in ("red", "blue", "green", "old")]
    try:
        expected = [run(plain, prompt=prompt, **ask)[0] for prompt in prompts]
        assert in_parallel(lambda prompt: run(guessing, prompt=prompt, **ask)[0], prompts) == expected
        assert guessing.tally.counts["drafts_accepted"] > 0 and cells_are_known(guessing)
    finally:
        plain.stop()
        guessing.stop()


def test_nothing_is_guessed_beside_prompts(price, monkeypatch):
    steps, observe = [], Stepping._observe
    monkeypatch.setattr(Stepping, "_observe", lambda *given: steps.append(given[-1]) or observe(*given))
    engine = launch(siding="off")
    prompts = [REPEATING + " the %d apple. I like" % number for number in range(16)]
    try:
        in_parallel(lambda prompt: run(engine, prompt=prompt, max_tokens=40, sampling=CHORUS), prompts)
    finally:
        engine.stop()
    beside = [step for step in steps if step.streams and step.prompt_rows]
    assert beside and not any(step.guesses for step in beside) and any(step.guesses for step in steps)


def drafts(sampling=CHORUS, **settings):
    """Return how many tokens an engine guesses in an answer that repeats its prompt."""
    engine = launch(**settings)
    try:
        run(engine, prompt=REPEATING, max_tokens=30, sampling=sampling)
        return engine.tally.counts["drafts"]
    finally:
        engine.stop()


def test_nothing_is_guessed_where_it_costs_more_than_it_wins_or_is_turned_off(price):
    assert drafts() > 0 and drafts(draft_max=0) == 0
    price(lambda streams, guesses: 0.01 * (streams + guesses))
    assert drafts() == 0


def test_a_request_that_names_a_seed_is_guessed_for_only_where_the_option_says_so(price):
    assert drafts(SEEDED) == 0 and drafts(SEEDED, draft_max=8) > 0


def test_a_step_that_others_wait_for_gets_no_guesses_that_make_it_longer_than_it_should_be(price):
    price(lambda streams, guesses: 0.01 if streams == 1 or not guesses else 0.3)
    engine = launch()
    try:
        other = asked(max_tokens=900, sampling=RAMBLING)
        engine.submit(other)
        next_event(other)
        run(engine, prompt=REPEATING, max_tokens=30, sampling=CHORUS)
        assert engine.tally.counts["drafts"] == 0
        engine.cancel(other)
    finally:
        engine.stop()


def test_an_answer_says_how_many_of_its_tokens_were_guessed(price):
    engine = launch()
    try:
        timings = run(engine, prompt=REPEATING, max_tokens=40, sampling=CHORUS)[2].timings
        assert 0 < timings["draft_n_accepted"] <= timings["draft_n"]
        assert "draft_n" not in run(engine, prompt=STORY, max_tokens=2)[2].timings
    finally:
        engine.stop()


def test_guesses_leave_no_cells_behind(price):
    engine = launch(draft_max=8)
    try:
        for seed in range(6):
            run(engine, prompt=REPEATING, max_tokens=50, sampling=Sampling(temperature=1.0, seed=seed), stop=["owl"])
        slots = range(engine.settings.slots)
        known = [len(engine._scheduler.cells(slot)) for slot in slots]
        assert [engine._running.resident.context.positions(slot) for slot in slots] == known
    finally:
        engine.stop()


# ------------------------------------------------------------------------------------------- a small model's guesses


@pytest.mark.parametrize("settings", [{}, {"draft_max": 8}, {"draft_p_min": 0.9}, {"slots": 1}], ids=str)
def test_a_draft_model_changes_no_answer_and_saves_steps(settings):
    plain, guessing = launch(draft_max=0), launch(model_draft=DEMO.path, **settings)
    try:
        for prompt in (REPEATING, STORY):
            for sampling in (GREEDY, Sampling(temperature=0.7, seed=11), Sampling(temperature=1.5, seed=2), SEEDED):
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
    plain, guessing = launch(draft_max=0), launch(model_draft=DEMO.path)
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
    plain, guessing = launch(draft_max=0), launch(model_draft=wrong)
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
