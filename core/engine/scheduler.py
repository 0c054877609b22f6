"""Which tokens go into the next batch: pure Python, no llama_cpp, no clock, no lock.

One thread owns a Scheduler. Each step of the engine is:

    admit()      requests that wait get the slots that are free, first come first served
    next_reuse() cells that a new request can take over instead of evaluating its prompt
    take_turn()  which LoRA adapters the next batch is computed with
    next_aside() a prompt that is evaluated aside, in siding.py, and comes back by returned()
    plan()       chunks for a batch: first a token of every running stream, then pieces of prompts up to a budget
    commit()     what was evaluated counts as done
    release()    a finished generation gives its slot back; its cells stay, for others to reuse

The laws. A stream that generates is in every batch of its turn, so no prompt makes it wait for more than one step. All
with the same LoRA adapters share a batch; where there are several sets of them, they take turns, a step each. A stream
may be paused, because its reader does not take what has come: then it is in none, and keeps its slot. A batch never has
more rows than `n_batch`. Prompts share the budget evenly, so a short one passes a long one; with a siding,
long ones go there, first come first served. A waiting request that needs another model lets nothing behind it pass: no
model starves. One that names its slot lets others pass while that slot is taken, and reuses that slot's cells only.

Reuse. The cells of a slot hold evaluated tokens, of a request that runs or of one that has ended. A new request:

    1. takes the free slot whose cells share the longest beginning with its prompt, if that is most of what they hold;
    2. else copies a shared beginning from any other slot, running or not, into the free slot used least recently, where
       that saves more tokens than a copy costs; if the beginning is just being evaluated, it waits for it;
    3. else begins anew in the free slot used least recently.

The cells of some models hold one state of all their tokens (a recurrent model's). They can be taken over whole or not
at all: then 1 wants a slot all of whose cells begin the prompt, and there is no 2. A context that was shifted
(shifting.py) has no cells that another request could use.
"""

import collections
import itertools
from dataclasses import dataclass
from typing import Deque, Dict, List, Optional, Tuple

from core.engine.generation import Generation, State
from core.engine.pace import Pace

Adapters = Tuple[float, ...]  # how much of each LoRA adapter; () for none
COPIED = 8  # tokens that are copied, there and back, in the time that the siding gains by evaluating one; about


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens of one generation in one batch, and guesses at those that follow.

    Only a chunk that reaches the generation's end needs logits: of its last token's row and of the guesses' rows.
    """

    generation: Generation
    start: int
    count: int
    drafts: Tuple[int, ...] = ()

    @property
    def last(self) -> bool:
        """Whether the generation's next token can be sampled after this chunk."""
        return self.start + self.count == len(self.generation.tokens)

    @property
    def rows(self) -> int:
        """How many rows it takes in a batch."""
        return self.count + len(self.drafts)


@dataclass(frozen=True)
class Reuse:
    """The first `count` tokens of a generation are in the cells of slot `source`, which may be its own."""

    generation: Generation
    source: int
    count: int


class _Slot:
    """One generation's cells: who has it, else what its last one left there."""

    def __init__(self, index: int):
        self.index = index
        self.generation: Optional[Generation] = None
        self.cells: List[int] = []
        self.kept_adapters: Adapters = ()  # that the cells of a generation that has ended were computed with
        self.used = 0  # larger is later

    @property
    def adapters(self) -> Adapters:
        """What the cells are computed with."""
        return self.kept_adapters if self.generation is None else self.generation.adapters

    def shares(self, other: Generation) -> int:
        """Return how many of a generation's first tokens are evaluated here, as it would evaluate them."""
        if self.adapters != other.adapters or (self.generation and self.generation.dropped):
            return 0
        if self.generation is None:
            return common_prefix(self.cells, other.tokens)
        return min(self.generation.done, common_prefix(self.generation.tokens, other.tokens))

    def will_share(self, other: Generation) -> int:
        """Return how many of a generation's first tokens will be evaluated here, once the prompt that is at work is."""
        generation = self.generation
        if generation is None or generation.generating or generation.dropped or self.adapters != other.adapters:
            return self.shares(other)
        return common_prefix(generation.tokens, other.tokens)


