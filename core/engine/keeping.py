"""What is done with the cells of a slot that nobody has: they are copied out, put back, or given up.

    any thread          SlotTask(slot, save | restore(…) | erase) ──> Engine.enqueue ──> the inbox
    engine's thread     Keeping.run: between two steps, as soon as the slot is free, before anybody else gets it
    any thread          task.outcome(seconds): what it returned

A task waits for the generation that has its slot. The cells are copied here; what becomes of the bytes (a file, say) is
not the engine's thread's matter.
"""

import queue
from dataclasses import replace
from typing import Any, Callable, List, NamedTuple, Optional, Union

from core.engine.cells import SavedCells
from core.engine.resident import Resident
from core.engine.running import Running
from core.errors import APIError
from core.models import ModelFile


class Kept(NamedTuple):
    """What a slot held: tokens, and their cells. `model`, with its LoRA adapters, is what evaluated them."""

    model: ModelFile
    tokens: List[int]
    cells: SavedCells


class SlotTask:
    """Something to do with a slot, once nobody has it. `work(running, slot)` is called in the engine's thread."""

    def __init__(self, slot: int, work: Callable[[Running, int], Any]):
        self.slot = slot
        self.cancelled = False  # nobody waits for the outcome any more; set by any thread
        self._work = work
        self._outcome: "queue.SimpleQueue[Any]" = queue.SimpleQueue()

    def do(self, running: Running) -> None:
        """Do it. The engine's thread's."""
        try:
            self._outcome.put((self._work(running, self.slot),))
        except APIError as error:
            self._outcome.put(error)

    def fail(self, error: APIError) -> None:
        """Give it up. The engine's thread's."""
        self._outcome.put(error)

    def outcome(self, timeout: float) -> Optional[Any]:
        """Return what `work` returned, in a tuple; None where nothing comes in `timeout` s. Raises its APIError."""
        try:
            outcome: Union[Any, APIError] = self._outcome.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(outcome, APIError):
            raise outcome
        return outcome


class Keeping:
    """The tasks that wait for their slots. The engine's thread's."""

    def __init__(self, running: Running):
        self._running = running
        self._waiting: List[SlotTask] = []

    def add(self, task: SlotTask) -> None:
        """Take a task in."""
        self._waiting.append(task)

    def run(self) -> None:
        """Do what can be done now, in the order in which it came."""
        waiting, self._waiting = self._waiting, []
        for task in waiting:
            if task.cancelled:
                continue
            if self._running.scheduler.is_free(task.slot):
                task.do(self._running)
            else:
                self._waiting.append(task)

    def fail(self, error: APIError) -> None:
        """Give all of them up."""
        while self._waiting:
            self._waiting.pop().fail(error)


def save(running: Running, slot: int) -> Kept:
    """Return a copy of what a slot holds. Raises APIError 400 where that is nothing, 501 for a model that can't."""
    resident = _resident(running)
    tokens = list(running.scheduler.cells(slot))
    if not tokens:
        raise APIError(400, "Slot %d holds nothing that could be saved." % slot, "slot_empty", "id_slot")
    model = replace(resident.model.file, adapters=running.scheduler.adapters(slot))
    return Kept(model, tokens, resident.context.save(slot))


def restore(kept: Kept) -> Callable[[Running, int], int]:
    """Return what puts cells into a slot, in place of what it holds, and returns how many tokens it holds then.

    Raises APIError 400 where they do not fit, 409 where another model is loaded by now; then the slot is empty.
    """

    def put_back(running: Running, slot: int) -> int:
        resident = _resident(running)
        if resident.model.file != kept.model.bare():
            raise APIError(409, "Another model has just been loaded.", "other_model", headers=[("Retry-After", "1")])
        running.forget(slot)
        fits = len(kept.tokens) <= resident.context.n_ctx
        if not fits or not resident.context.load(slot, kept.cells):
            raise _unfit(running, slot, "it does not fit in the slot")
        if resident.context.positions(slot) != len(kept.tokens):
            raise _unfit(running, slot, "its cells are not those of its tokens")
        running.scheduler.hold(slot, kept.tokens, kept.model.adapters)
        return len(kept.tokens)

    return put_back


def erase(running: Running, slot: int) -> int:
    """Empty a slot. Returns how many tokens it held."""
    count = len(running.scheduler.cells(slot))
    if running.resident:
        running.forget(slot)
    return count


def _unfit(running: Running, slot: int, why: str) -> APIError:
    running.forget(slot)
    return APIError(400, "Unable to restore slot: %s." % why, "bad_state", "filename")


def _resident(running: Running) -> Resident:
    """Return what is loaded. Raises APIError 503 where nothing is, 501 for a model whose cells can't be kept."""
    resident = running.resident
    if resident is None:
        raise APIError(503, "No model is loaded yet.", "not_ready", headers=[("Retry-After", "1")])
    if not resident.model.plain_cells or resident.model.pooling:
        name = resident.model.file.name
        raise APIError(501, "%s does not keep a cell for each token: its slots can't be saved." % name, "not_supported")
    return resident
