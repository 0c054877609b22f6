"""What passes through a balancer: the request's headers, and the answer, whole or piece by piece.

sent_on(request)         the headers that a backend gets
passed_back(answer)      the headers that the client gets
held(answer, …)          a whole answer that is small enough to be held back, or None
Relay(answer, …)         a backend's answer as a messages.Stream's chunks
RetryBudget              how many refused requests may be sent again
"""

import threading
from typing import Any, Callable, Dict, Iterator, List, Optional, Protocol, Sequence, Tuple

from core.errors import APIError
from core.http.answers import Answer
from core.http.failures import Broken, Slow, TooLarge
from core.http.heads import tokens
from core.http.messages import Reply, Request, error_reply

_HOP_BY_HOP = frozenset(
    ["connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
     "transfer-encoding", "upgrade"]
)  # fmt: skip
_NOT_SENT_ON = _HOP_BY_HOP | {"host", "content-length", "expect", "origin"}
# A browser's are like Origin: about the page and our name, and a backend has another name. Ours are between us and
# backends: a client can't ask for what only a balancer may.
_NOT_CLIENTS = ("sec-fetch-", "x-comeapi-")
REFUSED = (502, 503)  # statuses after which another backend is asked
_HELD = 16 << 20  # bytes; a shorter answer of known length is held back, so that it can be asked for again if it breaks
_HELD_RATE = 64 << 10  # bytes a second at which it must come, beside the timeout
_REFUSAL = 64 << 10  # bytes that a refusal's body may have
_REFUSAL_SECONDS = 5.0  # that it may take; above either, the client gets a refusal of ours
_OURS = _HOP_BY_HOP | {"content-length", "content-type", "server", "date", "x-request-id"}  # the service writes these


def sent_on(request: Request) -> Dict[str, str]:
    """Return the headers that a backend gets of a request."""
    dropped = _NOT_SENT_ON | tokens(request.headers.get("connection", ""))
    headers = {
        name: value
        for name, value in request.headers.items()
        if name not in dropped and not name.startswith(_NOT_CLIENTS)
    }
    before = headers.get("x-forwarded-for")
    headers["x-forwarded-for"] = before + ", " + request.peer if before else request.peer
    headers["x-forwarded-proto"] = request.scheme
    headers["x-forwarded-host"] = request.headers.get("host", "")
    headers["x-request-id"] = request.id
    return headers


def passed_back(answer: Answer) -> List[Tuple[str, str]]:
    """Return the headers of a backend's answer that the client gets: not those of its connection, nor ours."""
    dropped = _OURS | tokens(answer.header("connection"))
    kept = [(name.lower(), (name, value)) for name, value in answer.headers]
    return [pair for name, pair in kept if name not in dropped and not name.startswith(_OUR_FAMILIES)]


_OUR_FAMILIES = ("access-control-", "x-comeapi-")


def held(answer: Answer, headers: Sequence[Tuple[str, str]], timeout: float) -> Optional[Reply]:
    """Return a refusal, or an answer of known length that is not too long, as a whole Reply; None for all others.

    A refusal whose body is endless, or takes too long, is replaced by one of ours. Any other answer must come within
    `timeout` seconds, and one more for each 64 KiB. Raises Broken, Slow, and what the answer's `wait` raises.
    """
    if answer.status in REFUSED:
        try:
            body = answer.read_and_close(_REFUSAL, min(timeout, _REFUSAL_SECONDS))
        except (TooLarge, Slow) as error:
            return error_reply(APIError(answer.status, "The backend refuses: %s." % error, "backend_refused"))
    elif answer.length is None or answer.length > _HELD:
        return None
    else:
        body = answer.read_and_close(within=timeout + answer.length / _HELD_RATE)
    return Reply(body, answer.status, answer.header("content-type"), headers)


class Pieces(Protocol):
    """A body on its way."""

    def pieces(self) -> Iterator[bytes]:
        """Yield its bytes as they come. Raises Broken, Slow, and what waiting raises."""

    def close(self) -> None:
        """Let go of it, at its end or before."""


class Relay:
    """A backend's answer as a messages.Stream's chunks: the first piece is read at once, the others when due.

    `finished()` is called once, when the answer has ended in whatever way. `failed(why, lost)` is called before that,
    where the backend broke off (`lost`) or sent nothing for too long.
    """

    def __init__(self, answer: Pieces, finished: Callable[[], None], failed: Callable[[str, bool], None]):
        self._answer = answer
        self._finished = finished
        self._failed = failed
        self._pieces = answer.pieces()
        self._first: Optional[bytes] = next(self._pieces, b"")

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        try:
            return next(self._pieces)
        except Broken as error:
            self._failed(str(error), True)
            raise APIError(502, "The backend broke off in the middle of its answer: %s." % error, "backend_broke")
        except Slow as error:
            self._failed(str(error), False)
            raise APIError(504, "The backend stopped in the middle of its answer: %s." % error, "backend_slow")

    def close(self) -> None:
        """Give the backend back. Where its answer has not ended, it sees the connection close, and stops."""
        finished, self._finished = self._finished, _nothing
        self._answer.close()
        finished()


def _nothing(*_: Any) -> None:
    pass


class RetryBudget:
    """How many refused requests may be sent again: a share of all requests, and a few more.

    Without it, backends that refuse everything would get a multiple of what clients send.
    """

    RESERVE = 10.0

    def __init__(self, share: float):
        self._share = share
        self._left = self.RESERVE
        self._lock = threading.Lock()  # guards _left

    def earn(self) -> None:
        """A request has come."""
        with self._lock:
            self._left = min(self._left + self._share, self.RESERVE)

    def spend(self) -> bool:
        """Whether another request may be sent again. Takes it from the budget."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True
