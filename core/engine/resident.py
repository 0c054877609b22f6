"""A model that is loaded, with what it needs to run: loading, the self-test, and the way out."""

import logging
import os
import time
from dataclasses import replace
from typing import Callable, Dict, List, Optional, Tuple

from core import memory
from core.engine.draftmodel import DraftModel
from core.engine.llama.batch import Run
from core.engine.llama.context import Context
from core.engine.llama.model import Model
from core.engine.llama.native import halts_well, maps_for_prompts, uses_gpu
from core.engine.sampler import Sampler
from core.engine.siding import LazySiding, Siding
from core.errors import APIError
from core.models import ModelFile
from core.needs import aside_bytes, gb
from core.sampling import Sampling
from core.settings import EngineSettings

log = logging.getLogger("comeapi.engine")

SELF_TEST_TOKENS = 8
SIDING_ROWS = 128  # enough for the fast kernels; no operation takes long, and threads that are lent can go soon


class Resident:
    """A model, its context and, where it can have one, its siding. It has passed its self-test. The engine's thread's.

    `progress` is told the share that is loaded, and answers whether to go on. Raises APIError 500 where llama.cpp
    refuses the model, or this machine can't run it; then nothing of it stays in memory.
    """

    def __init__(self, file: ModelFile, settings: EngineSettings, progress: Callable[[float], bool]):
        self.settings = settings
        self.lazy_siding: Optional[LazySiding] = None
        self.draft_model: Optional[DraftModel] = None
        self.described: Dict[int, Tuple[str, List[int]]] = {}  # tokens' texts and bytes, for all who tell probabilities
        self.slowest_batch = 0.0  # seconds that a full batch may take, judged by the self-test
        self.model = Model(file, settings, progress)
        try:
            self.context = Context(self.model, settings)
        except APIError:
            self.model.close()
            raise
        try:
            self._self_test()
        except APIError:
            self.close()
            raise
        # Whether to guess ahead
        self.drafts = settings.guesses_ahead and self.model.forgets_partly and not self.model.pooling
        self.draft_model = self._load_draft_model() if self.drafts and settings.model_draft else None

    def _load_draft_model(self) -> Optional[DraftModel]:
        """Return the model that guesses; None where it does not fit: this one may be another than it was given for."""
        try:
            return DraftModel(self.settings, self.model)
        except APIError as error:
            log.warning("guesses come from the text alone: %s", error.message)
            return None

    @property
    def siding(self) -> Optional[Siding]:
        """Where long prompts are evaluated, once one has come."""
        return self.lazy_siding.siding if self.lazy_siding else None

    def renew_context(self) -> None:
        """Begin with empty cells, in a context of its own. Raises APIError 500 where memory is short."""
        self.context.close()
        self.context = Context(self.model, self.settings)

    def close(self) -> None:
        """Free all of it."""
        if self.lazy_siding:
            self.lazy_siding.close()
        if self.draft_model:
            self.draft_model.close()
        self.context.close()
        self.model.close()

    # ---- the self-test

    def _self_test(self) -> None:
        """Run a prompt and a single token: where this machine can't run this model, better now than in a request."""
        tokens = [0] * SELF_TEST_TOKENS
        if self.model.pooling:
            started = time.monotonic()
            status, _ = self.context.decode([Run(0, 0, tokens, len(tokens))])
            self.slowest_batch = (time.monotonic() - started) * self.context.n_batch / SELF_TEST_TOKENS
            self._passed(status)
        else:
            self._passed(self.context.decode([Run(0, 0, tokens[:-1])])[0])
            started = time.monotonic()
            status, rows = self.context.decode([Run(0, len(tokens) - 1, tokens[-1:], 1)])
            # In a batch of many, a row costs no more than alone.
            self.slowest_batch = (time.monotonic() - started) * self.settings.rows
            self._passed(status)
            sampler = Sampler(self.model, Sampling(temperature=0), 0, self.context.n_ctx)
            sampler.sample(self.context, rows[0], 0)
            sampler.close()
            if self._can_set_aside():  # asked now, while slot 0 holds cells to try it with
                quick = maps_for_prompts(self.settings, self.model.file)
                self.lazy_siding = LazySiding(self._make_siding, quick)
        self.context.forget(0)

    def _passed(self, status: int) -> None:
        if status:
            message = "%s fails its self-test: llama_decode answers %d." % (self.model.file.name, status)
            raise APIError(500, message, "model_broken", "model_name")

    def _can_set_aside(self) -> bool:
        """Whether llama.cpp can halt a decode, and this model's cells can be moved."""
        settings = self.settings
        wanted = settings.siding == "on" or (settings.siding == "auto" and halts_well(settings))
        return wanted and settings.slots > 1 and self.model.plain_cells and self._cells_move()

    def _make_siding(self) -> Siding:
        """Return a siding. Raises APIError where memory is short: the system might kill this process."""
        file, spare = self.model.file, memory.spare_memory()
        need = aside_bytes(self.settings, file, uses_gpu(self.settings))
        if spare is not None and spare < need:
            raise APIError(503, "it needs %s of memory, %s are free" % (gb(need), gb(spare)), "out_of_memory")
        settings = replace(self.settings, slots=1, batch_size=SIDING_ROWS, ubatch_size=0, draft_max=0, model_draft="")
        roomy = spare is None or spare >= need + file.size
        weights = self._weights_aside(settings) if self.lazy_siding and self.lazy_siding.quick and roomy else None
        try:
            return Siding(Context(weights or self.model, settings), weights)
        except APIError:
            if weights:
                weights.close()
            raise

    def _weights_aside(self, settings: EngineSettings) -> Optional[Model]:
        """Return the model as it is in its file, not repacked; None where that is another file by now."""
        file = self.model.file
        try:
            if os.stat(file.path).st_mtime == file.modified:
                return Model(file, replace(settings, safe_mode=True), lambda share: True)
        except (OSError, APIError) as error:
            log.warning("prompts are evaluated with repacked weights: %s", error)
        return None

    def _cells_move(self) -> bool:
        """Whether slot 0's cells can be copied by way of a buffer."""
        try:
            moved = self.context.load(1, self.context.save(0))
        except APIError as error:
            log.warning("long prompts are evaluated in batches: %s", error.message)
            return False
        moved = moved and self.context.positions(1) == self.context.positions(0)
        self.context.forget(1)
        return moved
