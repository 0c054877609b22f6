"""The model that a program starts with: loaded at start, and tried again until it can be.

    attempts   when it is worth trying again
    Opening    the thread of a backend that tries
    loaded     what is told of a model that is loaded

A model's file may be cut short, or missing, while somebody copies it. The program does not end then: it waits for a
good file.
"""

import os
import queue
import threading
import time
from typing import Any, Callable, Dict, Iterator, Tuple

from core.memory import megabytes
from core.models import BadModel, ModelFile

FIRST_DELAY, LONGEST_DELAY = 1.0, 30.0  # seconds
LOOK_SECONDS = 1.0


def attempts(folder: str) -> Iterator[None]:
    """Yield each time that it is worth trying again to load a model from a folder; sleep in between.

    It yields after 1, 2, 4 … 30 s, because something other than the file may be wrong. It yields earlier, and begins
    at 1 s again, where the folder's model files have changed and then stayed the same for LOOK_SECONDS: a file that is
    being copied is not read again and again.
    """
    delay = FIRST_DELAY
    while True:
        tried_with = seen = _signature(folder)
        until = time.monotonic() + delay
        delay = min(delay * 2, LONGEST_DELAY)
        while time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
            before, seen = seen, _signature(folder)
            if seen == before != tried_with:
                delay = FIRST_DELAY
                break
        yield


def _signature(folder: str) -> Tuple[Any, ...]:
    """Return what changes when a model file of a folder does: names, sizes, times."""
    try:
        with os.scandir(folder) as entries:
            files = [(each.name, each.stat()) for each in entries if each.name.lower().endswith(".gguf")]
        return tuple(sorted((name, status.st_size, status.st_mtime_ns) for name, status in files))
    except OSError:
        return ()


class Opening:
    """Loads the first model of a backend, in a thread of its own.

    `find()` returns the file, or raises BadModel. `load(file)` asks the engine to load it; the engine tells the outcome
    by loaded() or failed(). `tell(why)` is called where it did not work, once for each new reason.
    """

    def __init__(
        self, folder: str, find: Callable[[], ModelFile], load: Callable[[ModelFile], None],
        tell: Callable[[str], None],
    ):  # fmt: skip
        self.why = ""  # why there is no model yet
        self._folder = folder
        self._find = find
        self._load = load
        self._tell = tell
        self._over = False  # no more tries: a model is loaded (maybe another one, for a request), or stop() was called
        self._outcomes: "queue.SimpleQueue[Tuple[str, str]]" = queue.SimpleQueue()  # a model's name; why it failed

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name="opening", daemon=True).start()

    def stop(self) -> None:
        """Do not try again."""
        self._over = True

    def loaded(self, name: str) -> None:
        """Take note that a model is loaded."""
        self._over = True
        self._outcomes.put((name, ""))

    def failed(self, name: str, why: str) -> None:
        """Take note that a model could not be loaded."""
        self._outcomes.put((name, why))

    def _run(self) -> None:
        retries = attempts(self._folder)
        while not self._over:
            why = self._try()
            if not why or self._over:
                return
            why = why.rstrip(".") + "."
            if why != self.why:
                self.why = why
                self._tell(why)
            next(retries)

    def _try(self) -> str:
        """Try once. Return why it failed; an empty text where it did not fail."""
        try:
            file = self._find()
        except BadModel as problem:
            return str(problem)
        self._load(file)
        while True:
            name, why = self._outcomes.get()
            if name == file.name or not why:
                return why


def loaded(facts: Dict[str, Any]) -> str:
    """Return what a "ready" announcement says, in words."""
    size = megabytes(facts.get("memory"))
    sentence = "%s loaded in %.1f s" % (facts["model"], facts["seconds"])
    return sentence if size is None else "%s, %d MB in memory" % (sentence, size)
