"""The scheduler's laws, without llama_cpp."""

import random
from types import SimpleNamespace

import pytest

from core.ask import Ask
from core.engine.generation import Generation
from core.engine.pace import Pace
from core.engine.scheduler import Scheduler, common_prefix


def asking(tokens, model="m", adapters=(), **ask):
    """Return a generation whose prompt has these tokens."""
    generation = Generation(Ask(SimpleNamespace(path=model, adapters=adapters), "", **ask))
    generation.begin(tokens)
    return generation


def prompt(length, model="m"):
    """Return a sequence whose tokens nobody else has."""
    prompt.made += 1
    return asking([prompt.made * 10000 + n for n in range(length)], model)


prompt.made = 0


def step(scheduler, budget=64, model="m"):
    """Run one step as the engine does; every sequence that can sample gets a token. Returns the chunks."""
    admit(scheduler, model)
    copy = scheduler.next_reuse()
    if copy:
        scheduler.reused(copy, copy.count)
    scheduler.take_turn()
    chunks = scheduler.plan(budget)
    scheduler.commit(chunks)
    for chunk in chunks:
        if chunk.start + chunk.count == len(chunk.generation.tokens):
            chunk.generation.tokens.append(7)
    return chunks


def admit(scheduler, model="m"):
    """Give out free slots as the engine does; returns the sequences that got one."""
    admitted = []
    while scheduler.next_in_line(model):
        reuse = scheduler.admit()
        scheduler.reused(reuse, reuse.count)
        admitted.append(reuse.generation)
    return admitted


def stream(scheduler):
    """Return a sequence that is already generating."""
    sequence = prompt(1)
    scheduler.submit(sequence)
    while not sequence.generating:
        step(scheduler)
    return sequence


def test_a_stream_whose_reader_is_behind_is_in_no_batch_and_keeps_its_slot():
    scheduler = Scheduler(2, 64)
    behind, other = stream(scheduler), stream(scheduler)
    behind.paused = True
    assert [chunk.generation for chunk in step(scheduler)] == [other] == scheduler.streams()
    assert behind in scheduler.running
    behind.paused = False
    assert {chunk.generation for chunk in step(scheduler)} == {behind, other}


def test_requests_get_slots_first_come_first_served():
    scheduler = Scheduler(2, 64)
    first, second, third = prompt(3), prompt(3), prompt(3)
    for sequence in (first, second, third):
        scheduler.submit(sequence)
    assert admit(scheduler) == [first, second]
    scheduler.release(first)
    assert admit(scheduler) == [third]
    assert third.slot == 0


def test_a_whole_short_prompt_and_the_running_streams_share_one_batch():
    scheduler = Scheduler(3, 64)
    running = stream(scheduler)
    new = prompt(10)
    scheduler.submit(new)
    chunks = step(scheduler)
    assert {chunk.generation: chunk.count for chunk in chunks} == {running: 1, new: 10}
    assert all(chunk.last for chunk in chunks) is False  # each got another token since
    assert new.generating


def test_long_prompts_are_offered_for_the_siding_first_come_first_served_and_never_planned():
    scheduler = Scheduler(4, 512)
    scheduler.aside = 128
    running, first, second, short = stream(scheduler), prompt(900), prompt(300), prompt(128)
    for sequence in (first, second, short):
        scheduler.submit(sequence)
    chunks = step(scheduler, budget=512)
    assert [chunk.generation for chunk in chunks] == [running, short]
    assert scheduler.next_aside() is first
    scheduler.returned(first, 899)
    assert scheduler.next_aside() is second
    assert [chunk.count for chunk in step(scheduler) if chunk.generation is first] == [1]


def test_short_prompts_go_to_a_quick_siding_but_not_what_little_is_left_after_a_long_beginning():
    scheduler = Scheduler(4, 512)
    scheduler.aside, scheduler.aside_short = 128, 32
    short, tiny, rest = prompt(33), prompt(32), prompt(900)
    for sequence in (short, tiny, rest):
        scheduler.submit(sequence)
    admit(scheduler)
    rest.done = 850
    assert scheduler.next_aside() is short
    assert {chunk.generation for chunk in step(scheduler, budget=512)} == {tiny, rest}
    rest.done = 300
    scheduler.aside_short = 0
    scheduler.returned(short, 32)
    assert scheduler.next_aside() is None


