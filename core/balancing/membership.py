"""Who is in the pool: what options, the backends file, the admin API, registration and discovery do to it.

    Membership.add(spec, source)         add a backend, or change one; by a name, it takes another one's place
    Membership.drain(url, remove)        send it no more requests; forget it when its last one has ended
    Membership.take_back(url)            send one that was drained requests again; it is probed at once
    Membership.replace(specs, source)    add and drain, until one source's backends are those of a list
    Membership.expire()                  drain those that have not been added again in time

A backend belongs to the source that has found it first: replace() for one source never removes another one's backends.
The admin API may change and drain all of them.
"""

import logging
from typing import Optional, Sequence, Tuple

from core.balancing.backends import Backend
from core.balancing.pool import Pool
from core.balancing.specs import Spec

log = logging.getLogger("comeapi.balancer")
_MOST_OUSTED = 8  # earlier URLs of a name that are remembered


class NameTaken(Exception):
    """A backend wants the name back that a newer one has taken over."""


class Membership:
    """Adds backends to a pool and removes them, under the pool's lock. `specs` are there from the beginning.

    `slow_start` is the seconds in which a backend that has come back gets its whole share of the requests again.
    """

    def __init__(self, pool: Pool, specs: Sequence[Spec] = (), slow_start: float = 0.0):
        self._pool = pool
        self._slow_start = slow_start
        self._numbers = 0  # how many were ever added; guarded by the pool's lock, too
        for spec in specs:
            self.add(spec)

    def add(
        self, spec: Spec, source: str = "", ttl: Optional[float] = None, draining: bool = False, name: str = ""
    ) -> Backend:  # fmt: skip
        """Add a backend, or change the slots and the weight of one that is there; send it requests unless `draining`.

        A new one is probed at once. With a `ttl`, in seconds, it is drained away unless it is added again before. The
        one that had its `name` until now is drained away; where that one comes back, this raises NameTaken.
        """
        pool = self._pool
        with pool.lock:
            ousted = self._oust(name, spec.url)
            backend = pool.with_url(spec.url) or self._new(spec, source)
            backend.name, backend.ousted = name or backend.name, ousted or backend.ousted
            if backend.source == source:
                backend.wanted = spec
                backend.expires = None if ttl is None else pool.clock() + ttl
            backend.spec = spec
            backend.slots = spec.slots or backend.slots
            backend.leaving, backend.draining = False, draining
            pool.offer(backend)
            pool.remove_left()
            return backend

    def _oust(self, name: str, url: str) -> Tuple[str, ...]:
        """Drain away the backend that has this name at another URL. Returns the URLs that had it. Raises NameTaken."""
        holders = [each for each in self._pool.backends if name == each.name != "" and each.url != url]
        holder = next((each for each in holders if not each.leaving), None)
        if holder is None:
            return ()
        if url in holder.ousted:
            raise NameTaken("%s has the name %s now" % (holder.url, name))
        log.info("🔁 %s comes back as %s", name, url)
        holder.draining = holder.leaving = True
        return (holder.ousted + (holder.url,))[-_MOST_OUSTED:]

    def _new(self, spec: Spec, source: str) -> Backend:
        pool = self._pool
        self._numbers += 1
        backend = Backend(spec, self._numbers, pool.clock, self._slow_start, source)
        pool.backends.append(backend)
        pool.probe_due.notify_all()
        return backend

    def drain(self, url: str, remove: bool = False) -> bool:
        """Send a backend no more requests; with `remove`, forget it when its last one has ended. False: unknown."""
        with self._pool.lock:
            backend = self._pool.with_url(url)
            if backend is None:
                return False
            backend.draining, backend.leaving = True, remove
            self._pool.offer(backend)
            self._pool.remove_left()
            return True

    def take_back(self, url: str) -> None:
        """Send a backend that was drained requests again. It is probed at once: it may be another process now."""
        pool = self._pool
        with pool.lock:
            backend = pool.with_url(url)
            if backend is not None and backend.draining and not backend.leaving:
                backend.draining = False
                backend.next_probe = 0.0
                pool.probe_due.notify_all()
                pool.offer(backend)

    def expire(self) -> None:
        """Drain away the backends whose time is over."""
        pool = self._pool
        with pool.lock:
            for backend in pool.backends:
                if backend.expires is not None and pool.clock() >= backend.expires and not backend.leaving:
                    log.warning("🔴 %s has not been heard of for too long: draining it", backend.url)
                    backend.draining = backend.leaving = True
            pool.remove_left()

    def replace(self, specs: Sequence[Spec], source: str) -> None:
        """Make the backends of one source those of `specs`: new ones are added, those that are gone drained away."""
        wanted = {spec.url for spec in specs}
        for spec in specs:
            known = self._pool.find(spec.url)
            if known is None or known.leaving or (known.source == source and known.wanted != spec):
                self.add(spec, source)
        for backend in self._pool.everyone():
            if backend.source == source and backend.url not in wanted and not backend.leaving:
                self.drain(backend.url, remove=True)
