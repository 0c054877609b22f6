"""The pool: who takes a request, who waits, who comes when; no sockets here."""

import threading

import pytest
from conftest import in_parallel

from core.balancing.policies import LeastBusy, RoundRobin
from core.balancing.pool import Pool, Report
from core.balancing.queueing import Full
from core.balancing.request import Wish
from core.balancing.specs import Spec, backend_url, make_spec, parse_spec


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def pool_of(count, slots=4, models=None, clock=None, **how):
    """Return a pool of backends http://b0, http://b1, … that are up; `models` lists what each has, loaded one first."""
    pool = Pool([Spec("http://b%d" % i) for i in range(count)], RoundRobin(), clock=clock or Clock(), **how)
    for i, backend in enumerate(pool.due(0)):
        pool.probed(backend, well(slots, models[i] if models else None), 30)
    return pool


def well(slots=4, models=None, **how):
    listed = models and [{"name": name, "loaded": name == models[0]} for name in models]
    return Report(True, slots=slots, model=models[0] if models else None, told=True, models=listed, **how)


def take(pool, wish=Wish(), tried=(), **how):
    return pool.request(wish, set(tried), **how)


def names(pool, count, **how):
    return "".join(take(pool, **how).backend.url[-1] for _ in range(count))


def fall(pool, backend, times=3):
    for _ in range(times):
        pool.probed(backend, Report(False, "gone"), 30)


# ------------------------------------------------------------------------------------------------ the choice


def test_backends_that_are_up_are_taken_in_turn():
    assert names(pool_of(3), 6) == "012012"


def test_slots_are_never_exceeded_and_the_rest_waits():
    pool = pool_of(2, slots=2)
    tickets = [take(pool) for _ in range(6)]
    assert [ticket.backend.url[-1] for ticket in tickets[:4]] == ["0", "1", "0", "1"]
    assert [(ticket.backend, ticket.waiting) for ticket in tickets[4:]] == [(None, True)] * 2
    assert [each["in_flight"] for each in pool.describe()] == [2, 2] and pool.queued() == 2


def test_a_slot_that_becomes_free_goes_to_the_next_in_the_queue():
    pool = pool_of(1, slots=1)
    first, second, third = take(pool), take(pool), take(pool)
    pool.release(first)
    assert second.backend and second.decided.is_set() and not third.backend
    pool.release(first)  # harmless
    assert not third.backend
    pool.release(second)
    assert third.backend and pool.queued() == 0


def test_one_that_leaves_the_queue_is_not_given_a_slot():
    pool = pool_of(1, slots=1)
    first, second, third = take(pool), take(pool), take(pool)
    assert pool.leave(second)
    pool.release(first)
    assert not second.backend and third.backend
    assert not pool.leave(third)  # it has its backend already


def test_clients_take_turns_in_the_queue():
    pool = pool_of(1, slots=1)
    running = take(pool)
    greedy = [take(pool, Wish("greedy")) for _ in range(3)]
    modest = take(pool, Wish("modest"))
    order = []
    for _ in range(4):
        pool.release(running)
        (running,) = [each for each in greedy + [modest] if each.backend]
        order.append(running.wish.who)
    assert order == ["greedy", "modest", "greedy", "greedy"]


def test_a_full_queue_refuses_and_says_when_to_come_back():
    clock = Clock()
    pool = pool_of(2, slots=2, queue_size=3, clock=clock)
    running = [take(pool) for _ in range(4)]
    clock.now += 8
    pool.release(running[0])  # it has held its slot for 8 s
    for _ in range(4):
        take(pool)
    with pytest.raises(Full):
        take(pool)
    assert pool.retry_after() == 8  # (3 that wait + 1) × 8 s ÷ 4 slots


def test_a_client_with_less_in_a_full_queue_displaces_one_with_more():
    pool = pool_of(1, slots=1, queue_size=2)
    take(pool)
    greedy = [take(pool, Wish("greedy")) for _ in range(2)]
    modest = take(pool, Wish("modest"))
    assert modest.waiting and greedy[1].displaced and greedy[1].decided.is_set() and not greedy[1].waiting


def test_a_look_up_needs_no_slot():
    pool = pool_of(1, slots=1)
    take(pool)
    look = take(pool, Wish(works=False))
    assert look.backend
    pool.release(look)
    assert pool.describe()[0]["in_flight"] == 1


