"""What every service counts of its own HTTP: requests, how long they take, and connections."""

from core.http.connections import Connections
from core.http.messages import Request
from core.http.metrics import Metrics

_KNOWN_METHODS = frozenset(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])


class HTTPMetrics:
    """The series of a service whose metrics' names begin with `name`."""

    def __init__(self, metrics: Metrics, name: str, connections: Connections):
        labels = ("method", "route", "status")
        self._requests = metrics.counter(name + "_http_requests_total", "HTTP requests answered.", *labels)
        self._seconds = metrics.histogram(
            name + "_http_request_duration_seconds", "From a request's first byte to its answer's last.", "route"
        )
        self._open = metrics.gauge(name + "_http_connections", "Client connections open.")
        self._active = metrics.gauge(name + "_http_requests_active", "Requests being answered.")
        self._connections = connections
        metrics.collect(self._collect)

    def finished(self, request: Request, status: int, seconds: float) -> None:
        """Count one request that was answered."""
        method = request.method if request.method in _KNOWN_METHODS else "other"  # a bounded number of series
        self._requests.inc(method, request.route, str(status))
        self._seconds.observe(seconds, request.route)

    def _collect(self) -> None:
        self._open.set(len(self._connections))
        self._active.set(self._connections.active())
