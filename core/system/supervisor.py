"""Starts the backends and the balancer, watches them, starts again what dies or hangs, and stops them all.

    Supervisor.run    one thread, one queue of events: a child starts, becomes ready, dies; a signal comes
                      rolling.py is stepped by it: SIGHUP, or the balancer, asks to restart all backends

What is started again, and when:

    1  A child crashed in a model's first test           → at once, in safe mode; so are all backends from then on
    2  It can't work (wrong arguments, no llama-cpp-python), and nothing has served yet → not before something serves
    3  It lacked memory: the kernel killed it for that, or it says so → as 4, one rung down its ladder (ladder.py)
    4  It died in any other way                          → after 1, 2, 4 … 30 s, for ever: it may serve again; a
                                                           balancer that had worked for 5 s, at once
    5  It says that its engine hangs, or it is silent for 20 s (stopped, or hung as a whole) → killed, then as 4

The program ends by itself in one case only: 2 is true of the balancer, or of all backends.
"""

import logging
import os
import queue
import signal
import socket
import time
import traceback
from typing import Any, Dict, List, Sequence, Set, Union

from core import process
from core.board import BoardFile
from core.models import inspect
from core.notify import Notifier
from core.opening import loaded
from core.system.child import CRASHES, HOPELESS, LONGEST_DELAY, Child, News, RestartPolicy
from core.system.console import Console, curl_command
from core.system.dashboard import Dashboard
from core.system.holder import make_holder
from core.system.ladders import Ladders
from core.system.launch import Launch
from core.system.plan import Plan
from core.system.rolling import Restarts

log = logging.getLogger("comeapi.supervisor")
_MOST_EVENTS = 1000  # taken before the children are looked at
STEADY_BALANCER = 5.0  # seconds after which its earlier deaths do not count: it has nothing to load
_HANGUP = getattr(signal, "SIGHUP", None)
Event = Union[News, int]  # what a child says, or a signal's number