def test_a_backend_that_was_tried_is_not_taken_again_while_another_may_be():
    pool = pool_of(2, slots=1)
    first, second = take(pool), take(pool)
    waiting = take(pool, tried={first.backend})
    pool.release(first)
    assert not waiting.backend  # though it is free
    pool.release(second)
    assert waiting.backend is not None and waiting.backend.url == "http://b1"


def test_a_backend_that_is_down_is_the_last_resort():
    pool = Pool([Spec("http://b0")], RoundRobin())
    assert take(pool).backend.url == "http://b0"


def test_with_every_backend_tried_it_waits_where_there_is_hope_and_else_not():
    pool = pool_of(2)
    tried = set(pool.everyone())
    for backend in tried:
        fall(pool, backend)
    nowhere = take(pool, tried=tried, hope=False)
    assert nowhere.backend is None and not nowhere.waiting
    hopeful = take(pool, tried=tried)
    assert hopeful.waiting
    for backend in tried:
        pool.probed(backend, well(), 30)
        pool.probed(backend, well(), 30)
    assert hopeful.backend


def test_a_request_is_stranded_from_when_the_last_backend_went_down():
    clock = Clock()
    pool = pool_of(2, slots=1, clock=clock)
    take(pool), take(pool)
    waiting = take(pool)
    for backend in pool.everyone():
        assert pool.stranded(waiting) == 0
        clock.now += 5
        fall(pool, backend)
    clock.now += 7
    assert pool.stranded(waiting) == 7


def test_the_cursor_is_fair_under_many_threads():
    pool = pool_of(4, slots=10**6)
    chosen = []
    in_parallel(lambda _: chosen.extend(names(pool, 100)), range(8))
    assert {chosen.count(name) for name in "0123"} == {200}


def test_slots_are_never_exceeded_under_many_threads():
    pool, most, all_taken = pool_of(2, slots=3), [], threading.Barrier(6)

    def work(number):
        ticket = take(pool, Wish(str(number % 3)))
        assert not ticket.decided or ticket.decided.wait(30)
        all_taken.wait(30)  # six at once, not one more
        most.append(max(each["in_flight"] for each in pool.describe()))
        pool.release(ticket)

    assert in_parallel(work, range(24)) == [None] * 24
    assert max(most) <= 3 and [each["in_flight"] for each in pool.describe()] == [0, 0]


# -------------------------------------------------------------------------------------------------- models


def test_a_request_goes_where_its_model_is():
    pool = pool_of(3, models=[["a"], ["b"], ["a", "b"]])
    assert names(pool, 4, wish=Wish(model="b.gguf")) in ("1111", "1112")


def test_who_has_the_model_loaded_comes_first_then_who_is_idle():
    pool = pool_of(3, slots=2, models=[["a", "b"], ["b", "a"], ["b", "a"]])
    assert names(pool, 2, wish=Wish(model="a")) == "00"
    assert names(pool, 1, wish=Wish(model="a")) == "1"  # full: an idle one swaps
    assert names(pool, 2, wish=Wish(model="b")) == "22"
    assert names(pool, 1, wish=Wish(model="a")) == "1"  # it has been told to load a
    waiting = take(pool, Wish(model="b"))
    assert waiting.waiting  # 0 and 1 are at work with another model, and would have to stop it


def test_a_model_that_nobody_has_loaded_is_loaded_by_an_idle_one_or_else_by_any():
    pool = pool_of(2, models=[["a", "c"], ["b", "c"]])
    busy = take(pool, Wish(model="a")).backend
    assert take(pool, Wish(model="c")).backend is not busy


def test_a_server_that_does_not_tell_its_models_takes_every_name():
    pool = pool_of(1)
    assert take(pool, Wish(model="whatever")).backend and pool.knows("whatever")


def test_the_models_are_a_union_and_others_are_unknown():
    pool = pool_of(2, models=[["a.gguf", "b.gguf"], ["b.gguf"]])
    models = pool.models()
    assert list(models) == ["a.gguf", "b.gguf"]
    assert models["b.gguf"]["backends"] == ["http://b0", "http://b1"] and models["b.gguf"]["loaded"]
    assert pool.knows("a") and pool.knows("b.gguf") and not pool.knows("c")


def test_a_model_whose_only_backend_is_down_is_still_known_and_waited_for():
    pool = pool_of(2, models=[["a"], ["b"]])
    fall(pool, pool.find("http://b1"))
    assert pool.knows("b") and "b" not in pool.models()
    assert take(pool, Wish(model="b")).backend.url == "http://b1"  # the last resort


