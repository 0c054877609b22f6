"""One process that comeapi.py starts and watches: its pipes, its announcements, its signs of life, its last words.

    RestartPolicy   how long to wait before a process that died is started again   (pure)
    Child           the process

A child announces what happens to it on its standard output, one line of JSON for each event (core/process.py):
"listening", "loading", "progress", "waiting", "ready", and "alive" every two seconds. It is told what to do by lines of
JSON on its standard input, and stops when that ends, so that it never outlives this process, however that ends.
"""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from typing import IO, Any, Dict, FrozenSet, Iterator, List, Optional, Protocol, Sequence, Tuple

from core import process

STEADY_SECONDS = 60.0  # after a child has worked for longer, its earlier deaths do not count
FIRST_DELAY, LONGEST_DELAY = 1.0, 30.0  # seconds, until one that died is started again
SILENT_SECONDS = 20.0  # a child that announces nothing for so long hangs, or is stopped
START_SECONDS = 120.0  # the same before it listens: it reads its libraries from a disk that may be slow
CRASHES = {"SIGSEGV", "SIGILL", "SIGABRT", "SIGBUS", "access violation", "illegal instruction"}
HOPELESS = (2, process.BOOT_FAILURE)  # exit statuses; wrong arguments give the first
_WINDOWS_CRASHES = {0xC0000005: "access violation", 0xC000001D: "illegal instruction"}
_LAST_WORDS = 5  # lines
_LONGEST_LINE = 1 << 16  # bytes; a longer one comes in parts


class RestartPolicy:
    """When a process that died is started again: after 1, 2, 4 … 30 s, however often it dies.

    With `at_once`, the first time there is no wait. After it has worked for `steady` seconds, earlier deaths do not
    count.
    """

    def __init__(self, at_once: bool = False, steady: float = STEADY_SECONDS) -> None:
        self._deaths = 0
        self._free = 1 if at_once else 0
        self._steady = steady

    def died(self, worked: float) -> float:
        """Return the seconds to wait after a death. `worked` is the seconds for which it had been ready."""
        self._deaths = self._deaths + 1 if worked < self._steady else 1
        waits = self._deaths - self._free
        return min(FIRST_DELAY * 2.0 ** min(waits - 1, 10), LONGEST_DELAY) if waits > 0 else 0.0


News = Tuple["Child", int, Dict[str, Any]]  # a child, which of its runs, and what it announces


class Inbox(Protocol):
    """What takes the news of children: a queue."""

    def put(self, item: News) -> None:
        """Take one item; must not wait."""