class Supervisor:
    """Starts the children, watches them, starts again what dies, and stops them all. run() is its one thread.

    `config` is comeapi.py's, `programs` the folder of backend.py and balancer.py. `listening` are the balancer's
    sockets: they stay open here, so that connections wait in them while a new balancer starts; where there are none,
    each balancer binds its own. `notifier` tells systemd how this process is.
    """

    def __init__(
        self, config: Any, plan: Plan, programs: str, listening: Sequence[socket.socket], notifier: Notifier
    ):  # fmt: skip
        self._config = config
        self._plan = plan
        self._console = Console()
        self._dashboard = Dashboard(self._console)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._board = BoardFile(plan.threads) if plan.lends else None
        launch = Launch(config, plan, programs, self._board.name if self._board else "")
        inherited = self._board.descriptors if self._board else ()
        self._backends = [
            Child("Backend %d" % (index + 1), *launch.backend(index), self._events, descriptors=inherited)
            for index in range(plan.backends)
        ]
        self._listening = listening
        self._notifier = notifier
        self._holder = make_holder(config)
        handed = [each.fileno() for each in listening]
        held = [self._holder.theirs.fileno()] if self._holder else []
        policy = RestartPolicy(at_once=True, steady=STEADY_BALANCER)
        self._balancer = Child("Balancer", *launch.balancer(handed, held), self._events, policy, handed + held)
        self._restarts = Restarts(self._backends, self._balancer, config.drain_timeout, self._console.say)
        self._ladders = Ladders(config, plan, self._backends, launch.urls(), self._balancer, self._console)
        self._looked = time.monotonic()  # when the children were looked at last
        self._served = False  # a backend and the balancer have been ready at the same time
        self._announced = False
        self._seen: Set[str] = set()  # the URLs of the backends that the balancer has found up

    def run(self) -> int:
        """Run until a signal, or until nothing can ever serve. Returns the exit status."""
        process.on_signals(self._events.put)
        process.on_hangup(self._events.put)
        for child in self._children():
            self._start(child)
        try:
            while True:
                self._notifier.alive()
                self._start_what_is_due()
                for event in self._next_events():
                    if event == _HANGUP:
                        self._restarts.ask(self._served)
                    elif isinstance(event, int):
                        return self._stop()
                    else:
                        self._handle(*event)
                self._kill_what_hangs()
                self._restarts.step()
                if self._balancer.hopeless or all(child.hopeless for child in self._backends):
                    self._console.say("❌ Nothing is left that could serve: stopping. See why: python comeapi.py doctor")
                    self._stop()
                    return 1
        finally:
            for child in self._children():
                child.kill()
            if self._holder:
                self._holder.close()
            if self._board:
                self._board.close()

    def _children(self) -> List[Child]:
        return self._backends + [self._balancer]

    # ---- events

    def _next_events(self) -> List[Event]:
        """Return the events that are there; wait for one until a restart is due, half a second at most.

        Half a second, because on Windows a blocked get() hides Ctrl-C.
        """
        due = [child.restart_at for child in self._children() if child.restart_at is not None]
        patience = min([self._restarts.patience] + [max(0.0, moment - time.monotonic()) for moment in due])
        events: List[Event] = []
        try:
            events.append(self._events.get(timeout=patience))
            while len(events) < _MOST_EVENTS:
                events.append(self._events.get_nowait())
        except queue.Empty:
            pass
        return events

    def _start_what_is_due(self) -> None:
        for child in self._children():
            if child.restart_at is not None and child.restart_at <= time.monotonic():
                self._start(child)

    def _start(self, child: Child) -> None:
        self._ladders.forget()
        try:
            child.start()
        except (OSError, RuntimeError) as error:
            self._start_later(child, "it can't be started: %s" % error)

    def _kill_what_hangs(self) -> None:
        """Kill the children that hang. Where this process itself was stopped for a while, no child is blamed for it."""
        before, self._looked = self._looked, time.monotonic()
        for child in self._children():
            if self._looked - before > process.PAUSE_SECONDS:
                child.forgive()
            why = child.hangs(self._looked)  # not at a later moment: this process may be stopped at any point
            if why:
                child.kill(why)

    def _handle(self, child: Child, run: int, facts: Dict[str, Any]) -> None:
        if run != child.run:
            return  # an earlier run has said it
        child.heard(facts)
        handler = getattr(self, "_on_" + str(facts.get("event")), None)
        try:
            if handler:
                handler(child, facts)
            self._dashboard.heard(child, facts)
            self._note_service()
            self._announce_once()
            self._dashboard.show(self._backends, self._announced)
        except Exception:  # whatever this child says, the others must be watched
            log.error("%s said %s:\n%s", child.name, facts, traceback.format_exc())

    def _on_log(self, child: Child, facts: Dict[str, Any]) -> None:
        if not child.said_before(facts["line"]):
            self._console.say("[%s] %s" % (child.name.lower(), facts["line"]))

    def _on_listening(self, child: Child, facts: Dict[str, Any]) -> None:
        child.url = facts["url"]
        if child is self._balancer:
            child.ready_at, child.settled = time.monotonic(), True
            if self._announced:
                self._console.say("🟢 %s: %s (PID %d)" % (child.name, child.url, child.pid))
        self._ladders.tell()

    def _on_loading(self, child: Child, facts: Dict[str, Any]) -> None:
        child.loading, child.progress = facts["model"], 0.0

    def _on_progress(self, child: Child, facts: Dict[str, Any]) -> None:
        child.progress = facts["share"]

    def _on_failed(self, child: Child, facts: Dict[str, Any]) -> None:
        child.loading = ""
        if facts.get("memory") and not child.ready_at and facts["model"] == self._plan.model.name:
            child.kill(facts["why"], starved=True)  # it would try the same for ever

    def _on_waiting(self, child: Child, facts: Dict[str, Any]) -> None:
        child.settled = True
        self._notifier.ready("%s waits for a model: %s" % (child.name, facts["why"]))
        self._console.say("🟠 %s has no model yet: %s It tries again until it can." % (child.name, facts["why"]))

    def _on_up(self, child: Child, facts: Dict[str, Any]) -> None:
        self._seen.add(facts["url"])

    def _on_ready(self, child: Child, facts: Dict[str, Any]) -> None:
        child.loading, child.settled = "", True
        child.ready_at = child.ready_at or time.monotonic()
        self._ladders.ready(child)
        self._balancer.tell({"ready": child.url})  # else it would find out at its next probe, seconds later
        self._console.say("🟢 %s: %s (PID %d) %s" % (child.name, child.url, child.pid, loaded(facts)))

    def _on_backend(self, child: Child, facts: Dict[str, Any]) -> None:
        self._restarts.heard(facts)

    def _on_restart(self, child: Child, facts: Dict[str, Any]) -> None:
        self._restarts.ask(self._served)

    # ---- deaths; the numbers are those of the module's docstring

    def _on_exit(self, child: Child, facts: Dict[str, Any]) -> None:
        if child.replaced:
            child.ready_at = None
            return self._start(child)
        word, cause = child.cause_of_death(facts["status"])
        if self._safe_mode_helps(child, word):  # 1
            return self._restart_in_safe_mode(child, word)
        starved, cause = self._ladders.look(child, word, cause)
        if starved and child is not self._balancer:  # 3
            return self._ladders.go_down(child, cause)
        if facts["status"] in HOPELESS and not self._served:  # 2
            child.ready_at, child.hopeless, child.settled = None, cause, True
            return self._console.say(
                "❌ %s died; not starting it again before something serves: %s" % (child.name, cause)
            )
        self._start_later(child, cause)  # 4

    def _start_later(self, child: Child, cause: str) -> None:
        """Start a child again after a while."""
        times, was_ready = child.times(cause), child.ready_at is not None
        delay = child.put_off()
        if self._ladders.died(child, was_ready, cause):
            return
        self._console.say_death(child.name, cause, times, delay)

    def _safe_mode_helps(self, child: Child, word: str) -> bool:
        """Whether a child died of a crash in a model's first test that has another cause than a file cut short."""
        if word not in CRASHES or not child.loading or child.safe:
            return False
        return not inspect(os.path.join(os.path.dirname(self._plan.model.path), child.loading)).problem

    def _restart_in_safe_mode(self, child: Child, word: str) -> None:
        """Restart a backend that crashed while testing a model; from now on all backends start in safe mode."""
        if "--safe-mode" in child.arguments:
            self._console.say("🛟 %s crashed (%s) in the same way: safe mode, too." % (child.name, word))
        else:
            self._console.say(
                "🛟 %s crashed (%s) in its first test of %s: this machine can't run that build of llama.cpp at full "
                "speed. Restarting it in safe mode, about 20 %% slower; README.md has the cure under 'Crash at first "
                "decode'." % (child.name, word, child.loading)
            )
            self._ladders.protect()
        child.ready_at = None
        self._start(child)

    # ---- what is told

    def _note_service(self) -> None:
        """Once something serves, nothing is hopeless any more."""
        if self._served or not self._balancer.ready_at or not any(child.ready_at for child in self._backends):
            return
        self._served = True
        for child in self._backends:
            if child.hopeless:
                child.restart_at = time.monotonic() + LONGEST_DELAY

    def _announce_once(self) -> None:
        """Say where the service is, once everything has come up that will."""
        ready = {child.url for child in self._backends if child.ready_at}
        if self._announced or not ready or not ready <= self._seen:
            return
        if not all(child.settled for child in self._children()):
            return
        self._announced = True
        self._notifier.ready("%s in front of %d backends" % (self._balancer.url, len(self._backends)))
        self._console.say("🚀 ComeAPI: %s (PID %d)" % (self._balancer.url, self._balancer.pid))
        command = curl_command(self._balancer.url, self._plan.model.name, bool(self._config.api_key))
        self._console.say("   Try: " + command)

    # ---- the end

    def _stop(self) -> int:
        """Stop the balancer, then the backends, so that running requests finish; a second signal stops at once."""
        grace = self._config.drain_timeout
        self._notifier.stopping()
        self._console.show([])
        self._console.say("⏹  Stopping: running requests get up to %g s (Ctrl-C again to stop at once)" % grace)
        deadline = time.monotonic() + grace + 5
        for sock in self._listening:
            sock.close()  # the balancer's own is the last one: when it closes that, nobody waits in vain
        for group in ([self._balancer], self._backends):
            for child in group:
                child.ask_to_stop()
            while not all(child.wait(0) for child in group):
                self._notifier.alive()
                event = self._events.get(timeout=0.5) if not self._events.empty() else None
                if isinstance(event, int) or time.monotonic() > deadline:
                    return 1  # run() kills what is left
                if event is None:
                    group[0].wait(0.1)
        self._console.say("✅ Stopped.")
        return 0
