"""What the project uses of llama.cpp, as objects. The only file that imports llama_cpp, and so longer than others.

    Model      one GGUF file's weights and vocabulary              (llama_model, llama_vocab)
    Batch      rows for one decode                                 (llama_batch)
    Context    the slots' cells, and one decode                    (llama_context, llama_memory)
    Chain      one request's samplers                              (llama_sampler_chain)

Who may touch what, from which thread:

    Model      its vocabulary: any thread; `readers` keeps it from being freed meanwhile. The rest: the engine's thread
    Context    one thread at a time. The engine's own: the engine's thread; the siding's: the siding's thread in its
               turns, and the engine's thread while that halts or has ended. After settle(), several threads may read
               the last decode's logits at once, until the next decode
    Chain      one thread at a time. Any thread makes it; then the engine's thread uses it, or, while the engine's
               thread waits for all of them, one thread of its pool

What llama.cpp refuses becomes an APIError; what would end the process (an assertion in native code) is checked before
the call. Grammars never reach it: core/grammar reads and follows them, and sampler.py asks it.
"""

import array
import collections
import ctypes
import logging
import math
import os
from typing import Any, Callable, Deque, Dict, FrozenSet, List, NamedTuple, Optional, Tuple, Type, Union
from typing import Sequence as Many

import llama_cpp
import numpy

from core.bounds import TOKENS
from core.engine.ask import Wanted, kind_of
from core.engine.cells import SavedCells
from core.engine.draws import OwnDraws, TheirDraws, draw_seed
from core.engine.prompting import Marks, Prompting
from core.engine.sampling import SAMPLERS, Sampling
from core.engine.tokenizing import PIECE, Closed, LongTexts, Readers, TooLong
from core.errors import APIError
from core.grammar.masks import Texts
from core.hardware import cores
from core.models import ModelFile
from core.settings import Adapter, EngineSettings

log = logging.getLogger("comeapi.llama")


def build_facts() -> Dict[str, Any]:
    """Return llama-cpp-python's version, whether its build can use a GPU, and what else it was built for.

    llama_supports_gpu_offload; `features` is llama_print_system_info: "CPU : AVX2 = 1 | … | OPENMP = 1 |".
    """
    return {
        "gpu": bool(llama_cpp.llama_supports_gpu_offload()),
        "version": llama_cpp.__version__,
        "features": llama_cpp.llama_print_system_info().decode("utf-8", "replace"),
    }


def quantize(source: str, target: str) -> None:
    """Write a copy of an unquantized GGUF file in Q4_K_M (llama_model_quantize). Raises APIError 500."""
    _start_llama(verbose=False)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    if llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params)):
        raise APIError(500, "llama.cpp can't quantize %s." % source, "quantize_failed")


def uses_gpu(settings: EngineSettings) -> bool:
    """Whether layers of a model are kept on a GPU."""
    return bool(settings.gpu_layers and llama_cpp.llama_supports_gpu_offload())


def halts_well(settings: EngineSettings) -> bool:
    """Whether a decode may halt halfway without its other threads wearing the cores out.

    With one thread, always. GNU's OpenMP lets them sleep after a moment; other libraries, and ggml's own threads, spin.
    On a GPU a decode is not asked whether to halt (llama_set_abort_callback).
    """
    if uses_gpu(settings):
        return False
    return ((settings.threads or cores()) == 1 and not settings.board) or _loaded("libgomp")


