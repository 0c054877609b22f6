"""llama.cpp as a library: its start in this process, its log; what it does well here; quantizing a file with it."""

import collections
import ctypes
import logging
import os
from typing import Any, Deque, Optional

import llama_cpp

from core.errors import APIError
from core.hardware import cores
from core.models import ModelFile
from core.settings import EngineSettings

log = logging.getLogger("comeapi.llama")


def quantize(source: str, target: str) -> None:
    """Write a copy of an unquantized GGUF file in Q4_K_M (llama_model_quantize). Raises APIError 500."""
    start(verbose=False)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    if llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params)):
        raise APIError(500, "llama.cpp can't quantize %s." % source, "quantize_failed")


def uses_gpu(settings: EngineSettings) -> bool:
    """Whether layers of a model are kept on a GPU."""
    return bool(settings.gpu_layers and llama_cpp.llama_supports_gpu_offload())


def halts_well(settings: EngineSettings) -> bool:
    """Whether a decode may halt halfway without its other threads wearing the cores out.

    With one thread, always. GNU's OpenMP lets them sleep after a moment; other libraries, and ggml's own threads, spin.
    On a GPU a decode is not asked whether to halt (llama_set_abort_callback).
    """
    if uses_gpu(settings):
        return False
    return ((settings.threads or cores()) == 1 and not settings.board) or _loaded("libgomp")


def maps_for_prompts(settings: EngineSettings, file: ModelFile) -> bool:
    """Whether prompts of more than some 20 tokens are evaluated with weights as they are in the file, mapped once more.

    llama.cpp has tiled kernels for many rows (ggml-cpu/tiled, x86), but not for weights that it has repacked when it
    loaded them (ggml-cpu/repack.cpp), which are the faster ones for few rows. On x86, Q4_K is what has both. Where AMX
    is used, repacked ones have tiles, too (ggml-cpu/amx).
    """
    if not file.quantized or settings.safe_mode or uses_gpu(settings):  # then those that are loaded are as in the file
        return False
    if settings.prompt_weights != "auto":
        return settings.prompt_weights == "mapped"
    if settings.no_mmap or settings.mlock:  # whoever asks for these wants no other copy in the page cache
        return False
    features = llama_cpp.llama_print_system_info()
    fast = b"AVX2 = 1" in features and b"AMX_INT8 = 1" not in features
    return fast and file.quantization == "Q4_K" and not file.sparse


def _loaded(library: str) -> bool:
    """Whether this process has loaded a library; False where the system does not tell."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            return any(library in line for line in maps)
    except OSError:
        return False


class _NativeLog:
    """Keeps llama.cpp's last complaints, to say why something failed; passes everything on when verbose."""

    ERROR, CONTINUED = 4, 5

    def __init__(self) -> None:
        self.verbose = False
        self._errors: Deque[str] = collections.deque(maxlen=3)
        self._callback = llama_cpp.llama_log_callback(self._take)  # kept: C holds only its address
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))

    def last_errors(self) -> str:
        """Return the last complaints in one line and forget them."""
        text = "; ".join(self._errors)
        self._errors.clear()
        return text

    def _take(self, level: int, text: bytes, _user_data: Any) -> None:
        line = text.decode("utf-8", "replace").strip()
        if level == self.ERROR and line:
            self._errors.append(line)
        if self.verbose and line:
            log.info("llama.cpp: %s", line)


_native_log: Optional[_NativeLog] = None


def start(verbose: bool) -> _NativeLog:
    """Initialise llama.cpp once in this process."""
    global _native_log
    if _native_log is None:
        llama_cpp.llama_backend_init()
        _native_log = _NativeLog()
    _native_log.verbose = verbose
    return _native_log
