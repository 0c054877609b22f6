"""What is known of one backend, and of one request's place. No lock, no I/O: the pool's lock guards all of it.

    Backend    one model server: what it is, what its probes have told, what it has to do now
    Report     what one probe has found out
    Ticket     one request's place: at a backend, in the queue, or nowhere
"""

import sys
import threading
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from core.balancing.facts import Figures
from core.balancing.homes import seed_of
from core.balancing.request import Wish
from core.balancing.specs import Spec
from core.balancing.vitals import Vitals
from core.names import plain_name
from core.places import Told

OTHERS_SECONDS = 5.0  # how long policies go by what a backend has told of others' requests


class Backend:
    """What is known of one model server. The pool's lock guards all fields but `heard`.

    `number` rises in the pool's order. `source` says what has found it: the backends file, a DNS name, registration, or
    "" for options and the admin API; a source removes only its own (membership.py). Moments are seconds on the pool's
    clock, but for `last_check`.
    """

    def __init__(self, spec: Spec, number: int, clock: Callable[[], float], slow_start: float = 0.0, source: str = ""):
        self.url = spec.url
        self.spec = spec
        self.wanted = spec  # as its source names it; the admin API may have changed `spec` since
        self.number = number
        self.seed = seed_of(self.url)  # by the name that it tells, or else its URL
        self.source = source
        self.name = ""  # that it has registered by
        self.ousted: Tuple[str, ...] = ()  # the URLs of the last ones that had the name before
        self.expires: Optional[float] = None  # it is drained then, unless it is added again before
        self.draining = False  # it gets no new requests
        self.leaving = False  # it is removed as soon as its last request has ended

        # What probes tell
        self.vitals = Vitals(slow_start)
        self.slots = spec.slots or 1
        self.version: Optional[str] = None  # of its program, where it tells it
        self.model: Optional[str] = None  # loaded now
        self.fingerprint: Optional[str] = None  # what tells that model from others, where it tells it
        self.models: Optional[List[Dict[str, Any]]] = None  # what it has; None where it does not tell
        self.listed: Set[str] = set()  # their names as it spells them
        self.life: object = None  # changes when its process starts again
        self.restarts = 0  # how often it has come back as another process
        self.ended = float("-inf")  # when its last process was lost, or, where nobody noticed, the next one was seen
        self.figures = Figures()
        self.carries = False  # it can go on with an answer that another one has begun
        self.stalled = False  # it says that its engine does not go on now
        self.prompt = False  # its /health answers at once, however busy it is: silence there means that it is dead
        self.foreign = False  # it has told of itself, and is none of ours
        self.last_check = 0.0  # time.time()
        self.checked = float("-inf")  # when its last probe ended

        # What each of its answers tells
        self.others = 0  # requests that are there and were not sent by us
        self.room = sys.maxsize  # how many of ours fit beside them; of one that does not tell, any number
        self.told_at = float("-inf")
        self.awaited = False  # we wait there for our turn

        # When it is probed
        self.next_probe = 0.0
        self.probing = False  # a probe is under way
        self.tested = False  # a request waits in silence: the next probe shows whether the backend is `prompt`
        self.doubted = False  # a request waits in silence: a quick look is wanted
        self.next_look = 0.0  # the earliest moment for it
        self.looking = False  # it is under way

        # What it does now, and has done
        self.in_flight = 0  # slots in use
        self.note = ""  # what comeapi.py, which watches its process, has to say of it
        self.guests = 0  # requests that are there, look-ups included
        self.kept_for: Optional["Ticket"] = None  # the request that runs here alone, or will when all others have ended
        self.requests = 0
        self.errors = 0
        self.response_time = 0.0  # seconds to the first byte, moving average
        self.credit = 0.0  # the round-robin cursor's: the part of a request that it has earned
        self.heard = float("-inf")  # when the last byte of an answer came; written without the lock

        self._clock = clock
        self._told_life: object = None  # the last one that it has told
        self._names: Set[str] = set()  # and in their plain spelling

    # ---- what policies go by

    @property
    def share(self) -> float:
        """Its weight; less while it starts slowly."""
        return self.spec.weight * (self.vitals.share(self._clock()) if self.vitals.slow else 1.0)

    @property
    def capacity(self) -> float:
        """How much it takes of all conversations: its slots, by its weight."""
        return self.slots * self.spec.weight

    @property
    def load(self) -> float:
        """Requests outstanding for its capacity; a request that has just failed counts as outstanding for a while."""
        outstanding: float = self.in_flight
        if self.others or self.vitals.troubled:
            now = self._clock()
            others = self.others if now - self.told_at < OTHERS_SECONDS else 0
            outstanding += others + self.vitals.trouble(now)
        return outstanding / (self.slots * self.share)

    # ---- what the pool goes by

    def may_have(self, model: str) -> bool:
        """Whether it has a model, or does not tell. The empty name stands for any model."""
        return not model or self.models is None or model in self.listed or plain_name(model) in self._names

    def has_loaded(self, model: str) -> bool:
        """Whether it can run a model without loading it first, as far as is known."""
        if not (model and self.model) or model == self.model:
            return True
        return plain_name(model) == plain_name(self.model) or self.all_loaded

    def goes_on_with(self, model: str, fingerprint: str) -> bool:
        """Whether it can go on with an answer of a model with this fingerprint, as far as is known."""
        told = self.fingerprint if fingerprint and self.has_loaded(model) else None
        return self.carries and told in (None, fingerprint)

    @property
    def all_loaded(self) -> bool:
        """Whether it never swaps models: its list does not say which one of several is loaded."""
        return not self.models or not any("loaded" in model for model in self.models)

    @property
    def free(self) -> bool:
        """Whether it has a free slot that others leave us, and is kept for no request."""
        return self.in_flight < self.slots and self.in_flight < self.room and not self.kept_for

    @property
    def crowded(self) -> bool:
        """Whether others had the slots that we could use, when it told last."""
        return self.room <= self.in_flight < self.slots

    @property
    def idle(self) -> bool:
        """Whether it has no request that needs a slot, of ours or of others."""
        return not self.in_flight and not self.others

    def set_models(self, models: Optional[List[Dict[str, Any]]]) -> None:
        """Note its models as it lists them, each with a "name"; None where it does not tell."""
        self.models = models
        self.listed = {str(model["name"]) for model in models or ()}
        plain = {plain_name(name) for name in self.listed.union(*(_aliases(model) for model in models or ()))}
        self._names = plain | {name.replace("\\", "/").rpartition("/")[2] for name in plain}  # some tell a file's path

    def note_life(self, life: object) -> None:
        """Note what tells this run of its process from the next; None where it does not say."""
        if life is None:
            self.life = self.life or object()
            return
        if self._told_life not in (None, life):
            self.restarts += 1
            noticed = self.vitals.down_since > self.ended
            self.ended = self.vitals.down_since if noticed else self._clock()
        self.life = self._told_life = life

    def note_told(self, told: Optional[Told], refused: bool = False) -> None:
        """Note how many requests of others it has; None where it does not tell.

        Where it has `refused` a request of ours, which is still in `in_flight`, one less of ours fits than are there.
        It may count one that we have given up and that it still works on.
        """
        self.told_at = self._clock()
        self.others = told.others if told else 0
        self.room = told.room if told else sys.maxsize
        if refused:
            self.room = min(self.room, self.in_flight - 1)

    def describe(self) -> Dict[str, Any]:
        """Return what /status says of it."""
        now = self._clock()
        return {
            "url": self.url,
            "name": self.name,
            "healthy": self.vitals.up,
            "state": self._label(now),
            "why": "%s (%s)" % (self.vitals.why, self.note) if self.note else self.vitals.why,
            "error_count": self.errors,
            "avg_response_time": round(self.response_time, 4),
            "last_check": round(self.last_check, 3),
            "in_flight": self.in_flight,
            "others": self.others,
            "capacity": self.slots,
            "weight": self.spec.weight,
            "requests": self.requests,
            "model": self.model,
            "ejections": self.vitals.ejections,
            "source": self.source or "option",
            "carries": self.carries,
            "restarts": self.restarts,
            "version": self.version,
            **vars(self.figures),
        }

    def _label(self, now: float) -> str:
        """Return its state in a word."""
        if self.draining:
            return "draining"
        return "stalled" if self.stalled and self.vitals.up else self.vitals.label(now)


