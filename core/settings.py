"""Settings that more than one program has. Each stands here once: its name, default, check and help text.

The names are llama.cpp's where it has one. A program's Config is a dataclass made of these and its own.
"""

import json
import os
import re
from dataclasses import dataclass
from typing import Any, Callable, Tuple

from core.adapters import Adapter, checked_adapters, read_adapters
from core.bounds import BUDGET_MESSAGE
from core.models import ModelFile, inspect
from core.options import between, setting, whole_or


def one_of(*names: str) -> Callable[[str], str]:
    """Return a check that a text is one of these. The check raises ValueError."""

    def check(text: str) -> str:
        if text not in names:
            raise ValueError("%r is none of %s" % (text, ", ".join(names)))
        return text

    return check


POOLING = ("none", "mean", "cls", "last", "rank")
ROPE_SCALING = ("none", "linear", "yarn")

# The types that llama.cpp's cache may have, and the bytes that one number takes.
CACHE_TYPES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}


@dataclass(frozen=True)
class FolderSettings:
    """Where the models are, and which one comes first."""

    models: str = setting(
        "", "folder of GGUF files (default: models, beside this program)", "model", flags=("--models-dir",),
        variables=("LLAMA_ARG_MODELS_DIR",), metavar="DIR",
    )  # fmt: skip
    model: str = setting(
        "",
        "model to load at start: a name in the folder, or a file's path (default: the first by name, demo.gguf last)",
        "model",
        flags=("-m",),
        variables=("LLAMA_ARG_MODEL",),
        metavar="NAME",
    )


def _folder(path: str) -> str:
    """Return a folder's absolute path. Raises ValueError where there is none."""
    if path and not os.path.isdir(path):
        raise ValueError("there is no folder %s" % path)
    return path and os.path.abspath(path)


def _file(path: str) -> str:
    """Check that there is a file. Raises ValueError."""
    if path and not os.path.isfile(path):
        raise ValueError("there is no file %s" % path)
    return path


def _whole_path(path: str) -> str:
    """Return a file's absolute path. Raises ValueError where there is none."""
    return path and os.path.abspath(_file(path))


def _seat(text: str) -> str:
    """Check FILE:N. Raises ValueError."""
    path, _, number = text.rpartition(":")
    if text and not (path and number.isdigit()):
        raise ValueError("%r is not FILE:N" % text)
    return text


_LEAST_ROWS = 8
_FROM_TEXT = 15  # tokens: with the one before them a block of llama.cpp's kernels, 16 rows
_BY_MODEL = 3  # tokens, as in llama.cpp
_SCORES = 1 << 22  # of each head, that are in memory at once: 17 MB; for 128 rows up to a context of 32,768 tokens


