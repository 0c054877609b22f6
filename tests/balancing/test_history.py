"""The last ten minutes of a balancer, a sample a second; no sockets here."""

from core.balancing.counting import Totals
from core.balancing.history import COLUMNS, MOST_CHANGES, SECONDS, History

NOTHING = Totals(0, 0, 0.0, 0, 0)


def backend(url="http://b0", told_at=0.0, generated=None, state="up", **facts):
    known = {"url": url, "last_check": told_at, "generated_tokens": generated, "state": state, "why": "ok"}
    return dict(known, in_flight=0, restarts=0, **facts)


def add(history, second, totals=NOTHING, queued=0, backends=()):
    return history.add(1000.0 + second, totals, queued, list(backends))


def test_a_second_tells_what_came_in_it_and_not_what_came_before():
    history = History()
    assert add(history, 0, Totals(10, 4, 8.0, 1, 2), 3)["sample"]["requests"] == 0
    sample = add(history, 2, Totals(14, 6, 9.0, 2, 5), 1)["sample"]
    counted = {"requests": 2.0, "first_token": 0.5, "tokens": 0, "queued": 1, "busy": 0, "streams": 5, "carried": 1}
    assert sample == dict(counted, t=1002.0)
    assert add(history, 3, Totals(14, 6, 9.0, 2, 5))["sample"]["first_token"] is None


def test_tokens_per_second_follow_from_two_looks_that_are_close():
    history = History()
    add(history, 0, backends=[backend(told_at=999.5, generated=100)])
    news = add(history, 1, backends=[backend(told_at=1000.5, generated=140)])
    assert news["sample"]["tokens"] == 40.0 == news["backends"][0]["tokens_per_second"]
    news = add(history, 2, backends=[backend(told_at=1001.5, generated=7)])  # it has been started again
    assert news["sample"]["tokens"] == 0 and news["backends"][0]["tokens_per_second"] is None


def test_the_average_between_looks_that_are_far_apart_is_filled_in():
    history = History()
    for second in range(11):
        add(history, second, backends=[backend(told_at=1000.0, generated=0)])
        assert not history.corrected
    add(history, 11, backends=[backend(told_at=1010.0, generated=200)])
    assert history.corrected
    assert history.all()["history"]["tokens"] == [0.0] + [20.0] * 10 + [0.0]


def test_a_backend_that_tells_no_figures_has_no_rate():
    history = History()
    add(history, 0, backends=[backend()])
    assert add(history, 1, backends=[backend(told_at=1001.0)])["backends"][0]["tokens_per_second"] is None


def test_it_keeps_ten_minutes_and_the_last_changes():
    history = History()
    for second in range(SECONDS + 50):
        add(history, second, backends=[backend(state="up" if second % 2 else "down")])
    known = history.all()
    assert [len(known["history"][name]) for name in COLUMNS] == [SECONDS] * len(COLUMNS)
    assert known["history"]["t"][0] == 1050.0 and len(known["changes"]) == MOST_CHANGES


def kinds(news):
    return [change["kind"] for change in news["changes"]]


def test_it_tells_what_has_happened_to_backends_and_answers():
    history = History()
    assert kinds(add(history, 0, backends=[backend(state="down")])) == []  # it is just being started
    assert kinds(add(history, 1, backends=[backend()])) == ["state"]
    assert kinds(add(history, 2, backends=[backend()])) == []
    assert kinds(add(history, 3, Totals(1, 1, 0.1, 2, 0), backends=[backend(state="down")])) == ["state", "carried"]
    (change,) = add(history, 4, Totals(1, 1, 0.1, 2, 0))["changes"]
    assert change == {"kind": "left", "url": "http://b0", "t": 1004.0}


def test_a_restart_is_told():
    history = History()
    add(history, 0, backends=[backend()])
    assert kinds(add(history, 1, backends=[dict(backend(), restarts=1)])) == ["restarted"]
