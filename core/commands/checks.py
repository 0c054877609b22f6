"""What doctor thinks of the facts about a machine, and what it advises. Pure: the facts come from machine.py.

Each check returns a Finding: what it is about, whether it is well, what was found, and what to do.
"""

from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from core.commands.trial import Trial
from core.hardware import Processor
from core.models import ModelFile
from core.needs import gb, need_of
from core.settings import EngineSettings
from core.terminal import one_line, size

GOOD, NOTE, PROBLEM = "good", "note", "problem"
_OLDEST = (3, 8)
_SLOTS = 4
_REBUILD = "python -m pip install --force-reinstall --no-cache-dir llama-cpp-python"
_NO_AMX = "CFLAGS=-mno-amx-int8 CXXFLAGS=-mno-amx-int8 " + _REBUILD
# What a processor has, by Linux' name for it, and the name that llama.cpp has for code that uses it
_WORTH = {"avx2": "AVX2", "fma": "FMA", "f16c": "F16C", "avx512f": "AVX512", "asimddp": "DOTPROD"}
_CROWDED = 0.5  # of the cores wanted by others
_SLOW = 6e9  # bytes in a second


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `figures` are for programs: bytes, bytes in a second, tokens in a second."""

    name: str
    level: str
    says: str
    do: str = ""
    figures: Dict[str, Any] = field(default_factory=dict)


def python(version: Sequence[Any], wide: bool, kind: str) -> Finding:
    """Check the interpreter."""
    says = "%s %d.%d.%d%s" % (kind, version[0], version[1], version[2], "" if wide else ", 32 bits")
    if tuple(version[:2]) < _OLDEST or not wide:
        return Finding("Python", PROBLEM, says, "Install a 64-bit Python of 3.8 or later.")
    return Finding("Python", GOOD, says)


def library(trials: Sequence[Trial], tools: Dict[str, str]) -> Finding:
    """Check that llama-cpp-python is there; where it is not, whether it can be built."""
    facts = trials[0].steps.get("import")
    if facts:
        gpu = "uses the GPU" if facts["gpu"] else "no GPU"
        return Finding("llama-cpp-python", GOOD, "%s, %s" % (facts["version"], gpu))
    says = one_line(trials[0].said) or "it can't be loaded"
    missing = [what for what, path in tools.items() if not path]
    do = "python -m pip install llama-cpp-python"
    if missing:
        do = "%s must be installed first (README.md, 'Troubleshooting'); then: %s" % (" and ".join(missing), do)
    return Finding("llama-cpp-python", PROBLEM, says, do)


def features(trials: Sequence[Trial]) -> Tuple[str, ...]:
    """Return what llama.cpp was built to use, by its own names."""
    text = trials[0].steps.get("import", {}).get("features", "")
    pairs = [part.rpartition(":")[2].partition("=") for part in text.split("|")]
    return tuple(name.strip() for name, _, value in pairs if value.strip() == "1")


def uses_gpu(trials: Sequence[Trial]) -> bool:
    """Return whether llama.cpp can use a GPU."""
    return bool(trials[0].steps.get("import", {}).get("gpu"))


def quantized(trials: Sequence[Trial]) -> Iterator[Finding]:
    """Check that quantized weights can be computed with; nothing where there is no llama-cpp-python."""
    first = trials[0]
    name = "Quantized models"
    if "import" not in first.steps:
        return
    if "decode" in first.steps:
        yield Finding(name, GOOD, "a small one was computed with")
    elif first.crashed and "decode" in trials[-1].steps:
        says = "this build crashes at full speed (status %s); it runs in safe mode, about 20 %% slower" % first.status
        yield Finding(name, NOTE, says, "comeapi.py turns safe mode on by itself. For full speed: " + _NO_AMX)
    elif first.crashed:
        says = "this build crashes here, in safe mode, too (status %s)" % first.status
        yield Finding(name, PROBLEM, says, "Build it on this machine: " + _REBUILD)
    elif first.status is None:
        yield Finding(name, PROBLEM, "a small one took more than a minute", "See whether the machine is busy.")
    else:
        yield Finding(name, NOTE, "not tried: %s" % (one_line(first.said) or "status %s" % first.status))


def processor(found: Processor, built: Sequence[str]) -> Finding:
    """Check that llama.cpp was built for this processor."""
    has = ", ".join(found.features)
    says = "%s%s" % (one_line(found.name), " (%s)" % has if has else "")
    unused = [name for flag, name in _WORTH.items() if flag in found.features and built and name not in built]
    if unused:
        do = "Build it on this machine: " + _REBUILD
        return Finding("Processor", NOTE, "%s; llama.cpp was built without %s" % (says, ", ".join(unused)), do)
    return Finding("Processor", GOOD, says)


def company(cores: int, load: Optional[float]) -> Finding:
    """Check that other programs leave the cores alone."""
    says = "%d" % cores
    figures = {"cores": cores, "load": load}
    if load is not None and load > _CROWDED * cores:
        says += "; %.1f of them were busy in the last minute" % min(load, cores)
        do = "If that was not ComeAPI: threads that share a core are many times slower. Leave one free with --threads."
        return Finding("Cores", NOTE, says, do, figures)
    return Finding("Cores", GOOD, says, figures=figures)


def memory(free: Optional[int]) -> Finding:
    """Say how much memory there is."""
    if free is None:
        return Finding("Memory", NOTE, "this system does not tell how much is free")
    level, do = (NOTE, "Close other programs, or choose small models.") if free < 1 << 30 else (GOOD, "")
    return Finding("Memory", level, "%s free" % gb(free), do, {"free": free})


def bandwidth(rate: Optional[float]) -> Finding:
    """Say how fast the memory is."""
    if rate is None:
        return Finding("Memory's speed", NOTE, "not measured: too little is free")
    says = "%s/s read by all cores together; a model reads all its weights for each token" % size(rate)
    do = "That is slow; was the machine busy? Smaller or stronger quantized models suit it." if rate < _SLOW else ""
    return Finding("Memory's speed", NOTE if do else GOOD, says, do, {"bytes_per_second": round(rate)})


def port(number: int, option: str, listener: str) -> Finding:
    """Check that a port is free, or ours."""
    name = "Port %d" % number
    if not listener:
        return Finding(name, GOOD, "free")
    if listener == "ComeAPI":
        return Finding(name, GOOD, "ComeAPI is running there (python comeapi.py status)")
    other = "python comeapi.py %s %d" % (option, number + 100)
    return Finding(name, NOTE, "%s has it" % listener, "Start with another one: " + other)


def no_folder(problem: str) -> Finding:
    """Say that there is no models folder."""
    return Finding("Models", PROBLEM, problem, "Name the folder by --models DIR, or make it.")


def folder(path: str, models: Sequence[ModelFile], free: int) -> Finding:
    """Check that there is a model to load."""
    usable = [each.name for each in models if not each.problem]
    says = "%d in %s, whose disk has %s free" % (len(models), path, size(free))
    pull = "python comeapi.py pull Qwen/Qwen3-4B-GGUF:Q4_K_M"
    if not usable:
        return Finding("Models", PROBLEM, says, "Get one: " + pull)
    if usable == ["demo.gguf"]:
        return Finding("Models", NOTE, says + "; the demo alone knows nothing", "Get a real one: " + pull)
    return Finding("Models", GOOD, says)


def model(file: ModelFile, free: Optional[int], rate: Optional[float], gpu: bool) -> Finding:
    """Say how many backends of a model fit, and how many tokens per second the memory allows."""
    if file.problem:
        return Finding(file.name, PROBLEM if file.name != "demo.gguf" else NOTE, file.problem, "Copy or pull it again.")
    need = need_of(EngineSettings(), file, _SLOTS, gpu)
    facts: List[str] = [part for part in (size(file.size), file.quantization) if part]
    figures: Dict[str, Any] = {"size": file.size, "memory_of_a_backend": need.own, "memory_shared": need.mapped}
    fitting = None if free is None else max(0, (free - need.mapped) // need.own)
    if fitting is not None and not gpu:
        figures["backends_that_fit"] = fitting
        facts.append("%s fit" % _backends(fitting) if fitting < 10 else "10 backends and more fit")
    if file.sparse:
        facts.append("a token is computed with some of its weights only")
    elif rate and not gpu:
        bound = rate / file.size
        figures["most_tokens_per_second"] = round(bound, 1)
        facts.append("at most %s tokens/s for one answer; several at once share what is read" % _rounded(bound))
    if fitting == 0:
        do = "It may still run, slowly, from the disk. A smaller --ctx-size, fewer --slots or --safe-mode need less."
        return Finding(file.name, NOTE, ", ".join(facts), do, figures)
    return Finding(file.name, GOOD, ", ".join(facts), figures=figures)


def _backends(count: int) -> str:
    return "%d backend%s" % (count, "" if count == 1 else "s")


def _rounded(number: float) -> str:
    return "%.1f" % number if number < 20 else "%d" % number