@dataclass
class Report:
    """What a probe has found out."""

    ok: bool
    why: str = "ok"
    not_ready: bool = False  # the backend says itself that it is not ready
    wedged: bool = False  # it says itself that it is stuck and will stay so
    timed_out: bool = False
    slots: Optional[int] = None
    model: Optional[str] = None  # loaded now
    told: bool = False  # it was asked for its models
    models: Optional[List[Dict[str, Any]]] = None
    life: object = None  # changes when its process starts again
    name: Optional[str] = None  # what it calls itself, whatever its URL
    version: Optional[str] = None  # of its program
    fingerprint: Optional[str] = None  # of the model that is loaded
    prompt: bool = False  # it is a server whose /health answers at once, however busy it is
    carries: bool = False  # it can go on with an answer that another backend has begun
    stalled: bool = False  # its engine is in a step that takes much too long
    figures: Figures = Figures()
    slots_told: Optional[Told] = None  # who has its slots, of a backend that tells it
    quick: bool = False  # it was a quick look: /health alone, and little time for it


class Ticket:
    """One request's place: at a backend, in the queue (`waiting`), or nowhere."""

    def __init__(self, wish: Wish, tried: Set[Backend], alone: bytes = b"", resumes: bool = False):
        self.wish = wish
        self.tried = tried
        self.resumes = resumes  # the backend must go on with an answer that another one has begun
        self.alone = alone  # the request's fingerprint where it must run alone, and no equal one at the same time
        self.backend: Optional[Backend] = None
        self.life: object = None  # the backend's, at the moment when it was given
        self.waiting = False
        self.displaced = False  # it had to leave the queue for a client with less in it
        self.since = 0.0  # when it got its backend
        self.decided: Optional[threading.Event] = None  # of one that has waited: it has a backend now, or is displaced

    def start_waiting(self) -> None:
        """Note that the request waits from now on; `decided` is set when it waits no more."""
        self.decided, self.waiting = threading.Event(), True

    def stop_waiting(self) -> None:
        """Wake the request up: what became of it stands in the other fields."""
        self.waiting = False
        if self.decided:
            self.decided.set()


def _aliases(model: Dict[str, Any]) -> List[str]:
    """Return a model's further names, as its backend lists them."""
    aliases = model.get("aliases")
    return [name for name in aliases if isinstance(name, str)] if isinstance(aliases, list) else []
