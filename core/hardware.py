"""Which processor this machine has, and how many cores, as far as this process may use them (memory.py: its memory).

A process may be allowed less than the machine has, as in a container: CPU affinity and Linux' cgroup limits count.
"""

import contextlib
import math
import os
import platform
import shutil
import subprocess
from typing import NamedTuple, Tuple

_FEATURES = ("avx", "avx2", "f16c", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")


class Processor(NamedTuple):
    """A processor's name, and the features that make llama.cpp fast, by the names that Linux has for them."""

    name: str
    features: Tuple[str, ...]


def cores() -> int:
    """Return how many cores this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = (_read("/sys/fs/cgroup/cpu.max").split() + ["max", ""])[:2]
    if quota.isdigit() and period.isdigit() and int(period):
        count = min(count, math.ceil(int(quota) / int(period)))
    return max(count, 1)


def stay_on_one_core(number: int) -> None:
    """Let this process, and threads that it starts from now on, run on one of the cores that it may use; Linux only.

    Equal numbers mean the same core, and numbers that follow each other different ones.
    """
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0), reverse=True)
        with contextlib.suppress(OSError):  # a container may forbid it
            os.sched_setaffinity(0, [allowed[number % len(allowed)]])


def processor() -> Processor:
    """Return what processor this is; without features where the system does not tell them."""
    name, flags = "", ""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() in ("model name", "Model"):
                    name = name or value.strip()
                elif key.strip() in ("flags", "Features"):
                    flags = flags or value
    except OSError:
        flags = _sysctl("machdep.cpu.features") + " " + _sysctl("machdep.cpu.leaf7_features")
        name = _sysctl("machdep.cpu.brand_string")
    known = set(flags.lower().split())
    return Processor(name or platform.processor() or platform.machine(), tuple(f for f in _FEATURES if f in known))


def _sysctl(name: str) -> str:
    if not shutil.which("sysctl"):
        return ""
    done = subprocess.run(["sysctl", "-n", name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return done.stdout.decode("utf-8", "replace").strip()


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return ""
