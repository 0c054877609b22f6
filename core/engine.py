"""The engine: continuous batching over llama_cpp's low-level API. The only file that imports llama_cpp.

    HTTP threads ── submit(job) ──> inbox ──┐
                                            ▼
                              the engine's one thread: receive → switch model → admit → step
                                                        step = plan → llama_decode → sample → emit
    HTTP threads <── job.events ────────────┘

From the bottom up, which is also the order of this file:

    EngineSampling, Job              what is asked for
    Model                      one GGUF file's weights and vocabulary      (llama_model, llama_vocab)
    Batch, Context             the sequences' cells, and one decode step   (llama_batch, llama_context)
    Sampler                    one request's choice of tokens              (llama_sampler chain)
    Engine                     the thread, and what others may call

Only the engine's thread touches a Context or a Sampler. A Model's vocabulary may be read by any thread while the
model's lock is held. Every request has one queue on which its events come, and everything else is handed over through
the inbox: nothing here waits for a lock while it computes. llama_decode releases the GIL: HTTP threads run meanwhile.
"""

import array
import collections
import ctypes
import logging
import math
import queue
import secrets
import threading
import time
import traceback
from dataclasses import dataclass, field
from typing import Any, Callable, Deque, Dict, List, Optional
from typing import Sequence as Many

import llama_cpp
import numpy

from core.machine import cores
from core.models import ModelFile
from core.sampling import RANDOM_SEED, Sampling
from core.scheduler import Chunk, Pace, Reuse, Scheduler, Sequence
from core.service import APIError
from core.settings import EngineSettings
from core.text import TextOut

log = logging.getLogger("comeapi.engine")


@dataclass(frozen=True)
class Piece:
    """New text of an answer (perhaps none yet) and the tokens it came with."""

    text: str
    tokens: List[int]


@dataclass(frozen=True)
class Finished:
    """The end of an answer: why ("stop" or "length"), how many tokens, and how long each part took (ms).

    `cached_tokens` of the prompt's were not evaluated but taken from other requests' cells.
    """

    reason: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    timings: Dict[str, float]


@dataclass(eq=False)
class Job:
    """One request to the engine. `events` yields Pieces, then one Finished or one APIError."""

    model: ModelFile
    prompt: str
    max_tokens: int = 100
    stop: Many[str] = ()
    sampling: Sampling = Sampling()
    cache_prompt: bool = True
    events: "queue.SimpleQueue[Any]" = field(default_factory=queue.SimpleQueue)
    cancelled: bool = False
    # The engine's own notes:
    seed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated: int = 0
    text: Optional[TextOut] = None
    sampler: Optional["Sampler"] = None
    times: Dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = 0 <= self.sampling.seed < RANDOM_SEED
        self.seed = self.sampling.seed if known else secrets.randbelow(RANDOM_SEED)
        self.text = TextOut(self.stop)

    def mark(self, name: str) -> None:
        """Note the time of an event of this job."""
        self.times[name] = time.monotonic()

    def finished(self, reason: str) -> Finished:
        """Return the last event of a job that ended well."""
        self.mark("end")
        return Finished(reason, self.prompt_tokens, self.cached_tokens, self.generated, self._timings())

    def _timings(self) -> Dict[str, float]:
        """Return the timings by llama.cpp's names, and the wait for a slot."""
        admitted, first, end = self.times["admitted"], self.times.get("first", self.times["end"]), self.times["end"]
        prompt_ms, predicted_ms = (first - admitted) * 1e3, (end - first) * 1e3
        timings = {
            "queue_ms": (admitted - self.times["submitted"]) * 1e3,
            "cache_n": self.cached_tokens,
            "prompt_n": self.prompt_tokens - self.cached_tokens,
            "prompt_ms": prompt_ms,
            "predicted_n": self.generated,
            "predicted_ms": predicted_ms,
        }
        # The first token comes with the prompt's last step, so predicted_ms is the time of the others.
        if predicted_ms > 0 and self.generated > 1:
            timings["predicted_per_second"] = (self.generated - 1) / predicted_ms * 1e3
        return {name: round(value, 3) for name, value in timings.items()}


