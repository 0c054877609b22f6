"""An answer on its way to bytes, as its client wants it: piece by piece, or gathered to a whole.

Both have event() for each event of the engine, last() for the end, error(), and a ping. What a generation that is
begun in the middle had told before (Replayed) goes through the dialect like all the rest, and is not told again.
"""

import json
from typing import Generator, Iterable, List, Optional, Tuple, Union

from core.apis.dialect import Body, Dialect, Start
from core.bounds import VECTORS
from core.engine.generation import Generation
from core.engine.outcome import Embedded, Event, Finished, Piece, Progress, Replayed, Result
from core.errors import APIError
from core.http.messages import error_body

Told = Optional[Tuple[int, Event]]  # an event with its generation's index; None where nothing came for a while
Steps = Generator[Tuple[Told, bytes], None, None]  # what came, and the bytes that tell it

MOST_PROBABILITIES = 450000  # of tokens, in one whole answer; some 100 MB


class Streaming:
    """Writes each event when it comes."""

    def __init__(self, dialect: Dialect, generations: List[Generation]):
        self._dialect = dialect
        self._generations = generations
        self._begun = [False] * len(generations)
        self.content_type = dialect.form.content_type
        self.ping = dialect.form.ping
        self.error = dialect.form.error

    def event(self, index: int, event: Event) -> bytes:
        """Return the bytes that tell an event."""
        if not isinstance(event, Replayed):
            return self._rendered(self._bodies(index, event))
        for piece in event.pieces:
            list(self._bodies(index, piece))
        if event.end:
            list(self._bodies(index, event.end))
        return b""

    def last(self) -> bytes:
        """Return the bytes that stand after all answers."""
        return self._rendered(self._dialect.last()) + self._dialect.form.done

    def _rendered(self, bodies: Iterable[Body]) -> bytes:
        return b"".join(map(self._dialect.form.render, bodies))

    def _bodies(self, index: int, event: Event) -> Iterable[Body]:
        if not self._begun[index]:
            self._begun[index] = True
            begun = self._generations[index]
            yield from self._dialect.begin(index, Start(begun.seed, begun.prompt_tokens, begun.cached_tokens))
        if isinstance(event, Piece):
            yield from self._dialect.delta(index, event)
        elif isinstance(event, Progress):
            yield from self._dialect.progress(index, event)
        elif isinstance(event, Finished):
            yield from self._dialect.end(index, event)


class Gathering:
    """Writes one body when all is there."""

    content_type = "application/json"
    ping = b""

    def __init__(self, dialect: Dialect, generations: List[Generation]):
        self._dialect = dialect
        self.results = [Result(generation.seed) for generation in generations]
        self._room = MOST_PROBABILITIES
        self._numbers = 0  # of embeddings

    def event(self, index: int, event: Event) -> bytes:
        """Take an event in. Raises APIError 400 where more numbers come than memory should hold."""
        self.results[index].take(event)
        if isinstance(event, Embedded):
            self._numbers += sum(map(len, event.vectors))
            VECTORS.check(self._numbers, "input")
        if isinstance(event, Piece):
            likeliest = [each.get("top_logprobs", each.get("top_probs", ())) for each in event.probabilities]
            self._room -= sum(1 + len(each) for each in likeliest)
        if self._room < 0:
            message = "The answer has more than %d probabilities; ask for fewer, for fewer tokens, or a stream."
            raise APIError(400, message % MOST_PROBABILITIES, "too_many_probabilities", "n_probs")
        return b""

    def last(self) -> bytes:
        """Return the whole body."""
        return json.dumps(self._dialect.whole(self.results), ensure_ascii=False).encode("utf-8", "replace")

    def error(self, error: APIError) -> bytes:
        """Return the body of an error."""
        return error_body(error)


Telling = Union[Streaming, Gathering]