def _loaded(library: str) -> bool:
    """Whether this process has loaded a library; False where the system does not tell."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            return any(library in line for line in maps)
    except OSError:
        return False


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
        self.readers = Readers()  # guards _pointer against being freed while threads read the vocabulary
        native_log = _start_llama(settings.verbose)
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = settings.gpu_layers
        params.load_mode = _load_mode(settings, params.load_mode)
        if settings.safe_mode:
            params.use_extra_bufts = False
        report = llama_cpp.llama_progress_callback(lambda share, _: progress(share))
        params.progress_callback = report  # a local keeps it alive: llama.cpp calls it only while loading
        self._pointer = llama_cpp.llama_model_load_from_file(os.fsencode(file.path), params)
        if not self._pointer:
            why = native_log.last_errors() or "llama.cpp gives no reason"
            raise APIError(500, "%s can't be loaded: %s" % (file.name, why), "model_broken", "model_name")
        self.vocab = llama_cpp.llama_model_get_vocab(self._pointer)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.trained_context = llama_cpp.llama_model_n_ctx_train(self._pointer)
        recurrent = llama_cpp.llama_model_is_recurrent(self._pointer) or llama_cpp.llama_model_is_hybrid(self._pointer)
        windowed = llama_cpp.llama_model_n_swa(self._pointer) > 0
        self.adds_bos = bool(llama_cpp.llama_vocab_get_add_bos(self.vocab))  # a text begins with a token of the model's
        self.plain_cells = not recurrent and not windowed  # whether a slot's cells are one per token, and stay
        self.forgets_partly = not recurrent  # whether a sequence's last cells can be freed without the others
        self.draws: Type[Union[OwnDraws, TheirDraws]] = TheirDraws if settings.draw == "llama.cpp" else OwnDraws
        self._enders: Optional[List[int]] = None
        self._long_texts: Optional[LongTexts] = None
        self._texts: Optional[Texts] = None
        if llama_cpp.llama_model_has_encoder(self._pointer) or not llama_cpp.llama_model_has_decoder(self._pointer):
            self.close()
            raise APIError(500, "%s does not generate text." % file.name, "model_unsuitable", "model_name")
        self.pooling = settings.pooling_of(file)  # how an embedding is made; "" where the model gives text
        # Whether a text is computed at once, as a whole: where each token sees all others, and where llama.cpp ranks by
        # the first row that it computes (those that rank by the last one are listed).
        self.whole_texts = not file.causal or (self.pooling == "rank" and file.architecture not in _RANK_BY_LAST)
        self._prompting = Prompting(self._tokenize, self.known, _marks(self.vocab), file.pair_template, file.controls)
        self.adapters = [self._adapter(adapter) for adapter in settings.adapters]

    def _adapter(self, adapter: Adapter) -> Any:
        """Load a LoRA adapter (llama_adapter_lora_init); it is freed with the model. Raises APIError 500."""
        pointer = llama_cpp.llama_adapter_lora_init(self._pointer, os.fsencode(adapter.path))
        problem = "" if pointer else "does not fit %s" % self.file.name
        if pointer and llama_cpp.llama_adapter_get_alora_n_invocation_tokens(pointer):
            problem = "waits for certain tokens (an aLoRA), which is not supported"
        if problem:
            self.close()
            raise APIError(500, "The LoRA adapter %s %s." % (adapter.path, problem), "lora_broken", "lora")
        return pointer

    @property
    def pointer(self) -> Any:
        """The llama_model, for the engine's thread."""
        return self._pointer

    @property
    def gives(self) -> str:
        """What the model gives: one of core/engine/ask.py's."""
        return kind_of(self.pooling)

    def prompt_tokens(self, wanted: Wanted, most: int) -> Optional[List[int]]:
        """Return a prompt's tokens, those that the model wants at the beginning included (prompting.py).

        None if the model has been unloaded. Raises APIError 400 for a token that the model does not have, 400 or 501
        where it is no model that fills gaps, and TooLong, as soon as that is certain, for more tokens than `most`.
        """
        try:
            with self.readers:
                return self._prompting.tokens(wanted, most)
        except Closed:
            return None

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> List[int]:
        """Return a text's tokens (llama_tokenize). Raises APIError 400 above a bound, 503 if it has been unloaded."""
        try:
            with self.readers:
                return self._tokenize(text, add_special, parse_special, TOKENS.most)
        except Closed:
            raise _unloaded()
        except TooLong:
            raise APIError(400, "'content' may hold at most %d tokens." % TOKENS.most, "invalid_value", "content")

    def detokenize(self, tokens: Many[int], field: str = "tokens") -> bytes:
        """Return tokens' bytes, special ones' too. `field` is the request's that holds them.

        Raises APIError 400 for an unknown one, 503 if the model has been unloaded.
        """
        try:
            with self.readers:
                return b"".join(self.piece(self.known(token, field), True) for token in tokens)
        except Closed:
            raise _unloaded()

    def known(self, token: int, field: str = "prompt") -> int:
        """Return a token. Raises APIError 400 where the model has none of this number."""
        if not 0 <= token < self.vocabulary:
            message = "There is no token %d: the model has %d." % (token, self.vocabulary)
            raise APIError(400, message, "invalid_value", field)
        return token

    def _tokenize(self, text: str, add_special: bool, parse_special: bool, most: int) -> List[int]:
        """Return a text's tokens, of a long one piece by piece. Raises TooLong above `most` of a long one, Closed."""
        if len(text) <= PIECE:
            return self.native_tokens(text, add_special, parse_special)
        if self._long_texts is None:  # two threads may both make it: the same
            self._long_texts = _long_texts(self)
        return self._long_texts.tokenize(text, add_special, parse_special, most, self.readers.check)

    def native_tokens(self, text: str, add_special: bool, parse_special: bool) -> List[int]:
        """Return a text's tokens (llama_tokenize, which releases the GIL)."""
        data = text.encode("utf-8", "replace")
        size = len(data) + 16
        while True:
            tokens = (ctypes.c_int32 * size)()
            count = llama_cpp.llama_tokenize(self.vocab, data, len(data), tokens, size, add_special, parse_special)
            if count >= 0:
                return tokens[:count]
            size = -count

    def markers(self, texts: Many[str]) -> FrozenSet[int]:
        """Return the tokens of those texts that are one token."""
        every = [self.native_tokens(text, False, True) for text in texts]
        return frozenset(tokens[0] for tokens in every if len(tokens) == 1)

    def piece(self, token: int, special: bool = False) -> bytes:
        """Return a token's bytes (llama_token_to_piece); none for a special one, unless asked for."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, size, 0, special)
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

    def texts(self) -> Texts:
        """Return all tokens' texts, for grammars. Raises Closed if the model has been unloaded.

        They are taken apart when first asked for: 150,000 take a second.
        """
        if self._texts is None:
            with self.readers:
                pieces, enders = [self.piece(token, True) for token in range(self.vocabulary)], self.ends_all()
            self._texts = Texts(pieces, enders)
        return self._texts

    def close(self) -> None:
        """Free the model, once nobody reads its vocabulary any more; readers stop at their next piece."""
        left = self.readers.close(_READERS_LEAVE)
        if self._pointer and left:
            llama_cpp.llama_model_free(self._pointer)
        elif self._pointer:
            log.error("%s stays in memory: a text is still being tokenized", self.file.name)
        self._pointer = None


_RANK_BY_LAST = ("qwen3", "qwen3vl")  # llm_graph_input_cls::set_input in llama.cpp
_READERS_LEAVE = 10.0  # seconds; a piece takes milliseconds, a whole megabyte of a vocabulary without pieces a second


def _marks(vocab: Any) -> Marks:
    """Return a vocabulary's special tokens (llama_vocab_bos, …) and which it adds (llama_vocab_get_add_bos, …)."""
    names = ("bos", "eos", "sep", "fim_pre", "fim_suf", "fim_mid", "fim_rep", "fim_sep")
    tokens = [getattr(llama_cpp, "llama_vocab_" + name)(vocab) for name in names]
    return Marks(*tokens, *[getattr(llama_cpp, "llama_vocab_get_add_" + name)(vocab) for name in names[:3]])


