"""When a backend may be used: fall and rise, suspicion, ejection, slow start; no clock runs here."""

import pytest

from core.balancing.vitals import DOWN, EJECT_AFTER, LOADING, SUSPECT, UP, Vitals


def healthy(slow_start=0.0):
    vitals = Vitals(slow_start)
    vitals.probe_passed(0)
    return vitals


def ejected(at=0.0):
    vitals = healthy(slow_start=10.0)
    for _ in range(EJECT_AFTER):
        vitals.request_failed(at, "status 500", lost=False)
    return vitals


def test_the_first_probe_decides_about_a_new_backend():
    assert healthy().up
    dead = Vitals()
    assert not dead.up
    dead.probe_failed(0, "refused")
    assert dead.state == DOWN and dead.why == "refused" and not dead.seen
    dead.probe_passed(1)  # it has never been up: nothing says that it is unsteady
    assert dead.up and dead.seen


def test_three_failed_probes_in_a_row_take_a_backend_down():
    vitals = healthy()
    for _ in range(2):
        vitals.probe_failed(1, "timed out")
        vitals.probe_failed(2, "timed out")
        assert vitals.up
        vitals.probe_passed(3)
    for moment in (4, 5, 6):
        vitals.probe_failed(moment, "timed out")
    assert vitals.state == DOWN and vitals.down_since == 6


def test_two_good_probes_in_a_row_bring_it_back():
    vitals = healthy()
    for moment in (1, 2, 3):
        vitals.probe_failed(moment, "gone")
    vitals.probe_passed(4)
    vitals.probe_failed(5, "gone")
    vitals.probe_passed(6)
    assert not vitals.up and vitals.next_probe(30) < 1
    vitals.probe_passed(7)
    assert vitals.up and vitals.next_probe(30) == 30


def test_a_lost_connection_makes_it_suspect_until_one_good_probe():
    vitals = healthy()
    vitals.request_failed(1, "refused", lost=True)
    assert vitals.state == SUSPECT and vitals.why == "refused"
    vitals.probe_passed(2)
    assert vitals.up
    vitals.request_failed(3, "refused", lost=True)
    for moment in (4, 5, 6):
        vitals.probe_failed(moment, "refused")
    assert vitals.state == DOWN


def test_one_that_says_it_is_not_ready_is_left_out_at_once_and_back_at_once():
    vitals = healthy()
    vitals.not_ready(1, "loading")
    assert vitals.state == LOADING and not vitals.up and vitals.seen
    vitals.probe_passed(2)
    assert vitals.state == UP


def test_a_backend_that_is_busy_with_its_streams_is_not_dead():
    vitals = healthy()
    for moment in range(1, 10):
        vitals.busy("timed out, but its streams flow")
    assert vitals.up and "streams" in vitals.why


def test_probes_come_at_the_interval_or_every_second_backing_off():
    vitals = healthy()
    assert vitals.next_probe(30) == 30
    delays = []
    for moment in range(12):
        vitals.probe_failed(moment, "gone")
        delays.append(vitals.next_probe(30))
    assert delays[0] == 1 and delays == sorted(delays) and delays[-1] == 5


def test_five_failures_in_a_row_eject_a_backend_whose_probes_pass():
    vitals = healthy()
    for _ in range(3):
        for _ in range(EJECT_AFTER - 1):
            assert not vitals.request_failed(0, "status 500", lost=False)
        vitals.request_passed(0)
    assert not vitals.out(0)
    vitals = ejected()
    assert vitals.up and vitals.out(0) and vitals.out(29.9) and vitals.label(0) == "ejected" and vitals.ejections == 1


def test_requests_that_are_lost_together_or_tried_at_one_that_is_gone_are_one_failure():
    vitals = healthy()
    for _ in range(EJECT_AFTER):
        assert not vitals.request_failed(0, "reset", lost=True)
    vitals.probe_passed(1)
    assert vitals.up and not vitals.out(1) and vitals.trouble(0) == 1
    for moment in range(EJECT_AFTER - 2):
        assert not vitals.request_failed(moment, "reset", lost=True)
        vitals.probe_passed(moment)
    assert vitals.request_failed(9, "reset", lost=True)  # it passes its probes, and breaks off again and again


def test_after_its_ejection_one_trial_request_decides():
    vitals = ejected()
    assert not vitals.out(30)
    vitals.request_starts()
    assert vitals.out(30)  # one at a time
    vitals.request_ends()  # its client has left: it says nothing
    assert not vitals.out(30)
    vitals.request_starts()
    vitals.request_passed(31)
    vitals.request_ends()
    assert not vitals.out(31) and vitals.label(31) == UP
    assert vitals.share(31) == pytest.approx(0.1)


def test_each_failed_trial_doubles_the_ejection_up_to_five_minutes():
    vitals, moment, lengths = ejected(), 0.0, []
    for _ in range(6):
        length = next(seconds for seconds in range(1, 1000) if not vitals.out(moment + seconds))
        lengths.append(length)
        moment += length
        vitals.request_starts()
        assert vitals.request_failed(moment, "status 500", lost=False)
        vitals.request_ends()
    assert lengths == [30, 60, 120, 240, 300, 300]


def test_one_that_comes_back_starts_slowly():
    vitals = healthy(slow_start=10.0)
    assert vitals.share(0) == 1.0  # not at the first start
    for moment in (1, 2, 3):
        vitals.probe_failed(moment, "gone")
    vitals.probe_passed(4)
    vitals.probe_passed(5)
    assert [vitals.share(moment) for moment in (5, 6, 10, 15, 99)] == pytest.approx([0.1, 0.1, 0.5, 1.0, 1.0])


def test_a_failure_weighs_on_it_for_a_while():
    vitals = healthy()
    for _ in range(3):
        vitals.request_failed(100, "status 500", lost=False)
    assert vitals.trouble(100) == 3
    assert vitals.trouble(105) == pytest.approx(1.5) and vitals.trouble(150) < 0.01
