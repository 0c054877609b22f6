"""The list of all backends under the one lock, and questions about it.

    any_up, hopeful              whether a backend is up, or may be soon
    lost                         those that ended a moment ago
    describe, everyone, find     the backends themselves
    models, note_models          the models that they have
    knows, is_everywhere         whether one of them has a model, or all of them

pool.py decides which backend takes a request, membership.py adds and removes backends, probing.py says when they are
probed.
"""

import threading
from typing import Any, Callable, Dict, List, Optional, Set

from core.balancing.backends import Backend
from core.balancing.vitals import NEW

MOMENT = 2.0  # seconds; backends that are lost within them are lost together


class Roster:
    """The list of all backends, and the one lock of the balancer's decisions.

    `lock` guards the list, all fields of every Backend but `heard`, the policy's state, the queue, and the requests
    that must run alone. Under it, decisions are made; nothing is sent or received. Only this file, pool.py,
    membership.py and probing.py take it.
    """

    def __init__(self, clock: Callable[[], float]):
        self.clock = clock
        self.lock = threading.Lock()
        self.expecting = float("-inf")  # until this moment, the first backends may make themselves known, or be found
        self.backends: List[Backend] = []  # always this list object, in the order in which they were added

    def find(self, url: str) -> Optional[Backend]:
        """Return the backend with this URL, or None."""
        with self.lock:
            return self.with_url(url)

    def with_url(self, url: str) -> Optional[Backend]:
        """Return the backend with this URL, or None; for callers that hold the lock."""
        return next((backend for backend in self.backends if backend.url == url), None)

    def everyone(self) -> List[Backend]:
        """Return all backends."""
        with self.lock:
            return list(self.backends)

    def any_up(self) -> bool:
        """Whether a backend is up."""
        with self.lock:
            return any(backend.vitals.up for backend in self.backends)

    def any_known(self) -> bool:
        """Whether a backend is up, or the first probes of all of them have ended."""
        with self.lock:
            return any(each.vitals.up for each in self.backends) or all(each.last_check for each in self.backends)

    def hopeful(self) -> bool:
        """Whether it is worth waiting while none is up: one was up before, is loading, or is expected to be found."""
        with self.lock:
            if self.clock() < self.expecting and all(backend.vitals.state == NEW for backend in self.backends):
                return True
            return any(backend.vitals.seen for backend in self.backends)

    def lost(self) -> Set[Backend]:
        """Return the backends that are not up since a moment ago, or that ended then and are back already."""
        with self.lock:
            since = self.clock() - MOMENT
            down = {each for each in self.backends if not each.vitals.up and each.vitals.down_since >= since}
            return down.union(each for each in self.backends if each.ended >= since)

    def describe(self) -> List[Dict[str, Any]]:
        """Return what /status says of each backend."""
        with self.lock:
            return [backend.describe() for backend in self.backends]

    def note(self, notes: Dict[str, str]) -> None:
        """Note what is to be known of backends, by their URLs; an empty text for nothing."""
        with self.lock:
            for backend in self.backends:
                backend.note = str(notes.get(backend.url, backend.note))

    # ---- models

    def note_models(self, backend: Backend, models: List[Dict[str, Any]]) -> None:
        """Note what a backend has."""
        with self.lock:
            backend.set_models(models)

    def knows(self, model: str) -> bool:
        """Whether a backend has a model, or one that is up does not tell what it has."""
        with self.lock:
            return any(
                backend.may_have(model) and (backend.models is not None or backend.vitals.up)
                for backend in self.backends
            ) or not any(backend.models for backend in self.backends)

    def is_everywhere(self, model: str) -> bool:
        """Whether every backend may have a model and could run it at once: then it makes no difference to the choice.

        Where it is so, knows() is true as well.
        """
        with self.lock:
            elsewhere = [each for each in self.backends if each.model != model or model not in each.listed]
            return all(backend.may_have(model) and backend.has_loaded(model) for backend in elsewhere)

    def only_model(self) -> str:
        """Return the one model that all backends have, those that are down included; "" where there are several.

        A backend that has not yet told what it has may have another one.
        """
        with self.lock:
            if any(backend.models is None for backend in self.backends):
                return ""
            names = {str(model["name"]) for backend in self.backends for model in backend.models or ()}
        return names.pop() if len(names) == 1 else ""

    def models(self) -> Dict[str, Dict[str, Any]]:
        """Return the union of what the backends that are up have, by name, each with the URLs of its backends."""
        union: Dict[str, Dict[str, Any]] = {}
        with self.lock:
            for backend in self.backends:
                for model in (backend.models or ()) if backend.vitals.up else ():
                    known = union.setdefault(str(model["name"]), dict(model, backends=[], loaded=False))
                    known["backends"].append(backend.url)
                    known["loaded"] = bool(known["loaded"] or model.get("loaded", True))
        return {name: union[name] for name in sorted(union)}
