"""The health thread, and what it asks a backend: whether it is well, its slots, its models, which one is loaded.

    GET /health       our backends tell all: status, slots, model, pid; any server that answers no 5xx counts as up
    GET /props        llama-server's slots (total_slots), where /health has not told them
    GET /models       our backends' and llama-server's list;  GET /v1/models  that of vLLM, Ollama and others

A probe carries the key that its backend is shown (credentials.py), so that it tells its models. Each of its
requests ends within the timeout, and after a megabyte. facts.py checks what an answer says.

A quick look is a probe of /health alone that gets one second. A backend that is known to answer its probes at once gets
one every second while it has requests and sends nothing, and while somebody watches (feed.py). So does one whose slots
other balancers have. Probes tell the balancer's name and learn who has them; GET /turn waits for one (core/places.py).
"""

import logging
import threading
import time
import traceback
from typing import Any, Callable, Dict, List, Optional, Tuple

from core.balancing.backends import Backend, Report
from core.balancing.credentials import Credentials
from core.balancing.facts import figures_of, good_name, is_wedged, life_of, read_facts, read_models, reason, slots_of
from core.balancing.membership import Membership
from core.balancing.probing import LOOK_SECONDS, Probing
from core.http.client import Client
from core.http.failures import Broken, Slow, Unreachable, Untrusted
from core.loops import LogOnce, Loop
from core.places import BALANCER, SLOTS, TURN, TURN_SECONDS, Told, read_told

log = logging.getLogger("comeapi.balancer")
_MOST = 1 << 20  # bytes of an answer to a probe
_PATIENCE = 1.0  # seconds that the thread waits for a probe to become due


