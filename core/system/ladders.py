"""Where the backends stand on their ladders (ladder.py), why they died, and what is told of it.

What is told goes to the console, one line a step, and to the balancer, which shows it at /status as part of `why`.
"""

from typing import Any, List, Tuple

from core import memory
from core.needs import context_of, lacks_memory
from core.system.child import LONGEST_DELAY, Child
from core.system.console import Console
from core.system.ladder import Ladder
from core.system.plan import Plan


class Ladders:
    """The backends' ladders. `config` is comeapi.py's; `urls` are those by which the balancer knows the backends."""

    def __init__(
        self, config: Any, plan: Plan, backends: List[Child], urls: List[str], balancer: Child, console: Console
    ):
        shape = (plan.slots, context_of(config, plan.model), plan.need.copied > 0)
        self._ladders = {child: Ladder(*shape) for child in backends}
        self._urls = dict(zip(backends, urls))
        self._balancer = balancer
        self._console = console
        self._kills = memory.oom_kills()  # that are no news

    def forget(self) -> None:
        """A child is started: the kernel's kills until now are no news. They may have been of other programs."""
        self._kills = memory.oom_kills()

    def look(self, child: Child, word: str, cause: str) -> Tuple[bool, str]:
        """Return whether a child has died for lack of memory, and the cause of its death in a sentence.

        Of a SIGKILL the kernel knows: a count that has risen by one is the cause of one death.
        """
        if word != "SIGKILL":
            return child.starved or lacks_memory(cause), cause
        kills = memory.oom_kills()
        if kills is None or self._kills is None:
            return False, cause
        if kills <= self._kills:
            return False, "killed (SIGKILL), not for lack of memory"
        self._kills += 1
        return True, "killed by the kernel, out of memory (SIGKILL)"

    def go_down(self, child: Child, cause: str) -> None:
        """Let a backend that lacked memory be started again after a while, with less."""
        ladder = self._ladders[child]
        was_unusable = bool(ladder.unusable)
        options = ladder.starve(cause)
        child.arguments.extend(options)
        delay = child.put_off(0.0 if options else LONGEST_DELAY)
        if options:
            line = "🪜 %s died: %s. Starting it again in %g s %s, until comeapi.py is restarted."
            self._console.say(line % (child.name, cause, delay, ladder.shape))
        elif not was_unusable:
            self._tell_unusable(child)
        self.tell()

    def died(self, child: Child, was_ready: bool, cause: str) -> bool:
        """Note a death for another reason. Returns whether it has been told, since the backend is unusable now."""
        ladder = self._ladders.get(child)
        if ladder is None or not ladder.died(was_ready, cause):
            return False
        self._tell_unusable(child)
        self.tell()
        return True

    def ready(self, child: Child) -> None:
        """A backend works."""
        self._ladders[child].ready()
        self.tell()

    def protect(self) -> None:
        """Start all backends in safe mode from now on."""
        for child, ladder in self._ladders.items():
            child.arguments.append("--safe-mode")
            ladder.protect()

    def tell(self) -> None:
        """Tell the balancer what is to be known of the backends."""
        notes = {url: self._ladders[child].note for child, url in self._urls.items()}
        self._balancer.tell({"notes": notes})

    def _tell_unusable(self, child: Child) -> None:
        line = "❌ %s is unusable: %s. It is tried again every %g s, while the rest serves."
        self._console.say(line % (child.name, self._ladders[child].unusable, LONGEST_DELAY))