def _unloaded() -> APIError:
    return APIError(503, "The model has just been unloaded.", "not_ready", headers=[("Retry-After", "1")])


def _long_texts(model: Model) -> LongTexts:
    """Return what tokenizes long texts; it reads the vocabulary, which takes 0.5 s for 150,000 tokens."""
    vocab, every = model.vocab, range(model.vocabulary)
    texts = [llama_cpp.llama_vocab_get_text(vocab, token).decode("utf-8", "replace") for token in every]
    specials = [texts[token] for token in every if llama_cpp.llama_vocab_get_attr(vocab, token) & _SPECIAL]
    kind = ctypes.create_string_buffer(64)
    llama_cpp.llama_model_meta_val_str(model.pointer, b"tokenizer.ggml.model", kind, len(kind))
    begin = [llama_cpp.llama_vocab_bos(vocab)] if llama_cpp.llama_vocab_get_add_bos(vocab) else []
    end = [llama_cpp.llama_vocab_eos(vocab)] if llama_cpp.llama_vocab_get_add_eos(vocab) else []
    return LongTexts(model.native_tokens, kind.value.decode("ascii", "replace"), texts, specials, begin, end)


_SPECIAL = (  # tokens whose texts are looked for before anything else
    llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
)


# ------------------------------------------------------------------------------------------------- context


