"""What comeapi.py starts on a machine: how many backends, with how many slots and threads, and why. Pure.

    make_plan(config, model, cores, memory, gpu) ── Plan(threads, slots, model, notes)
    memory_needed(config, model, slots, gpu)     ── (bytes that all backends share, bytes that each needs)

`config` is comeapi.py's: the engine's settings, and `backends`. Where a number in it is 0, the plan chooses.
"""

from dataclasses import dataclass
from typing import Any, Optional, Tuple

from core.models import ModelFile
from core.settings import CACHE_TYPES

PROCESS_BYTES = 120 << 20  # of one backend: Python, numpy and llama.cpp's buffers for a small model
BUFFER_BYTES = 4  # a float32; llama.cpp's compute buffers hold about this many per batch row and embedding or logit


@dataclass(frozen=True)
class Plan:
    """What to start: one number of threads for each backend; `notes` say why."""

    threads: Tuple[int, ...]
    slots: int
    model: ModelFile
    notes: Tuple[str, ...]

    @property
    def backends(self) -> int:
        """How many backends."""
        return len(self.threads)


def make_plan(config: Any, model: ModelFile, cores: int, memory: Optional[int], gpu: bool) -> Plan:
    """Return what to start on a machine with `cores` cores and `memory` free bytes (None: unknown)."""
    backends = config.backends or (1 if gpu or cores == 1 else 2)
    slots = config.slots or (8 if gpu else 4)
    notes = [_why(config, backends, slots, cores, gpu)]
    shared, each = memory_needed(config, model, slots, gpu)
    affordable = backends if memory is None else max(1, (memory - shared) // each)
    if affordable < backends:
        what = "%s for %d backends, but only %s is free" % (_gb(shared + each * backends), backends, _gb(memory))
        notes.append("⚠️  Memory: %s needs %s: starting %d." % (model.name, what, affordable))
        backends = affordable
    else:
        free = "" if memory is None else " of %s free" % _gb(memory)
        notes.append("Memory: about %s%s." % (_gb(shared + each * backends), free))
    if memory is not None and shared + each > memory:
        notes.append("⚠️  Even one backend may not fit; a smaller --ctx-size or fewer --slots need less.")
    return Plan(_share(config.threads, cores, backends), slots, model, tuple(notes))


def memory_needed(config: Any, model: ModelFile, slots: int, gpu: bool) -> Tuple[int, int]:
    """Return the bytes that all backends share, and those that each needs for itself.

    Quantized weights are repacked into private memory; others, and all in safe mode, are mapped and shared.
    """
    if gpu and config.gpu_layers:
        return 0, PROCESS_BYTES  # the rest is the GPU's memory
    context = min(config.ctx_size or model.context_length, model.context_length or config.ctx_size)
    rows = min(config.batch_size, 512)
    share = (CACHE_TYPES[config.cache_type_k] + CACHE_TYPES[config.cache_type_v]) / (2 * CACHE_TYPES["f16"])
    aside = 1 if slots > 1 and config.siding != "off" else 0
    cells = int(context * (slots + aside) * model.kv_bytes * share)
    own = PROCESS_BYTES + cells + rows * BUFFER_BYTES * _widest(model)
    repacked = model.quantized and not config.safe_mode
    return (0, own + model.size) if repacked else (model.size, own)


def _widest(model: ModelFile) -> int:
    """Return a rough width of the widest thing computed for each row, in floats."""
    return max(model.vocabulary // 8, 8192)


def _why(config: Any, backends: int, slots: int, cores: int, gpu: bool) -> str:
    shape = "%s, %s at once" % (_count(backends, "backend"), _count(backends * slots, "request"))
    if config.backends or config.slots or config.threads:
        return "Plan: %s, as asked for." % shape
    if gpu:
        return "Plan: %s: this build of llama.cpp uses the GPU, and one process uses it best." % shape
    if cores == 1:
        return "Plan: %s: one core." % shape
    why = "%d cores; requests share a batch, which reads the weights once, and two keep the service up when one dies"
    return "Plan: %s: %s." % (shape, why % cores)


def _share(threads: int, cores: int, backends: int) -> Tuple[int, ...]:
    """Share the cores out between the backends; each has at least one thread."""
    if threads:
        return (threads,) * backends
    return tuple(max(1, cores // backends + (i < cores % backends)) for i in range(backends))


def _count(number: int, what: str) -> str:
    return "%d %s%s" % (number, what, "" if number == 1 else "s")


def _gb(size: Optional[int]) -> str:
    return "%.1f GB" % ((size or 0) / 1e9)
