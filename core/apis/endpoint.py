"""The one place where a request meets the engine: submitted, awaited, told, cancelled.

    Request ── a dialect ──> Asks ── Beginning ──> Generations ── Drive ──> engine
    Reply | Stream <── Streaming | Gathering <── events ── Channel <────────── ┘

Endpoint.answer     a request's answer: whole, as a stream, or in frames that let a balancer carry it on (beginning.py)
Drive               a request's generations, from their submission to their end, or to their client's
"""

import collections
import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any, Callable, Deque, Dict, Generator, List, Optional

from core.apis.beginning import Beginning
from core.apis.dialect import Call, Dialect
from core.apis.host import Host
from core.apis.telling import Gathering, Steps, Streaming, Telling, Told
from core.engine.generation import Generation
from core.engine.outcome import Channel, is_last
from core.errors import APIError
from core.http.messages import Reply, Request
from core.http.routing import Route
from core.jsonbody import read_json
from core.owners import asking
from core.places import Places

if TYPE_CHECKING:  # it needs llama_cpp
    from core.engine.engine import Engine


class Endpoint:
    """Answers requests as their dialects say. After `ping_interval` seconds of silence a stream says that it lives.

    `places` counts the requests that are worked on, and refuses a balancer's where there are too many.
    """

    def __init__(self, host: Host, ping_interval: float, carry_secret: str = "", places: Optional[Places] = None):
        self.host = host
        self._ping_interval = ping_interval
        self._carry_secret = carry_secret
        self._places = places or Places(sys.maxsize)

    def route(self, path: str, kind: Callable[[Call, Host], Dialect]) -> Route:
        """Return the route of a dialect."""
        return Route("POST", path, lambda request: self.answer(request, kind))

    def answer(self, request: Request, kind: Callable[[Call, Host], Dialect]) -> Any:
        """Return the Reply or Stream. Raises APIError, and HangUp when the client leaves."""
        beginning = Beginning.of(request, self._carry_secret)
        body, owner = read_json(request.body), asking(request.headers, request.key)
        dialect = kind(Call(body, beginning.nonce, beginning.created, owner), self.host.asked(body))
        channel = Channel()
        generations = beginning.generations(dialect, self.host, channel)
        telling: Telling = (Streaming if dialect.streams else Gathering)(dialect, generations)
        pieces = self._pieces(request, Drive(self.host.engine, request, generations, channel), telling)
        if beginning.carried:
            return beginning.stream(pieces, telling)
        if dialect.streams:
            return dialect.form.stream(_bytes(pieces, telling))
        return Reply(b"".join(_bytes(pieces, telling)))

    def _pieces(self, request: Request, drive: "Drive", telling: Telling) -> Steps:
        """Yield each event with the bytes that tell it, and pings where none come; all but the last bytes.

        The request's place is free again before its last bytes are sent: the balancer that gets them may send the next.
        """
        ping_at = time.monotonic() + self._ping_interval
        with self._places.place(request.headers), contextlib.closing(drive):
            while drive.runs:
                told = drive.next(ping_at - time.monotonic())
                data = telling.event(*told) if told else b""
                if data or time.monotonic() >= ping_at:
                    ping_at = time.monotonic() + self._ping_interval
                    data = data or telling.ping
                yield told, data


def _bytes(pieces: Steps, telling: Telling) -> Generator[bytes, None, None]:
    """Yield an answer's bytes."""
    with contextlib.closing(pieces):
        for _, data in pieces:
            yield data
    yield telling.last()


class Drive:
    """One request's generations on an engine. close() cancels those that are still at work."""

    def __init__(self, engine: "Engine", request: Request, generations: List[Generation], channel: Channel):
        self._engine = engine
        self._request = request
        self._channel = channel
        self._waiting: Deque[Generation] = collections.deque(generations)
        self._running: Dict[int, Generation] = {}

    @property
    def runs(self) -> bool:
        """Whether something is still to come."""
        return bool(self._running or self._waiting)

    def next(self, timeout: float) -> Told:
        """Return the next event with its generation's index; None where none comes in `timeout` seconds.

        Raises APIError, of one generation for all of them, and HangUp when the client leaves.
        """
        self._submit_some()
        told = self._request.wait(self._channel.get, timeout)
        if told and is_last(told[1]):
            del self._running[told[0]]
            if isinstance(told[1], APIError):
                raise told[1]
        return told

    def close(self) -> None:
        """Cancel what is still at work."""
        for generation in self._running.values():
            self._engine.cancel(generation)

    def _submit_some(self) -> None:
        """Submit as many of one request's asks as there are slots; others' requests shall have their chance, too."""
        while self._waiting and len(self._running) < self._engine.settings.slots:
            generation = self._waiting[0]
            try:
                self._engine.submit(generation)
            except APIError as error:
                if error.code == "queue_full" and self._running:
                    return  # its turn comes when another one ends
                raise
            self._running[generation.index] = generation
            self._waiting.popleft()
