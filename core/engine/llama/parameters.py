"""What the settings say of a context, as llama.cpp takes it (llama_context_params)."""

from typing import Any

import llama_cpp

from core.engine.llama.model import Model
from core.engine.llama.native import uses_gpu
from core.hardware import cores
from core.settings import EngineSettings


def context_parameters(model: Model, settings: EngineSettings, n_ctx: int) -> Any:
    """Return the llama_context_params for a model. `n_ctx` is the tokens that one slot may hold."""
    params = llama_cpp.llama_context_default_params()
    _set_sizes(params, settings, n_ctx)
    _set_types(params, settings)
    if model.pooling:
        _set_embedding(params, model, n_ctx)
    elif settings.plain_attention(uses_gpu(settings)):
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    _set_rope(params, settings)
    return params


def _set_sizes(params: Any, settings: EngineSettings, n_ctx: int) -> None:
    params.n_ctx = n_ctx * settings.slots
    params.n_batch = settings.rows
    params.n_ubatch = settings.rows_at_once(n_ctx, uses_gpu(settings))
    params.n_seq_max = settings.slots
    params.n_outputs_max = settings.outputs  # else logits are reserved for a whole batch: 300 MB for large vocabularies
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
