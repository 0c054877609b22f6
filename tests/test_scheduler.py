"""The scheduler's laws, without llama_cpp."""
import random

from core.scheduler import Pace, Scheduler, Sequence


def prompt(length, model="m"):
    return Sequence(model=model, tokens=list(range(length)))


def step(scheduler, budget=64, model="m"):
    """Run one step as the engine does; every sequence that can sample gets a token. Returns the chunks."""
    scheduler.admit(model)
    chunks = scheduler.plan(budget)
    scheduler.commit(chunks)
    for chunk in chunks:
        if chunk.start + chunk.count == len(chunk.sequence.tokens):
            chunk.sequence.tokens.append(7)
    return chunks


def stream(scheduler):
    """Return a sequence that is already generating."""
    sequence = prompt(1)
    scheduler.submit(sequence)
    while not sequence.generating:
        step(scheduler)
    return sequence


def test_requests_get_slots_first_come_first_served():
    scheduler = Scheduler(2, 64)
    first, second, third = prompt(3), prompt(3), prompt(3)
    for sequence in (first, second, third):
        scheduler.submit(sequence)
    assert scheduler.admit("m") == [first, second]
    scheduler.release(first)
    assert scheduler.admit("m") == [third]
    assert third.slot == 0


def test_a_whole_short_prompt_and_the_running_streams_share_one_batch():
    scheduler = Scheduler(3, 64)
    running = stream(scheduler)
    new = prompt(10)
    scheduler.submit(new)
    chunks = step(scheduler)
    assert {chunk.sequence: chunk.count for chunk in chunks} == {running: 1, new: 10}
    assert all(chunk.last for chunk in chunks) is False  # each got another token since
    assert new.generating


def test_streams_are_in_every_batch_while_a_long_prompt_is_taken_in():
    scheduler = Scheduler(4, 512)
    streams = [stream(scheduler) for _ in range(3)]
    long = prompt(1500)
    scheduler.submit(long)
    steps = 0
    while not long.generating:
        chunks = step(scheduler, budget=100)
        assert {chunk.sequence for chunk in chunks} == set(streams) | {long}
        assert sum(chunk.count for chunk in chunks) <= 103
        steps += 1
    assert steps == 15


def test_a_batch_never_has_more_rows_than_it_may():
    scheduler = Scheduler(8, 32)
    for _ in range(6):
        stream(scheduler)
    for _ in range(2):
        scheduler.submit(prompt(500))
    for _ in range(40):
        assert sum(chunk.count for chunk in step(scheduler, budget=1000)) <= 32


def test_a_short_prompt_passes_a_long_one():
    scheduler = Scheduler(2, 512)
    long, short = prompt(1000), prompt(20)
    scheduler.submit(long)
    scheduler.submit(short)
    step(scheduler, budget=64)
    assert short.generating and long.done == 44  # what the short one leaves of its share, the long one gets


def test_chunks_cover_every_token_once_and_in_order():
    scheduler = Scheduler(3, 48)
    rng = random.Random(1)
    sequences = [prompt(rng.randrange(1, 200)) for _ in range(12)]
    seen = {sequence: 0 for sequence in sequences}
    for sequence in sequences:
        scheduler.submit(sequence)
    while any(not sequence.generating for sequence in sequences):
        for chunk in step(scheduler, budget=rng.randrange(1, 60)):
            assert chunk.start == seen[chunk.sequence]
            seen[chunk.sequence] += chunk.count
        for sequence in [each for each in scheduler.running if each.generating and rng.random() < 0.5]:
            scheduler.release(sequence)


def test_a_request_for_another_model_waits_and_nothing_passes_it():
    scheduler = Scheduler(2, 64)
    here, other, behind = prompt(3), prompt(3, "other"), prompt(3)
    for sequence in (here, other, behind):
        scheduler.submit(sequence)
    assert scheduler.admit("m") == [here]
    assert scheduler.wanted_model() == "other"
    scheduler.release(here)
    assert scheduler.admit("other") == [other]


def test_a_waiting_request_can_be_taken_out():
    scheduler = Scheduler(1, 64)
    first, second = prompt(3), prompt(3)
    scheduler.submit(first)
    scheduler.submit(second)
    scheduler.release(first)
    assert scheduler.admit("m") == [second]


def test_the_pace_keeps_a_step_under_its_target_once_it_knows_the_machine():
    pace = Pace(target=0.25, n_batch=512)
    for _ in range(20):
        rows = pace.budget(streams=4)
        pace.observe(4, 0, 0.06)
        pace.observe(4, rows, 0.06 + rows * 0.004)
    assert 40 <= pace.budget(streams=4) <= 47  # (0.25 - 0.06) / 0.004 = 47.5


def test_the_pace_takes_more_when_nobody_waits_for_a_token():
    pace = Pace(target=0.25, n_batch=512)
    pace.observe(0, 64, 64 * 0.004)
    assert pace.budget(streams=0) == 248


def test_the_pace_never_stops_taking_prompts_in():
    pace = Pace(target=0.25, n_batch=512)
    pace.observe(4, 0, 0.4)  # the streams alone are over the target
    pace.observe(4, 32, 5.0)
    assert pace.budget(streams=4) == Pace.FLOOR
