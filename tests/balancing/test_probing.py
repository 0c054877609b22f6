"""Which probe is due when, and what its outcome changes; no sockets here."""

from pools import Clock, fall, names, pool_of, take, well

from core.balancing.backends import Report


def test_a_request_that_was_lost_makes_the_backend_suspect_and_its_probe_due_at_once():
    pool = pool_of(2)
    backend = take(pool).backend
    pool.failed(backend, "refused")
    assert backend.vitals.state == "suspect" and pool.probing.due(0) == [backend]
    assert names(pool, 2) == "11"


def test_requests_that_are_lost_together_make_one_probe_due():
    clock = Clock()
    pool = pool_of(1, clock=clock)
    (backend,) = pool.everyone()
    gone = Report(False, "refused")
    for _ in range(8):
        pool.failed(backend, "reset")
        for due in pool.probing.due(0):
            pool.probing.probed(due, gone, 30)
    assert backend.vitals.state == "suspect"
    clock.now += 1
    assert pool.probing.due(0) == [backend]  # not later, after backing off


def test_a_backend_is_not_probed_twice_at_once():
    clock = Clock()
    pool = pool_of(1, clock=clock)
    assert pool.probing.due(0) == []
    clock.now += 30
    (backend,) = pool.probing.due(0)
    assert pool.probing.due(0) == []


def test_a_backend_that_is_said_to_be_ready_is_probed_at_once_unless_it_is_up():
    pool = pool_of(2, clock=Clock())
    up, down = pool.backends
    fall(pool, down)
    assert pool.probing.due(0) == []
    for backend in (up, down):
        pool.probing.expect(backend.url)
    pool.probing.expect("http://nobody:1")
    assert pool.probing.due(0) == [down]


def test_a_probe_that_times_out_while_streams_flow_counts_as_busy():
    clock = Clock()
    pool = pool_of(1, clock=clock)
    backend = take(pool).backend
    late = Report(False, "no answer for 5 s", timed_out=True)
    for _ in range(5):
        clock.now += 6
        backend.heard = clock.now - 1
        pool.probing.probed(backend, late, 30)
    assert backend.vitals.up and "streams" in backend.vitals.why
    clock.now += 60  # nothing has flowed for a minute
    for _ in range(3):
        pool.probing.probed(backend, late, 30)
    assert not backend.vitals.up


def test_a_silent_backend_is_doubted_at_most_every_five_seconds():
    clock = Clock()
    pool = pool_of(1, clock=clock)
    (backend,) = pool.everyone()
    pool.doubt(backend)
    assert pool.probing.due(0) == []
    clock.now += 5
    pool.doubt(backend)
    assert pool.probing.due(0) == [backend]


def prompt(clock):
    """Return a pool of one backend that answers its probes at once, and has a request."""
    pool = pool_of(1, clock=clock)
    (backend,) = pool.everyone()
    pool.probing.probed(backend, well(prompt=True), 30)
    take(pool)
    return pool, backend


NO_LOOK = Report(False, "no byte for 1 s", timed_out=True, quick=True)
GOOD_LOOK = Report(True, quick=True)


def test_a_prompt_backend_that_stops_is_down_in_less_than_five_seconds():
    clock = Clock()
    pool, backend = prompt(clock)
    backend.heard = stopped = clock.now
    while backend.vitals.up:
        if pool.probing.looks_due():
            assert pool.probing.looks_due() == []  # one at a time
            clock.now += 1
            pool.probing.probed(backend, NO_LOOK, 30)
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
        for each in pool.probing.looks_due():
            looks += 1
            pool.probing.probed(each, GOOD_LOOK, 30)
    assert 9 <= looks <= 11 and backend.vitals.up and backend.slots == 4
    assert pool.probing.due(0) == []  # the next whole probe is where it was
    clock.now += 21
    assert pool.probing.due(0) == [backend]


def test_a_prompt_backend_whose_bytes_flow_is_neither_doubted_nor_dead():
    clock = Clock()
    pool, backend = prompt(clock)
    backend.heard = clock.now
    for _ in range(20):
        clock.now += 0.8
        pool.doubt(backend)
        assert pool.probing.looks_due() == []
        backend.heard = clock.now
    clock.now += 0.9
    pool.doubt(backend)
    assert pool.probing.looks_due() == [backend]
    for _ in range(5):
        clock.now += 1
        backend.heard = clock.now - 0.5  # a byte came while it was being looked at
        pool.probing.probed(backend, NO_LOOK, 30)
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
        assert pool.probing.looks_due() == []
    assert pool.probing.due(0) == [backend]  # a whole probe, with all its time


def test_a_backend_is_prompt_once_it_has_answered_while_a_request_waited_in_silence():
    clock = Clock()
    pool = pool_of(1, clock=clock)
    (backend,) = pool.everyone()
    take(pool)
    clock.now += 6
    pool.doubt(backend)
    assert pool.probing.due(0) == [backend]
    backend.heard = clock.now  # the request was answered first: that shows nothing
    pool.probing.probed(backend, well(), 30)
    assert not backend.prompt
    clock.now += 6
    pool.doubt(backend)
    assert pool.probing.due(0) == [backend]
    pool.probing.probed(backend, well(), 30)
    assert backend.prompt
    fall(pool, backend)
    assert not backend.prompt  # what comes up at this URL may be another server


def test_a_probe_that_could_not_be_made_is_due_again_in_a_second():
    clock = Clock()
    pool, backend = prompt(clock)
    clock.now += 60
    pool.doubt(backend)
    for take_due, quick in ((lambda: pool.probing.due(0), False), (pool.probing.looks_due, True)):
        assert take_due() == [backend]
        pool.probing.unprobed(backend, quick)
    assert pool.probing.due(0) == [] == pool.probing.looks_due()
    clock.now += 1
    assert pool.probing.due(0) == [backend] and pool.probing.looks_due() == [backend]


def test_a_backend_that_starts_again_begins_a_new_life():
    pool = pool_of(1)
    (backend,) = pool.everyone()
    pool.probing.probed(backend, well(life=17), 30)
    pool.probing.probed(backend, well(life=18), 30)
    assert backend.life == 18
    pool.probing.probed(backend, well(), 30)  # a server that does not tell: its life ends when it goes down
    before = backend.life
    pool.probing.probed(backend, well(), 30)
    assert backend.life is before
    fall(pool, backend)
    pool.probing.probed(backend, well(), 30)
    assert backend.life is not before


def test_a_backend_that_says_it_is_wedged_is_down_at_once_and_comes_back_after_two_good_probes():
    pool = pool_of(1)
    (backend,) = pool.everyone()
    pool.probing.probed(backend, Report(False, "stuck", not_ready=True, wedged=True), 30)
    assert backend.vitals.state == "down" and backend.vitals.why == "stuck"
    pool.probing.probed(backend, well(), 30)
    assert not backend.vitals.up
    pool.probing.probed(backend, well(), 30)
    assert backend.vitals.up


def test_backends_that_came_at_once_are_not_probed_at_once_for_ever():
    clock = Clock()
    pool = pool_of(100, clock=clock)
    for _ in range(270):
        clock.now += 0.1
    assert pool.probing.due(0) == []
    due = []
    for _ in range(31):
        due.append(len(pool.probing.due(0)))
        clock.now += 0.1
    assert sum(due) == 100 and max(due) <= 10