class Run(NamedTuple):
    """Consecutive tokens of one slot, the first at position `start`. The last `logits` of them want logits."""

    slot: int
    start: int
    tokens: Many[int]
    logits: int = 0


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
        columns: Dict[str, Any] = {
            "token": self._tokens, "pos": self._positions, "n_seq_id": self._counts, "seq_id": self._ids,
            "logits": self._logits,
        }  # fmt: skip
        for name, column in columns.items():
            setattr(self.native, name, ctypes.cast(ctypes.byref(column), type(getattr(self.native, name))))

    def clear(self) -> None:
        """Begin a new batch."""
        self._size = 0

    def add(self, run: Run) -> int:
        """Add a run of tokens. Returns the batch's size then."""
        first, count = self._size, len(run.tokens)
        self._put(self._tokens, first, array.array("i", run.tokens))
        self._put(self._positions, first, array.array("i", range(run.start, run.start + count)))
        address = ctypes.addressof(self._slots) + run.slot * ctypes.sizeof(ctypes.c_int32)
        self._put(self._ids, first, array.array(_POINTER_CODE, [address]) * count)
        self._put(self._logits, first, array.array("b", bytes(count - run.logits) + b"\1" * run.logits))
        self._size += count
        self.native.n_tokens = self._size
        return self._size

    @staticmethod
    def _put(column: Any, first: int, values: array.array) -> None:
        address, count = values.buffer_info()
        size = values.itemsize
        if first + count > len(column):
            raise ValueError("a batch of %d rows can't take %d more at %d" % (len(column), count, first))
        ctypes.memmove(ctypes.addressof(column) + first * size, address, count * size)


_POINTER_CODE = "Q" if ctypes.sizeof(ctypes.c_void_p) == 8 else "I"


class Context:
    """The cells of all slots, and the decode that fills them. Raises APIError 500 where memory is short.

    `n_ctx` is the tokens that one slot may hold. kv_unified is off: attention does not walk the other sequences' cells.
    """

    def __init__(self, model: Model, settings: EngineSettings):
        self.n_ctx = settings.slot_ctx or model.trained_context
        if model.trained_context and not settings.stretches:
            self.n_ctx = min(self.n_ctx, model.trained_context)
        params = llama_cpp.llama_context_default_params()
        _set_sizes(params, settings, self.n_ctx)
        if model.pooling:
            _set_embedding(params, model, self.n_ctx)
        _set_types(params, settings)
        _set_rope(params, settings)
        self._pointer = llama_cpp.llama_init_from_model(model.pointer, params)
        if not self._pointer:
            why = _start_llama(settings.verbose).last_errors() or "not enough memory?"
            message = "No context of %d x %d tokens for %s: %s" % (settings.slots, self.n_ctx, model.file.name, why)
            raise APIError(500, message, "no_context", "model_name")
        self.n_batch = int(llama_cpp.llama_n_batch(self._pointer))
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

    def save(self, slot: int) -> SavedCells:
        """Return a copy of a slot's cells, for load(). Raises APIError 500 where llama.cpp gives none."""
        size = llama_cpp.llama_state_seq_get_size(self._pointer, slot)
        buffer = numpy.zeros(size + SavedCells.SPARE, numpy.uint8)
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
        top = numpy.argpartition(logits, -min(most, vocabulary))[-min(most, vocabulary) :]
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


def _load_mode(settings: EngineSettings, default: int) -> int:
    """Return the llama_load_mode that --mlock and --no-mmap ask for."""
    if settings.mlock:
        return llama_cpp.LLAMA_LOAD_MODE_MLOCK if settings.no_mmap else llama_cpp.LLAMA_LOAD_MODE_MMAP_MLOCK
    return llama_cpp.LLAMA_LOAD_MODE_NONE if settings.no_mmap else default


