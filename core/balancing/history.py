"""The last ten minutes of a balancer, a sample a second: what the web page's charts show. No clock, no lock, no I/O.

    History.add(now, totals, queued, backends) ──> what is new in this second
    History.all()                                  what a page that has just been opened must know

Tokens per second follow from two looks at a backend's count of them. While nobody watches, looks are far apart
(probing.py): then their average is filled in for all the seconds between them.
"""

import collections
from typing import Any, Deque, Dict, Iterator, List, Optional

from core.balancing.counting import Totals

SECONDS = 600  # that are kept
MOST_CHANGES = 50
_FRESH_SECONDS = 3.0  # between two looks that follow each other closely
_MOST_RATE = 1e6  # tokens per second; a backend that tells more has not counted
COLUMNS = ("t", "requests", "first_token", "tokens", "queued", "busy", "streams", "carried")

Sample = Dict[str, Any]


class _Pace:
    """How fast one backend generates: what its last two looks have told."""

    def __init__(self, told_at: float, count: Optional[int]):
        self.told_at = told_at
        self.since = told_at
        self.count = count
        self.rate: Optional[float] = None

    def note(self, told_at: float, count: Optional[int]) -> bool:
        """Note the count at a moment. Returns whether that was news."""
        if told_at <= self.told_at:
            return False
        self.since, before = self.told_at, self.count
        self.told_at, self.count = told_at, count
        self.rate = None
        if before is not None and count is not None and count >= before:
            self.rate = min(_MOST_RATE, (count - before) / (told_at - self.since))
        return True

    @property
    def coarse(self) -> bool:
        """Whether the rate is the average of more than a moment."""
        return self.told_at - self.since > _FRESH_SECONDS

    def at(self, now: float) -> Optional[float]:
        """Return the rate where it is one of this moment; else None."""
        return None if self.coarse or now - self.told_at > _FRESH_SECONDS else self.rate


class History:
    """The samples of the last SECONDS seconds, and the last changes. Moments are time.time().

    `corrected`: the second that was added last has told something new of earlier ones.
    """

    def __init__(self) -> None:
        self.corrected = False
        self._changes: Deque[Dict[str, Any]] = collections.deque(maxlen=MOST_CHANGES)
        self._samples: Deque[Sample] = collections.deque(maxlen=SECONDS)
        self._totals: Optional[Totals] = None
        self._paces: Dict[str, _Pace] = {}
        self._known: Dict[str, Dict[str, Any]] = {}  # the backends as they were a second ago

    def add(self, now: float, totals: Totals, queued: int, backends: List[Dict[str, Any]]) -> Dict[str, Any]:
        """Add a second. `backends` are as Pool.describe() tells them. Returns what the feed tells of it."""
        last, self._totals = self._totals or totals, totals
        seconds = max(0.1, now - self._samples[-1]["t"]) if self._samples else 1.0
        firsts = totals.first_pieces - last.first_pieces
        self.corrected = False
        backends = [dict(backend, tokens_per_second=self._pace(now, backend)) for backend in backends]
        sample: Sample = {
            "t": round(now, 1),
            "requests": round(max(0.0, totals.requests - last.requests) / seconds, 2),
            "first_token": _mean(totals.first_piece_seconds - last.first_piece_seconds, firsts),
            "tokens": round(sum(backend["tokens_per_second"] or 0.0 for backend in backends), 1),
            "queued": queued,
            "busy": sum(backend["in_flight"] for backend in backends),
            "streams": int(totals.streams),
            "carried": int(totals.carried - last.carried),
        }
        self._samples.append(sample)
        changes = [dict(change, t=round(now, 1)) for change in self._changed(sample["carried"], backends)]
        self._changes.extend(changes)
        return {"sample": sample, "backends": backends, "changes": changes}

    def all(self) -> Dict[str, Any]:
        """Return all samples, a list for each of COLUMNS, and the last changes, the oldest first."""
        columns = {name: [sample[name] for sample in self._samples] for name in COLUMNS}
        return {"history": columns, "changes": list(self._changes)}

    def _pace(self, now: float, backend: Dict[str, Any]) -> Optional[float]:
        told_at, count = backend["last_check"], backend["generated_tokens"]
        pace = self._paces.setdefault(backend["url"], _Pace(told_at, count))
        if pace.note(told_at, count) and pace.rate and pace.coarse:
            self._fill(pace)
        rate = pace.at(now)
        return None if rate is None else round(rate, 1)

    def _fill(self, pace: _Pace) -> None:
        """Put the average between two looks that are far apart into the seconds between them."""
        self.corrected = True
        for sample in self._samples:
            if pace.since < sample["t"] <= pace.told_at:
                sample["tokens"] = round(sample["tokens"] + (pace.rate or 0.0), 1)

    def _changed(self, carried: int, backends: List[Dict[str, Any]]) -> Iterator[Dict[str, Any]]:
        """Yield what has happened since the last second."""
        known, before = {backend["url"]: backend for backend in backends}, self._known
        self._known = known
        for url, backend in known.items():
            was = before.get(url, {"state": "new", "restarts": 0})
            if backend["restarts"] > was["restarts"]:
                yield {"kind": "restarted", "url": url}
            starts = was["state"] == "new" and backend["state"] == "down"  # it is just being started
            if backend["state"] != was["state"] and not starts:
                yield {"kind": "state", "url": url, "state": backend["state"], "why": backend["why"]}
        for url in before.keys() - known.keys():
            del self._paces[url]
            yield {"kind": "left", "url": url}
        if carried > 0:
            yield {"kind": "carried", "count": carried}


def _mean(total: float, count: int) -> Optional[float]:
    return round(total / count, 3) if count else None