# --------------------------------------------------------------------------------------------------- health


def test_a_request_that_was_lost_makes_the_backend_suspect_and_its_probe_due_at_once():
    pool = pool_of(2)
    backend = take(pool).backend
    pool.failed(backend, "refused")
    assert backend.vitals.state == "suspect" and pool.due(0) == [backend]
    assert names(pool, 2) == "11"


def test_a_backend_is_not_probed_twice_at_once():
    clock = Clock()
    pool = pool_of(1, clock=clock)
    assert pool.due(0) == []
    clock.now += 30
    (backend,) = pool.due(0)
    assert pool.due(0) == []


def test_a_probe_that_times_out_while_streams_flow_counts_as_busy():
    clock = Clock()
    pool = pool_of(1, clock=clock)
    backend = take(pool).backend
    late = Report(False, "no answer for 5 s", timed_out=True)
    for _ in range(5):
        clock.now += 6
        backend.heard = clock.now - 1
        pool.probed(backend, late, 30)
    assert backend.vitals.up and "streams" in backend.vitals.why
    clock.now += 60  # nothing has flowed for a minute
    for _ in range(3):
        pool.probed(backend, late, 30)
    assert not backend.vitals.up


def test_a_silent_backend_is_doubted_at_most_every_five_seconds():
    clock = Clock()
    pool = pool_of(1, clock=clock)
    (backend,) = pool.everyone()
    pool.doubt(backend)
    assert pool.due(0) == []
    clock.now += 5
    pool.doubt(backend)
    assert pool.due(0) == [backend]


def prompt(clock):
    """Return a pool of one backend that answers its probes at once, and has a request."""
    pool = pool_of(1, clock=clock)
    (backend,) = pool.everyone()
    pool.probed(backend, well(prompt=True), 30)
    take(pool)
    return pool, backend


NO_LOOK = Report(False, "no byte for 1 s", timed_out=True, quick=True)
GOOD_LOOK = Report(True, quick=True)


def test_a_prompt_backend_that_stops_is_down_in_less_than_five_seconds():
    clock = Clock()
    pool, backend = prompt(clock)
    backend.heard = stopped = clock.now
    while backend.vitals.up:
        if pool.doubted():
            assert pool.doubted() == []  # one at a time
            clock.now += 1
            pool.probed(backend, NO_LOOK, 30)
        else:
            clock.now += 0.5  # as often as requests that wait look
            pool.doubt(backend)
    assert backend.vitals.state == "down" and clock.now - stopped < 5


def test_a_prompt_backend_is_looked_at_once_a_second_while_its_requests_wait_in_silence():
    clock = Clock()
    pool, backend = prompt(clock)
    looks = 0
    for _ in range(100):
        clock.now += 0.1
        pool.doubt(backend)
        for each in pool.doubted():
            looks += 1
            pool.probed(each, GOOD_LOOK, 30)
    assert 9 <= looks <= 11 and backend.vitals.up and backend.slots == 4
    assert pool.due(0) == []  # the next whole probe is where it was
    clock.now += 21
    assert pool.due(0) == [backend]


def test_a_prompt_backend_whose_bytes_flow_is_neither_doubted_nor_dead():
    clock = Clock()
    pool, backend = prompt(clock)
    backend.heard = clock.now
    for _ in range(20):
        clock.now += 0.8
        pool.doubt(backend)
        assert pool.doubted() == []
        backend.heard = clock.now
    clock.now += 0.9
    pool.doubt(backend)
    assert pool.doubted() == [backend]
    for _ in range(5):
        clock.now += 1
        backend.heard = clock.now - 0.5  # a byte came while it was being looked at
        pool.probed(backend, NO_LOOK, 30)
    assert backend.vitals.up


def test_a_backend_that_can_not_answer_while_it_works_is_given_its_time():
    """A server with one thread, say. Nobody has seen it answer a probe while a request waited."""
    clock = Clock()
    pool = pool_of(1, clock=clock)
    (backend,) = pool.everyone()
    take(pool)
    for _ in range(20):
        clock.now += 0.5
        pool.doubt(backend)
        assert pool.doubted() == []
    assert pool.due(0) == [backend]  # a whole probe, with all its time


