"""How a siding is made: whether there can be one, when, and of what. siding.py says what it is for.

    can_set_aside(model, settings)          whether prompts can be evaluated aside
    LazySiding(model, settings)             makes it when it is asked to; aside.py says when
    make_siding(model, settings)            a Siding, if memory is there
        mapped_for_prompts(model, ...)      its own weights, where prompts are faster with those of the file
        context_aside(weights, settings)    its context

A server starts sooner without a siding: it is made later, in a thread. `comeapi.py tune` measures prompts with the same
weights and context.
"""

import concurrent.futures
import logging
import os
import threading
from dataclasses import replace
from typing import Optional

from core import memory
from core.engine.llama.context import Context
from core.engine.llama.model import Model
from core.engine.llama.native import halts_well, maps_for_prompts, uses_gpu
from core.engine.siding import Siding
from core.errors import APIError
from core.needs import aside_bytes, gb
from core.settings import EngineSettings

log = logging.getLogger("comeapi.engine")

_ROWS = 128  # at once: enough for the fast kernels; no operation takes long, and threads that are lent can go soon


def can_set_aside(model: Model, settings: EngineSettings) -> bool:
    """Whether llama.cpp can halt a decode of this model, and its slots' cells are of a kind that can be moved."""
    wanted = settings.siding == "on" or (settings.siding == "auto" and halts_well(settings))
    return wanted and settings.slots > 1 and model.plain_cells


class LazySiding:
    """A siding that is made when it is first asked for. For the engine's thread.

    A thread of its own makes it. `quick`: it should be a quick one.
    """

    def __init__(self, model: Model, settings: EngineSettings):
        self.quick = maps_for_prompts(settings, model.file)
        self._model = model
        self._settings = settings
        self._making: "Optional[concurrent.futures.Future[Siding]]" = None

    @property
    def siding(self) -> Optional[Siding]:
        """The siding, once it is made."""
        made = self._making and self._making.done() and not self._making.exception()
        return self._making.result() if self._making and made else None

    @property
    def being_made(self) -> bool:
        """Whether a thread makes it now; steps take longer meanwhile."""
        return self._making is not None and not self._making.done()

    def prepare(self) -> "concurrent.futures.Future[Siding]":
        """Let the siding be made, if nobody has asked for it before."""
        if self._making is None:
            self._making = concurrent.futures.Future()
            threading.Thread(target=self._run, args=(self._making,), name="siding's maker", daemon=True).start()
        return self._making

    def get(self, seconds: float) -> Optional[Siding]:
        """Return the siding; wait for it that long, at most. None where it takes longer.

        Raises APIError where it can't be made; the next call tries again.
        """
        try:
            return self.prepare().result(seconds)
        except concurrent.futures.TimeoutError:
            return None
        except Exception:
            self._making = None
            raise

    def close(self) -> None:
        """Free the siding, once it is made if that has begun."""
        if self._making and not self._making.exception():
            self._making.result().close()

    def _make(self) -> Siding:
        return make_siding(self._model, self._settings)

    def _run(self, making: "concurrent.futures.Future[Siding]") -> None:
        try:
            making.set_result(self._make())
        except Exception as error:
            making.set_exception(error)


def make_siding(model: Model, settings: EngineSettings) -> Siding:
    """Return a siding. Raises APIError where memory is short: the system might kill this process."""
    spare, need = memory.spare_memory(), aside_bytes(settings, model.file, uses_gpu(settings))
    if spare is not None and spare < need:
        raise APIError(503, "it needs %s of memory, %s are free" % (gb(need), gb(spare)), "out_of_memory")
    roomy = spare is None or spare >= need + model.file.size
    weights = mapped_for_prompts(model, settings) if roomy else None
    try:
        return Siding(context_aside(weights or model, settings), weights)
    except APIError:
        if weights:
            weights.close()
        raise


def mapped_for_prompts(model: Model, settings: EngineSettings) -> Optional[Model]:
    """Return the model as it is in its file, not repacked, where prompts are faster with it.

    None where they are not, and where the file is another one by now.
    """
    file = model.file
    try:
        if maps_for_prompts(settings, file) and os.stat(file.path).st_mtime == file.modified:
            as_it_is = replace(settings, safe_mode=True, no_mmap=False, mlock=False)
            return Model(file, as_it_is, lambda share: True)
    except (OSError, APIError) as error:
        log.warning("prompts are evaluated with repacked weights: %s", error)
    return None


def context_aside(weights: Model, settings: EngineSettings) -> Context:
    """Return a context of one slot, for a long prompt. Raises APIError 500."""
    small = replace(settings, slots=1, batch_size=_ROWS, ubatch_size=0, draft_max=0, model_draft="")
    return Context(weights, small)
