"""What a balancer counts, beside its HTTP server's own: requests, retries, deaths, waits, streams, backends.

Counts    all of it, for /metrics
Totals    the part that the web page's feed goes by
"""

from typing import Any, Dict, NamedTuple, Sequence

from core.balancing.pool import Pool
from core.http.metrics import Metrics


class Totals(NamedTuple):
    """What has been counted since the start, and `streams`, those that are open now."""

    requests: float
    first_pieces: int
    first_piece_seconds: float  # of all of them together
    carried: float
    streams: float


class Counts:
    """What a balancer counts; `metrics` are its service's, `pool` its backends."""

    def __init__(self, metrics: Metrics, pool: Pool):
        self.requests = metrics.counter("comeapi_requests_total", "Requests that need a slot of a backend.")
        self.retries = metrics.counter("comeapi_retries_total", "Requests sent to another backend.", "why")
        self.migrations = metrics.counter(
            "comeapi_migrations_total", "Answers that another backend went on with.", "why"
        )
        self.adopted = metrics.counter(
            "comeapi_adopted_answers_total", "Answers that were in hand when the balancer before this one died.", "how"
        )
        self.deaths = metrics.counter(
            "comeapi_deaths_total", "Requests that a backend died under: beside others, or while they ran alone.", "how"
        )
        self.queue_wait = metrics.histogram(
            "comeapi_queue_wait_seconds", "How long those requests waited that had to wait for a slot."
        )
        self.first_byte = metrics.histogram(
            "comeapi_first_byte_seconds", "From sending a request to a backend to its answer's first byte."
        )
        self.first_piece = metrics.histogram(
            "comeapi_first_piece_seconds", "From a request's arrival to the first piece of its streamed answer."
        )
        self._queued = metrics.gauge("comeapi_queued_requests", "Requests that wait for a slot.")
        self._used = metrics.gauge(
            "comeapi_slots_used_ratio",
            "Slots in use, of those of all backends that may take requests; 1 where there are none and requests wait.",
        )
        self._streams = metrics.gauge("comeapi_streams_open", "Answers that are being relayed piece by piece.")
        self._hits = metrics.counter("comeapi_affinity_hits_total", "Requests sent where their beginning was seen.")
        self._state = metrics.gauge(
            "comeapi_backend_state", "1 for the state that a backend is in.", "backend", "state"
        )
        self._backends = {
            "healthy": metrics.gauge("comeapi_backend_up", "Whether a backend is up.", "backend"),
            "in_flight": metrics.gauge("comeapi_backend_requests_in_flight", "Slots in use at a backend.", "backend"),
            "capacity": metrics.gauge("comeapi_backend_capacity", "Slots of a backend.", "backend"),
            "requests": metrics.counter("comeapi_backend_requests_total", "Requests sent to a backend.", "backend"),
            "error_count": metrics.counter(
                "comeapi_backend_errors_total", "Requests that did not get through.", "backend"
            ),
            "ejections": metrics.counter(
                "comeapi_backend_ejections_total", "How often a backend was left out since its requests failed.",
                "backend",
            ),
        }  # fmt: skip
        self._pool = pool
        metrics.collect(self._collect)

    def streams(self, change: int) -> None:
        """Count a stream in or out."""
        self._streams.inc(by=change)

    def totals(self) -> Totals:
        """Return what has been counted up to now."""
        carried, streams = self.migrations.total(), self._streams.total()
        return Totals(self.requests.total(), *self.first_piece.observed(), carried, streams)

    def _collect(self) -> None:
        queued = self._pool.queued()
        self._queued.set(queued)
        self._hits.set(getattr(self._pool.policy, "hits", 0))
        backends = self._pool.describe()
        self._used.set(used_ratio(backends, queued))
        self._state.clear()
        for field, metric in self._backends.items():
            metric.clear()  # of backends that have left
            for each in backends:
                metric.set(each[field], each["url"])
        for each in backends:
            self._state.set(1, each["url"], each["state"])


def used_ratio(backends: Sequence[Dict[str, Any]], queued: int) -> float:
    """Return what share of the slots is in use, 0 to 1: a measure to scale by. `backends` are as /status has them."""
    usable = [each for each in backends if each["healthy"] and each["state"] != "draining"]
    slots = sum(each["capacity"] for each in usable)
    if not slots:
        return 1.0 if queued else 0.0
    return min(1.0, sum(each["in_flight"] for each in usable) / slots)