def _set_sizes(params: Any, settings: EngineSettings, n_ctx: int) -> None:
    params.n_ctx = n_ctx * settings.slots
    params.n_batch = settings.rows
    params.n_ubatch = min(settings.ubatch_size or params.n_batch, params.n_batch)
    params.n_seq_max = settings.slots
    params.n_outputs_max = settings.slots * (
        1 + settings.draft_max
    )  # else logits are reserved for a whole batch: 300 MB for large vocabularies
    params.n_threads = settings.threads or cores()
    params.n_threads_batch = settings.threads_batch or params.n_threads
    params.kv_unified = False  # attention does not walk the other sequences' cells
    params.no_perf = True


def _set_embedding(params: Any, model: Model, n_ctx: int) -> None:
    """Let a context give embeddings: the vector of each row, or a pair's rank, which llama.cpp pools itself.

    A batch is computed at once. With kv_unified off llama.cpp would cut it into parts of equal lengths, and rank by the
    last part of each pair. For a model that wants whole texts it must be as large as the context.
    """
    params.embeddings = params.kv_unified = True
    ranks = model.pooling == "rank"
    params.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_RANK if ranks else llama_cpp.LLAMA_POOLING_TYPE_NONE
    if model.whole_texts:
        params.n_batch = max(params.n_batch, n_ctx)
    params.n_ubatch = params.n_outputs_max = params.n_batch