class Child:
    """One process of ours. Its announcements, and its end, come on `events` as (child, run, facts).

    `run` counts its starts, so that what an earlier run has said can be told apart. `descriptors` are those that it
    inherits, beside the standard ones; only on POSIX systems.
    """

    def __init__(
        self,
        name: str,
        arguments: List[str],
        environment: Dict[str, str],
        events: "Inbox",
        policy: Optional[RestartPolicy] = None,
        descriptors: Sequence[int] = (),
    ):
        self.name = name
        self.arguments = arguments
        self.policy = policy or RestartPolicy()
        self.run = 0
        self.url = ""
        self.loading = ""  # the model that it is loading and testing now; "" for none
        self.safe = False  # it was started in safe mode
        self.progress = 0.0
        self.ready_at: Optional[float] = None
        self.restart_at: Optional[float] = None
        self.starved = False  # it was killed because it lacked memory
        self.hopeless = ""  # why it is not started again before something serves
        self.settled = False  # nothing more to wait for at start: it was ready once, waits for a model file, or died
        self.replaced = False  # its end is wanted: it is started again at once
        self._environment = environment
        self._descriptors = tuple(descriptors)
        self._events = events
        self._process: Optional[subprocess.Popen] = None
        self._listens = False
        self._heard_at = 0.0  # when it last gave a sign of life
        self._stuck = ""  # what it says while its engine hangs
        self._sentence = ""  # why it was killed
        self._last_words: List[str] = []
        self._earlier_words: FrozenSet[str] = frozenset()
        self._causes: Tuple[str, int] = ("", 0)  # of its last death, and how often in a row

    @property
    def pid(self) -> int:
        """The process' number."""
        return self._process.pid if self._process else 0

    @property
    def alive(self) -> bool:
        """Whether it is running."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process apart from the terminal: this process gets Ctrl-C, and stops its children in order.

        Raises OSError or RuntimeError where the system has no room for a process or a thread.
        """
        self.run += 1
        self.restart_at = self.ready_at = None
        self.loading, self.progress, self.hopeless = "", 0.0, ""
        self.replaced = self.starved = False
        self.safe = "--safe-mode" in self.arguments
        self._earlier_words, self._last_words = frozenset(self._last_words), []
        self._listens, self._heard_at, self._stuck, self._sentence = False, time.monotonic(), "", ""
        apart: Dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        self._process = subprocess.Popen(
            [sys.executable] + self.arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment,
            pass_fds=self._descriptors,
            **apart,
        )
        reader = threading.Thread(target=self._read_errors, args=(self._process.stderr, self.run), daemon=True)
        try:
            reader.start()
            threading.Thread(target=self._read_events, args=(self._process, self.run, reader), daemon=True).start()
        except RuntimeError:
            self._process.kill()  # without a reader, its announcements would be lost
            raise

    def tell(self, facts: Dict[str, Any]) -> None:
        """Tell it what to do. One that has ended, or is about to, does not hear it."""
        pipe = self._process.stdin if self._process else None
        if pipe:
            with contextlib.suppress(OSError, ValueError):
                pipe.write(json.dumps(facts).encode("ascii") + b"\n")
                pipe.flush()

    def ask_to_stop(self) -> None:
        """Close its standard input, which asks it to finish what it is doing and end."""
        if self._process:
            _close(self._process.stdin)

    def wait(self, timeout: float) -> bool:
        """Wait for its end; False if it is still there after `timeout` seconds."""
        try:
            return self._process is None or self._process.wait(max(0.0, timeout)) is not None
        except subprocess.TimeoutExpired:
            return False

    def kill(self, why: str = "", starved: bool = False) -> None:
        """End it at once, even if it is stopped (SIGSTOP); `why` becomes the cause of its death."""
        self._sentence, self.starved = why, starved
        if self._process and self.alive:
            self._process.kill()

    # ---- signs of life

    def heard(self, facts: Dict[str, Any]) -> None:
        """Note a sign of life: any announcement is one."""
        self._heard_at = time.monotonic()
        if facts.get("event") == "listening":
            self._listens = True
        elif facts.get("event") == "alive":
            self._stuck = str(facts.get("why") or "its engine hangs") if facts.get("wedged") else ""

    def forgive(self) -> None:
        """Forget its silence: this process was stopped itself, and could not hear it."""
        self._heard_at, self._stuck = time.monotonic(), ""

    def hangs(self, now: float) -> str:
        """Return why it should be killed, or an empty text; `now` is the moment by time.monotonic()."""
        if not self.alive or self._sentence:
            return ""
        if self._stuck:
            return self._stuck
        silence = now - self._heard_at
        if silence > (SILENT_SECONDS if self._listens else START_SECONDS):
            return "it was stopped, or hung: no sign of life for %d s" % silence
        return ""

    def put_off(self, least: float = 0.0) -> float:
        """It has died: let it be started again after a while, `least` seconds or more. Returns how many."""
        worked = time.monotonic() - self.ready_at if self.ready_at else 0.0
        delay = max(self.policy.died(worked), least)
        self.ready_at, self.settled, self.loading = None, True, ""
        self.restart_at = time.monotonic() + delay
        return delay

    def said_before(self, line: str) -> bool:
        """Whether its last run ended with this line, and it has not been ready since: then the line is nothing new."""
        return self.ready_at is None and line in self._earlier_words

    # ---- its end

    def cause_of_death(self, status: int) -> Tuple[str, str]:
        """Return what ended it in a word (a signal's name, or "exit 1") and in a sentence with its last words."""
        word = _WINDOWS_CRASHES.get(status & 0xFFFFFFFF) or ("exit %d" % status)
        if status < 0:
            with contextlib.suppress(ValueError):
                word = signal.Signals(-status).name
        if self._sentence:
            return "killed", self._sentence.rstrip(".") if self.starved else "%s (killed)" % self._sentence
        if word == "SIGKILL":
            return word, "killed (SIGKILL); if nobody did that, the system ran out of memory"
        said = " | ".join(self._last_words[-2:])
        return word, "%s%s" % (word, ": " + said if said else "")

    def times(self, cause: str) -> int:
        """Return how often in a row it has died of this cause, without being ready in between."""
        last, count = self._causes
        self._causes = (cause, count + 1 if cause == last and self.ready_at is None else 1)
        return self._causes[1]

    # ---- threads

    def _read_events(self, running: subprocess.Popen, run: int, errors: threading.Thread) -> None:
        for line in _lines(running.stdout):
            with contextlib.suppress(ValueError):
                facts = json.loads(line.decode("utf-8"))
                if isinstance(facts, dict):
                    self._events.put((self, run, facts))
        status = running.wait()
        _close(running.stdin)
        errors.join(1)  # its last words
        self._events.put((self, run, {"event": "exit", "status": status}))

    def _read_errors(self, pipe: Optional[IO[bytes]], run: int) -> None:
        for raw in _lines(pipe):
            line = raw.decode("utf-8", "replace").rstrip()
            if line:
                if run == self.run:
                    self._last_words = (self._last_words + [line])[-_LAST_WORDS:]
                self._events.put((self, run, {"event": "log", "line": line}))


def _close(pipe: Optional[IO[bytes]]) -> None:
    if pipe:
        with contextlib.suppress(OSError):  # the process has ended, with bytes in the pipe
            pipe.close()


def _lines(pipe: Optional[IO[bytes]]) -> Iterator[bytes]:
    """Yield a pipe's lines, then close it."""
    if pipe is None:
        return
    with pipe:
        yield from iter(lambda: pipe.readline(_LONGEST_LINE), b"")
