"""The one place where a request meets the engine: submitted, awaited, told, cancelled.

    Request ── a dialect ──> Asks ── Drive ──> Generations, on one Channel
    Reply | Stream <── whole() | begin(), delta(), end(), last() <── events

Endpoint.answer     a request's whole answer, or its stream
Drive               a request's generations, from their submission to their end, or to their client's
"""

import collections
import contextlib
import time
from typing import TYPE_CHECKING, Any, Deque, Dict, Generator, Iterable, List, Optional, Tuple
from typing import Sequence as Many

from core.apis.dialect import Body, Dialect, Start
from core.engine.ask import Ask
from core.engine.generation import Generation
from core.engine.outcome import LAST, Channel, Event, Finished, Piece, Result
from core.errors import APIError
from core.http.messages import Request, json_reply

if TYPE_CHECKING:  # it needs llama_cpp
    from core.engine.engine import Engine

MOST_PROBABILITIES = 450000  # of tokens, in one whole answer; some 100 MB
_LONG = 60.0  # seconds; a whole answer is waited for again and again


class Endpoint:
    """Answers requests as their dialects say. After `ping_interval` seconds of silence a stream says that it lives."""

    def __init__(self, engine: "Engine", ping_interval: float):
        self._engine = engine
        self._ping_interval = ping_interval

    def answer(self, request: Request, dialect: Dialect) -> Any:
        """Return the Reply or Stream. Raises APIError, and HangUp when the client leaves."""
        if dialect.streams:
            return dialect.form.stream(self._pieces(request, dialect))
        return json_reply(dialect.whole(self.results(request, dialect.asks)))

    def results(self, request: Request, asks: Many[Ask]) -> List[Result]:
        """Wait for the end of all answers and return what came of them.

        Raises APIError, 400 where more probabilities come than memory should hold, and HangUp when the client leaves.
        """
        with contextlib.closing(Drive(self._engine, asks, request)) as drive:
            results = [Result(generation.seed) for generation in drive.generations]
            room = MOST_PROBABILITIES
            while drive.runs:
                told = drive.next(_LONG)
                if told:
                    index, event = told
                    results[index].take(event)
                    room -= _probabilities(event)
                if room < 0:
                    message = "The answer has more than %d probabilities; ask for fewer, for fewer tokens, or a stream."
                    raise APIError(400, message % MOST_PROBABILITIES, "too_many_probabilities", "n_probs")
        return results

    def _pieces(self, request: Request, dialect: Dialect) -> Generator[bytes, None, None]:
        """Yield an answer's pieces as they come, and pings where none do."""
        form = dialect.form
        ping_at = time.monotonic() + self._ping_interval
        with contextlib.closing(Drive(self._engine, dialect.asks, request)) as drive:
            while drive.runs:
                told = drive.next(ping_at - time.monotonic())
                data = b"".join(map(form.render, _bodies(dialect, drive, *told))) if told else b""
                if not data and time.monotonic() >= ping_at:
                    ping_at = time.monotonic() + self._ping_interval
                    data = form.ping
                elif data:
                    ping_at = time.monotonic() + self._ping_interval
                yield data
        yield b"".join(map(form.render, dialect.last())) + form.done


def _bodies(dialect: Dialect, drive: "Drive", index: int, event: Event) -> Iterable[Body]:
    """Return the bodies that tell an event."""
    if drive.is_first(index):
        begun = drive.generations[index]
        yield from dialect.begin(index, Start(begun.seed, begun.prompt_tokens, begun.cached_tokens))
    if isinstance(event, Piece):
        yield from dialect.delta(index, event)
    elif isinstance(event, Finished):
        yield from dialect.end(index, event)


def _probabilities(event: Event) -> int:
    """Return how many tokens' probabilities an event tells."""
    return sum(1 + len(each["top_logprobs"]) for each in event.probabilities) if isinstance(event, Piece) else 0


class Drive:
    """One request's generations on an engine. close() cancels those that are still at work."""

    def __init__(self, engine: "Engine", asks: Many[Ask], request: Request):
        self._engine = engine
        self._request = request
        self._channel = Channel()
        self.generations = [Generation(ask, self._channel, index) for index, ask in enumerate(asks)]
        self._waiting: Deque[Generation] = collections.deque(self.generations)
        self._running: Dict[int, Generation] = {}
        self._begun: List[bool] = [False] * len(self.generations)

    @property
    def runs(self) -> bool:
        """Whether something is still to come."""
        return bool(self._running or self._waiting)

    def next(self, timeout: float) -> Optional[Tuple[int, Event]]:
        """Return the next event with its generation's index; None where none comes in `timeout` seconds.

        Raises APIError, of one generation for all of them, and HangUp when the client leaves.
        """
        self._submit_some()
        told = self._request.wait(self._channel.get, timeout)
        if told and isinstance(told[1], LAST):
            del self._running[told[0]]
            if isinstance(told[1], APIError):
                raise told[1]
        return told

    def is_first(self, index: int) -> bool:
        """Whether this is asked of a generation for the first time."""
        first, self._begun[index] = not self._begun[index], True
        return first

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
