"""What doctor looks at: the facts about this machine, with no opinion about them (checks.py has those)."""

import os
import platform
import shutil
import socket
import subprocess
from typing import Dict, List, NamedTuple, Optional, Tuple

from core.commands.trial import ROOT, Trial, trial
from core.http.client import Client
from core.http.failures import Broken, Slow, TooLarge, Unreachable
from core.http.messages import http_url, local_host

_COMPILERS = ("c++", "g++", "clang++", "cl")
_FEATURES = ("avx", "avx2", "f16c", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")


class Processor(NamedTuple):
    """A processor's name, and the features that make llama.cpp fast, by the names that Linux has for them."""

    name: str
    features: Tuple[str, ...]


def trials() -> List[Trial]:
    """Try llama-cpp-python with a quantized model; where that crashes, in safe mode, too."""
    demo = os.path.join(ROOT, "models", "demo.gguf")
    first = trial(demo, safe=False)
    return [first, trial(demo, safe=True)] if first.crashed else [first]


def tools() -> Dict[str, str]:
    """Return the paths of what builds llama-cpp-python, "" for what is missing."""
    compiler = next((path for path in map(shutil.which, _COMPILERS) if path), "")
    return {"a C++ compiler": compiler or "", "CMake": shutil.which("cmake") or ""}


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
