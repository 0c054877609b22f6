"""The samplers that a request asks for: penalties, cuts, temperature, Mirostat (llama_sampler_init_…)."""

import ctypes
from typing import Any, Dict

import llama_cpp

from core.engine.llama.model import Model
from core.sampling import SAMPLERS, Sampling


def make_samplers(model: Model, sampling: Sampling, seed: int, longest: int) -> Dict[str, Any]:
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
        return make_xtc(sampling, 0) if sampling.xtc_probability > 0 else None
    return _cut(name, sampling)


def make_xtc(sampling: Sampling, seed: int) -> Any:
    """Return the sampler that sometimes leaves the likeliest tokens out; it draws by a seed."""
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