def build_facts() -> Dict[str, Any]:
    """Return llama-cpp-python's version, and whether its build can use a GPU (llama_supports_gpu_offload)."""
    return {"gpu": bool(llama_cpp.llama_supports_gpu_offload()), "version": llama_cpp.__version__}


# ------------------------------------------------------------------------------------------- llama.cpp's log


class _NativeLog:
    """Keeps llama.cpp's last complaints, to say why something failed; passes everything on when verbose."""

    ERROR, CONTINUED = 4, 5

    def __init__(self) -> None:
        self.verbose = False
        self._errors: Deque[str] = collections.deque(maxlen=3)
        self._callback = llama_cpp.llama_log_callback(self._take)  # kept: C holds only its address
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))

    def last_errors(self) -> str:
        """Return the last complaints in one line and forget them."""
        text = "; ".join(self._errors)
        self._errors.clear()
        return text

    def _take(self, level: int, text: bytes, _user_data: Any) -> None:
        line = text.decode("utf-8", "replace").strip()
        if level == self.ERROR and line:
            self._errors.append(line)
        if self.verbose and line:
            log.info("llama.cpp: %s", line)


_native_log: Optional[_NativeLog] = None


def _start_llama(verbose: bool) -> _NativeLog:
    """Initialise llama.cpp once in this process."""
    global _native_log
    if _native_log is None:
        llama_cpp.llama_backend_init()
        _native_log = _NativeLog()
    _native_log.verbose = verbose
    return _native_log


# --------------------------------------------------------------------------------------------------- model


class Model:
    """A loaded GGUF file: its weights and its vocabulary. Raises APIError 500 where llama.cpp refuses it.

    `progress` is told the share that is loaded, and answers whether to go on.
    """

    def __init__(self, file: ModelFile, settings: EngineSettings, progress: Callable[[float], bool]):
        self.file = file
        self._lock = threading.Lock()  # guards _pointer against being freed while a thread reads the vocabulary
        native_log = _start_llama(settings.verbose)
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = settings.gpu_layers
        if settings.safe_mode:
            params.use_extra_bufts = False
        report = llama_cpp.llama_progress_callback(lambda share, _: progress(share))
        params.progress_callback = report  # a local keeps it alive: llama.cpp calls it only while loading
        self._pointer = llama_cpp.llama_model_load_from_file(file.path.encode("utf-8"), params)
        if not self._pointer:
            why = native_log.last_errors() or "llama.cpp gives no reason"
            raise APIError(500, "%s can't be loaded: %s" % (file.name, why), "model_broken", "model_name")
        self.vocab = llama_cpp.llama_model_get_vocab(self._pointer)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.trained_context = llama_cpp.llama_model_n_ctx_train(self._pointer)
        self._enders: Optional[List[int]] = None
        if llama_cpp.llama_model_has_encoder(self._pointer) or not llama_cpp.llama_model_has_decoder(self._pointer):
            self.close()
            raise APIError(500, "%s does not generate text." % file.name, "model_unsuitable", "model_name")

    @property
    def pointer(self) -> Any:
        """The llama_model, for the engine's thread."""
        return self._pointer

    def tokenize(self, text: str) -> Optional[List[int]]:
        """Return a prompt's tokens, special ones included (llama_tokenize); None if the model has been unloaded."""
        data = text.encode("utf-8", "replace")
        with self._lock:
            if not self._pointer:
                return None
            size = len(data) // 2 + 16
            while True:
                tokens = (ctypes.c_int32 * size)()
                count = llama_cpp.llama_tokenize(self.vocab, data, len(data), tokens, size, True, True)
                if count >= 0:
                    return tokens[:count]
                size = -count

    def piece(self, token: int) -> bytes:
        """Return a token's bytes (llama_token_to_piece); none for a special one."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, size, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def ends(self, token: int) -> bool:
        """Whether a token ends the answer (llama_vocab_is_eog)."""
        return bool(llama_cpp.llama_vocab_is_eog(self.vocab, token))

    def ends_all(self) -> List[int]:
        """Return all tokens that end an answer; they are looked for when first asked for, over the whole vocabulary."""
        if self._enders is None:
            self._enders = [token for token in range(self.vocabulary) if self.ends(token)]
        return self._enders

    def close(self) -> None:
        """Free the model."""
        with self._lock:
            if self._pointer:
                llama_cpp.llama_model_free(self._pointer)
                self._pointer = None


# ------------------------------------------------------------------------------------------------- context


class Batch:
    """Rows for one llama_decode, filled with whole blocks of memory: row by row would cost 0.5 µs each."""

    def __init__(self, rows: int, slots: int):
        self._tokens = (ctypes.c_int32 * rows)()
        self._positions = (ctypes.c_int32 * rows)()
        self._counts = (ctypes.c_int32 * rows)(*([1] * rows))
        self._ids = (ctypes.POINTER(ctypes.c_int32) * rows)()
        self._logits = (ctypes.c_int8 * rows)()
        self._slots = (ctypes.c_int32 * slots)(*range(slots))
        self._size = 0
        self.native = llama_cpp.llama_batch()
        self.native.token = ctypes.cast(self._tokens, type(self.native.token))
        self.native.pos = ctypes.cast(self._positions, type(self.native.pos))
        self.native.n_seq_id = ctypes.cast(self._counts, type(self.native.n_seq_id))
        self.native.seq_id = ctypes.cast(self._ids, type(self.native.seq_id))
        self.native.logits = ctypes.cast(self._logits, type(self.native.logits))

    def clear(self) -> None:
        """Begin a new batch."""
        self._size = 0

    def add(self, slot: int, start: int, tokens: Many[int], logits: bool) -> int:
        """Add consecutive tokens of one slot, of which the last may want logits. Returns that last one's row."""
        first, count = self._size, len(tokens)
        self._put(self._tokens, first, array.array("i", tokens))
        self._put(self._positions, first, array.array("i", range(start, start + count)))
        address = ctypes.addressof(self._slots) + slot * ctypes.sizeof(ctypes.c_int32)
        self._put(self._ids, first, array.array(_POINTER_CODE, [address]) * count)
        self._put(self._logits, first, array.array("b", bytes(count - 1) + bytes([logits])))
        self._size += count
        self.native.n_tokens = self._size
        return self._size - 1

    @staticmethod
    def _put(column: Any, first: int, values: array.array) -> None:
        address, count = values.buffer_info()
        size = values.itemsize
        if first + count > len(column):
            raise ValueError("a batch of %d rows can't take %d more at %d" % (len(column), count, first))
        ctypes.memmove(ctypes.addressof(column) + first * size, address, count * size)