def test_two_that_share_more_than_an_idle_slot_holds_do_not_wait_for_each_other():
    scheduler = Scheduler(3, 512)
    busy = stream(scheduler)
    ended = prompt(500)
    scheduler.submit(ended)
    while not ended.generating:
        step(scheduler, budget=512)
    scheduler.release(ended)
    pair = [asking(ended.tokens[:150] + [5] * 100 + [number] * 50) for number in (1, 2)]
    for sequence in pair:
        scheduler.submit(sequence)
    for _ in range(20):
        step(scheduler, budget=512)
    assert all(sequence.generating for sequence in pair) and busy.generating


def test_a_prompt_that_came_back_from_the_siding_with_nothing_is_evaluated_in_batches():
    scheduler = Scheduler(2, 512)
    scheduler.aside = 128
    long = prompt(900)
    scheduler.submit(long)
    assert not step(scheduler)
    scheduler.returned(long, 0)
    assert scheduler.next_aside() is None
    assert step(scheduler)[0].generation is long


def test_who_waits_for_a_beginning_that_is_evaluated_aside_copies_it_then():
    scheduler = Scheduler(2, 512)
    scheduler.aside = 128
    leader = prompt(900)
    follower = asking(leader.tokens[:890] + [1, 2])
    scheduler.submit(leader)
    scheduler.submit(follower)
    assert not step(scheduler) and scheduler.next_aside() is leader
    scheduler.returned(leader, 899)
    assert {chunk.generation: chunk.count for chunk in step(scheduler)} == {leader: 1, follower: 2}


def test_streams_are_in_every_batch_while_a_long_prompt_is_taken_in():
    scheduler = Scheduler(4, 512)
    streams = [stream(scheduler) for _ in range(3)]
    long = prompt(1500)
    scheduler.submit(long)
    steps = 0
    while not long.generating:
        chunks = step(scheduler, budget=100)
        assert {chunk.generation for chunk in chunks} == set(streams) | {long}
        assert sum(chunk.count for chunk in chunks) <= 3 + 1 + 100
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
            assert chunk.start == seen[chunk.generation]
            seen[chunk.generation] += chunk.count
        for sequence in [each for each in scheduler.running if each.generating and rng.random() < 0.5]:
            scheduler.release(sequence)


def test_a_request_for_another_model_waits_and_nothing_passes_it():
    scheduler = Scheduler(2, 64)
    here, other, behind = prompt(3), prompt(3, "other"), prompt(3)
    for sequence in (here, other, behind):
        scheduler.submit(sequence)
    assert admit(scheduler) == [here]
    assert scheduler.wanted_model() == "other"
    scheduler.release(here)
    assert admit(scheduler, "other") == [other]


def test_a_waiting_request_can_be_taken_out():
    scheduler = Scheduler(1, 64)
    first, second = prompt(3), prompt(3)
    scheduler.submit(first)
    scheduler.submit(second)
    scheduler.release(first)
    assert admit(scheduler) == [second]


# ---- reuse


def ended(scheduler, tokens):
    """Let a request with these tokens run to its end; its cells stay."""
    sequence = asking(list(tokens))
    scheduler.submit(sequence)
    while not sequence.generating:
        step(scheduler)
    scheduler.release(sequence)
    return sequence


def placed(scheduler, tokens):
    """Submit and admit a request; returns it."""
    sequence = asking(list(tokens))
    scheduler.submit(sequence)
    assert admit(scheduler) == [sequence]
    return sequence


def test_a_conversation_gets_the_slot_that_holds_it():
    scheduler = Scheduler(3, 512)
    ended(scheduler, range(100))
    before = ended(scheduler, range(1000, 1200))
    ended(scheduler, range(2000, 2100))
    again = placed(scheduler, range(1000, 1300))
    assert again.slot == before.slot and again.done == 200


