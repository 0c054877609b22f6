"""File descriptors: how many a process may open, and how many connections fit. Imports nothing of the project.

    raise_limit()           called first by each program; a program that embeds a service decides for itself
    room(per_connection)    how many connections fit, where each needs so many descriptors
    is_short(error)         whether an error says that no descriptor or no thread is left
"""

import contextlib
import errno
import os
from typing import Optional

_MOST = 1 << 20  # enough for any service; some systems have no limit
_OPEN_MAX = 10240  # what macOS takes where it says that there is no limit


def raise_limit() -> None:
    """Raise this process' soft limit of open files to its hard one."""
    with contextlib.suppress(ImportError):
        import resource  # POSIX only

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for wanted in (_bounded(hard, resource.RLIM_INFINITY), _OPEN_MAX):
            if 0 <= soft < wanted:  # -1 is RLIM_INFINITY
                with contextlib.suppress(OSError, ValueError):
                    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                    return


def room(per_connection: int) -> Optional[int]:
    """Return how many connections fit into this process, where each needs so many descriptors; None where unknown.

    Descriptors that are open already are not counted, nor is a reserve for accepting, probes, files and connections
    that are closing.
    """
    limit = _limit()
    if limit is None:
        return None
    reserve = 32 + limit // 16
    return max(1, (limit - _open_now() - reserve) // per_connection)


def is_short(error: BaseException) -> bool:
    """Whether an error says that no descriptor, no memory for a socket or no thread is left."""
    if isinstance(error, OSError):
        return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
    return isinstance(error, RuntimeError) and "can't start new thread" in str(error)


def _limit() -> Optional[int]:
    try:
        import resource  # POSIX only
    except ImportError:
        return None
    return _bounded(resource.getrlimit(resource.RLIMIT_NOFILE)[0], resource.RLIM_INFINITY)


def _bounded(limit: int, infinity: int) -> int:
    return _MOST if limit == infinity else min(limit, _MOST)


def _open_now() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return len(os.listdir(folder))
    return 0
