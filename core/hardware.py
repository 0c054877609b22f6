"""How many cores this machine has, as far as this process may use them (memory.py: its memory).

A process may be allowed less than the machine has, as in a container: CPU affinity and Linux' cgroup limits count.
"""

import math
import os


def cores() -> int:
    """Return how many cores this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = (_read("/sys/fs/cgroup/cpu.max").split() + ["max", ""])[:2]
    if quota.isdigit() and period.isdigit() and int(period):
        count = min(count, math.ceil(int(quota) / int(period)))
    return max(count, 1)


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return ""