def test_the_last_token_of_a_prompt_is_always_evaluated():
    scheduler = Scheduler(1, 512)
    ended(scheduler, range(100))
    assert placed(scheduler, range(100)).done == 99


def test_the_cells_used_least_recently_go_first():
    scheduler = Scheduler(3, 512)
    slots = [ended(scheduler, range(start, start + 50)).slot for start in (0, 1000, 2000)]
    again = placed(scheduler, range(50))
    scheduler.release(again)
    assert placed(scheduler, range(5000, 5050)).slot == slots[1]


def test_a_shared_beginning_is_copied_and_the_other_conversation_is_kept():
    scheduler = Scheduler(2, 2048)
    system = list(range(500))
    first = ended(scheduler, system + list(range(9000, 10500)))
    second = placed(scheduler, system + [7, 8, 9])
    copy = scheduler.next_reuse()
    assert (copy.generation, copy.source, copy.count) == (second, first.slot, 500)
    assert second.slot != first.slot and len(scheduler.cells(first.slot)) == 2000


def test_a_beginning_can_be_copied_from_a_stream_that_is_running():
    scheduler = Scheduler(2, 2048)
    running = asking(list(range(300)))
    scheduler.submit(running)
    while not running.generating:
        step(scheduler)
    second = placed(scheduler, list(range(300)) + [5])
    assert scheduler.next_reuse().source == running.slot and second.done == 0


def test_requests_that_come_together_wait_for_the_first_ones_beginning():
    scheduler = Scheduler(8, 512)
    system = list(range(1000))
    sequences = [asking(system + [10**6 + n] * 4) for n in range(8)]
    for sequence in sequences:
        scheduler.submit(sequence)
    evaluated = 0
    while not all(sequence.generating for sequence in sequences):
        evaluated += sum(min(chunk.count, 1004 - chunk.start) for chunk in step(scheduler, 128) if chunk.start < 1004)
    assert all(sequence.done >= 1004 for sequence in sequences)
    assert evaluated <= 1000 + 8 * (4 + 8)


def test_whoever_waits_for_a_beginning_goes_on_alone_when_it_does_not_come():
    scheduler = Scheduler(2, 512)
    leader = placed(scheduler, range(400))
    follower = placed(scheduler, list(range(400)) + [1])
    assert scheduler.next_reuse() is None and {chunk.generation for chunk in scheduler.plan(64)} == {leader}
    scheduler.commit(scheduler.plan(64))
    scheduler.release(leader)  # cancelled after 64 tokens
    copy = scheduler.next_reuse()
    assert (copy.generation, copy.count) == (follower, 64)
    scheduler.reused(copy, 64)
    assert scheduler.plan(600)[0].start == 64


def test_a_request_that_wants_no_cache_gets_none():
    scheduler = Scheduler(1, 512)
    ended(scheduler, range(100))
    sequence = asking(list(range(100)), cache_prompt=False)
    scheduler.submit(sequence)
    admit(scheduler)
    assert sequence.done == 0


def test_forgotten_cells_are_not_reused():
    scheduler = Scheduler(1, 512)
    ended(scheduler, range(100))
    scheduler.restart()
    assert placed(scheduler, range(100)).done == 0


def test_a_common_prefix_is_found_to_the_token():
    rng = random.Random(2)
    for _ in range(300):
        a = [rng.randrange(3) for _ in range(rng.randrange(40))]
        b = a[: rng.randrange(41)] + [rng.randrange(3) for _ in range(rng.randrange(10))]
        slow = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
        assert common_prefix(a, b) == slow


def test_idle_cells_are_named_with_the_least_recently_used_first():
    scheduler = Scheduler(3, 512)
    slots = [ended(scheduler, range(start, start + 50)).slot for start in (0, 1000)]
    placed(scheduler, range(5000, 5100))
    assert scheduler.idle_slots() == slots
    scheduler.forget(slots[0])
    assert scheduler.idle_slots() == slots[1:]


