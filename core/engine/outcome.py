"""What the engine tells of an answer, and the one way by which it does.

Channel     the bounded way from the engine to a reader; on it come, for each generation,
Replayed    once, of a generation that is begun in the middle
Progress    how much of its prompt is evaluated, where the request wants to know
Piece       new text with its tokens, again and again, then one
Finished    or one APIError; or, where an embedding or a rank was asked for, one
Embedded    and nothing else
Result      all that came of one generation, put together
"""

import queue
from array import array
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Optional, Tuple, Union

from core.errors import APIError

MOST_UNREAD = 256  # events that wait for their reader, before nothing more is generated for it


@dataclass(frozen=True)
class Piece:
    """New text of an answer (perhaps none yet), the tokens it came with, and their probabilities if asked for.

    `timings` are those so far, where the request wants them with each token.
    """

    text: str
    tokens: List[int]
    probabilities: List[Dict[str, Any]] = field(default_factory=list)
    timings: Optional[Dict[str, float]] = None


@dataclass(frozen=True)
class Progress:
    """`processed` of a prompt's `total` tokens are evaluated, of which `cached` were there before; after `ms`."""

    total: int
    cached: int
    processed: int
    ms: float
    timings: Optional[Dict[str, float]] = None


@dataclass(frozen=True)
class Replayed:
    """What a generation that is begun in the middle would have told before: a piece for each token.

    With an `end`, it had told that, too: nothing follows.
    """

    pieces: List[Piece]
    end: Optional["Finished"] = None


@dataclass(frozen=True)
class Finished:
    """The end of an answer: why ("stop" or "length"), how many tokens, and how long each part took (ms).

    `cached_tokens` of the prompt's were not evaluated but taken from other requests' cells.
    """

    reason: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    timings: Dict[str, float]
    stop_word: str = ""  # the stop string that ended it, if one did
    truncated: bool = False  # the context was full, or has been shifted

    def usage(self) -> Dict[str, Any]:
        """Return the counts of tokens as the OpenAI API names them."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(frozen=True)
class Embedded:
    """A text's embedding as the model gives it, of any length: one vector, or one for each token. Or a pair's rank.

    Each vector is an array of 32-bit floats. A rank is one vector, too, whose first number is the score.
    """

    vectors: "List[array[float]]"
    prompt_tokens: int


Event = Union[Replayed, Progress, Piece, Finished, Embedded, APIError]


def is_last(event: Event) -> bool:
    """Whether nothing comes after an event."""
    return isinstance(event, (Finished, Embedded, APIError)) or (isinstance(event, Replayed) and bool(event.end))


class Channel:
    """The way from the engine to one reader, for all generations of one request.

    The engine looks at `full` before each step and generates nothing for a reader that is so far behind. So a client
    that stops reading holds up its own answer, and its events take no more memory than MOST_UNREAD of them, and those
    of the one step that filled it.
    """

    def __init__(self) -> None:
        self._events: "queue.SimpleQueue[Tuple[int, Event]]" = queue.SimpleQueue()

    def put(self, index: int, event: Event) -> None:
        """Tell an event of the request's generation number `index`. Never waits: the engine's thread calls it."""
        self._events.put((index, event))

    def get(self, timeout: float) -> Optional[Tuple[int, Event]]:
        """Return the next event with its generation's number; None where none comes in `timeout` seconds."""
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            return None

    @property
    def unread(self) -> int:
        """How many events wait for their reader."""
        return self._events.qsize()

    @property
    def full(self) -> bool:
        """Whether so many wait that no more should come."""
        return self.unread >= MOST_UNREAD


@dataclass
class Result:
    """All that came of one generation. `seed` is the one that chose its tokens.

    `reached` is how many characters of the text there were when each of the tokens had come.
    """

    seed: int = 0
    text: str = ""
    tokens: List[int] = field(default_factory=list)
    reached: List[int] = field(default_factory=list)
    probabilities: List[Dict[str, Any]] = field(default_factory=list)
    end: Any = None  # Finished, or Embedded

    def take(self, event: Event) -> None:
        """Add what has come. Raises the event where it is an APIError."""
        if isinstance(event, Replayed):
            for piece in event.pieces:
                self.take(piece)
            self.end = event.end
        elif isinstance(event, Piece):
            self.text += event.text
            self.tokens += event.tokens
            self.reached += [len(self.text)] * len(event.tokens)
            self.probabilities += event.probabilities
        elif isinstance(event, APIError):
            raise event
        elif not isinstance(event, Progress):
            self.end = event

    def pieces(self) -> Iterator[Piece]:
        """Yield the text in pieces, one for each token, and one for what came after the last."""
        start = 0
        for index, token in enumerate(self.tokens):
            yield Piece(self.text[start : self.reached[index]], [token], self.probabilities[index : index + 1])
            start = self.reached[index]
        yield Piece(self.text[start:], [])
