"""What doctor looks at: the facts about this machine, with no opinion about them (checks.py has those)."""

import os
import shutil
import socket
from typing import Dict, List, Optional

from core.commands.trial import Trial, trial
from core.http.client import Client
from core.http.failures import Broken, Slow, TooLarge, Unreachable
from core.http.messages import http_url, local_host
from core.system.launch import ROOT

_COMPILERS = ("c++", "g++", "clang++", "cl")


def trials() -> List[Trial]:
    """Try llama-cpp-python with a quantized model; where that crashes, in safe mode, too."""
    demo = os.path.join(ROOT, "models", "demo.gguf")
    first = trial(demo, safe=False)
    return [first, trial(demo, safe=True)] if first.crashed else [first]


def tools() -> Dict[str, str]:
    """Return the paths of what builds llama-cpp-python, "" for what is missing."""
    compiler = next((path for path in map(shutil.which, _COMPILERS) if path), "")
    return {"a C++ compiler": compiler or "", "CMake": shutil.which("cmake") or ""}


def load() -> Optional[float]:
    """Return how many threads wanted a core, on average, in the last minute; None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def free_disk(folder: str) -> int:
    """Return the bytes that are free on a folder's disk. Raises OSError."""
    return shutil.disk_usage(folder).free


def listener(host: str, port: int) -> str:
    """Return who listens on a port: "" for nobody, "ComeAPI", or "another program"."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            if os.name == "posix":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        return ""
    except OSError:
        return "ComeAPI" if _is_ours(http_url(local_host(host), port)) else "another program"


def _is_ours(url: str) -> bool:
    client = Client(connect_timeout=1.0)
    try:
        return b'"ComeAPI ' in client.open(url + "/", timeout=2.0).read_and_close(1 << 20, 2.0)
    except (Broken, Slow, TooLarge, Unreachable):
        return False
    finally:
        client.close()