def test_a_backend_is_prompt_once_it_has_answered_while_a_request_waited_in_silence():
    clock = Clock()
    pool = pool_of(1, clock=clock)
    (backend,) = pool.everyone()
    take(pool)
    clock.now += 6
    pool.doubt(backend)
    assert pool.due(0) == [backend]
    backend.heard = clock.now  # the request was answered first: that shows nothing
    pool.probed(backend, well(), 30)
    assert not backend.prompt
    clock.now += 6
    pool.doubt(backend)
    assert pool.due(0) == [backend]
    pool.probed(backend, well(), 30)
    assert backend.prompt
    fall(pool, backend)
    assert not backend.prompt  # what comes up at this URL may be another server


def test_a_probe_that_could_not_be_made_is_due_again_in_a_second():
    clock = Clock()
    pool, backend = prompt(clock)
    clock.now += 60
    pool.doubt(backend)
    for take_due, quick in ((lambda: pool.due(0), False), (pool.doubted, True)):
        assert take_due() == [backend]
        pool.unprobed(backend, quick)
    assert pool.due(0) == [] == pool.doubted()
    clock.now += 1
    assert pool.due(0) == [backend] and pool.doubted() == [backend]


def test_five_failed_requests_eject_a_backend_but_never_the_last_one():
    pool = pool_of(2)
    bad, good = pool.everyone()
    for _ in range(5):
        pool.answered(bad, 0.1, 500)
    assert names(pool, 3) == "111" and pool.describe()[0]["state"] == "ejected"
    for _ in range(5):
        pool.answered(good, 0.1, 500)
    assert len(set(names(pool, 4))) == 2  # both are ejected: better than nobody


@pytest.mark.parametrize("status", [200, 400, 404, 429, 503])
def test_a_clients_own_error_and_a_full_backend_are_no_failures(status):
    pool = pool_of(2)
    for _ in range(20):
        pool.answered(pool.everyone()[0], 0.1, status)
    assert pool.describe()[0]["state"] == "up" and pool.describe()[0]["error_count"] == 0


def test_a_backend_that_fails_fast_does_not_draw_the_requests():
    clock = Clock()
    pool = Pool([Spec("http://b%d" % i, slots=8) for i in range(2)], LeastBusy(), clock=clock)
    for backend in pool.due(0):
        pool.probed(backend, well(8), 30)
    order = []
    for _ in range(12):  # nobody finishes on 0, everything fails at once on 1
        ticket = take(pool)
        order.append(ticket.backend.url[-1])
        if order[-1] == "1":
            pool.answered(ticket.backend, 0.001, 500)
            pool.release(ticket)
    assert order.count("1") <= 6


def test_a_backend_that_starts_again_begins_a_new_life():
    pool = pool_of(1)
    (backend,) = pool.everyone()
    pool.probed(backend, well(life=17), 30)
    pool.probed(backend, well(life=18), 30)
    assert backend.life == 18
    pool.probed(backend, well(), 30)  # a server that does not tell: its life ends when it goes down
    before = backend.life
    pool.probed(backend, well(), 30)
    assert backend.life is before
    fall(pool, backend)
    pool.probed(backend, well(), 30)
    assert backend.life is not before


# ------------------------------------------------------------------------------------------ coming and going


def test_a_backend_that_is_drained_gets_no_more_requests_and_leaves_after_its_last():
    pool = pool_of(2)
    ticket = take(pool)
    assert pool.drain(ticket.backend.url, remove=True)
    assert names(pool, 2) == "11" and len(pool.describe()) == 2 and pool.describe()[0]["state"] == "draining"
    pool.release(ticket)
    assert [each["url"] for each in pool.describe()] == ["http://b1"]
    assert not pool.drain("http://b0")


def test_a_backend_that_is_added_again_while_it_drains_stays():
    pool = pool_of(2)
    ticket = take(pool)
    pool.drain("http://b0", remove=True)
    pool.add(Spec("http://b0"))
    pool.release(ticket)
    assert len(pool.describe()) == 2 and pool.describe()[0]["state"] == "up"


def test_a_new_backend_takes_those_who_wait():
    pool = pool_of(1, slots=1)
    take(pool)
    waiting = take(pool)
    pool.add(Spec("http://b1"))
    (added,) = pool.due(0)
    pool.probed(added, well(), 30)
    assert waiting.backend is added


def test_more_slots_take_those_who_wait():
    pool = pool_of(1, slots=1)
    take(pool)
    waiting = take(pool)
    pool.add(Spec("http://b0", slots=2, weight=3.0))
    assert waiting.backend and pool.describe()[0]["weight"] == 3.0
    pool.probed(waiting.backend, well(slots=9), 30)
    assert pool.describe()[0]["capacity"] == 2  # what the option says holds


