"""The lines below the log: how far each backend's model is loaded; then one that says how the service is.

    Dashboard.heard(child, facts)    a child told of its progress, or its signs of life
    Dashboard.show(children)         show what is to be shown now; does nothing where nothing has changed

Where there is no terminal, there is no status line, and a model that loads for a while gets a line now and then.
"""

import time
from typing import Any, Callable, Dict, Sequence, Tuple

from core.system.child import Child
from core.system.console import Console
from core.terminal import bar, paint

_PLAIN_SECONDS = 5.0  # between two lines about one backend, where there is no terminal


class Dashboard:
    """What is shown below the log."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic):
        self._console = console
        self._clock = clock
        self._figures: Dict[str, Any] = {}  # of the balancer's last sign of life
        self._tokens: Dict[str, Tuple[float, int]] = {}  # a child's name → when it told how many it has generated
        self._rates: Dict[str, float] = {}  # a child's name → tokens in a second, lately
        self._told: Dict[str, float] = {}  # a child's name → when it got its last line, where there is no terminal

    def heard(self, child: Child, facts: Dict[str, Any]) -> None:
        """Note what a child says."""
        event = facts.get("event")
        if event == "alive" and "generated_tokens" in facts:
            self._note_tokens(child.name, int(facts["generated_tokens"]))
        elif event == "alive" and "slots" in facts:
            self._figures = facts
        elif event == "loading":
            self._told[child.name] = self._clock()
        elif event == "progress":
            self._tell(child)

    def show(self, backends: Sequence[Child], serving: bool) -> None:
        """Show how far the backends are; while none loads and the service is there, how that is."""
        lines = [_loading(child) for child in backends if child.loading]
        if not lines and serving and self._figures:
            lines = [paint(self._status(backends), "dim")]
        self._console.show(lines)

    def _note_tokens(self, name: str, count: int) -> None:
        now = self._clock()
        before, last = self._tokens.get(name, (now, count))
        self._tokens[name] = (now, count)
        self._rates[name] = max(0, count - last) / (now - before) if now > before else 0.0

    def _tell(self, child: Child) -> None:
        """Say how far a model is loaded, where there is no terminal to show it on, and not too often."""
        now = self._clock()
        if not self._console.live and now - self._told.get(child.name, now) >= _PLAIN_SECONDS:
            self._told[child.name] = now
            self._console.say("⏳ %s: loading %s, %.0f %%" % (child.name, child.loading, child.progress * 100))

    def _status(self, backends: Sequence[Child]) -> str:
        told = self._figures
        ready = sum(child.ready_at is not None for child in backends)
        parts = ["%d of %d backends ready" % (ready, len(backends))]
        parts.append("%d of %d slots busy" % (told.get("busy", 0), told["slots"]))
        if told.get("queued"):
            parts.append("%d waiting" % told["queued"])
        rate = sum(self._rates.get(child.name, 0.0) for child in backends)
        if rate:
            parts.append("%.0f tokens/s" % rate if rate >= 10 else "%.1f tokens/s" % rate)
        return " · ".join(parts)


def _loading(child: Child) -> str:
    what = "testing it" if child.progress >= 1 else "%.0f %%" % (child.progress * 100)
    return "⏳ %s: loading %s %s %s" % (child.name, child.loading, bar(child.progress), what)
