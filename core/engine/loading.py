"""Swapping models: one is resident at a time. The engine's thread's."""

import time
from typing import Callable

from core.engine.aside import ASIDE_TOKENS
from core.engine.resident import Resident
from core.engine.running import Running
from core.errors import APIError
from core.models import ModelFile


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
        self.unload()
        started = time.monotonic()
        self.loading, self.progress = True, 0.0
        self._on_event("loading", model=file.name)
        try:
            self._move_in(Resident(file, self._running.settings, self._tell_progress))
        except APIError as error:
            self._on_event("failed", model=file.name, why=error.message)
            waiting = self._running.scheduler.waiting
            for generation in [each for each in waiting if each.model == file.path]:
                self._running.end(generation, error)
        else:
            self._on_event("ready", model=file.name, seconds=round(time.monotonic() - started, 3))
        self._go_on()
        self.loading = False

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
        scheduler.aside = ASIDE_TOKENS if resident.siding else 0
        self._running.resident = resident

    def unload(self) -> None:
        """Free the model that is loaded, if one is."""
        resident, self._running.resident = self._running.resident, None
        self._running.scheduler.restart()
        if resident:
            resident.close()
