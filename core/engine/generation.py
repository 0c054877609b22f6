"""One generation: the engine's one object for an Ask on its way to its end.

    WAITING ──> PROMPT ──> GENERATING ──> ENDED        what each state may become: _NEXT
       │          │  <── (cells lost) ──     ▲
       └──────────┴──────────────────────────┘

Its first thread is that which submits it; from then on the engine's alone changes it. Any thread may read its counts,
and set `cancelled`. No llama_cpp here: `sampler` is one of core/engine/sampler.py's.

A generation can be begun in the middle: `Generation(ask, begun=tokens)` stands where generating these tokens would have
brought it, and tells only what follows. Nothing but the tokens is needed for that, since the choice of the i-th token
goes by the seed and i alone (sampler.py). They are evaluated with the prompt. Mirostat alone learns from what the model
thought of each token: it takes them one by one (`stepwise`). One that had come to its end already, `ended`, only tells
what it would have told.
"""

import enum
import secrets
import time
from typing import Any, Dict, FrozenSet, List, Optional, Sequence, Tuple

from core.ask import TEXT, Ask
from core.engine.drafting import Lookup
from core.engine.outcome import Channel, Event, Finished, Piece, Progress
from core.engine.text import TextOut
from core.sampling import RANDOM_SEED


class State(enum.Enum):
    """Where a generation stands."""

    WAITING = "it waits for a slot"
    PROMPT = "its prompt is being evaluated"
    GENERATING = "the prompt is evaluated; one token is pending at a time"
    ENDED = "its last event is told"


_NEXT = {
    State.WAITING: {State.PROMPT, State.ENDED},
    State.PROMPT: {State.GENERATING, State.ENDED},
    State.GENERATING: {State.PROMPT, State.ENDED},  # PROMPT: its cells were lost, all its tokens are evaluated again
    State.ENDED: set(),
}


