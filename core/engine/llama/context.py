"""A context: the cells of all slots, what a decode does with them, and what it gives."""

import ctypes
import math
from typing import Any, Callable, List, Tuple
from typing import Sequence as Many

import llama_cpp
import numpy

from core.engine.cells import SavedCells
from core.engine.likeliest import likeliest
from core.engine.llama import native
from core.engine.llama.batch import Batch, Run
from core.engine.llama.model import Model
from core.engine.llama.parameters import context_parameters
from core.errors import APIError
from core.settings import EngineSettings


class Context:
    """The cells of all slots, and the decode that fills them. Raises APIError 500 where memory is short.

    `n_ctx` is the tokens that one slot may hold. kv_unified is off: attention does not walk the other sequences' cells.
    """

    def __init__(self, model: Model, settings: EngineSettings):
        self.n_ctx = settings.slot_ctx or model.trained_context
        if model.trained_context and not settings.stretches:
            self.n_ctx = min(self.n_ctx, model.trained_context)
        params = context_parameters(model, settings, self.n_ctx)
        self._pointer = llama_cpp.llama_init_from_model(model.pointer, params)
        if not self._pointer:
            why = native.start(settings.verbose).last_errors() or "not enough memory?"
            message = "No context of %d x %d tokens for %s: %s" % (settings.slots, self.n_ctx, model.file.name, why)
            raise APIError(500, message, "no_context", "model_name")
        self.n_batch = int(llama_cpp.llama_n_batch(self._pointer))
        self.n_ubatch = int(llama_cpp.llama_n_ubatch(self._pointer))  # rows that are computed at once, at most
        self._memory = llama_cpp.llama_get_memory(self._pointer)
        if settings.context_shift and not model.pooling and not self._shifts(model):
            self.close()
            message = "%s can't go on when its context is full: start without --context-shift." % model.file.name
            raise APIError(500, message, "no_context_shift", "model_name")
        # Whether a text can be evaluated piece by piece: its tokens see only those before them, which are remembered.
        causal = bool(self._memory) and bool(llama_cpp.llama_get_causal_attn(self._pointer))
        self.in_pieces = causal and not model.whole_texts
        # Tokens of the longest text that can be embedded.
        self.longest_text = self.n_ctx if self.in_pieces else min(self.n_ctx, self.n_batch)
        self._widths = llama_cpp.llama_model_n_embd_out(model.pointer), llama_cpp.llama_model_n_cls_out(model.pointer)
        self._adapters = model.adapters
        self._scales: Tuple[float, ...] = ()  # of the adapters that are applied
        self._batch = Batch(self.n_batch, settings.slots)
        self._slots = settings.slots
        self._threads, self._threads_batch = params.n_threads, settings.threads_batch
        self._halt: Any = None

    def apply(self, scales: Tuple[float, ...]) -> None:
        """Apply so much of each LoRA adapter to all decodes from now on; () for none (llama_set_adapters_lora)."""
        if scales == self._scales:
            return
        used = [(pointer, scale) for pointer, scale in zip(self._adapters, scales) if scale]
        pointers = (llama_cpp.llama_adapter_lora_p_ctypes * len(used))(*[pointer for pointer, _ in used])
        factors = (ctypes.c_float * len(used))(*[scale for _, scale in used])
        llama_cpp.llama_set_adapters_lora(self._pointer, pointers, len(used), factors)
        self._scales = scales

    @property
    def pointer(self) -> Any:
        """The llama_context, for samplers."""
        return self._pointer

    def decode(self, runs: Many[Run]) -> Tuple[int, List[int]]:
        """Evaluate runs of tokens in one batch (llama_decode).

        Returns its status (0: done; 1: no room in the cells, which are as before), and each run's first row of logits.
        """
        self._batch.clear()
        rows = [self._batch.add(run) - run.logits for run in runs]
        return llama_cpp.llama_decode(self._pointer, self._batch.native), rows

    def set_threads(self, count: int) -> None:
        """Let the next decodes run on so many threads (llama_set_n_threads)."""
        if count and count != self._threads:
            self._threads = count
            llama_cpp.llama_set_n_threads(self._pointer, count, self._threads_batch or count)

    def trim(self, slot: int, count: int) -> bool:
        """Free all cells of a slot but the first `count` (llama_memory_seq_rm). False where the model can't do that."""
        return bool(llama_cpp.llama_memory_seq_rm(self._memory, slot, count, -1))

    def _shifts(self, model: Model) -> bool:
        """Whether cells can be moved to other positions (llama_memory_can_shift)."""
        return model.plain_cells and bool(llama_cpp.llama_memory_can_shift(self._memory))

    def shift(self, slot: int, keep: int, count: int) -> bool:
        """Free `count` of a slot's cells after the first `keep`, and move those behind them up to their places.

        Only where the context was made for it (EngineSettings.context_shift): else llama.cpp may end the process. False
        where llama.cpp refuses (llama_memory_seq_rm, llama_memory_seq_add).
        """
        freed = llama_cpp.llama_memory_seq_rm(self._memory, slot, keep, keep + count)
        if freed:
            llama_cpp.llama_memory_seq_add(self._memory, slot, keep + count, -1, -count)
        return bool(freed)

    def reuse(self, source: int, slot: int, count: int) -> int:
        """Put the first `count` tokens of `source` into `slot`, and nothing else. Returns how many are there now.

        It is all or nothing: recurrent, hybrid and sliding-window models may refuse to give up only their last cells
        (llama_memory_seq_rm answers False, or the first cells have gone); then the slot is left empty. Copies whole
        slots only: with kv_unified off, a partial llama_memory_seq_cp ends the process.
        """
        if source != slot:
            self.forget(slot)
            llama_cpp.llama_memory_seq_cp(self._memory, source, slot, -1, -1)
        whole = self.positions(slot) == count
        cut = not whole and count > 0 and self.trim(slot, count)
        if whole or (cut and self.positions(slot) == count and self._first_position(slot) == 0):
            return count
        self.forget(slot)
        return 0

    def forget(self, slot: int) -> None:
        """Free a slot's cells."""
        llama_cpp.llama_memory_seq_rm(self._memory, slot, -1, -1)

    def saved_size(self, slot: int) -> int:
        """Return how many bytes save() needs for a slot's cells, as they are now."""
        return int(llama_cpp.llama_state_seq_get_size(self._pointer, slot)) + SavedCells.SPARE

    def save(self, slot: int, buffer: Any = None) -> SavedCells:
        """Return a copy of a slot's cells, for load(): in a buffer, an array of bytes, where that is large enough.

        Raises APIError 500 where llama.cpp gives none.
        """
        needed = self.saved_size(slot)
        if buffer is None or len(buffer) < needed:
            buffer = numpy.zeros(needed, numpy.uint8)
        size = needed - SavedCells.SPARE
        if not size or llama_cpp.llama_state_seq_get_data(self._pointer, _bytes(buffer), size, slot) != size:
            raise APIError(500, "The cells of slot %d can't be copied." % slot, "cells_lost")
        return SavedCells(buffer, size, self._slots, slot)

    def load(self, slot: int, saved: SavedCells) -> bool:
        """Put cells that save() has copied, perhaps in another context, into a slot. False if refused."""
        state = saved.state(self._slots)
        return bool(llama_cpp.llama_state_seq_set_data(self._pointer, _bytes(state), len(state), slot))

    def call_between(self, halt: Callable[[], bool]) -> None:
        """Call `halt` between any two operations of a decode on the CPU. It may take its time; True ends the decode.

        decode() answers 2 then (llama_set_abort_callback). It is called in the thread that decodes.
        """
        self._halt = llama_cpp.ggml_abort_callback(lambda _: halt())  # kept: C holds only its address
        llama_cpp.llama_set_abort_callback(self._pointer, self._halt, None)

    def _first_position(self, slot: int) -> int:
        return llama_cpp.llama_memory_seq_pos_min(self._memory, slot)

    def logits(self, row: int, vocabulary: int) -> Any:
        """Return a row's logits as an array of float32 that the next decode() overwrites (llama_get_logits_ith)."""
        return numpy.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._pointer, row), (vocabulary,))

    def log_probabilities(
        self, row: int, vocabulary: int, token: int, most: int
    ) -> Tuple[float, List[Tuple[int, float]]]:
        """Return a token's log probability in a row, and the `most` likeliest tokens with theirs, likeliest first."""
        logits = self.logits(row, vocabulary).astype(numpy.float64)
        logits -= logits.max()
        logits -= math.log(numpy.exp(logits).sum())
        top = likeliest(logits, most)
        top = top[numpy.argsort(-logits[top], kind="stable")]
        return float(logits[token]), [(int(each), float(logits[each])) for each in top]

    def embed(self, runs: Many[Run]) -> Tuple[int, Any]:
        """Evaluate runs, all of whose rows want results, of a model that gives embeddings.

        Returns llama_decode's status, and an array of the rows' vectors that the next decode overwrites
        (llama_get_embeddings). The rows are pooled in embedding.py.
        """
        status, _ = self.decode(runs)
        if status:
            return status, None
        shape = sum(len(run.tokens) for run in runs), self._widths[0]
        return status, numpy.ctypeslib.as_array(llama_cpp.llama_get_embeddings(self._pointer), shape)

    def ranks(self, slot: int) -> Any:
        """Return an array of what a model that ranks says of a slot's pair (llama_get_embeddings_seq)."""
        pointer = llama_cpp.llama_get_embeddings_seq(self._pointer, slot)
        return numpy.ctypeslib.as_array(pointer, (self._widths[1],))

    def settle(self) -> None:
        """Let the last decode's results be read by several threads at once: the first read puts them in order."""
        llama_cpp.llama_get_logits_ith(self._pointer, -1)

    def positions(self, slot: int) -> int:
        """Return how many positions a slot's cells hold."""
        return llama_cpp.llama_memory_seq_pos_max(self._memory, slot) + 1

    def close(self) -> None:
        """Free the context."""
        llama_cpp.llama_free(self._pointer)


def _bytes(buffer: Any) -> Any:
    return buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