_POINTER_CODE = "Q" if ctypes.sizeof(ctypes.c_void_p) == 8 else "I"


class Context:
    """The cells of all sequences, and the step that fills them. Raises APIError 500 where memory is short.

    `n_ctx` is the tokens that one slot may hold. kv_unified is off: attention does not walk the other sequences' cells.
    """

    def __init__(self, model: Model, settings: EngineSettings):
        self.n_ctx = min(settings.ctx_size or model.trained_context, model.trained_context or settings.ctx_size)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self.n_ctx * settings.slots
        params.n_batch = params.n_ubatch = max(settings.batch_size, settings.slots)
        params.n_seq_max = settings.slots
        params.n_outputs_max = (
            settings.slots
        )  # else logits for a whole batch are reserved: 300 MB for large vocabularies
        params.n_threads = params.n_threads_batch = settings.threads or cores()
        params.kv_unified = False
        params.no_perf = True
        self._pointer = llama_cpp.llama_init_from_model(model.pointer, params)
        if not self._pointer:
            why = _start_llama(settings.verbose).last_errors() or "not enough memory?"
            message = "No context of %d x %d tokens for %s: %s" % (settings.slots, self.n_ctx, model.file.name, why)
            raise APIError(500, message, "no_context", "model_name")
        self.n_batch = int(llama_cpp.llama_n_batch(self._pointer))
        self._memory = llama_cpp.llama_get_memory(self._pointer)
        self._batch = Batch(self.n_batch, settings.slots)

    @property
    def pointer(self) -> Any:
        """The llama_context, for samplers."""
        return self._pointer

    def decode(self, chunks: Many[Chunk]) -> "tuple[int, Dict[Sequence, int]]":
        """Evaluate chunks in one batch. Returns llama_decode's status and the row of each sequence that can sample."""
        self._batch.clear()
        rows = {}
        for chunk in chunks:
            sequence, end = chunk.sequence, chunk.start + chunk.count
            row = self._batch.add(sequence.slot, chunk.start, sequence.tokens[chunk.start : end], chunk.last)
            if chunk.last:
                rows[sequence] = row
        return llama_cpp.llama_decode(self._pointer, self._batch.native), rows

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
        cut = not whole and count > 0 and llama_cpp.llama_memory_seq_rm(self._memory, slot, count, -1)
        if whole or (cut and self.positions(slot) == count and self._first_position(slot) == 0):
            return count
        self.forget(slot)
        return 0

    def forget(self, slot: int) -> None:
        """Free a slot's cells."""
        llama_cpp.llama_memory_seq_rm(self._memory, slot, -1, -1)

    def _first_position(self, slot: int) -> int:
        return llama_cpp.llama_memory_seq_pos_min(self._memory, slot)

    def logits(self, row: int, vocabulary: int) -> Any:
        """Return a row's logits as an array of float32 that the next decode() overwrites (llama_get_logits_ith)."""
        return numpy.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._pointer, row), (vocabulary,))

    def positions(self, slot: int) -> int:
        """Return how many positions a slot's cells hold."""
        return llama_cpp.llama_memory_seq_pos_max(self._memory, slot) + 1

    def close(self) -> None:
        """Free the context."""
        llama_cpp.llama_free(self._pointer)


