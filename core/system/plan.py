"""What comeapi.py starts on a machine: how many backends, with how many slots and threads, and why. Pure.

    make_plan(config, model, cores, memory, gpu) ── Plan(threads, slots, model, need, notes)

`config` is comeapi.py's: the engine's settings, and `backends`. Where a number in it is 0, the plan chooses.
"""

from dataclasses import dataclass
from typing import Any, Optional, Tuple

from core.models import ModelFile
from core.needs import Need, gb, need_of


@dataclass(frozen=True)
class Plan:
    """What to start: one number of threads for each backend; `need` is of one backend; `notes` say why."""

    threads: Tuple[int, ...]
    slots: int
    model: ModelFile
    need: Need
    notes: Tuple[str, ...]
    lends: bool = False  # idle backends lend their threads

    @property
    def backends(self) -> int:
        """How many backends."""
        return len(self.threads)


def make_plan(config: Any, model: ModelFile, cores: int, memory: Optional[int], gpu: bool) -> Plan:
    """Return what to start on a machine with `cores` cores and `memory` free bytes (None: unknown)."""
    backends = config.backends or (1 if gpu or cores == 1 else 2)
    slots = config.slots or (8 if gpu else 4)
    notes = [_why(config, backends, slots, cores, gpu)]
    need = need_of(config, model, slots, gpu)
    shared, each = need.mapped, need.own
    affordable = backends if memory is None else max(1, (memory - shared) // each)
    if affordable < backends:
        what = "%s for %d backends, but only %s is free" % (gb(shared + each * backends), backends, gb(memory))
        notes.append("⚠️  Memory: %s needs %s: starting %d." % (model.name, what, affordable))
        backends = affordable
    else:
        free = "" if memory is None else " of %s free" % gb(memory)
        notes.append("Memory: about %s%s." % (gb(shared + each * backends), free))
    if memory is not None and shared + each > memory:
        notes.append("⚠️  Even one backend may not fit; a smaller --ctx-size or fewer --slots need less.")
    lends = backends > 1 and not config.threads and not gpu and cores > 1
    threads = (config.threads,) * backends if config.threads else shares(cores, backends)
    return Plan(threads, slots, model, need, tuple(notes), lends)


def shares(cores: int, backends: int) -> Tuple[int, ...]:
    """Share the cores out between the backends; each has at least one thread."""
    return tuple(max(1, cores // backends + (i < cores % backends)) for i in range(backends))


def _why(config: Any, backends: int, slots: int, cores: int, gpu: bool) -> str:
    shape = "%s, %s at once" % (_count(backends, "backend"), _count(backends * slots, "request"))
    if config.backends or config.slots or config.threads:
        return "Plan: %s, as asked for or tuned." % shape
    if gpu:
        return "Plan: %s: this build of llama.cpp uses the GPU, and one process uses it best." % shape
    if cores == 1:
        return "Plan: %s: one core." % shape
    why = "%d cores; requests share a batch, which reads the weights once, and two keep the service up when one dies"
    return "Plan: %s: %s." % (shape, why % cores)


def _count(number: int, what: str) -> str:
    return "%d %s%s" % (number, what, "" if number == 1 else "s")