class Health:
    """The thread that probes each backend: at its interval while it is up, every second, backing off, while not.

    Each probe runs in a thread of its own, so that one that hangs delays no other. `on_up` is called with the URL of
    each backend that comes up. `name` is what backends know this balancer by. `loop` is the thread: core/loops.py says
    whether it is late. `known` is set once it is known of some backend how it is, two seconds after the start at the
    latest: earlier requests should wait for it.
    """

    def __init__(
        self,
        probing: Probing,
        membership: Membership,
        client: Client,
        interval: float,
        timeout: float,
        credentials: Credentials = Credentials(),
        on_up: Callable[[str], None] = lambda url: None,
        name: str = "",
    ):
        self.loop = Loop("health", _PATIENCE, self._step, pauses=False, log=log)
        self._probing = probing
        self._membership = membership
        self._client = client
        self._interval = interval
        self._timeout = timeout
        self._credentials = credentials
        self._on_up = on_up
        self._named = {BALANCER: name} if name else {}
        self._once = LogOnce(log)
        self.known = threading.Event()
        self._known_at = float("inf")

    def start(self) -> None:
        """Start probing; the first probes go out at once."""
        self._known_at = time.monotonic() + _PATIENCE
        self.loop.start()

    def stop(self) -> None:
        """Start no more probes; those that run go on."""
        self.loop.stop()
        self._probing.wake()
        self.loop.stop(_PATIENCE)

    def _step(self) -> None:
        """Start the probes that are due; wait up to a second for the first. Raises where a thread can't be had."""
        self._membership.expire()
        probing = self._probing
        probes, looks, turns = probing.due(_PATIENCE), probing.looks_due(), probing.turns_due()
        if self.loop.stopped:
            return
        if time.monotonic() >= self._known_at:
            self.known.set()
        failures = [self._begin(self._probe, probing.unprobed, backend, False) for backend in probes]
        failures += [self._begin(self._probe, probing.unprobed, backend, True) for backend in looks]
        failures += [self._begin(self._wait_for_turn, probing.unturned, backend) for backend in turns]
        for failure in filter(None, failures):
            raise failure

    def _begin(self, work: Callable[..., None], undo: Callable[..., None], *arguments: Any) -> Optional[Exception]:
        """Do something in a thread of its own. Returns what has hindered it, after undoing that it was taken on."""
        try:
            threading.Thread(target=work, args=arguments, name="probe", daemon=True).start()
            return None
        except (RuntimeError, MemoryError) as error:  # "can't start new thread"
            undo(*arguments)
            return error

    def _wait_for_turn(self, backend: Backend) -> None:
        """Wait until a backend has a free slot for this balancer, or for a while (core/places.py)."""
        headers = self._headers(backend)
        patience = TURN_SECONDS + LOOK_SECONDS
        try:
            answer = self._client.open(backend.url + TURN, headers=headers, timeout=patience, within=patience)
            answer.read_and_close(_MOST)
            self._probing.turned(backend, read_told(answer.header(SLOTS)))
        except (Unreachable, Broken, Slow):
            self._probing.unturned(backend)
        except BaseException:
            self._probing.unturned(backend)
            raise

    def _headers(self, backend: Backend) -> Dict[str, str]:
        return dict(self._credentials.own(backend.spec), **self._named)

    def _probe(self, backend: Backend, quick: bool) -> None:
        """Probe a backend, in a thread of its own. Whatever goes wrong, it can be probed again."""
        try:
            report = self._report(backend.url, self._headers(backend), quick)
            up = self._probing.probed(backend, report, self._interval)
            if not self.known.is_set() and self._probing.pool.any_known():
                self.known.set()
            if up:
                self._on_up(backend.url)
        except Exception as error:
            self._probing.unprobed(backend, quick)
            self._once.error("probing %s failed: %r" % (backend.url, error), "\n" + traceback.format_exc())

    def _report(self, url: str, headers: Dict[str, str], quick: bool) -> Report:
        try:
            return self.look(url, headers) if quick else self.ask(url, headers)
        except Slow as error:
            return Report(False, str(error), timed_out=True, quick=quick)
        except (Unreachable, Broken) as error:
            if isinstance(error, Untrusted):  # no restart heals this: somebody has to know
                self._once.error("🔴 %s can't be used: %s" % (url, error))
            return Report(False, str(error), quick=quick)

    def look(self, url: str, headers: Dict[str, str]) -> Report:
        """Ask a backend within a second whether it is well, and nothing else. Raises Unreachable, Broken, Slow."""
        status, facts, told = self._get(url + "/health", headers, LOOK_SECONDS)
        if _is_unwell(status, facts):
            return _unwell(status, facts, quick=True)
        stalled = facts.get("stalled") is True
        return Report(True, stalled=stalled, figures=figures_of(facts), slots_told=told, quick=True)

    def ask(self, url: str, headers: Dict[str, str]) -> Report:
        """Ask a backend how it is. Raises Unreachable, Broken, Slow."""
        status, facts, told = self._get(url + "/health", headers, self._timeout)
        if _is_unwell(status, facts):
            return _unwell(status, facts)
        ours = slots_of(facts.get("slots"))
        slots = ours or slots_of(self._get_if_it_can(url + "/props", headers).get("total_slots"))
        models = self.models_of(url, headers)
        model = good_name(facts.get("model")) or _loaded(models)
        life = life_of(facts.get("pid"))
        carries, stalled = facts.get("carries") is True, facts.get("stalled") is True
        return Report(
            True,
            slots=slots,
            model=model,
            told=True,
            models=models,
            life=life,
            name=good_name(facts.get("name")),
            version=good_name(facts.get("version")),
            fingerprint=good_name(facts.get("fingerprint")),
            prompt=bool(ours),
            carries=carries,
            stalled=stalled,
            figures=figures_of(facts),
            slots_told=told,
        )

    def models_of(self, url: str, headers: Dict[str, str]) -> Optional[List[Dict[str, Any]]]:
        """Return a backend's models as it lists them, each with a "name"; None where it does not tell."""
        for path in ("/models", "/v1/models"):
            models = read_models(self._get_if_it_can(url + path, headers))
            if models is not None:
                return models
        return None

    def ollama_models_of(self, url: str, headers: Dict[str, str]) -> List[Dict[str, Any]]:
        """Return the models of one of Ollama's lists, each with a "name"; none where a backend does not tell."""
        return read_models(self._get_if_it_can(url, headers)) or []

    def _get_if_it_can(self, url: str, headers: Dict[str, str]) -> Dict[str, Any]:
        """Ask for what not every server has. Returns an empty object where this one does not."""
        try:
            status, body, _ = self._get(url, headers, self._timeout)
        except (Unreachable, Broken, Slow):
            return {}
        return body if status == 200 else {}

    def _get(self, url: str, headers: Dict[str, str], timeout: float) -> Tuple[int, Dict[str, Any], Optional[Told]]:
        """Return an answer's status, its JSON object, and what it tells of the backend's slots."""
        answer = self._client.open(url, headers=headers, timeout=timeout, within=timeout)
        return answer.status, read_facts(answer.read_and_close(_MOST)), read_told(answer.header(SLOTS))


def _unwell(status: int, facts: Dict[str, Any], quick: bool = False) -> Report:
    stuck = status == 503 and is_wedged(facts)
    why, figures = reason(status, facts), figures_of(facts)
    return Report(False, why, not_ready=status == 503, wedged=stuck, figures=figures, quick=quick)


def _loaded(models: Optional[List[Dict[str, Any]]]) -> Optional[str]:
    """Return the model that is loaded, where a list says so, or has only one."""
    loaded = [model["name"] for model in models or () if model.get("loaded", len(models or ()) == 1)]
    return loaded[0] if loaded else None


def _is_unwell(status: int, facts: Dict[str, Any]) -> bool:
    """Whether a backend is broken, or refuses the host name of its URL (one of ours then needs --allowed-host)."""
    error = facts.get("error")
    return status >= 500 or (isinstance(error, dict) and error.get("code") == "host_not_allowed")
