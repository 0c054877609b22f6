"""Which processor this machine has, and how many cores, as far as this process may use them (memory.py: its memory).

A process may be allowed less than the machine has, as in a container: CPU affinity and Linux' cgroup limits count.
"""

import contextlib
import math
import os
import platform


def cores() -> int:
    """Return how many cores this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = (_read("/sys/fs/cgroup/cpu.max").split() + ["max", ""])[:2]
    if quota.isdigit() and period.isdigit() and int(period):
        count = min(count, math.ceil(int(quota) / int(period)))
    return max(count, 1)


def processor() -> str:
    """Return the processor's name."""
    with contextlib.suppress(OSError):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return ""
