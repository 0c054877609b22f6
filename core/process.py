"""How a program lives and ends: its terminal, its log, its announcements, and the wait for a reason to stop.

A program stops for three reasons: SIGINT (Ctrl-C), SIGTERM, or, where another program started it with `--child`, the
end of its standard input. So no child outlives a parent that was killed, on any operating system.

Announcements are what a parent must know at once: one line of JSON each on a child's standard output, or a sentence on
a terminal; systemd is told the same (notify.py). What a parent wants of a child goes the other way: lines of JSON on
the child's standard input. A thread of its own (Pulse) announces "alive" every two seconds. A child that announces
nothing has been suspended or hangs as a whole; its parent ends it.
"""

import contextlib
import faulthandler
import ipaddress
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from typing import Any, Callable, Dict, NoReturn, Sequence

from core import output
from core.notify import Notifier

BOOT_FAILURE = 78  # EX_CONFIG of sysexits.h, the exit status that says: starting again will not help
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
PULSE_SECONDS = 2.0
PAUSE_SECONDS = 5.0  # a thread that sleeps for so much longer than it asked for: its whole process was suspended
STOP_SECONDS = 4.0  # what stopping may take beside the time for running requests

log = logging.getLogger("comeapi.process")


def prepare_terminal() -> None:
    """Send logs to stderr, and make prints that never block or raise, whatever happens to their reader.

    A character that the terminal does not know raises nothing either. main() calls this first.
    """
    output.open_descriptors()
    output.install()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)