class Sampler:
    """One request's choice of tokens: a chain of llama.cpp's samplers in its order, and a grammar beside it.

    The order runs cheap cuts (top_k) before dear ones (top_p). The grammar stays out of the chain: testing the one
    chosen token takes microseconds, masking a whole vocabulary takes tens of milliseconds, and is done only when the
    chosen token is refused. Raises APIError 400 for a grammar that llama.cpp can't read.
    """

    def __init__(self, model: Model, sampling: Sampling, seed: int):
        self._size = model.vocabulary
        self._chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        for sampler in _samplers(model, sampling, seed):
            llama_cpp.llama_sampler_chain_add(self._chain, sampler)
        self._grammar = None
        if sampling.grammar:
            self._grammar = llama_cpp.llama_sampler_init_grammar(model.vocab, sampling.grammar.encode("utf-8"), b"root")
            if not self._grammar:
                self.close()
                raise APIError(400, "The grammar is not valid GBNF.", "invalid_grammar", "grammar")

    def remember(self, tokens: Many[int]) -> None:
        """Let penalties count tokens that were not sampled here, such as a prompt's (llama_sampler_accept)."""
        for token in tokens:
            llama_cpp.llama_sampler_accept(self._chain, token)

    def sample(self, context: Context, row: int) -> int:
        """Choose the next token from a row that has logits (llama_sampler_sample)."""
        if self._grammar is None:
            return llama_cpp.llama_sampler_sample(self._chain, context.pointer, row)
        candidates = _Candidates(context.logits(row, self._size))
        token = candidates.choose(self._chain)
        if not self._allows(token):
            candidates = _Candidates(context.logits(row, self._size))
            llama_cpp.llama_sampler_apply(self._grammar, candidates.pointer)
            token = candidates.choose(self._chain)
        llama_cpp.llama_sampler_accept(self._grammar, token)
        llama_cpp.llama_sampler_accept(self._chain, token)
        return token

    def _allows(self, token: int) -> bool:
        """Whether the grammar takes a token: accepting one that it does not take would end the process."""
        one = _Candidates(numpy.zeros(1, numpy.float32), first=token)
        llama_cpp.llama_sampler_apply(self._grammar, one.pointer)
        return one.best_logit() != float("-inf")

    def close(self) -> None:
        """Free the chain, its samplers and the grammar."""
        llama_cpp.llama_sampler_free(self._chain)
        if self._grammar:
            llama_cpp.llama_sampler_free(self._grammar)


