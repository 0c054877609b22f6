"""Colours, lines that are written anew, progress in words: on a terminal only, and never by the will of others."""

import io

import pytest
from terminals import screen

from core import terminal
from core.terminal import Live, Progress, bar, columns, duration, harmless, one_line, paint, shortened, size


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_colours_are_for_terminals_whose_users_want_them(monkeypatch):
    assert paint("x", "red", Screen()) == "\x1b[31mx\x1b[0m"
    assert paint("x", "red", io.StringIO()) == "x"
    monkeypatch.setenv("NO_COLOR", "")
    assert paint("x", "red", Screen()) != "x"  # empty means nothing: https://no-color.org
    monkeypatch.setenv("NO_COLOR", "1")
    assert paint("x", "red", Screen()) == "x"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert paint("x", "red", Screen()) == "x" and not Live(Screen()).works


def test_texts_of_others_command_nothing():
    assert harmless("a\x1b[2J\x07\x9b\r\x00b\n\tc\u202e") == "a[2Jb\n\tc"
    assert one_line(" a\n\tb\x1b ") == "a b"


def test_lines_below_are_written_anew_and_the_log_grows_above_them():
    out = Screen()
    live = Live(out)
    live.show(["one 1 %", "two 2 %"])
    live.say("a log line")
    live.show(["one 50 %", "two 60 %"])
    assert screen(out.getvalue())[:3] == ["a log line", "one 50 %", "two 60 %"]
    live.show(["one"])
    live.say("another")
    live.show([])
    assert [line for line in screen(out.getvalue()) if line] == ["a log line", "another"]


def test_nothing_is_written_twice_and_a_pipe_gets_whole_lines_only():
    out = Screen()
    live = Live(out)
    live.show(["same"])
    before = out.getvalue()
    live.show(["same"])
    assert out.getvalue() == before
    pipe = io.StringIO()
    live = Live(pipe)
    live.show(["progress"])
    live.say("line")
    assert pipe.getvalue() == "line\n"


def test_a_line_never_wraps(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    out = Screen()
    Live(out).show(["x" * 50])
    assert out.getvalue() == "x" * 18 + "…"
    assert columns("日本") == 4 and columns("e\u0301") == 1
    assert columns(shortened("日本語日本語", 6)) <= 6
    assert shortened("\x1b[2m%s\x1b[0m" % ("x" * 9), 5) == "\x1b[2mxxxx…\x1b[0m"


def test_progress_tells_share_rate_and_time_left():
    progress = Progress(1000_000_000, 200_000_000, 0.0)
    assert progress.sentence() == "200.0 MB of 1.0 GB, 20 %"
    progress.reach(220_000_000, 2.0)
    assert progress.sentence() == "220.0 MB of 1.0 GB, 22 %, 10.0 MB/s, 1 min 18 s left"
    for second in range(3, 30):
        progress.reach(220_000_000, float(second))
    assert progress.rate() == 0.0  # only what came lately counts
    assert Progress(None, 5, 0.0).sentence() == "5 bytes"


@pytest.mark.parametrize(
    "value, text", [(0, "0 bytes"), (999, "999 bytes"), (999_999, "1.0 MB"), (2_497_280_256, "2.5 GB")]
)
def test_sizes_are_in_words(value, text):
    assert size(value) == text


@pytest.mark.parametrize("seconds, text", [(0.4, "0 s"), (59.6, "1 min 0 s"), (112, "1 min 52 s"), (7500, "2 h 5 min")])
def test_times_are_in_words(seconds, text):
    assert duration(seconds) == text


def test_a_bar_is_filled_to_its_share():
    assert [bar(share).count("█") for share in (-1, 0, 0.5, 1, 2)] == [0, 0, 10, 20, 20]
    assert terminal.columns(bar(0.3)) == 20
