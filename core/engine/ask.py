"""What is wanted of the engine, in the engine's own terms. Plain data: it never changes, and any thread may read it."""

import math
from dataclasses import dataclass
from typing import Optional, Tuple, Union

from core.engine.sampling import Sampling
from core.models import ModelFile


@dataclass(frozen=True)
class Plain:
    """A part of a prompt in which the model's special tokens are text like any other."""

    text: str


# A text, or token ids, texts and plain texts in turns. Texts that are not plain may hold the model's special tokens.
Part = Union[int, str, Plain]
Prompt = Union[str, Tuple[Part, ...]]

UNLIMITED = 1 << 31  # max_tokens: until the model ends or the context is full


@dataclass(frozen=True)
class Ask:
    """One answer that is wanted: text that follows a prompt, or the prompt's embedding.

    `suffix` is the text after the gap, where the model shall fill one. `markers` are special tokens' texts that belong
    to the answer, such as the beginning of a tool call. With `embed`, the prompt's embedding is wanted, nothing else.

    `slot` is the one slot that may be used. An answer that has a line break ends `time_limit` seconds after its first
    token. With `progress`, it is told how much of the prompt is evaluated; with `timings`, each token's.
    """

    model: ModelFile
    prompt: Prompt
    max_tokens: int = 100
    stop: Tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    cache_prompt: bool = True
    suffix: Optional[str] = None
    markers: Tuple[str, ...] = ()
    embed: bool = False
    slot: Optional[int] = None
    time_limit: float = math.inf
    progress: bool = False
    timings: bool = False
