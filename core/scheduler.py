"""Which tokens go into the next batch: pure Python, no llama_cpp, no clock, no lock.

One thread owns a Scheduler. Each step of the engine is:

    admit()     requests that wait get the slots that are free, first come first served
    plan()      chunks for one batch: first one token of every running stream, then pieces of prompts, up to a budget
    commit()    what was evaluated counts as done
    release()   a finished sequence gives its slot back

The laws: a stream that generates is in every batch, so no prompt makes it wait for more than one step. A batch never
has more rows than `n_batch`, a sequence never more tokens than `n_ctx`. Prompts share the budget evenly, so a short
one passes a long one. A waiting request that needs another model lets nothing behind it pass: no model starves.
"""

import collections
from dataclasses import dataclass, field
from typing import Any, Deque, List, Optional


@dataclass(eq=False)
class Sequence:
    """One request's tokens: the prompt's, then what was generated. The first `done` of them are evaluated."""

    job: Any = None
    model: str = ""
    tokens: List[int] = field(default_factory=list)
    slot: int = -1
    done: int = 0
    generating: bool = False  # the prompt is evaluated; one token is pending at a time

    @property
    def pending(self) -> int:
        """How many tokens are still to be evaluated."""
        return len(self.tokens) - self.done


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens of one sequence in one batch. Only one that reaches the end needs its last row's logits."""

    sequence: Sequence
    start: int
    count: int

    @property
    def last(self) -> bool:
        """Whether the sequence's next token can be sampled after this chunk."""
        return self.start + self.count == len(self.sequence.tokens)


class Scheduler:
    """Slots, the line of those who wait for one, and the next batch."""

    def __init__(self, slots: int, n_batch: int):
        self.n_batch = n_batch
        self.waiting: Deque[Sequence] = collections.deque()
        self._slots: List[Optional[Sequence]] = [None] * slots

    @property
    def running(self) -> List[Sequence]:
        """The sequences that have a slot."""
        return [sequence for sequence in self._slots if sequence is not None]

    def submit(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the line."""
        self.waiting.append(sequence)

    def wanted_model(self) -> Optional[str]:
        """Return the model that the first in line needs, or None when nobody waits."""
        return self.waiting[0].model if self.waiting else None

    def admit(self, model: Optional[str]) -> List[Sequence]:
        """Give free slots to the first in line, as long as they need `model`. Returns those who got one."""
        admitted = []
        while self.waiting and self.waiting[0].model == model and None in self._slots:
            sequence = self.waiting.popleft()
            sequence.slot = self._slots.index(None)
            self._slots[sequence.slot] = sequence
            admitted.append(sequence)
        return admitted

    def plan(self, prompt_budget: int) -> List[Chunk]:
        """Return the next batch: every stream's one token, then at most `prompt_budget` rows of prompts."""
        streams = [each for each in self.running if each.generating]
        chunks = [Chunk(each, each.done, each.pending) for each in streams]
        left = min(prompt_budget, self.n_batch - sum(chunk.count for chunk in chunks))
        prompts = sorted((each for each in self.running if not each.generating), key=lambda each: each.pending)
        for position, sequence in enumerate(prompts):
            # What a short prompt leaves of its share goes to the longer ones after it.
            count = min(sequence.pending, left // (len(prompts) - position))
            if count > 0:
                chunks.append(Chunk(sequence, sequence.done, count))
                left -= count
        return chunks

    def commit(self, chunks: List[Chunk]) -> None:
        """Count what was evaluated as done."""
        for chunk in chunks:
            chunk.sequence.done += chunk.count
            chunk.sequence.generating = chunk.sequence.generating or chunk.last

    def release(self, sequence: Sequence) -> None:
        """Take a sequence out: of its slot, or of the line."""
        if sequence.slot >= 0:
            self._slots[sequence.slot] = None
        elif sequence in self.waiting:
            self.waiting.remove(sequence)


class Pace:
    """How many rows of prompts one step may take, so that it stays under a target time while streams are running.

    Learns from each step: `streams` seconds is what a step without prompts takes, `row` seconds what a row of a prompt
    adds. Both forget with a weight of 0.3 for the newest.
    """

    FLOOR = 16  # rows; below this the weights are read too often for what they do
    START = 32  # rows, before anything is known
    ALONE = 4  # times the target where no stream waits: only a newcomer would

    def __init__(self, target: float, n_batch: int):
        self._target = target
        self._n_batch = n_batch
        self._streams = 0.0
        self._row = 0.0

    def budget(self, streams: int) -> int:
        """Return how many rows of prompts the next step may take beside `streams` generating sequences."""
        if not self._row:
            return min(self.START, self._n_batch)
        seconds = self._target - self._streams if streams else self._target * self.ALONE
        rows = int(seconds / self._row) // 4 * 4  # multiples of 4 are the cheapest on a CPU
        return max(self.FLOOR, min(rows, self._n_batch))

    def observe(self, streams: int, prompt_rows: int, seconds: float) -> None:
        """Learn from a step of so many rows that took so long."""
        if not prompt_rows:
            self._streams = _blend(self._streams, seconds)
        elif prompt_rows >= self.FLOOR:  # fewer say more about the step than about its rows
            rest = seconds - (self._streams if streams else 0.0)
            self._row = _blend(self._row, max(rest, seconds * 0.1) / prompt_rows)


def _blend(old: float, new: float) -> float:
    return old * 0.7 + new * 0.3 if old else new