class _Candidates:
    """A llama_token_data_array: tokens and their logits, for samplers to cut down and choose from."""

    def __init__(self, logits: Any, first: int = 0):
        self._data = numpy.zeros(len(logits), dtype=[("id", "i4"), ("logit", "f4"), ("p", "f4")])
        self._data["id"] = numpy.arange(first, first + len(logits))
        self._data["logit"] = logits
        array_type = llama_cpp.llama_token_data_array
        data = self._data.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
        self._array = array_type(data=data, size=len(logits), selected=-1, sorted=False)
        self.pointer = ctypes.byref(self._array)

    def choose(self, chain: Any) -> int:
        """Apply a chain and return the token that it selects."""
        llama_cpp.llama_sampler_apply(chain, self.pointer)
        return int(self._array.data[self._array.selected].id)

    def best_logit(self) -> float:
        """Return the first candidate's logit."""
        return float(self._array.data[0].logit)


def _samplers(model: Model, sampling: Sampling, seed: int) -> List[Any]:
    """Return the samplers of a request, in the order of llama.cpp's common_sampler_init."""
    made = []
    biases = list(sampling.logit_bias)
    if sampling.ignore_eos:
        biases += [(token, -math.inf) for token in model.ends_all()]
    biases = [(token, bias) for token, bias in biases if token < model.vocabulary]
    if biases:
        native = (llama_cpp.llama_logit_bias * len(biases))(*biases)
        made.append(llama_cpp.llama_sampler_init_logit_bias(model.vocabulary, len(biases), native))
    if sampling.penalizes:
        made += _penalties(model, sampling)
    if sampling.temperature <= 0:
        return made + [llama_cpp.llama_sampler_init_greedy()]
    if sampling.mirostat:
        return made + _mirostat(model, sampling, seed)
    return made + _cuts(sampling, seed) + [llama_cpp.llama_sampler_init_dist(seed)]


def _penalties(model: Model, sampling: Sampling) -> List[Any]:
    """Return the samplers that look back. -1 tokens means the whole context, which n_ctx_train bounds."""
    everything = model.trained_context
    last_n = everything if sampling.repeat_last_n < 0 else sampling.repeat_last_n
    dry_last_n = everything if sampling.dry_penalty_last_n < 0 else sampling.dry_penalty_last_n
    breakers = [text.encode("utf-8") for text in sampling.dry_sequence_breakers]
    made = [
        llama_cpp.llama_sampler_init_penalties(
            model.vocabulary, last_n, sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty
        )
    ]
    if sampling.dry_multiplier:
        made.append(
            llama_cpp.llama_sampler_init_dry(
                model.vocab,
                sampling.dry_multiplier,
                sampling.dry_base,
                sampling.dry_allowed_length,
                dry_last_n,
                (ctypes.c_char_p * len(breakers))(*breakers),
                len(breakers),
            )
        )
    return made


def _cuts(sampling: Sampling, seed: int) -> List[Any]:
    """Return the samplers that drop candidates, those that would drop none left out, and the temperature."""
    keep = sampling.min_keep
    made = []
    if sampling.top_n_sigma > 0:
        made.append(llama_cpp.llama_sampler_init_top_n_sigma(sampling.top_n_sigma))
    if sampling.top_k > 0:
        made.append(llama_cpp.llama_sampler_init_top_k(sampling.top_k))
    if sampling.typical_p < 1:
        made.append(llama_cpp.llama_sampler_init_typical(sampling.typical_p, keep))
    if sampling.top_p < 1:
        made.append(llama_cpp.llama_sampler_init_top_p(sampling.top_p, keep))
    if sampling.min_p > 0:
        made.append(llama_cpp.llama_sampler_init_min_p(sampling.min_p, keep))
    if sampling.xtc_probability > 0:
        made.append(llama_cpp.llama_sampler_init_xtc(sampling.xtc_probability, sampling.xtc_threshold, keep, seed))
    temperature = sampling.temperature, sampling.dynatemp_range, sampling.dynatemp_exponent
    return made + [llama_cpp.llama_sampler_init_temp_ext(*temperature)]