class Generation:
    """An Ask, and how far it has come. `index` is its number among the generations that share a channel.

    `tokens` are the prompt's, then what was generated; the first `done` of them are evaluated.
    """

    def __init__(
        self,
        ask: Ask,
        channel: Optional[Channel] = None,
        index: int = 0,
        begun: Sequence[int] = (),
        ended: Optional[Finished] = None,
    ):
        self.ask = ask
        self.channel = channel or Channel()
        self.index = index
        self.begun = tuple(begun)
        self.ended = ended
        self.cancelled = False  # nobody wants it any more; set by any thread
        self.names_seed = 0 <= ask.sampling.seed < RANDOM_SEED  # it should get the same answer again
        self.seed = ask.sampling.seed if self.names_seed else secrets.randbelow(RANDOM_SEED)
        self._state = State.WAITING
        # Tokens, and where they are:
        self.tokens: List[int] = []
        self.done = 0
        self.dropped: List[int] = []  # tokens that were taken out where its context was shifted (shifting.py)
        self.dropped_at = 0  # before which of `tokens` they stood
        self.slot = -1
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generated = 0
        # For the choice of the next ones:
        self.sampler: Any = None
        self.pool: Any = None  # what is computed of its embedding so far (embedding.py)
        self.lookup = Lookup()
        self.drafts: List[int] = []  # guesses at the tokens after these, for the next batch
        self.guessed = self.confirmed = 0  # how many guesses were checked so far, and came true
        # For the reader:
        self.text = TextOut(ask.stop)
        self.replayed: List[Piece] = []  # what it would have told before it was begun in the middle
        self.shown: FrozenSet[int] = frozenset()  # the markers' tokens
        self.times: Dict[str, float] = {}
        self._told = -1  # how many of the prompt's tokens its reader knows to be evaluated
        # The scheduler's notes:
        self.source = -1  # the slot that it will copy from before it is evaluated, if it will
        self.expected = 0  # how many tokens it hopes to copy
        self.order = 0  # larger is admitted later
        self.in_batches = False  # its prompt is evaluated in batches, however long it is
        self.paused = False  # nothing is generated for it now: its reader is behind

    # ---- state

    def become(self, state: State) -> None:
        """Go on to another state. Raises ValueError where _NEXT has no way there."""
        if state not in _NEXT[self._state]:
            raise ValueError("a generation that is %s can't become %s" % (self._state.name, state.name))
        self._state = state

    @property
    def generating(self) -> bool:
        """Whether it generates: its prompt is evaluated."""
        return self._state is State.GENERATING

    # ---- what the scheduler goes by

    @property
    def model(self) -> str:
        """The path of the model that it needs."""
        return self.ask.model.path

    @property
    def adapters(self) -> Tuple[float, ...]:
        """How much of each LoRA adapter it is computed with; () for none. Its cells are of use to its like alone."""
        return self.ask.model.adapters

    @property
    def reuse(self) -> bool:
        """Whether it may use others' cells."""
        return self.ask.cache_prompt and self.ask.gives == TEXT

    @property
    def pending(self) -> int:
        """How many tokens are still to be evaluated."""
        return len(self.tokens) - self.done

    # ---- its beginning

    @property
    def stepwise(self) -> bool:
        """Whether the tokens that it begins with are taken one by one, as if they were chosen anew."""
        return bool(self.begun) and self.ask.sampling.learns

    @property
    def awaited(self) -> Optional[int]:
        """The next token, where it is known already: a stepwise generation begins with it."""
        return self.begun[self.generated] if self.generated < len(self.begun) else None

    @property
    def evaluated(self) -> int:
        """How many tokens are evaluated, or have been before they were dropped."""
        return self.done + len(self.dropped)

    def drop(self, at: int, count: int) -> None:
        """Take out `count` of the tokens that are evaluated: what follows them in the cells has moved up.

        `at` is the same each time.
        """
        self.dropped += self.tokens[at : at + count]
        self.dropped_at = at
        self.tokens = self.tokens[:at] + self.tokens[at + count :]
        self.done -= count
        self.drafts, self.lookup = [], Lookup()

    def lose_cells(self) -> None:
        """All is to be evaluated again, in a context that has not been shifted yet."""
        self.tokens[self.dropped_at : self.dropped_at] = self.dropped
        self.dropped, self.done = [], 0
        self.drafts, self.lookup = [], Lookup()

    def begin(self, prompt: List[int]) -> None:
        """Take the prompt's tokens, and those that are generated already."""
        self.prompt_tokens = len(prompt)
        if self.stepwise:
            self.tokens = prompt
        else:
            self.tokens = prompt + list(self.begun)
            self.generated = len(self.begun)

    # ---- what is told

    def tell(self, event: Event) -> None:
        """Tell its reader."""
        self.channel.put(self.index, event)

    def mark(self, name: str) -> None:
        """Note the time of an event of its life."""
        self.times[name] = time.monotonic()

    def tell_progress(self) -> None:
        """Tell how much of the prompt is evaluated, where the reader wants to know and does not yet."""
        processed = min(self.evaluated, self.prompt_tokens)
        if self.ask.progress and not self.begun and processed > self._told:
            self._told = processed
            timings = self.timings() if self.ask.timings else None
            ms = (time.monotonic() - self.times["admitted"]) * 1e3
            self.tell(Progress(self.prompt_tokens, self.cached_tokens, processed, round(ms, 3), timings))

    def finished(self, reason: str, truncated: bool) -> Finished:
        """Return the last event of a generation that ended well."""
        self.mark("end")
        counts = self.prompt_tokens, self.cached_tokens, self.generated
        return Finished(reason, *counts, self.timings(), self.text.stop_word, truncated)

    def timings(self) -> Dict[str, float]:
        """Return the times and counts so far by llama.cpp's names, and the wait for a slot. All are finite."""
        now = self.times.get("end", time.monotonic())
        admitted, first = self.times["admitted"], self.times.get("first", now)
        evaluated = min(self.evaluated, self.prompt_tokens) - self.cached_tokens
        prompt_ms = round((first - admitted) * 1e3, 3) if evaluated > 0 else 0.0
        predicted_ms = round((now - first) * 1e3, 3)
        # The first token comes with the prompt's last step, so predicted_ms is the time of the others.
        steps = max(0, self.generated - len(self.begun) - 1)
        guesses = {"draft_n": self.guessed, "draft_n_accepted": self.confirmed} if self.guessed else {}
        return {
            "queue_ms": round((admitted - self.times["submitted"]) * 1e3, 3),
            "cache_n": self.cached_tokens,
            "prompt_n": evaluated,
            "prompt_ms": prompt_ms,
            "prompt_per_token_ms": _ratio(prompt_ms, evaluated),
            "prompt_per_second": _ratio(evaluated * 1e3, prompt_ms),
            "predicted_n": self.generated,
            "predicted_ms": predicted_ms,
            "predicted_per_token_ms": _ratio(predicted_ms, steps),
            "predicted_per_second": _ratio(steps * 1e3, predicted_ms),
            **guesses,
        }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