def test_a_source_replaces_only_what_it_has_brought():
    pool = pool_of(1)
    pool.replace([Spec("http://b0"), Spec("http://d1"), Spec("http://d2")], "dns")
    assert [each["url"] for each in pool.describe()] == ["http://b0", "http://d1", "http://d2"]
    pool.add(Spec("http://d2", weight=5.0))  # by hand
    pool.replace([Spec("http://d2"), Spec("http://d3")], "dns")
    assert [each["url"] for each in pool.describe()] == ["http://b0", "http://d2", "http://d3"]
    assert pool.describe()[1]["weight"] == 5.0
    pool.replace([], "dns")
    assert [each["url"] for each in pool.describe()] == ["http://b0"]


# ---------------------------------------------------------------------------------------------- running alone


def loner(pool, mark=b"a", **how):
    return take(pool, alone=mark, **how)


def test_who_must_run_alone_gets_an_idle_backend_that_others_keep_away_from():
    pool = pool_of(2)
    take(pool)  # at b0
    alone = loner(pool)
    assert alone.backend.url == "http://b1" and alone.decided.is_set()
    assert names(pool, 3) == "000"
    assert take(pool, Wish(works=False)).backend.url == "http://b0"
    pool.release(alone)
    assert names(pool, 1) == "1"


def test_without_an_idle_backend_one_is_kept_until_its_last_request_has_ended():
    pool = pool_of(2)
    first, second, third = take(pool), take(pool), take(pool)  # at b0, b1, b0
    alone = loner(pool)
    assert alone.waiting and pool.queued() == 1
    assert names(pool, 2) == "00"  # b1 has fewer to end
    pool.release(second)
    assert alone.backend.url == "http://b1" and alone.decided.is_set() and not pool.queued()
    assert [each["in_flight"] for each in pool.describe()] == [4, 1] and first.backend is third.backend


def test_another_that_becomes_idle_first_is_taken_instead():
    pool = pool_of(2)
    first, second = take(pool), take(pool)
    alone = loner(pool)  # b0 is kept
    pool.release(second)
    assert alone.backend.url == "http://b1"
    pool.release(first)
    assert names(pool, 1) == "0"


def test_a_look_up_keeps_a_backend_from_being_idle():
    pool = pool_of(1)
    look_up = take(pool, Wish(works=False))
    alone = loner(pool)
    assert alone.waiting
    pool.release(look_up)
    assert alone.backend


def test_those_that_must_run_alone_come_one_after_another_and_leave_half_of_the_backends_to_others():
    pool = pool_of(4)
    alone = [loner(pool, b"%d" % n) for n in range(3)]
    assert [bool(each.backend) for each in alone] == [True, True, False]
    assert take(pool).backend not in (alone[0].backend, alone[1].backend)
    pool.release(alone[0])
    assert alone[2].backend


def test_equal_ones_never_run_at_the_same_time():
    pool = pool_of(4)
    first, second, other = loner(pool, b"a"), loner(pool, b"a"), loner(pool, b"b")
    assert first.backend and other.backend and second.waiting
    pool.release(first)
    assert second.backend


def test_those_in_the_queue_get_what_is_kept_no_more():
    pool = pool_of(1, slots=2)
    running = take(pool)
    alone, waiting = loner(pool), take(pool)
    assert alone.waiting and waiting.waiting  # though a slot is free
    assert pool.leave(alone) and waiting.backend and not alone.waiting
    pool.release(running)


def test_a_kept_backend_that_falls_is_kept_no_more():
    pool = pool_of(2, slots=2)
    at_b0, at_b1 = take(pool), take(pool)
    alone = loner(pool)
    pool.failed(at_b0.backend, "reset")
    pool.release(at_b0)
    assert alone.waiting
    pool.release(at_b1)
    assert alone.backend.url == "http://b1"


def test_with_all_down_who_must_run_alone_waits_for_the_first_that_is_up_again():
    pool = pool_of(1)
    backend = pool.everyone()[0]
    fall(pool, backend)
    alone = loner(pool)
    assert alone.waiting and not loner(pool, b"b", hope=False).waiting
    for _ in range(2):
        pool.probed(backend, well(), 30)
    assert alone.backend is backend


def test_the_queues_size_holds_for_those_that_must_run_alone_but_not_for_who_was_here_before():
    pool = pool_of(1, queue_size=1)
    take(pool)
    loner(pool, b"a")
    with pytest.raises(Full):
        loner(pool, b"b")
    assert loner(pool, b"c", again=True).waiting and pool.queued() == 2