def warn_if_open(config: Any) -> None:
    """Say so when anybody who can reach this machine may use the service."""
    if not is_loopback(config.host) and not config.api_key and not getattr(config, "child", False):
        logging.warning(
            "⚠️  listening on %s without an API key: whoever can reach it can use it (--api-key)", config.host
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`, which may be several with commas between."""
    try:
        return all(
            each == "localhost" or ipaddress.ip_address(each).is_loopback
            for each in (part.strip() for part in host.split(","))
        )
    except ValueError:  # another name
        return False


class Announcer:
    """Tells the parent, or the person at the terminal, what happens; systemd, too, where that has started this program.

    `ready` names the events with any of which the program has done what it can to serve.
    """

    def __init__(self, child: bool, ready: Sequence[str] = ()):
        self._child = child
        self._ready = frozenset(ready)
        self._notifier = Notifier()

    def __call__(self, what: str, sentence: str = "", **facts: Any) -> None:
        """Announce an event: to a parent as {"event": what, **facts}, to a person as the sentence, if there is one."""
        line = json.dumps(dict(facts, event=what), ensure_ascii=True) if self._child else sentence
        if line:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        self._notify(what, sentence, facts)

    def _notify(self, what: str, sentence: str, facts: Dict[str, Any]) -> None:
        if what in self._ready:
            self._notifier.ready(sentence)
        elif what == "stopping":
            self._notifier.stopping()
        elif what == "alive":
            self._notifier.alive(well=not facts.get("wedged"))
        else:
            self._notifier.status(sentence)


def announce_stop(announce: Announcer, config: Any, why: str, watched: bool) -> float:
    """Announce that the program stops for the reason `why`. Returns the seconds of --drain-grace that it is to keep.

    None where nobody has `watched` its health lately, where a person waits at the terminal, and where a parent has
    started the program: nobody else goes by that one's health.
    """
    grace = float(config.drain_grace) if watched and why == "SIGTERM" and not config.child else 0.0
    first = "/health says 503 for %g s, then " % grace if grace else ""
    announce("stopping", "stopping: %srunning requests get %g s to finish" % (first, config.drain_timeout))
    return grace


class Pulse:
    """A thread that announces "alive" every two seconds, until the process ends.

    `look(now, paused)` returns facts to announce with it. `paused` says that the whole process was suspended between
    the last look and `now` (by SIGSTOP, or with its machine): what seems to have taken long may have been short. What
    happens after `now` belongs to the next look.
    """

    def __init__(self, announce: Callable[..., None]):
        self.look: Callable[[float, bool], Dict[str, Any]] = lambda now, paused: {}
        self._announce = announce

    def start(self) -> "Pulse":
        """Start the thread. Call it before slow imports: the parent waits for a first announcement."""
        threading.Thread(target=self._run, name="pulse", daemon=True).start()
        return self

    def _run(self) -> None:
        moment = time.monotonic()
        while True:
            before, moment = moment, time.monotonic()
            try:
                facts = self.look(moment, moment - before > PULSE_SECONDS + PAUSE_SECONDS)
            except Exception:  # the pulse must go on
                log.error("a look at this process failed:\n%s", traceback.format_exc())
                facts = {}
            self._announce("alive", **facts)
            time.sleep(PULSE_SECONDS)


def reasons_to_stop() -> "queue.SimpleQueue[str]":
    """Return where wait_for_stop() finds the signals that ask to stop. Call it before anything is served."""
    reasons: queue.SimpleQueue[str] = queue.SimpleQueue()
    on_signals(lambda number: reasons.put(signal.Signals(number).name))
    return reasons


def wait_for_stop(
    reasons: "queue.SimpleQueue[str]", child: bool, told: Callable[[Dict[str, Any]], None] = lambda facts: None
) -> str:
    """Block until there is a reason to stop, and return it. A second signal ends the process at once.

    `told` is called with what a parent tells a child, in a thread of its own.
    """
    if child:
        threading.Thread(target=_watch_parent, args=(reasons, told), daemon=True).start()
    reason = next_item(reasons)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    return reason


def on_signals(handler: Callable[[int], None]) -> None:
    """Call `handler` with the number of each signal that asks to stop; it must do no more than enqueue."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda given, _frame: handler(given))


def on_hangup(handler: Callable[[int], None]) -> None:
    """Call `handler` with SIGHUP's number at that signal, where there is one; it must do no more than enqueue.

    When its terminal is gone, a program gets the same signal: then `handler` is called with SIGTERM's number.
    """
    if not hasattr(signal, "SIGHUP"):
        return
    had_terminal = _has_terminal()
    signal.signal(
        signal.SIGHUP,
        lambda given, _frame: handler(signal.SIGTERM if had_terminal and not _has_terminal() else given),
    )


def _has_terminal() -> bool:
    return any(os.isatty(number) for number in range(3))


def end_within(seconds: float) -> None:
    """End this process after so many seconds, with status 1, even if all of its Python threads hang.

    faulthandler's watchdog is a native thread: it needs no lock of Python's. Its traceback goes to the null device,
    since printing could block it.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=open(os.devnull, "w"))


def leave(status: int = 0) -> NoReturn:
    """End this process now. No thread is waited for: one may hang in native code, and atexit would wait for it."""
    output.flush()
    os._exit(status)


def next_item(items: "queue.SimpleQueue[Any]") -> Any:
    """Return a queue's next item; wakes up twice a second, since on Windows a blocked get() hides Ctrl-C."""
    while True:
        try:
            return items.get(timeout=0.5)
        except queue.Empty:
            continue


def _watch_parent(reasons: "queue.SimpleQueue[str]", told: Callable[[Dict[str, Any]], None]) -> None:
    # Not through sys.stdin: a thread that waits inside its lock aborts the interpreter's shutdown.
    begun = b""
    with contextlib.suppress(OSError):
        for data in iter(lambda: os.read(0, 4096), b""):
            *lines, begun = (begun + data).split(b"\n")
            for line in lines:
                _hear(line, told)
    reasons.put("parent gone")


def _hear(line: bytes, told: Callable[[Dict[str, Any]], None]) -> None:
    try:
        facts = json.loads(line.decode("utf-8"))
        if isinstance(facts, dict):
            told(facts)
    except Exception:  # whatever a parent says, its end must be noticed
        log.error("what the parent says was not understood:\n%s", traceback.format_exc())