def test_after_a_restart_a_stream_goes_on_with_all_its_tokens():
    scheduler = Scheduler(1, 512)
    running = stream(scheduler)
    for _ in range(5):
        step(scheduler)
    tokens = list(running.tokens)
    scheduler.restart()
    (chunk,) = scheduler.plan(64)
    assert (chunk.start, chunk.count, chunk.last) == (0, len(tokens), True)


# ---- pace


def test_the_pace_keeps_a_step_at_its_target_once_it_knows_the_machine():
    pace = Pace(512)
    for _ in range(20):
        rows = pace.budget(4, 0.25)
        pace.observe(4, 0, 0.06)
        pace.observe(4, rows, 0.06 + rows * 0.004)
    assert pace.budget(4, 0.25) == 48  # (0.25 - 0.06) / 0.004 = 47.5: three blocks


@pytest.mark.parametrize("waiting, lengths", [(1, [17]), (2, [9, 9]), (3, [9, 9]), (4, [5, 5, 5, 5]), (7, [5] * 4)])
def test_what_follows_the_first_row_of_each_prompt_fills_a_block(waiting, lengths):
    scheduler = Scheduler(8, 512)
    stream(scheduler)
    for _ in range(waiting):
        scheduler.submit(prompt(500))
    admit(scheduler)
    scheduler.take_turn()
    assert [chunk.count for chunk in scheduler.plan(Pace.BLOCK)] == [1] + lengths


def test_the_pace_takes_more_rows_where_there_is_more_time():
    pace = Pace(512)
    pace.observe(0, 64, 64 * 0.004)
    assert (pace.budget(0, 0.25), pace.budget(0, 1.0)) == (64, 256)


@pytest.mark.parametrize("waiting, lengths", [(1, [32]), (2, [16, 16]), (4, [8] * 4)])
def test_where_nothing_streams_the_rows_of_all_prompts_fill_blocks(waiting, lengths):
    scheduler = Scheduler(8, 512)
    for _ in range(waiting):
        scheduler.submit(prompt(500))
    admit(scheduler)
    scheduler.take_turn()
    assert [chunk.count for chunk in scheduler.plan(2 * Pace.BLOCK)] == lengths


@pytest.mark.parametrize(
    "length, streams, lengths", [(63, 0, [63]), (64, 0, [48, 16]), (48, 0, [48]), (63, 1, [49, 14])]
)
def test_a_prompts_tail_of_less_than_a_block_comes_along_where_no_stream_waits(length, streams, lengths):
    scheduler = Scheduler(8, 512)
    for _ in range(streams):
        stream(scheduler)
    sequence = prompt(length)
    scheduler.submit(sequence)
    taken = []
    while not sequence.generating:
        taken += [chunk.count for chunk in step(scheduler, 3 * Pace.BLOCK) if chunk.generation is sequence]
    assert taken == lengths


def test_the_pace_never_stops_taking_prompts_in():
    pace = Pace(512)
    pace.observe(4, 0, 0.4)  # the streams alone are over the target
    pace.observe(4, 32, 5.0)
    assert pace.budget(4, 0.25) == Pace.BLOCK


# ------------------------------------------------------------------------------------------- a slot by its number


def test_a_request_that_names_its_slot_gets_no_other_and_lets_others_pass():
    scheduler = Scheduler(2, 64)
    first, second, other = asking([1], slot=1), asking([2], slot=1), asking([3])
    for each in (first, second, other):
        scheduler.submit(each)
    assert admit(scheduler) == [first, other] and first.slot == 1 and other.slot == 0
    scheduler.release(other)
    assert admit(scheduler) == []
    scheduler.release(first)
    assert admit(scheduler) == [second] and second.slot == 1


def test_a_request_that_names_its_slot_reuses_that_slots_cells_only():
    scheduler = Scheduler(2, 64, copy_cost=1)
    tokens = list(range(100, 140))
    scheduler.submit(asking(tokens + [1], slot=0))
    while not scheduler.running or not scheduler.running[0].generating:
        step(scheduler)
    scheduler.release(scheduler.running[0])
    same, another = asking(tokens + [2], slot=0), asking(tokens + [3], slot=1)
    for each in (same, another):
        scheduler.submit(each)
    admit(scheduler)
    assert same.done == 40 and another.done == 0 and another.source < 0


