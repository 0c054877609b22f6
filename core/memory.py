"""What memory there is, what this process has of it, and how often the kernel has killed for lack of it.

    available_memory   can be had without swapping
    spare_memory       can be had before something is killed or refused: with swap, and within this process' own limit
    total_memory       what spare_memory could be at best
    resident_memory    what this process has in memory, mapped files included
    private_memory     the same without mapped files: what the system gets back when it is freed
    oom_kills          processes that the kernel has killed for lack of memory

Each is in bytes, or None where the system does not tell. A process may be allowed less than the machine has, as in a
container: the limits of its control groups (cgroup v1 and v2), and of those around them, count.

The pages of mapped files can be dropped at any time. They are no use of memory here: neither the kernel's MemAvailable
nor what is said of a group counts them. Sources: the kernel's admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

import ctypes
import os
import subprocess
import sys
from typing import Dict, Iterator, List, NamedTuple, Optional

ROOT = "/"  # where /proc and /sys are
_UNLIMITED = 1 << 60  # bytes; cgroup v1 writes a limit that nobody has set as about 1 << 63
_KB = 1024


def available_memory() -> Optional[int]:
    """Return the bytes that can still be used without swapping."""
    try:
        if sys.platform == "win32":
            return _windows_memory()
        if sys.platform == "darwin":
            return int(subprocess.check_output(["sysctl", "-n", "hw.memsize"], timeout=5)) // 2
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return _least(_meminfo("MemAvailable"), *(group.left for group in _groups()))


def spare_memory() -> Optional[int]:
    """Return the bytes that can be used before the system kills or refuses; None where only Linux would tell."""
    free, swap = _meminfo("MemAvailable"), _meminfo("SwapFree") or 0
    if free is None:
        return None
    lefts = [group.left + min(swap, group.swap_left) for group in _groups() if group.left is not None]
    return _least(free + swap, *lefts, _room_to_map())


def total_memory() -> Optional[int]:
    """Return the bytes that a process alone could use: what spare_memory() can be at best."""
    memory, swap = _meminfo("MemTotal"), _meminfo("SwapTotal") or 0
    if memory is None:
        return None
    limits = [group.limit + min(swap, group.swap_limit) for group in _groups() if group.limit is not None]
    return _least(memory + swap, *limits, _limit_to_map())


def resident_memory() -> Optional[int]:
    """Return the bytes that this process has in memory; on systems other than Linux, the most that it has had."""
    now = _status("VmRSS")
    if now is not None:
        return now
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * _KB


def private_memory() -> Optional[int]:
    """Return the bytes that this process has in memory for itself alone."""
    return _status("RssAnon")


def megabytes(size: Optional[int]) -> Optional[int]:
    """Return a size in millions of bytes."""
    return None if size is None else round(size / 1e6)


def oom_kills() -> Optional[int]:
    """Return how many processes the kernel has killed for lack of memory: of this control group, else of the machine.

    The kernel counts a kill before the killed process' parent can learn of its end.
    """
    for group in _groups():
        if group.kills is not None:
            return group.kills
    return _number_in(_read("proc/vmstat"), "oom_kill")


# ------------------------------------------------------------------------------------------- control groups


class _Names(NamedTuple):
    """What the files of a version of cgroups are called, and the values in them."""

    limit: str
    used: str
    events: str
    files: List[str]  # values of memory.stat: pages of files, which can be dropped


_V1 = _Names(
    "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control", ["total_inactive_file", "total_active_file"]
)
_V2 = _Names("memory.max", "memory.current", "memory.events", ["inactive_file", "active_file"])


class _Group:
    """One control group that limits this process."""

    def __init__(self, folder: str, names: _Names):
        self._folder = folder
        self._names = names

    @property
    def limit(self) -> Optional[int]:
        """The most bytes that its processes may use; None for no limit."""
        limit = self._number(self._names.limit)
        return limit if limit is not None and limit < _UNLIMITED else None

    @property
    def left(self) -> Optional[int]:
        """How many of them are left; None for no limit."""
        limit, used = self.limit, self._number(self._names.used)
        if limit is None or used is None:
            return None
        stat = _read(self._folder + "/memory.stat")
        return max(limit - used + sum(_number_in(stat, name) or 0 for name in self._names.files), 0)

    @property
    def swap_limit(self) -> int:
        """The most bytes of swap that its processes may use."""
        limit = self._number("memory.swap.max")
        return _UNLIMITED if limit is None else limit

    @property
    def swap_left(self) -> int:
        """How many of them are left."""
        return max(self.swap_limit - (self._number("memory.swap.current") or 0), 0)

    @property
    def kills(self) -> Optional[int]:
        """How many of its processes the kernel has killed for lack of memory."""
        return _number_in(_read(self._folder + "/" + self._names.events), "oom_kill")

    def _number(self, name: str) -> Optional[int]:
        text = _read(self._folder + "/" + name).strip()
        return int(text) if text.isdigit() else None


def _groups() -> Iterator[_Group]:
    """Yield this process' control group for memory, then those around it; nothing where it has none.

    A container may see its own group as the topmost one, under a path that is not there: then that one is meant.
    """
    for line in _read("proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        top, names = ("sys/fs/cgroup/memory", _V1) if controllers else ("sys/fs/cgroup", _V2)
        parts = [part for part in path.split("/") if part and part != ".."]
        for count in range(len(parts), -1, -1):
            folder = "/".join([top] + parts[:count])
            if os.path.isfile(os.path.join(ROOT, folder, names.used)):
                yield _Group(folder, names)


# ------------------------------------------------------------------------------------------- this process


def _limit_to_map() -> Optional[int]:
    """Return the most bytes of addresses that this process may have (RLIMIT_AS); None for no limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _room_to_map() -> Optional[int]:
    limit, used = _limit_to_map(), _status("VmSize")
    return None if limit is None or used is None else max(limit - used, 0)


def _status(name: str) -> Optional[int]:
    return _kilobytes("proc/self/status", name)


def _meminfo(name: str) -> Optional[int]:
    return _kilobytes("proc/meminfo", name)


def _kilobytes(path: str, name: str) -> Optional[int]:
    number = _number_in(_read(path), name + ":")
    return None if number is None else number * _KB


def _number_in(text: str, name: str) -> Optional[int]:
    """Return the number that follows a name at the beginning of a line."""
    words: Dict[str, List[str]] = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    first = (words.get(name) or [""])[0]
    return int(first) if first.isdigit() else None


def _least(*sizes: Optional[int]) -> Optional[int]:
    return min((size for size in sizes if size is not None), default=None)


if sys.platform == "win32":  # else ctypes has no windll

    def _windows_memory() -> int:
        class Status(ctypes.Structure):  # MEMORYSTATUSEX
            _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
                (name, ctypes.c_ulonglong) for name in ("total", "free", "a", "b", "c", "d", "e")
            ]

        status = Status(length=ctypes.sizeof(Status))
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return status.free


def _read(path: str) -> str:
    try:
        with open(os.path.join(ROOT, path), encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
