"""How much memory a model needs to run, by what its header says, and whether there is so much. Pure.

    need_of(settings, model, slots, gpu)  ── Need(own, mapped, least)
    verdict(need, spare, total)           ── nothing to say, a warning, or a refusal, with the figures
    lacks_memory(text)                    ── whether llama.cpp, or the system, complains of too little memory

Two figures, since some things can't be known before a model is loaded: what llama.cpp copies into a layout for this CPU
(quantized weights are "repacked"), and what models with layers of several kinds keep of a text. The larger figure
(`own`) is planned and warned by. Only by the smaller one (`least`) a model is refused: one that might run is tried.
Mapped weights are in neither: the system drops their pages and reads them again. Slow, but it works.
"""

import re
from dataclasses import replace
from typing import Any, NamedTuple, Optional

from core.models import ModelFile
from core.settings import CACHE_TYPES

PROCESS_BYTES = 120 << 20  # of one backend: Python, numpy and llama.cpp's buffers for a small model
BUFFER_BYTES = 4  # a float32; llama.cpp's compute buffers hold about this many per batch row and embedding or logit
# What llama.cpp repacks on every CPU of the last ten years (AVX2, or ARM with dot products): ggml-cpu/repack.cpp
_ALWAYS_REPACKED = ("Q4_0", "Q4_K", "IQ4_NL", "MXFP4")
_COMPLAINT = re.compile(
    r"failed to (re)?allocate|unable to allocate|cannot allocate memory|out of memory|not enough memory|bad_alloc|"
    r"MemoryError",
    re.IGNORECASE,
)


class Need(NamedTuple):
    """What a model needs, in bytes."""

    own: int  # of each process that runs it, the process included
    mapped: int  # weights that are mapped: all processes share them
    least: int  # that loading it certainly takes, mapped weights left out
    copied: int = 0  # of `own`, weights that would be mapped and shared in safe mode


class Verdict(NamedTuple):
    """What is to be said of a model before it is loaded; nothing where it fits."""

    refusal: str = ""
    warning: str = ""


def need_of(settings: Any, model: ModelFile, slots: int, gpu: bool) -> Need:
    """Return what a model needs to run with so many slots. `settings` are the engine's; `gpu`: the build can use one.

    Quantized weights are repacked into private memory; others, and all in safe mode, are mapped and shared.
    """
    if gpu and settings.gpu_layers:
        return Need(PROCESS_BYTES, 0, 0)  # the rest is the GPU's memory
    cells = _cells(settings, model, slots)
    aside = aside_bytes(settings, model, gpu) if slots > 1 and settings.siding != "off" else 0
    rows = context_of(settings, model) if model.embeds and not model.causal else min(settings.batch_size, 512)
    buffers = rows * BUFFER_BYTES * _widest(model) + _scores(settings, model, gpu)
    draft = _draft(settings, slots)
    own, least = PROCESS_BYTES + cells + aside + buffers + draft, 0 if model.mixed or model.embeds else cells
    if settings.no_mmap or settings.mlock:
        return Need(own + model.size, 0, least + model.size)
    if not model.quantized or settings.safe_mode:
        return Need(own, model.size, least)
    # Embeddings, and weights that stand in for those in other types, stay as they are: half is a safe guess.
    repacked = model.size // 2 if model.quantization in _ALWAYS_REPACKED else 0
    return Need(own + model.size, 0, least + repacked, model.size)


def aside_bytes(settings: Any, model: ModelFile, gpu: bool) -> int:
    """Return the bytes of memory that the context takes in which long prompts are evaluated.

    On a GPU it is the GPU's memory.
    """
    if gpu and settings.gpu_layers:
        return 0
    return _cells(settings, model, 1) + _scores(settings, model, gpu)


def context_of(settings: Any, model: ModelFile) -> int:
    """Return how many tokens a slot holds; 0 where neither the settings nor the model say."""
    if settings.slot_ctx and settings.stretches:
        return int(settings.slot_ctx)
    return min(settings.slot_ctx or model.context_length, model.context_length or settings.slot_ctx)


def verdict(name: str, need: Need, spare: Optional[int], bound: Optional[int] = None) -> Verdict:
    """Return what is to be said before a model is loaded, where `spare` bytes can be had (None: unknown).

    It is refused where its least is more than `bound`, which is `spare` if not given.
    """
    if spare is None:
        return Verdict()
    limit = spare if bound is None else max(bound, spare)
    if need.least > limit:
        figures = "it needs at least %s of memory, %s are free" % (gb(need.least), gb(spare))
        return Verdict(refusal="%s is too large: %s." % (name, figures))
    if need.own - PROCESS_BYTES > spare:
        figures = "it needs about %s of memory, %s are free" % (gb(need.own - PROCESS_BYTES), gb(spare))
        return Verdict(warning="%s may not fit: %s." % (name, figures))
    return Verdict()


def lacks_memory(text: str) -> bool:
    """Whether a message complains of too little memory."""
    return bool(_COMPLAINT.search(text))


def gb(size: Optional[int]) -> str:
    """Return a size in words, in billions of bytes."""
    return "%.1f GB" % ((size or 0) / 1e9)


def _cells(settings: Any, model: ModelFile, slots: int) -> int:
    share = (CACHE_TYPES[settings.cache_type_k] + CACHE_TYPES[settings.cache_type_v]) / (2 * CACHE_TYPES["f16"])
    return int(context_of(settings, model) * slots * model.kv_bytes * share)


def _draft(settings: Any, slots: int) -> int:
    """Return the bytes that the model takes that guesses ahead, where there is one."""
    if not settings.model_draft:
        return 0
    need = need_of(replace(settings, model_draft="", siding="off"), settings.draft_file, slots, False)
    return need.own - PROCESS_BYTES


def _scores(settings: Any, model: ModelFile, gpu: bool) -> int:
    """Return the bytes of attention's scores: where there is no flash attention, they are in memory."""
    if model.embeds or not settings.plain_attention(gpu):
        return 0
    context = context_of(settings, model)
    return context * settings.rows_at_once(context, gpu) * model.heads * BUFFER_BYTES


def _widest(model: ModelFile) -> int:
    """Return a rough width of the widest thing computed for each row, in floats."""
    return max(model.vocabulary // 8, 8192)
