"""A model that is loaded, with what it needs to run: loading, the self-test, and the way out."""

import logging
import time
from typing import Callable, Dict, List, Optional, Tuple

from core.engine.draftmodel import DraftModel
from core.engine.llama.batch import Run
from core.engine.llama.context import Context
from core.engine.llama.model import Model
from core.engine.making import LazySiding, can_set_aside
from core.engine.sampler import Sampler
from core.engine.siding import Siding
from core.errors import APIError
from core.models import ModelFile
from core.sampling import Sampling
from core.settings import EngineSettings

log = logging.getLogger("comeapi.engine")

SELF_TEST_TOKENS = 8


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
        """Where long prompts are evaluated, once it is made."""
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
            if can_set_aside(self.model, self.settings) and self._cells_move():
                self.lazy_siding = LazySiding(self.model, self.settings)
        self.context.forget(0)

    def _passed(self, status: int) -> None:
        if status:
            message = "%s fails its self-test: llama_decode answers %d." % (self.model.file.name, status)
            raise APIError(500, message, "model_broken", "model_name")

    def _cells_move(self) -> bool:
        """Whether slot 0's cells, of which it holds some now, can be copied by way of a buffer."""
        try:
            moved = self.context.load(1, self.context.save(0))
        except APIError as error:
            log.warning("long prompts are evaluated in batches: %s", error.message)
            return False
        moved = moved and self.context.positions(1) == self.context.positions(0)
        self.context.forget(1)
        return moved