@dataclass(frozen=True)
class EngineSettings:
    """How a model is loaded and run."""

    slots: int = setting(
        4, "requests at once", "engine", flags=("--parallel", "-np"), check=whole_or({"-1": 4}, 1, 256), bare="-1",
        variables=("LLAMA_ARG_N_PARALLEL",),
    )  # fmt: skip
    ctx_size: int = setting(
        4096,
        "tokens that a slot holds, prompt and answer; 0 for all that the model was trained with, which is the most",
        "engine",
        flags=("-c",),
        check=between(0, 1 << 24),
        variables=("LLAMA_ARG_CTX_SIZE",),
    )
    share_ctx: bool = setting(
        False, "--ctx-size is shared out among the slots, as in llama-server, in place of being each one's", "engine"
    )
    kv_unified: bool = setting(
        False, "with --share-ctx: each slot may hold all of --ctx-size", "engine", flags=("-kvu",),
        off=("--no-kv-unified", "-no-kvu"), variables=("LLAMA_ARG_KV_UNIFIED",),
    )  # fmt: skip
    context_shift: bool = setting(
        False, "an answer that fills its context goes on without the older half of it, in place of ending", "engine",
        off=("--no-context-shift",), variables=("LLAMA_ARG_CONTEXT_SHIFT",),
    )  # fmt: skip
    keep: int = setting(
        0, "with --context-shift: tokens at a prompt's beginning that stay; -1 for the whole prompt", "engine",
        check=between(-1, 1 << 31),
    )  # fmt: skip
    threads: int = setting(
        0, "CPU threads; 0 for all cores", "engine", flags=("-t",), check=whole_or({"-1": 0}, 0, 1024),
        variables=("LLAMA_ARG_THREADS",),
    )  # fmt: skip
    threads_batch: int = setting(
        0, "CPU threads for prompts; 0 for as many as --threads", "engine", flags=("-tb",),
        check=whole_or({"-1": 0}, 0, 1024),
    )  # fmt: skip
    board: str = setting(
        "",
        "where the backends of one plan note who computes, so that idle ones lend their threads: a file, or the number "
        "of an inherited descriptor, and this backend's place in it (comeapi.py makes it)",
        "engine",
        check=_seat,
        metavar="FILE:N",
    )
    batch_size: int = setting(
        512, "most tokens in one step", "engine", flags=("-b",), check=between(1, 1 << 16),
        variables=("LLAMA_ARG_BATCH",),
    )  # fmt: skip
    ubatch_size: int = setting(
        0, "most tokens computed at once; 0 for --batch-size, or 128 without flash attention", "engine",
        flags=("-ub",), check=between(0, 1 << 16), variables=("LLAMA_ARG_UBATCH",),
    )  # fmt: skip
    gpu_layers: int = setting(
        -1,
        "layers to keep on the GPU, where the build can use one; -1 for all",
        "engine",
        flags=("-ngl", "--n-gpu-layers"),
        check=whole_or({"auto": -1, "all": -1}, -1, 1 << 16),
        variables=("LLAMA_ARG_N_GPU_LAYERS",),
    )
    step_target: float = setting(
        0.25,
        "seconds that one step may take while answers are being generated; prompts are cut to fit",
        "engine",
        check=between(0.01, 60, float),
    )
    step_timeout: float = setting(
        60.0,
        "seconds after which a step is held to hang, if that is also ten times the longest so far; /health tells it, "
        "and comeapi.py starts that backend again",
        "engine",
        check=between(1, 86400, float),
    )
    siding: str = setting(
        "auto",
        "evaluate long prompts in a context of their own, which halts for the streams: auto (on a CPU where OpenMP "
        "is libgomp), on or off",
        "engine",
        check=one_of("auto", "on", "off"),
    )
    prompt_weights: str = setting(
        "auto",
        "weights that prompts are evaluated with there: loaded (repacked for this CPU, as for answers), mapped (those "
        "of the file, mapped once more), or auto (mapped where that should be faster)",
        "engine",
        check=one_of("auto", "loaded", "mapped"),
    )
    safe_mode: bool = setting(
        False,
        "leave the weights as they are in the file, not repacked for this CPU: about 20 % slower, for machines where "
        "llama.cpp crashes otherwise (comeapi.py turns it on by itself)",
        "engine",
        flags=("--no-repack", "-nr"),
    )
    max_queue: int = setting(
        64, "requests that may wait for a slot of one backend; more get 503", "limits", check=between(0, 1 << 20)
    )
    draft_max: int = setting(
        -1,
        "most tokens to guess ahead, from the text so far where the times of steps say that it pays, and by "
        "--model-draft; -1: 15 from the text for requests that name no seed, 3 by the model; 0: none",
        "engine",
        flags=("--draft", "--draft-n", "--spec-draft-n-max"),
        check=between(-1, 64),
        variables=("LLAMA_ARG_SPEC_DRAFT_N_MAX",),
    )
    model_draft: str = setting(
        "", "a small model with the same vocabulary, that guesses ahead where the text so far gives no guess", "engine",
        flags=("-md", "--spec-draft-model"), check=_whole_path, metavar="FILE",
        variables=("LLAMA_ARG_SPEC_DRAFT_MODEL",),
    )  # fmt: skip
    draft_p_min: float = setting(
        0.0, "how likely a guess of --model-draft must be, from 0 to 1", "engine", flags=("--spec-draft-p-min",),
        check=between(0, 1, float), variables=("LLAMA_ARG_SPEC_DRAFT_P_MIN",),
    )  # fmt: skip
    cache_type_k: str = setting(
        "f16",
        "type of the cached keys: " + ", ".join(CACHE_TYPES),
        "engine",
        flags=("-ctk",),
        check=one_of(*CACHE_TYPES),
        variables=("LLAMA_ARG_CACHE_TYPE_K",),
    )
    cache_type_v: str = setting(
        "f16",
        "type of the cached values; a quantized one needs flash attention",
        "engine",
        flags=("-ctv",),
        check=one_of(*CACHE_TYPES),
        variables=("LLAMA_ARG_CACHE_TYPE_V",),
    )
    flash_attn: str = setting(
        "auto", "flash attention: on, off, or auto (off on a CPU, where it slows long texts down)", "engine",
        flags=("-fa",), check=one_of("auto", "on", "off"), bare="on", variables=("LLAMA_ARG_FLASH_ATTN",),
    )  # fmt: skip
    mlock: bool = setting(
        False, "keep the weights in memory: never swap them out", "engine", variables=("LLAMA_ARG_MLOCK",)
    )
    no_mmap: bool = setting(
        False, "read the weights instead of mapping the file", "engine", variables=("LLAMA_ARG_NO_MMAP",)
    )
    lora: Tuple[str, ...] = setting(
        (),
        "a LoRA adapter: FILE or FILE:SCALE, applied to all requests that name none; or NAME=FILE, which requests ask "
        "for by the model's name MODEL:NAME; repeatable",
        "engine",
        many=True,
        check=checked_adapters,
        flags=("--lora-scaled",),
        metavar="FILE",
    )
    lora_init_without_apply: bool = setting(
        False, "apply no LoRA adapter before a request, or POST /lora-adapters, asks for it", "engine"
    )
    draw: str = setting(
        "own", "how tokens are drawn: own (rounding matters least when an answer is carried on), or llama.cpp (a "
        "seed gives llama-server's text)", "engine", check=one_of("own", "llama.cpp"),
    )  # fmt: skip
    rope_scaling: str = setting(
        "model", "RoPE scaling: model (as it says), none, linear or yarn", "rope", check=one_of("model", *ROPE_SCALING)
    )
    rope_freq_base: float = setting(
        0.0, "RoPE base frequency; 0 for the model's", "rope", check=between(0, 1e12, float)
    )
    rope_freq_scale: float = setting(
        0.0, "RoPE frequency scale; 0 for the model's", "rope", check=between(0, 1e3, float)
    )
    yarn_orig_ctx: int = setting(
        0, "context the model was trained with, for YaRN; 0 for the model's", "rope", check=between(0, 1 << 24)
    )
    yarn_ext_factor: float = setting(
        -1.0, "YaRN extrapolation mix; -1 for the model's", "rope", check=between(-1, 1e3, float)
    )
    yarn_attn_factor: float = setting(1.0, "YaRN attention magnitude", "rope", check=between(0, 1e3, float))
    yarn_beta_slow: float = setting(1.0, "YaRN high correction dimension", "rope", check=between(0, 1e3, float))
    yarn_beta_fast: float = setting(32.0, "YaRN low correction dimension", "rope", check=between(0, 1e3, float))
    slot_save_path: str = setting(
        "", "folder for what slots hold: turns POST /slots/N?action=save, restore and erase on", "engine",
        check=_folder, metavar="DIR",
    )  # fmt: skip
    embedding: bool = setting(
        False, "give embeddings with every model, also with one that gives text", "engine", flags=("--embeddings",)
    )
    pooling: str = setting(
        "model",
        "how the vectors of a text's tokens become its embedding: model (as it says), " + ", ".join(POOLING),
        "engine",
        check=one_of("model", *POOLING),
    )
    embd_normalize: int = setting(
        2, "norm of embeddings: 2 for length 1, -1 for none, 0 for the largest number, else p of the p-norm", "engine",
        check=between(-1, 1000),
    )  # fmt: skip
    reranking: bool = setting(
        False, "rank documents with every model, also with one that does not say that it can", "engine",
        flags=("--rerank",),
    )  # fmt: skip
    verbose: bool = setting(
        False, "show llama.cpp's own log, and in answers what the engine was asked (__verbose)", "engine",
        flags=("-v", "--log-verbose"),
    )  # fmt: skip

    @property
    def adapters(self) -> Tuple[Adapter, ...]:
        """The LoRA adapters, in the order of their numbers."""
        return tuple(adapter for text in self.lora for adapter in read_adapters(text))

    @property
    def lora_scales(self) -> Tuple[float, ...]:
        """How much of each adapter is applied to requests that name none, at first."""
        return tuple(0.0 if each.named or self.lora_init_without_apply else each.scale for each in self.adapters)

    def pooling_of(self, model: ModelFile) -> str:
        """Return how a model makes embeddings here, one of POOLING; "" where it gives text."""
        if self.reranking:
            return "rank"
        if not (model.pooling or self.embedding):
            return ""
        return self.pooling if self.pooling != "model" else model.pooling or "none"

    @property
    def guesses_ahead(self) -> bool:
        """Whether tokens are guessed ahead at all."""
        return self.draft_max != 0

    def guesses_from_text(self, names_seed: bool) -> int:
        """Return how many tokens are guessed ahead at most by what the text says already.

        Guesses change the last digits of llama.cpp's arithmetic, and which ones are made goes by steps' times. So a
        request that names its seed gets none unless --draft-max says otherwise.
        """
        if self.draft_max >= 0:
            return self.draft_max
        return 0 if names_seed else _FROM_TEXT

    @property
    def guesses_by_model(self) -> int:
        """How many tokens a draft model guesses ahead at most; 0 where there is none."""
        most = _BY_MODEL if self.draft_max < 0 else self.draft_max
        return most if self.model_draft else 0

    @property
    def guesses_at_once(self) -> int:
        """How many guesses from texts one batch may hold: those for two streams."""
        return self.guesses_from_text(False) * min(self.slots, 2)

    @property
    def outputs(self) -> int:
        """How many rows of a batch may want logits: a token of every slot, and guesses."""
        return self.slots * (1 + self.guesses_by_model) + self.guesses_at_once

    @property
    def draft_file(self) -> ModelFile:
        """The model that guesses, where there is one."""
        return inspect(self.model_draft)

    @property
    def rows(self) -> int:
        """The most rows of one batch: room for a token of every slot at least, and for the self-test."""
        return max(self.batch_size, self.slots, _LEAST_ROWS)

    @property
    def slot_ctx(self) -> int:
        """The tokens that one slot may hold; 0 for all that the model was trained with."""
        shared = self.share_ctx and not self.kv_unified
        return max(1, self.ctx_size // max(1, self.slots)) if shared and self.ctx_size else self.ctx_size

    def plain_attention(self, gpu: bool) -> bool:
        """Whether text is made without flash attention. Quantized values need it."""
        if self.flash_attn == "auto":
            return not gpu and CACHE_TYPES[self.cache_type_v] >= CACHE_TYPES["f16"]
        return self.flash_attn == "off"

    def rows_at_once(self, context: int, gpu: bool) -> int:
        """Return the most rows that are computed at once, in a slot that holds so many tokens (n_ubatch).

        Without flash attention the scores of all of them, for all tokens, are in memory; and more rows are not faster.
        """
        if self.ubatch_size or not self.plain_attention(gpu):
            return min(self.ubatch_size or self.rows, self.rows)
        return min(self.rows, max(32, min(128, _SCORES // max(context, 1))))

    @property
    def stretches(self) -> bool:
        """Whether the context may be longer than the model was trained with."""
        return bool(self.rope_scaling in ROPE_SCALING or self.rope_freq_base or self.rope_freq_scale)


def _template(given: str) -> str:
    """Check --chat-template as far as can be told here: a template, a file, or a name. Raises ValueError."""
    return given if is_template(given) or _NAME.fullmatch(given) else _file(given)


def is_template(given: str) -> bool:
    """Whether --chat-template gives a template's text. Else it is a name or a file.

    A text of several words is one, too, even without a place for the messages; one that looks like a path is none.
    """
    if "{{" in given or "{%" in given:
        return True
    path = os.path.exists(given) or "/" in given or os.sep in given or given.endswith(".jinja")
    return len(given.split()) > 1 and not path


_NAME = re.compile("[a-z0-9._-]+")


def _json_object(text: str) -> str:
    """Check a JSON object. Raises ValueError."""
    if text and not isinstance(json.loads(text), dict):
        raise ValueError("must be a JSON object")
    return text


def _budget_message(text: str) -> str:
    """Check --reasoning-budget-message. Raises ValueError."""
    if len(text) > BUDGET_MESSAGE.most:
        raise ValueError("may hold at most %d %s" % (BUDGET_MESSAGE.most, BUDGET_MESSAGE.of))
    return text


@dataclass(frozen=True)
class ChatSettings:
    """How a conversation becomes a prompt, and an answer a message."""

    chat_template: str = setting(
        "", "what to use in place of the model's chat template: one of llama.cpp's names (chatml, llama3, ...), a "
        "file, or the Jinja text", "chat", flags=("--chat-template-file",), check=_template, metavar="TEMPLATE",
    )  # fmt: skip
    chat_template_kwargs: str = setting(
        "", "variables for chat templates, a JSON object; a request's chat_template_kwargs win", "chat",
        check=_json_object, metavar="JSON",
    )  # fmt: skip
    reasoning: str = setting(
        "auto", "let models think: on, off, or auto (as their templates do); a request's enable_thinking wins", "chat",
        flags=("-rea",), check=one_of("auto", "on", "off"),
    )  # fmt: skip
    reasoning_format: str = setting(
        "auto", "where thoughts go: auto and deepseek (into reasoning_content), or none (they stay in the content)",
        "chat", check=one_of("auto", "deepseek", "none"),
    )  # fmt: skip
    reasoning_budget: int = setting(
        -1, "tokens that an answer's thoughts may take: -1 for any number, 0 for no thoughts; a request's "
        "reasoning_budget_tokens wins", "chat", check=between(-1, (1 << 31) - 1), variables=("LLAMA_ARG_THINK_BUDGET",),
    )  # fmt: skip
    reasoning_budget_message: str = setting(
        "", "what a thought that has used up its budget ends with", "chat", check=_budget_message, metavar="TEXT",
        variables=("LLAMA_ARG_THINK_BUDGET_MESSAGE",),
    )  # fmt: skip


@dataclass(frozen=True)
class ResponseSettings:
    """What is kept of the answers of POST /v1/responses, so that a conversation can go on with them."""

    responses_dir: str = setting(
        "", "folder for stored answers of /v1/responses; backends that are to know each other's name the same one "
        "(default: comeapi/responses in this user's state folder)", "responses", metavar="DIR",
    )  # fmt: skip
    responses_max: int = setting(
        10000, "most answers of /v1/responses that are stored; the oldest go first; 0 to store none", "responses",
        check=between(0, 1 << 24),
    )  # fmt: skip
    responses_max_bytes: int = setting(
        1 << 30, "most bytes that they take; the oldest go first", "responses", check=between(1 << 10, 1 << 50)
    )
    responses_days: float = setting(
        30.0, "days after which they are removed", "responses", check=between(0.001, 36500, float)
    )


def grace_setting(seconds: float) -> Any:
    """Declare a program's --drain-grace, with its default."""
    return setting(
        seconds, "seconds after SIGTERM in which /health says 503 and all else goes on, so that what checks it sends "
        "new clients elsewhere first; none where nobody has checked it for a minute", "limits",
        check=between(0, 3600, float),
    )  # fmt: skip


@dataclass(frozen=True)
class ChildSettings:
    """How a program behaves when another one has started it."""

    child: bool = setting(False, "started by another program: announce in JSON, stop when standard input ends", "other")


@dataclass(frozen=True)
class CarrySettings:
    """What lets a balancer carry answers on from one backend to another."""

    carry_secret: str = setting(
        "", "the secret that a balancer and its backends share, to carry answers on from one to another, or "
        "@FILE (default: one that all programs of this user on this machine share)", "access", secret=True,
        metavar="SECRET",
    )  # fmt: skip
