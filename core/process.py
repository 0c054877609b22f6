"""How a program lives and ends: its terminal, its log, its announcements, and the wait for a reason to stop.

A program stops for three reasons: SIGINT (Ctrl-C), SIGTERM, or, where another program started it with `--child`, the
end of its standard input: so that no child outlives a parent that was killed, on any operating system.

Announcements are what a parent must know at once: one line of JSON each on a child's standard output; on a terminal,
a sentence instead.
"""

import contextlib
import json
import logging
import os
import queue
import signal
import sys
import threading
from typing import Any, Callable

BOOT_FAILURE = 78  # EX_CONFIG of sysexits.h, the exit status that says: starting again will not help
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def prepare_terminal() -> None:
    """Send logs to stderr, and let no terminal's character set turn a message into an exception."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace", line_buffering=True)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)


def warn_if_open(config: Any) -> None:
    """Say so when anybody who can reach this machine may use the service."""
    if (
        config.host not in ("127.0.0.1", "localhost", "::1")
        and not config.api_key
        and not getattr(config, "child", False)
    ):
        logging.warning(
            "⚠️  listening on %s without an API key: whoever can reach it can use it (--api-key)", config.host
        )


class Announcer:
    """Tells the parent, or whoever sits at the terminal, what happens."""

    def __init__(self, child: bool):
        self._child = child

    def __call__(self, what: str, sentence: str = "", **facts: Any) -> None:
        """Announce an event: to a parent as {"event": what, **facts}, to a person as the sentence, if there is one."""
        line = json.dumps(dict(facts, event=what), ensure_ascii=True) if self._child else sentence
        if not line:
            return
        try:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        except (OSError, ValueError):
            pass  # nobody is listening any more; the end of standard input will stop us


def wait_for_stop(child: bool) -> str:
    """Block until there is a reason to stop, and return it. A second signal ends the process at once."""
    reasons: queue.SimpleQueue[str] = queue.SimpleQueue()
    on_signals(lambda number: reasons.put(signal.Signals(number).name))
    if child:
        threading.Thread(target=_watch_parent, args=(reasons,), daemon=True).start()
    reason = next_item(reasons)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    return reason


def on_signals(handler: Callable[[int], None]) -> None:
    """Call `handler` with the number of each signal that asks to stop; it must do no more than enqueue."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda given, _frame: handler(given))


def next_item(items: "queue.SimpleQueue[Any]") -> Any:
    """Return a queue's next item; wakes up twice a second, since on Windows a blocked get() hides Ctrl-C."""
    while True:
        try:
            return items.get(timeout=0.5)
        except queue.Empty:
            continue


def _watch_parent(reasons: "queue.SimpleQueue[str]") -> None:
    # Not through sys.stdin: a thread that waits inside its lock aborts the interpreter's shutdown.
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    reasons.put("parent gone")