class Scheduler:
    """Slots, the line of those who wait for one, and the next batch.

    `copy_cost` is what a copy costs, in tokens. Prompts of which more than `aside` tokens are pending are never planned
    but offered by next_aside(); 0 where there is no siding. So are those of more than `aside_short`, if that is not 0;
    but not where little is pending after a long beginning, which would have to be copied, there and back. `whole_only`:
    a slot's cells can't be taken over in part. `room` is how many tokens of one generation may be evaluated before its
    context must be shifted; None: any number.
    """

    def __init__(self, slots: int, n_batch: int, copy_cost: int = 32):
        self.n_batch = n_batch
        self.copy_cost = copy_cost
        self.aside = self.aside_short = 0
        self.whole_only = False
        self.room: Optional[int] = None
        self.waiting: Deque[Generation] = collections.deque()
        self._slots = [_Slot(index) for index in range(slots)]
        self._uses = 0
        self.turn: Adapters = ()  # what the next batch is computed with
        self._turns: Dict[Adapters, int] = {}  # when each had its last turn; larger is later

    @property
    def running(self) -> List[Generation]:
        """The generations that have a slot."""
        return [slot.generation for slot in self._slots if slot.generation is not None]

    def submit(self, generation: Generation) -> None:
        """Put a generation at the end of the line."""
        self.waiting.append(generation)

    def next_in_line(self, model: Optional[str]) -> Optional[Generation]:
        """Return the first in line for whom a slot is free, if it and all before it need `model`."""
        before = itertools.takewhile(lambda each: each.model == model, self.waiting)
        return next((generation for generation in before if self._free(generation)), None)

    def wanted_model(self) -> Optional[str]:
        """Return the model that the first in line needs, or None when nobody waits."""
        return self.waiting[0].model if self.waiting else None

    # ---- admission and reuse

    def admit(self) -> Reuse:
        """Give the first in line a free slot; the module's docstring says which. Its tokens must be known.

        Returns what it may keep of its own slot's cells. What it will copy, next_reuse() says when it is time.
        """
        generation = next(generation for generation in self.waiting if self._free(generation))
        self.waiting.remove(generation)
        slot, kept = self._choose_slot(generation)
        generation.slot = slot.index
        generation.become(State.PROMPT)
        slot.generation = generation
        self._touch(slot)
        generation.order = self._uses
        return Reuse(generation, slot.index, kept)

    def next_reuse(self) -> Optional[Reuse]:
        """Return a copy that is due. One at a time: each takes as long as part of a step, and streams wait for it."""
        for slot in self._slots:
            generation = slot.generation
            if generation is None or generation.source < 0:
                continue
            source = self._slots[generation.source]
            count = min(source.shares(generation), len(generation.tokens) - 1)
            if count < generation.expected and self._is_coming(source, generation):
                continue
            generation.source = -1
            if count > self.copy_cost:
                self._touch(source)
                return Reuse(generation, source.index, count)
        return None

    def reused(self, reuse: Reuse, count: int) -> None:
        """The first `count` tokens of the generation are in its slot's cells now; nothing else is."""
        reuse.generation.done = count

    def _free(self, generation: Generation) -> List[_Slot]:
        """Return the free slots that a generation may have, the least recently used first."""
        wanted = generation.ask.slot
        some = self._slots if wanted is None else self._slots[wanted : wanted + 1]
        return sorted((slot for slot in some if slot.generation is None), key=lambda slot: slot.used)

    def _choose_slot(self, generation: Generation) -> Tuple[_Slot, int]:
        """Return a free slot and how many of its cells can be kept; plan a copy where one is worth it."""
        free = self._free(generation)
        if not generation.reuse:
            return free[0], 0
        limit = len(generation.tokens) - 1  # a prompt's last token is always evaluated: it gives the first logits
        if self.whole_only:
            return _longest_whole(free, generation.tokens[:limit], generation.adapters)
        own = max(free, key=lambda slot: slot.shares(generation))
        kept = min(own.shares(generation), limit)
        if generation.ask.slot is not None:
            return own, kept
        best = max(self._slots, key=lambda slot: slot.will_share(generation))
        offered = min(best.will_share(generation), limit)
        if kept * 2 >= len(own.cells) and kept + self.copy_cost >= offered:
            return own, kept  # 1
        if offered > self.copy_cost:
            target = next((slot for slot in free if slot is not best), None)
            if target is None:
                return own, kept
            generation.source, generation.expected = best.index, offered
            return target, 0  # 2
        return free[0], min(free[0].shares(generation), limit)  # 3

    def _is_coming(self, source: _Slot, generation: Generation) -> bool:
        """Whether a prompt that is being evaluated in `source` will hold what `generation` waits for.

        One admitted later, to a slot that was idle when the copy was planned, may itself wait for `generation`.
        """
        other = source.generation
        if other is None or other.generating or other.order > generation.order:
            return False
        return source.will_share(generation) >= generation.expected

    def _touch(self, slot: _Slot) -> None:
        self._uses += 1
        slot.used = self._uses

    # ---- steps

    def next_aside(self) -> Optional[Generation]:
        """Return the prompt for the siding that was admitted first, or None."""
        prompts = [each for each in self._prompts() if self._goes_aside(each)]
        return min(prompts, key=lambda each: each.order, default=None)

    def returned(self, generation: Generation, done: int) -> None:
        """A prompt's first `done` tokens have been evaluated aside, and are in its slot's cells; none if it failed."""
        generation.done = done
        generation.in_batches = True

    def take_turn(self) -> None:
        """Let those with other adapters have their turn: a batch is computed with one set of them."""
        ready = {each.adapters for each in self._in_batches() + self._streams()} or {self.turn}
        latest = max(self._turns.values(), default=0)
        self._turns = {adapters: self._turns.get(adapters, latest) for adapters in ready}  # who is new, is the last
        self.turn = min(ready, key=lambda adapters: (self._turns[adapters], adapters == self.turn))
        self._turns[self.turn] = latest + 1

    def _prompts(self) -> List[Generation]:
        return [each for each in self.running if not each.generating and each.source < 0]

    def _in_batches(self) -> List[Generation]:
        return [each for each in self._prompts() if not self._goes_aside(each)]

    def _streams(self) -> List[Generation]:
        return [each for each in self.running if each.generating and not each.paused]

    def _goes_aside(self, generation: Generation) -> bool:
        if not self.aside or generation.in_batches or (self.room is not None and len(generation.tokens) > self.room):
            return False
        short = bool(self.aside_short) and generation.pending > max(self.aside_short, generation.done // COPIED)
        return short or generation.pending > self.aside

    def streams(self) -> List[Generation]:
        """Return the generations that generate and are not paused, of those whose turn it is."""
        return [each for each in self._streams() if each.adapters == self.turn]

    def prompts(self) -> List[Generation]:
        """Return the generations whose prompts are evaluated in batches, of those whose turn it is."""
        return [each for each in self._in_batches() if each.adapters == self.turn]

    def plan(self, prompt_budget: int) -> List[Chunk]:
        """Return the next batch: every stream's one token, then `prompt_budget` rows of prompts, shared evenly.

        llama.cpp computes sequences of unequal lengths in parts of equal ones: beside streams, a row of each of them,
        then what is left of the prompts. There it is what follows each prompt's first row that is counted. A tail of
        less than a block costs as much as a whole one: where only its own client waits, a prompt's comes along.
        """
        streams = self.streams()
        chunks = [Chunk(each, each.done, each.pending, tuple(each.drafts)) for each in streams]
        prompts = sorted(self.prompts(), key=lambda each: each.pending)
        prompts = prompts[: _power_of_two(len(prompts))]
        first = 1 if streams else 0
        if not streams and len(prompts) == 1 and self._pending(prompts[0]) < prompt_budget + Pace.BLOCK:
            prompt_budget += Pace.BLOCK - 1
        left = min(prompt_budget, self.n_batch - sum(chunk.rows for chunk in chunks) - first * len(prompts))
        for position, generation in enumerate(prompts):
            # What a short prompt leaves of its share goes to the longer ones after it.
            count = min(self._pending(generation), first + left // (len(prompts) - position))
            if count > 0:
                chunks.append(Chunk(generation, generation.done, count))
                left -= count - first
        return chunks

    def _pending(self, generation: Generation) -> int:
        """Return how many tokens are to be evaluated before the context must be shifted, if it must."""
        room = generation.pending if self.room is None else self.room - generation.done
        return min(generation.pending, room)

    def commit(self, chunks: List[Chunk]) -> None:
        """Count what was evaluated as done."""
        for chunk in chunks:
            chunk.generation.done += chunk.count
            if chunk.last and not chunk.generation.generating:
                chunk.generation.become(State.GENERATING)

    def release(self, generation: Generation) -> None:
        """Take a generation out: of the line, or of its slot, where its cells stay."""
        if generation.slot < 0:
            if generation in self.waiting:
                self.waiting.remove(generation)
            return
        slot = self._slots[generation.slot]
        slot.kept_adapters = generation.adapters
        slot.generation, slot.cells = None, [] if generation.dropped else generation.tokens[: generation.done]
        self._touch(slot)

    def cells(self, slot: int) -> List[int]:
        """Return the tokens that a slot's cells hold."""
        generation = self._slots[slot].generation
        return self._slots[slot].cells if generation is None else generation.tokens[: generation.done]

    def is_free(self, slot: int) -> bool:
        """Whether nobody has a slot."""
        return self._slots[slot].generation is None

    def adapters(self, slot: int) -> Adapters:
        """Return what a slot's cells are computed with."""
        return self._slots[slot].adapters

    def hold(self, slot: int, tokens: List[int], adapters: Adapters = ()) -> None:
        """The cells of a slot that nobody has are these tokens' now."""
        self._slots[slot].cells, self._slots[slot].kept_adapters = list(tokens), adapters
        self._touch(self._slots[slot])

    def idle_slots(self) -> List[int]:
        """Return the slots that nobody has and whose cells hold something, the least recently used first."""
        idle = [slot for slot in self._slots if slot.generation is None and slot.cells]
        return [slot.index for slot in sorted(idle, key=lambda slot: slot.used)]

    def forget(self, slot: int) -> None:
        """The cells of a slot that nobody has are gone."""
        self._slots[slot].cells = []

    def restart(self) -> None:
        """All cells are gone: those who run are evaluated again from their first token."""
        for slot in self._slots:
            slot.cells = []
            if slot.generation is not None:
                slot.generation.lose_cells()
                if slot.generation.generating:
                    slot.generation.become(State.PROMPT)


def _longest_whole(free: List[_Slot], tokens: List[int], adapters: Adapters) -> Tuple[_Slot, int]:
    """Return the slot with the most cells of which all begin `tokens`, and how many; else the first slot, and 0."""
    whole = [slot for slot in free if slot.adapters == adapters and slot.cells == tokens[: len(slot.cells)]]
    best = max(whole, key=lambda slot: len(slot.cells), default=None)
    return (best, len(best.cells)) if best else (free[0], 0)


def _power_of_two(count: int) -> int:
    """Return the largest power of two that is no larger than `count`, or 0: so many share a block's rows evenly."""
    return 1 << count.bit_length() - 1 if count else 0


def common_prefix(a: List[int], b: List[int]) -> int:
    """Return how many tokens two lists have in common at their beginning; bisects, since slices compare in C."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low