# ggml's numbers of the types in core/settings.py's CACHE_TYPES; llama_cpp has no name for some of them
_CACHE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}
_FLASH_ATTENTION = {
    "auto": llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
_ROPE_SCALING = {
    "none": llama_cpp.LLAMA_ROPE_SCALING_TYPE_NONE,
    "linear": llama_cpp.LLAMA_ROPE_SCALING_TYPE_LINEAR,
    "yarn": llama_cpp.LLAMA_ROPE_SCALING_TYPE_YARN,
}


def _set_types(params: Any, settings: EngineSettings) -> None:
    params.type_k = _CACHE_TYPES[settings.cache_type_k]
    params.type_v = _CACHE_TYPES[settings.cache_type_v]
    params.flash_attn_type = _FLASH_ATTENTION[settings.flash_attn]


def _set_rope(params: Any, settings: EngineSettings) -> None:
    params.rope_freq_base = settings.rope_freq_base
    params.rope_freq_scale = settings.rope_freq_scale
    params.yarn_orig_ctx = settings.yarn_orig_ctx
    if settings.rope_scaling in _ROPE_SCALING:
        params.rope_scaling_type = _ROPE_SCALING[settings.rope_scaling]
    if settings.rope_scaling == "yarn":
        for name in ("yarn_ext_factor", "yarn_attn_factor", "yarn_beta_slow", "yarn_beta_fast"):
            setattr(params, name, getattr(settings, name))


# ------------------------------------------------------------------------------------------------ samplers


class Chain:
    """A request's samplers in a row (llama_sampler_chain), in the request's order.

    The last one draws by chance, by a key that is set for each token (draws.py): so a choice depends on no choice
    before it. XTC draws, too, with a generator of its own: it is made anew for each token. Mirostat is the exception,
    since it learns as it draws.

    `left` are the ids and the probabilities of the tokens that choose() has left to choose from, where the request
    wants to know (post_sampling_probs).
    """

    def __init__(self, model: Model, sampling: Sampling, seed: int, longest: int):
        """`longest` is how many tokens the context holds: nothing looks back further."""
        self._sampling = sampling
        self._seed = seed
        self._draw: Optional[_Draw] = None
        self._number = -1  # of the token that the next choice is for
        self._xtc_at = -1  # where XTC stands in the chain; -1 where it does not
        self.left: Tuple[Any, Any] = (numpy.zeros(0), numpy.zeros(0))
        self._pointer = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        made = _samplers(model, sampling, seed, longest)
        self._add(list(made.values()))
        if not sampling.greedy and not sampling.mirostat:
            self._xtc_at = list(made).index("xtc") if "xtc" in made else -1
            self._draw = _Draw(model.draws(seed))
            self._add([self._draw.sampler])

    def turn_to(self, number: int) -> None:
        """Make ready for the choice of the generated token number `number`, counted from 0."""
        if self._draw and number != self._number:
            self._draw.turn_to(number)
            if self._xtc_at >= 0:
                self._renew_xtc(draw_seed(self._seed, 2 * number + 1))
            self._number = number

    def _renew_xtc(self, seed: int) -> None:
        """Put a new XTC sampler in the old one's place; those after it stay."""
        at = self._xtc_at
        llama_cpp.llama_sampler_free(llama_cpp.llama_sampler_chain_remove(self._pointer, at))
        after = []
        while llama_cpp.llama_sampler_chain_n(self._pointer) > at:
            after.append(llama_cpp.llama_sampler_chain_remove(self._pointer, at))
        self._add([_xtc(self._sampling, seed)] + after)

    def _add(self, samplers: Many[Any]) -> None:
        for sampler in samplers:
            llama_cpp.llama_sampler_chain_add(self._pointer, sampler)

    def sample(self, context: Context, row: int) -> int:
        """Choose from a row's logits as they are, and accept the choice (llama_sampler_sample). The fastest way.

        llama.cpp ends the process where no token is left to choose; cuts alone always leave one.
        """
        return llama_cpp.llama_sampler_sample(self._pointer, context.pointer, row)

    def choose(self, logits: Any) -> Optional[int]:
        """Choose from logits, an array of float32; None where the chain leaves none. Accepts nothing."""
        candidates = _Candidates(logits)
        token = candidates.choose(self._pointer)
        if self._sampling.post_sampling_probs:
            one = token is not None and self._sampling.greedy
            self.left = (numpy.array([token]), numpy.ones(1)) if one else candidates.left()
        return token

    def accept(self, token: int) -> None:
        """Let penalties count a token (llama_sampler_accept)."""
        llama_cpp.llama_sampler_accept(self._pointer, token)

    def close(self) -> None:
        """Free the chain and its samplers."""
        llama_cpp.llama_sampler_free(self._pointer)


class _Draw:
    """A sampler that chooses by chance, as draws.py has it, in place of llama.cpp's own (llama_sampler_init_dist)."""

    def __init__(self, draws: Union[OwnDraws, TheirDraws]):
        self.turn_to = draws.turn_to

        def apply(_sampler: Any, candidates: Any) -> None:  # a llama_token_data_array
            array = candidates.contents
            data = numpy.frombuffer(ctypes.string_at(array.data, array.size * _CANDIDATE.itemsize), _CANDIDATE)
            array.selected = draws.choose(data["id"], data["logit"])

        # C holds only the addresses of these:
        self._interface = llama_cpp.llama_sampler_i()
        self._interface.name = llama_cpp.llama_sampler_i_name(lambda _: b"draw")
        self._interface.apply = llama_cpp.llama_sampler_i_apply(apply)
        self.sampler = llama_cpp.llama_sampler_init(ctypes.byref(self._interface), None)


_CANDIDATE = numpy.dtype([("id", "i4"), ("logit", "f4"), ("p", "f4")])  # llama_token_data


class _Candidates:
    """A llama_token_data_array: tokens and their logits, for samplers to cut down and choose from."""

    def __init__(self, logits: Any):
        self._data = numpy.zeros(len(logits), dtype=_CANDIDATE)
        self._data["id"] = numpy.arange(len(logits))
        self._data["logit"] = logits
        array_type = llama_cpp.llama_token_data_array
        data = self._data.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
        self._array = array_type(data=data, size=len(logits), selected=-1, sorted=False)

    def choose(self, chain: Any) -> Optional[int]:
        """Apply a chain and return the token that it selects; None if it leaves none with a finite logit."""
        llama_cpp.llama_sampler_apply(chain, ctypes.byref(self._array))
        selected = self._array.selected
        if not 0 <= selected < self._array.size or not math.isfinite(self._array.data[selected].logit):
            return None
        return int(self._array.data[selected].id)

    def left(self) -> Tuple[Any, Any]:
        """Return the ids of the tokens that the chain has left, and their probabilities."""
        size = self._array.size * _CANDIDATE.itemsize
        data = numpy.frombuffer(ctypes.string_at(self._array.data, size), _CANDIDATE)
        weights = numpy.exp(data["logit"].astype(numpy.float64) - data["logit"].max())
        return data["id"], weights / weights.sum()


def _samplers(model: Model, sampling: Sampling, seed: int, longest: int) -> Dict[str, Any]:
    """Return the samplers by their names, in the request's order, those left out that would change nothing.

    Where the likeliest token is taken, and for Mirostat, only penalties come before.
    """
    order = ("penalties", "dry") if sampling.greedy or sampling.mirostat else SAMPLERS
    made = {name: _sampler(name, model, sampling, longest) for name in sampling.samplers if name in order}
    found = {name: sampler for name, sampler in made.items() if sampler is not None}
    if sampling.greedy:
        found["greedy"] = llama_cpp.llama_sampler_init_greedy()
    elif sampling.mirostat:
        found.update(_mirostat(model, sampling, seed))
    return found


def _sampler(name: str, model: Model, sampling: Sampling, longest: int) -> Any:
    """Return a sampler by its name; None where it would change nothing."""
    if name == "penalties":
        return _penalties(model, sampling, longest) if sampling.penalizes else None
    if name == "dry":
        return _dry(model, sampling, longest) if sampling.dry_multiplier else None
    if name == "temperature":
        return _temperature(sampling)
    if name == "xtc":
        return _xtc(sampling, 0) if sampling.xtc_probability > 0 else None
    return _cut(name, sampling)


def _xtc(sampling: Sampling, seed: int) -> Any:
    return llama_cpp.llama_sampler_init_xtc(
        sampling.xtc_probability, sampling.xtc_threshold, sampling.min_keep, seed
    )


def _penalties(model: Model, sampling: Sampling, longest: int) -> Any:
    """Return the sampler that looks back at tokens.

    -1 tokens means all, and there are never more than `longest`: llama.cpp reserves memory for as many as it is told.
    """
    last_n = longest if sampling.repeat_last_n < 0 else min(sampling.repeat_last_n, longest)
    return llama_cpp.llama_sampler_init_penalties(
        model.vocabulary, last_n, sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty
    )


def _dry(model: Model, sampling: Sampling, longest: int) -> Any:
    """Return the sampler that looks back at sequences of tokens."""
    breakers = [text.encode("utf-8", "replace") for text in sampling.dry_sequence_breakers]
    return llama_cpp.llama_sampler_init_dry(
        model.vocab,
        sampling.dry_multiplier,
        sampling.dry_base,
        min(sampling.dry_allowed_length, longest),
        longest if sampling.dry_penalty_last_n < 0 else min(sampling.dry_penalty_last_n, longest),
        (ctypes.c_char_p * len(breakers))(*breakers),
        len(breakers),
    )


def _cut(name: str, sampling: Sampling) -> Any:
    """Return a sampler that drops candidates; None where it would drop none."""
    keep = sampling.min_keep
    if name == "top_n_sigma" and sampling.top_n_sigma > 0:
        return llama_cpp.llama_sampler_init_top_n_sigma(sampling.top_n_sigma)
    if name == "top_k" and sampling.top_k > 0:
        return llama_cpp.llama_sampler_init_top_k(sampling.top_k)
    if name == "typ_p" and sampling.typical_p < 1:
        return llama_cpp.llama_sampler_init_typical(sampling.typical_p, keep)
    if name == "top_p" and sampling.top_p < 1:
        return llama_cpp.llama_sampler_init_top_p(sampling.top_p, keep)
    if name == "min_p" and sampling.min_p > 0:
        return llama_cpp.llama_sampler_init_min_p(sampling.min_p, keep)
    return None


def _temperature(sampling: Sampling) -> Any:
    return llama_cpp.llama_sampler_init_temp_ext(
        sampling.temperature, sampling.dynatemp_range, sampling.dynatemp_exponent
    )


def _mirostat(model: Model, sampling: Sampling, seed: int) -> Dict[str, Any]:
    tau, eta = sampling.mirostat_tau, sampling.mirostat_eta
    if sampling.mirostat == 1:
        mirostat = llama_cpp.llama_sampler_init_mirostat(model.vocabulary, seed, tau, eta, 100)
    else:
        mirostat = llama_cpp.llama_sampler_init_mirostat_v2(seed, tau, eta)
    return {"temperature": llama_cpp.llama_sampler_init_temp(sampling.temperature), "mirostat": mirostat}
