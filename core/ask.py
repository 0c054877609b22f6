"""What is wanted of the engine, in the engine's own terms. Plain data: it never changes, and any thread may read it."""

import math
from dataclasses import dataclass
from typing import Optional, Tuple, Union

from core.models import ModelFile
from core.sampling import Sampling


@dataclass(frozen=True)
class Plain:
    """A part of a prompt in which the model's special tokens are text like any other."""

    text: str


# A text, or token ids, texts and plain texts in turns. Texts that are not plain may hold the model's special tokens.
Part = Union[int, str, Plain]
Prompt = Union[str, Tuple[Part, ...]]


@dataclass(frozen=True)
class Gap:
    """A gap between two texts, which the model shall fill."""

    prefix: Prompt
    suffix: str


@dataclass(frozen=True)
class Infill:
    """A gap in a file of a project. `files` are other files, each a name and a text; the filling begins with `start`.

    Of texts that are longer than the context allows, what is far from the gap is left out.
    """

    prefix: str
    suffix: str
    files: Tuple[Tuple[str, str], ...] = ()
    start: str = ""


@dataclass(frozen=True)
class Pair:
    """A query and a document, of which the model shall say how well they match."""

    query: str
    document: str


Wanted = Union[Prompt, Gap, Infill, Pair]  # what a model may be given

# What a model gives, by how it is loaded: text; a vector, or one for each token; or how well a Pair matches.
TEXT, EMBEDDINGS, RANKS = "text", "embeddings", "ranks"


def kind_of(pooling: str) -> str:
    """Return what a model gives that pools so (core/settings.py's POOLING; "" for none at all)."""
    return {"": TEXT, "rank": RANKS}.get(pooling, EMBEDDINGS)


@dataclass(frozen=True)
class Budget:
    """How many tokens an answer may think, what thoughts stand between, and what is said where they are cut short.

    With `begun`, the prompt ends within a thought. With `often`, thoughts may come again, further on; they share it.
    """

    tokens: int
    opener: str
    closer: str
    message: str = ""
    begun: bool = False
    often: bool = False


UNLIMITED = 1 << 31  # max_tokens: until the model ends or the context is full


@dataclass(frozen=True)
class Ask:
    """One answer that is wanted: text that follows a prompt or fills a gap, a prompt's embedding, or a pair's rank.

    `gives` says which of them. `markers` are special tokens' texts that belong to the answer, such as the beginning of
    a tool call. Thoughts end with their `budget`.

    `slot` is the one slot that may be used. An answer that has a line break ends `time_limit` seconds after its first
    token. With `progress`, it is told how much of the prompt is evaluated; with `timings`, each token's.

    Where contexts are shifted (shifting.py), `keep` tokens at the beginning stay (below 0 the whole prompt; None: as
    the server's options say), and `discard` of the others are dropped (0: half of them).
    """

    model: ModelFile
    prompt: Wanted
    max_tokens: int = 100
    stop: Tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    cache_prompt: bool = True
    markers: Tuple[str, ...] = ()
    gives: str = TEXT
    slot: Optional[int] = None
    time_limit: float = math.inf
    progress: bool = False
    timings: bool = False
    keep: Optional[int] = None
    discard: int = 0
    budget: Optional[Budget] = None
