"""A model: one GGUF file's weights, its vocabulary, its LoRA adapters."""

import ctypes
import logging
import os
from typing import Any, Callable, FrozenSet, List, Optional, Type, Union
from typing import Sequence as Many

import llama_cpp

from core.adapters import Adapter
from core.ask import Wanted, kind_of
from core.bounds import TOKENS
from core.engine.draws import OwnDraws, TheirDraws
from core.engine.llama import native
from core.engine.prompting import Marks, Prompting
from core.engine.tokenizing import PIECE, Closed, LongTexts, Readers, TooLong
from core.errors import APIError
from core.grammar.masks import Texts
from core.models import ModelFile
from core.settings import EngineSettings

log = logging.getLogger("comeapi.llama")


class Model:
    """A loaded GGUF file: its weights and its vocabulary. Raises APIError 500 where llama.cpp refuses it.

    `progress` is told the share that is loaded, and answers whether to go on.
    """

    def __init__(self, file: ModelFile, settings: EngineSettings, progress: Callable[[float], bool]):
        self.file = file
        self.readers = Readers()  # guards _pointer against being freed while threads read the vocabulary
        native_log = native.start(settings.verbose)
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
        """What the model gives: one of core/ask.py's."""
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


def _load_mode(settings: EngineSettings, default: int) -> int:
    """Return the llama_load_mode that --mlock and --no-mmap ask for."""
    if settings.mlock:
        return llama_cpp.LLAMA_LOAD_MODE_MLOCK if settings.no_mmap else llama_cpp.LLAMA_LOAD_MODE_MMAP_MLOCK
    return llama_cpp.LLAMA_LOAD_MODE_NONE if settings.no_mmap else default


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