def test_a_request_that_names_its_slot_does_not_pass_one_that_needs_another_model():
    scheduler = Scheduler(2, 64)
    scheduler.submit(asking([1], model="other"))
    scheduler.submit(asking([2], slot=0))
    assert scheduler.next_in_line("m") is None


# ------------------------------------------------------------------------------------------- LoRA adapters


def with_adapters(scheduler, *sets):
    """Return a running stream for each set of adapters."""
    streams = [asking([100 * index + 1], adapters=adapters) for index, adapters in enumerate(sets)]
    for each in streams:
        scheduler.submit(each)
    while not all(each.generating for each in streams):
        step(scheduler)
    return streams


def test_streams_with_the_same_adapters_share_a_batch_and_sets_take_turns():
    scheduler = Scheduler(slots=5, n_batch=64)
    streams = with_adapters(scheduler, (), (1.0,), (), (0.5,), (1.0,))
    batches = [[chunk.generation for chunk in step(scheduler)] for _ in range(9)]
    for batch in batches:
        assert len({each.adapters for each in batch}) == 1
    for each in streams:
        assert sum(each in batch for batch in batches) == 3


def test_one_set_alone_is_in_every_batch():
    scheduler = Scheduler(slots=3, n_batch=64)
    streams = with_adapters(scheduler, (1.0,), (1.0,))
    assert all([chunk.generation for chunk in step(scheduler)] == streams for _ in range(5))


def test_sets_that_come_again_and_again_starve_nobody():
    scheduler = Scheduler(slots=4, n_batch=64)
    [old] = with_adapters(scheduler, ())
    served = 0
    for number in range(40):  # each step a new set, and one that was here before
        for adapters in ((float(number + 1),), (0.5,)):
            short = asking([7000 + number], adapters=adapters)
            scheduler.submit(short)
        chunks = step(scheduler)
        served += any(chunk.generation is old for chunk in chunks)
        for chunk in chunks:
            if chunk.generation is not old:
                scheduler.release(chunk.generation)
    assert served >= 10


def test_a_prompt_waits_for_the_turn_of_its_set():
    scheduler = Scheduler(slots=2, n_batch=64)
    [stream_] = with_adapters(scheduler, ())
    other = asking(list(range(500, 540)), adapters=(1.0,))
    scheduler.submit(other)
    batches = [step(scheduler, budget=10) for _ in range(6)]
    assert sum(chunk.count for batch in batches for chunk in batch if chunk.generation is other) == 40
    assert [len(batch) for batch in batches] == [1] * 6
    assert sum(batch[0].generation is stream_ for batch in batches) == 3


def test_cells_are_of_use_only_with_the_same_adapters():
    scheduler = Scheduler(slots=2, n_batch=1000, copy_cost=4)
    tokens = list(range(100))
    first = asking(tokens, adapters=(1.0,))
    scheduler.submit(first)
    step(scheduler, budget=1000)
    scheduler.release(first)
    plain = asking(tokens)
    scheduler.submit(plain)
    assert admit(scheduler) == [plain] and plain.done == 0 and plain.source < 0
    step(scheduler, budget=1000)
    scheduler.release(plain)
    for adapters, slot in (((1.0,), first.slot), ((), plain.slot)):
        again = asking(tokens, adapters=adapters)
        scheduler.submit(again)
        assert admit(scheduler) == [again] and again.done == 99 and again.slot == slot
        scheduler.release(again)
    scheduler.submit(asking(tokens, adapters=(0.5,)))
    assert admit(scheduler)[0].done == 0


def test_cells_that_were_put_back_have_their_adapters():
    scheduler = Scheduler(slots=1, n_batch=64)
    scheduler.hold(0, [1, 2, 3, 4], (0.5,))
    assert scheduler.adapters(0) == (0.5,)
    same = asking([1, 2, 3, 4, 5], adapters=(0.5,))
    scheduler.submit(same)
    assert admit(scheduler)[0].done == 4
