"""A request to the engine, and what comes of it; no llama_cpp.

Job         what is asked for, and the queue on which its `events` come, which are
Piece       new text with its tokens, again and again, then one
Finished    or one APIError
Embedded    what comes of a job that asks for an embedding
Result      all that came of a job

The first half of a Job is its asker's and does not change. The second is the engine's: its sampler, text and counts.
"""

import queue
import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Dict, FrozenSet, List, Optional, Tuple, Union
from typing import Sequence as Many

from core.engine.drafting import Lookup
from core.engine.sampling import RANDOM_SEED, Sampling
from core.engine.text import TextOut
from core.models import ModelFile


@dataclass(frozen=True)
class Plain:
    """A part of a prompt in which the model's special tokens are text like any other."""

    text: str


# A text, or token ids, texts and plain texts in turns. Texts that are not plain may hold the model's special tokens.
Part = Union[int, str, Plain]
Prompt = Union[str, Tuple[Part, ...]]

MOST_UNREAD = 256  # events that wait for their reader, before nothing more is generated for it
UNLIMITED = 1 << 31  # max_tokens: until the model ends or the context is full


@dataclass(frozen=True)
class Piece:
    """New text of an answer (perhaps none yet), the tokens it came with, and their probabilities if asked for."""

    text: str
    tokens: List[int]
    probabilities: List[Dict[str, Any]] = field(default_factory=list)


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
    truncated: bool = False  # the context was full

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
    """A text's embedding, of length 1, and how many tokens the text has."""

    vector: List[float]
    prompt_tokens: int


@dataclass(eq=False)
class Job:
    """One request to the engine. `events` yields Pieces, then one Finished or one APIError; or one Embedded.

    `suffix` is the text after the gap, where the model shall fill one. `markers` are special tokens' texts that belong
    to the answer, such as the beginning of a tool call. With `embed`, the prompt's embedding is wanted, nothing else.
    """

    model: ModelFile
    prompt: Prompt
    max_tokens: int = 100
    stop: Many[str] = ()
    sampling: Sampling = Sampling()
    cache_prompt: bool = True
    suffix: Optional[str] = None
    markers: Many[str] = ()
    embed: bool = False
    events: Any = field(default_factory=queue.SimpleQueue)
    cancelled: bool = False
    # The engine's own notes:
    seed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated: int = 0
    text: Optional[TextOut] = None
    sampler: Any = None
    shown: FrozenSet[int] = frozenset()  # the markers' tokens
    lookup: Lookup = field(default_factory=Lookup)
    times: Dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = 0 <= self.sampling.seed < RANDOM_SEED
        self.seed = self.sampling.seed if known else secrets.randbelow(RANDOM_SEED)
        self.text = TextOut(self.stop)

    @property
    def unread(self) -> bool:
        """Whether so many events wait for their reader that no more should come."""
        return self.events.qsize() >= MOST_UNREAD

    def mark(self, name: str) -> None:
        """Note the time of an event of this job."""
        self.times[name] = time.monotonic()

    def finished(self, reason: str, truncated: bool) -> Finished:
        """Return the last event of a job that ended well."""
        self.mark("end")
        counts = self.prompt_tokens, self.cached_tokens, self.generated
        return Finished(reason, *counts, self._timings(), self.text.stop_word, truncated)

    def _timings(self) -> Dict[str, float]:
        """Return the timings by llama.cpp's names, and the wait for a slot."""
        admitted, first, end = self.times["admitted"], self.times.get("first", self.times["end"]), self.times["end"]
        prompt_ms, predicted_ms = (first - admitted) * 1e3, (end - first) * 1e3
        timings = {
            "queue_ms": (admitted - self.times["submitted"]) * 1e3,
            "cache_n": self.cached_tokens,
            "prompt_n": self.prompt_tokens - self.cached_tokens,
            "prompt_ms": prompt_ms,
            "predicted_n": self.generated,
            "predicted_ms": predicted_ms,
        }
        # The first token comes with the prompt's last step, so predicted_ms is the time of the others.
        if predicted_ms > 0 and self.generated > 1:
            timings["predicted_per_second"] = (self.generated - 1) / predicted_ms * 1e3
        return {name: round(value, 3) for name, value in timings.items()}


@dataclass
class Result:
    """All that came of a job."""

    job: Job
    text: str = ""
    tokens: List[int] = field(default_factory=list)
    probabilities: List[Dict[str, Any]] = field(default_factory=list)
    end: Any = None  # Finished, or Embedded

    def take(self, event: Any) -> None:
        """Add what has come."""
        if isinstance(event, (Finished, Embedded)):
            self.end = event
        else:
            self.text += event.text
            self.tokens += event.tokens
            self.probabilities += event.probabilities
