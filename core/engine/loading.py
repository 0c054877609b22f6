"""Swapping models: one is resident at a time. The engine's thread's.

Before a model is loaded, its need is held against the memory that there is, what the one before gives back included.
One that can't fit is refused, and the one before stays loaded. Where nothing is loaded (at start), only a model is
refused for which the machine is too small altogether: other programs may end, and there is nothing else to serve.
"""

import logging
import time
from typing import Callable, Optional

from core import memory
from core.engine.llama.native import uses_gpu
from core.engine.resident import Resident
from core.engine.running import Running
from core.engine.siding import LONG
from core.errors import APIError
from core.models import ModelFile
from core.needs import lacks_memory, need_of, verdict

log = logging.getLogger("comeapi.engine")


class Loading:
    """Loads a model in place of another. `on_event` is as Engine has it.

    `go_on` is called now and then while a model loads, and answers whether to go on.
    """

    def __init__(self, running: Running, on_event: Callable[..., None], go_on: Callable[[], bool]):
        self._running = running
        self._on_event = on_event
        self._go_on = go_on
        self.loading = False
        self.progress = 0.0  # the share of the model that is loaded
        self._bare: Optional[int] = None  # bytes of memory that this process had for itself before it loaded a model

    def switch(self) -> None:
        """Load the model that the first in line needs, once nothing runs on the other one."""
        scheduler = self._running.scheduler
        wanted = scheduler.wanted_model()
        if wanted is not None and wanted != self._running.path and not scheduler.running:
            self.load(scheduler.waiting[0].ask.model)

    def load(self, file: ModelFile) -> None:
        """Swap models. What fails, fails those who wait for it."""
        if file.path == self._running.path:
            return
        file = file.bare()
        try:
            self._check_memory(file)
            self.unload()
            self._load(file)
        except APIError as error:
            self._on_event("failed", model=file.name, why=error.message, memory=_lacks_memory(error))
            waiting = self._running.scheduler.waiting
            for generation in [each for each in waiting if each.model == file.path]:
                self._running.end(generation, error)
        self._go_on()
        self.loading = False

    def _load(self, file: ModelFile) -> None:
        started = time.monotonic()
        self.loading, self.progress = True, 0.0
        self._on_event("loading", model=file.name)
        self._move_in(Resident(file, self._running.settings, self._tell_progress))
        seconds, resident = time.monotonic() - started, memory.resident_memory()
        self._on_event("ready", model=file.name, seconds=round(seconds, 3), memory=resident)

    def _check_memory(self, file: ModelFile) -> None:
        """Warn of a model that may not fit. Raises APIError 503 for one that can't."""
        resident, settings = self._running.resident, self._running.settings
        private, spare = memory.private_memory(), memory.spare_memory()
        if resident is None:
            self._bare = private
        elif spare is not None and private is not None and self._bare is not None:
            spare += max(private - self._bare, 0)  # the model that is loaded makes room
        need = need_of(settings, file, settings.slots, uses_gpu(settings))
        found = verdict(file.name, need, spare, None if resident else memory.total_memory())
        if found.warning:
            log.warning("⚠️  %s", found.warning)
        if found.refusal:
            raise APIError(503, found.refusal, "out_of_memory", "model_name", headers=[("Retry-After", "30")])

    def _tell_progress(self, share: float) -> bool:
        if share - self.progress >= 0.05:
            self.progress = share
            self._on_event("progress", share=round(share, 2))
        return self._go_on()

    def _move_in(self, resident: Resident) -> None:
        """Let the scheduler plan by what a model that has been loaded can do."""
        scheduler = self._running.scheduler
        scheduler.whole_only = not resident.model.forgets_partly
        # A copy moves all cells of a slot; evaluating about so many of a prompt's tokens takes as long.
        scheduler.copy_cost = max(16, resident.context.n_ctx // 128)
        shifts = self._running.settings.context_shift and not resident.model.pooling
        scheduler.room = resident.context.n_ctx - 1 if shifts else None
        scheduler.aside, scheduler.aside_short = LONG if resident.lazy_siding else 0, 0
        self._running.resident = resident

    def unload(self) -> None:
        """Free the model that is loaded, if one is."""
        resident, self._running.resident = self._running.resident, None
        self._running.scheduler.restart()
        if resident:
            resident.close()


def _lacks_memory(error: APIError) -> bool:
    return error.code == "out_of_memory" or lacks_memory(error.message)