def test_a_backend_that_says_it_is_wedged_is_down_at_once_and_comes_back_after_two_good_probes():
    pool = pool_of(1)
    (backend,) = pool.everyone()
    pool.probed(backend, Report(False, "stuck", not_ready=True, wedged=True), 30)
    assert backend.vitals.state == "down" and backend.vitals.why == "stuck"
    pool.probed(backend, well(), 30)
    assert not backend.vitals.up
    pool.probed(backend, well(), 30)
    assert backend.vitals.up


# ------------------------------------------------------------------------------------------- as options name it


def test_a_backend_is_named_by_its_url_its_slots_and_its_weight():
    assert parse_spec("gpu1:8080") == Spec("http://gpu1:8080")
    assert parse_spec("https://gpu2:8080/,slots=8,weight=2.5") == Spec("https://gpu2:8080", 8, 2.5)
    assert parse_spec("http://[::1]:80;slots=8") == Spec("http://[::1]:80", 8)


@pytest.mark.parametrize(
    "text", ["http://x,slots=0", "http://x,slots=two", "http://x,weight=0", "http://x,weight=nan", "http://x,speed=9",
             "http://x,slots", "slots=8", "http://user@x", "http://x,key=", "http://x,key=@/no/such/file",
             "http://x,key=sec ret", "http://x,key=sec\nret", "http://x,key=secrét", "http://x,pass-key=no",
             "http://x,key=sec,ret"]
)  # fmt: skip
def test_a_backend_with_wrong_options_is_refused_and_its_key_is_not_told(text):
    with pytest.raises(ValueError) as caught:
        parse_spec(text)
    assert "sec" not in str(caught.value)


def test_a_backends_key_is_given_as_it_is_or_in_a_file_and_is_not_shown(tmp_path):
    (tmp_path / "key").write_text("# its key\nsecret\n")
    for text in ("http://x,key=secret,slots=2", "http://x;key=@%s;slots=2" % (tmp_path / "key")):
        spec = parse_spec(text)
        assert spec == Spec("http://x", 2, key="secret") and "secret" not in repr(spec)
    assert parse_spec("http://x,pass-key").pass_key and not parse_spec("http://x").pass_key


@pytest.mark.parametrize("value", [True and {}, [], "8x"])
def test_a_spec_of_unchecked_values_is_checked(value):
    with pytest.raises(ValueError):
        make_spec("http://x", slots=value)


@pytest.mark.parametrize(
    "text, url",
    [
        ("HTTP://gpu1:08080/", "http://gpu1:8080"),
        ("https://gpu_1.example.org.", "https://gpu_1.example.org."),
        ("[::1]:8080", "http://[::1]:8080"),
        ("http://[0:0::0001]", "http://[::1]"),
        ("http://münchen.example:1", "http://xn--mnchen-3ya.example:1"),
    ],
)
def test_a_backends_url_has_one_form(text, url):
    assert backend_url(text) == backend_url(url) == url


@pytest.mark.parametrize(
    "url",
    ["ftp://x", "http://", "http://x/path", "http://x?y", "://", "file:///etc/passwd", "http://h:x", "http://:p@h",
     "http://:80", "http://u@h", "http://u:p@h", "http://h:0", "http://h:65536", "http://h:99999999", "http://h:",
     "http://h:-1", "http://h:+1", "http://h:8²", "http://h:٨", "http://a b", "http://a\tb", "http://a\nb",
     "http://a\0b", "http://a\x7fb", " http://a", "http://a ", "http://::1:80", "http://[::1", "http://[::g]",
     "http://[]", "http://]", "http://a..b", "http://.a", "http://" + "a" * 64, "http://" + "a." * 127 + "a",
     "http://\ud800", "http://a\u3002\u3002b", "http://" + "é" * 64, "http://a%41", "http://a\\b", "http://a#b",
     "http://a?", "http://a=b", "http://a,b", "http://a|b", "http:///x", "http:x", "//a//b", "",
     pytest.param("x" * 5_000_000, id="5 MB"), pytest.param("http://h:" + "1" * 5_000_000, id="5 MB of a port")]
)  # fmt: skip
def test_a_backend_that_is_no_url_is_refused_in_few_words(url):
    with pytest.raises(ValueError) as caught:
        backend_url(url)
    assert len(str(caught.value)) < 300