def _mirostat(model: Model, sampling: Sampling, seed: int) -> List[Any]:
    temperature = llama_cpp.llama_sampler_init_temp(sampling.temperature)
    if sampling.mirostat == 1:
        learn = sampling.mirostat_tau, sampling.mirostat_eta
        return [temperature, llama_cpp.llama_sampler_init_mirostat(model.vocabulary, seed, *learn, 100)]
    return [temperature, llama_cpp.llama_sampler_init_mirostat_v2(seed, sampling.mirostat_tau, sampling.mirostat_eta)]


# -------------------------------------------------------------------------------------------------- engine

SELF_TEST_TOKENS = 8


class Engine:
    """Runs jobs in one continuous batch. Start it once; any thread may submit, cancel and look at its state.

    `on_event(what, **facts)` is told, in the engine's thread, of "loading" (model), "progress" (share), "ready"
    (model, seconds) and "failed" (model, why); `on_failure` is called if that thread ends by a defect.
    """

    def __init__(
        self,
        settings: EngineSettings,
        on_event: Callable[..., None] = lambda what, **facts: None,
        on_failure: Callable[[], None] = lambda: None,
    ):
        self.settings = settings
        self._on_event = on_event
        self._on_failure = on_failure
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()  # Jobs; ModelFiles to load; None to wake up
        self._scheduler = Scheduler(settings.slots, settings.batch_size)
        self._pace = Pace(settings.step_target, settings.batch_size)
        self._model: Optional[Model] = None
        self._context: Optional[Context] = None
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        # Written by the engine's thread, read by any:
        self.status = "starting"  # then loading, ready, failed, stopped
        self.load_progress = 0.0
        self.heartbeat = time.monotonic()
        self.counts: collections.Counter = collections.Counter()
        self.largest_batch = 0  # sequences in one step
        self.step_seconds = 0.0

    # ---- for any thread

    def start(self, model: Optional[ModelFile] = None) -> None:
        """Start the thread, which loads `model` first, if one is given."""
        if model:
            self._inbox.put(model)
        else:
            self.status = "ready"
        self._thread.start()

    def stop(self) -> None:
        """End the thread; jobs that are left end with an error."""
        self._stopping = True
        self._inbox.put(None)
        self._thread.join()

    def submit(self, job: Job) -> None:
        """Hand a job over. Raises APIError 400 for a prompt that does not fit, 503 where the line is full."""
        if self.status in ("failed", "stopped"):
            raise APIError(503, "The engine has %s." % self.status, "engine_down", headers=[("Retry-After", "1")])
        if self.queued() >= self.settings.max_queue:
            message = "All %d slots are busy and %d requests wait." % (self.settings.slots, self.settings.max_queue)
            raise APIError(503, message, "queue_full", headers=[("Retry-After", "1")])
        job.mark("submitted")
        sequence = Sequence(job, job.model.path, reuse=job.cache_prompt)
        model, context = self._model, self._context
        if model and context and model.file.path == job.model.path:
            # Here, not in the engine's thread, where a long prompt would stall every stream.
            tokens = model.tokenize(job.prompt)
            if tokens is not None:  # None: unloaded just now; it will be loaded again
                sequence.tokens = _fitting(tokens, context)
        self._inbox.put(sequence)

    def cancel(self, job: Job) -> None:
        """Stop working on a job; no more events come of it."""
        job.cancelled = True
        self._inbox.put(None)

    def model_name(self) -> Optional[str]:
        """The name of the model that is loaded."""
        model = self._model
        return model.file.name if model else None

    def busy(self) -> int:
        """How many slots are taken."""
        return len(self._scheduler.running)

    def queued(self) -> int:
        """How many jobs wait for a slot."""
        return len(self._scheduler.waiting) + self._inbox.qsize()

    # ---- the thread

    def _main(self) -> None:
        try:
            while not self._stopping:
                self._beat()
                self._receive()
                self._switch_model()
                self._admit()
                self._step()
            self.status = "stopped"
        except Exception:
            self.status = "failed"
            log.error("the engine failed:\n%s", traceback.format_exc())
        finally:
            self._fail_all(APIError(503, "The engine has %s." % self.status, "engine_down"))
            self._unload()
            if self.status == "failed":
                self._on_failure()

    def _beat(self) -> None:
        self.heartbeat = time.monotonic()

    def _receive(self) -> None:
        """Take in what has been handed over; wait for it when there is nothing else to do."""
        idle = not self._scheduler.running and not self._scheduler.waiting
        try:
            message = self._inbox.get(timeout=1) if idle else self._inbox.get_nowait()
            while True:
                self._take(message)
                message = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _take(self, message: Any) -> None:
        if isinstance(message, Sequence):
            self._scheduler.submit(message)
        elif isinstance(message, ModelFile):
            self._load(message)
        else:  # woken up: by a cancellation, if not to stop
            for sequence in self._everyone():
                if sequence.job.cancelled:
                    self._end(sequence, None)

    def _everyone(self) -> List[Sequence]:
        return self._scheduler.running + list(self._scheduler.waiting)

    # ---- models

    def _switch_model(self) -> None:
        """Load the model that the first in line needs, once nothing runs on the other one."""
        wanted = self._scheduler.wanted_model()
        if wanted is None or wanted == self._resident() or self._scheduler.running:
            return
        self._load(self._scheduler.waiting[0].job.model)

    def _resident(self) -> Optional[str]:
        return self._model.file.path if self._model else None

    def _load(self, file: ModelFile) -> None:
        """Swap models, and run a few tokens through the new one. What fails, fails those who wait for it."""
        if file.path == self._resident():
            return
        self._unload()
        started = time.monotonic()
        self.status, self.load_progress = "loading", 0.0
        self._on_event("loading", model=file.name)
        try:
            self._model = Model(file, self.settings, self._progress)
            self._context = Context(self._model, self.settings)
            # A copy moves all cells of a slot; evaluating about so many of a prompt's tokens takes as long.
            self._scheduler.copy_cost = max(16, self._context.n_ctx // 128)
            self._self_test()
        except APIError as error:
            self._unload()
            self._on_event("failed", model=file.name, why=error.message)
            for sequence in [each for each in self._scheduler.waiting if each.model == file.path]:
                self._end(sequence, error)
        else:
            self._on_event("ready", model=file.name, seconds=round(time.monotonic() - started, 3))
        self.status = "ready"

    def _progress(self, share: float) -> bool:
        self._beat()
        if share - self.load_progress >= 0.05:
            self.load_progress = share
            self._on_event("progress", share=round(share, 2))
        return not self._stopping

    def _self_test(self) -> None:
        """Run a prompt and a single token: where this machine can't run this model, better now than in a request."""
        sequence = Sequence(tokens=[0] * SELF_TEST_TOKENS, slot=0)
        sampler = Sampler(self._model, Sampling(temperature=0), 0)
        for chunk in (Chunk(sequence, 0, SELF_TEST_TOKENS - 1), Chunk(sequence, SELF_TEST_TOKENS - 1, 1)):
            status, rows = self._context.decode([chunk])
            if status:
                message = "%s fails its self-test: llama_decode answers %d." % (self._model.file.name, status)
                raise APIError(500, message, "model_broken", "model_name")
        sampler.sample(self._context, rows[sequence])
        sampler.close()
        self._context.forget(0)

    def _unload(self) -> None:
        model, context = self._model, self._context
        self._model = self._context = None
        self._scheduler.forget()
        if context:
            context.close()
        if model:
            model.close()

    # ---- one step

    def _admit(self) -> None:
        """Give free slots to those who wait for the model that is loaded."""
        while True:
            sequence = self._scheduler.next_in_line(self._resident())
            if sequence is None:
                return
            try:
                self._prepare(sequence)
            except APIError as error:
                self._end(sequence, error)
            else:
                self._reuse(self._scheduler.admit())

    def _prepare(self, sequence: Sequence) -> None:
        """Make a sequence ready to be evaluated. Raises APIError 400."""
        job = sequence.job
        if not sequence.tokens:  # its model was not loaded when it came
            sequence.tokens = _fitting(self._model.tokenize(job.prompt) or [], self._context)
        job.mark("admitted")
        job.prompt_tokens = len(sequence.tokens)
        job.sampler = Sampler(self._model, job.sampling, job.seed)
        if job.sampling.penalizes:
            job.sampler.remember(sequence.tokens)

    def _reuse(self, reuse: Reuse) -> None:
        """Take over cells that hold the beginning of a prompt."""
        sequence = reuse.sequence
        count = self._context.reuse(reuse.source, sequence.slot, reuse.count)
        self._scheduler.reused(reuse, count)
        sequence.job.cached_tokens = count
        self.counts["cached_tokens"] += count
        self.counts["cache_hits"] += count > 0

    def _step(self) -> None:
        """Plan a batch, evaluate it, and choose each sequence's next token."""
        copy = self._scheduler.next_reuse()
        if copy:
            self._reuse(copy)
        streams = sum(sequence.generating for sequence in self._scheduler.running)
        chunks = self._scheduler.plan(self._pace.budget(streams))
        if not chunks:
            return
        started = time.monotonic()
        status, rows = self._context.decode(chunks)
        if status:
            return self._step_failed(status, chunks)
        self._scheduler.commit(chunks)
        self._observe(chunks, streams, time.monotonic() - started)
        for sequence, row in rows.items():
            self._extend(sequence, sequence.job.sampler.sample(self._context, row))

    def _observe(self, chunks: List[Chunk], streams: int, seconds: float) -> None:
        rows = sum(chunk.count for chunk in chunks)
        self._pace.observe(streams, rows - streams, seconds)
        self.step_seconds = seconds
        self.largest_batch = max(self.largest_batch, len(chunks))
        self.counts["steps"] += 1
        self.counts["prompt_tokens"] += rows - streams

    def _extend(self, sequence: Sequence, token: int) -> None:
        """Add a chosen token to a sequence, tell its reader, and end it where it is over."""
        job = sequence.job
        if not job.generated:
            job.mark("first")
        job.generated += 1
        self.counts["generated_tokens"] += 1
        if self._model.ends(token):
            return self._finish(sequence, "stop")
        sequence.tokens.append(token)
        job.events.put(Piece(job.text.push(self._model.piece(token)), [token]))
        if job.text.stopped:
            self._finish(sequence, "stop")
        elif job.generated >= job.max_tokens or len(sequence.tokens) >= self._context.n_ctx:
            self._finish(sequence, "length")

    def _finish(self, sequence: Sequence, reason: str) -> None:
        rest = sequence.job.text.finish()
        if rest:
            sequence.job.events.put(Piece(rest, []))
        self._end(sequence, sequence.job.finished(reason))

    def _end(self, sequence: Sequence, last_event: Any) -> None:
        """Take a sequence out of the engine; its slot is free for the next one at once."""
        self._scheduler.release(sequence)
        if sequence.job.sampler:
            sequence.job.sampler.close()
            sequence.job.sampler = None
        self.counts["cancelled" if last_event is None else "ended"] += 1
        if last_event is not None:
            sequence.job.events.put(last_event)

    def _step_failed(self, status: int, chunks: List[Chunk]) -> None:
        """Fail what was in a step that llama_decode refused, and go on with fresh cells."""
        log.error("llama_decode answered %d to a batch of %d sequences", status, len(chunks))
        error = APIError(500, "llama.cpp could not evaluate this request (status %d)." % status, "decode_failed")
        for chunk in chunks:
            self._end(chunk.sequence, error)
            self._context.forget(chunk.sequence.slot)
            self._scheduler.forget(chunk.sequence.slot)

    def _fail_all(self, error: APIError) -> None:
        with_error = [message for message in _drained(self._inbox) if isinstance(message, Sequence)]
        for sequence in self._everyone() + with_error:
            self._end(sequence, error)


def _fitting(tokens: List[int], context: Context) -> List[int]:
    """Return a prompt's tokens if they leave room for an answer. Raises APIError 400 otherwise."""
    if not tokens:
        raise APIError(400, "The prompt holds no tokens.", "empty_prompt", "prompt")
    if len(tokens) >= context.n_ctx:
        message = "The prompt has %d tokens; the context holds %d, the answer included."
        raise APIError(400, message % (len(tokens), context.n_ctx), "context_length_exceeded", "prompt")
    return tokens


def _drained(inbox: "queue.SimpleQueue[Any]") -> List[Any]:
    messages = []
    while True:
        try:
            messages.append(inbox.get_nowait())
        except queue.Empty:
            return messages
