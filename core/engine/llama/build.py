"""What llama.cpp was built for: build_facts(), or as a program that prints them as JSON.

    python -m core.engine.llama.build

comeapi.py plans by them, in a process of their own and in a fraction of the time that a backend takes to start.
"""

import json
from typing import Any, Dict

import llama_cpp


def build_facts() -> Dict[str, Any]:
    """Return llama-cpp-python's version, whether its build can use a GPU, and what else it was built for.

    llama_supports_gpu_offload; `features` is llama_print_system_info: "CPU : AVX2 = 1 | … | OPENMP = 1 |".
    """
    return {
        "gpu": bool(llama_cpp.llama_supports_gpu_offload()),
        "version": llama_cpp.__version__,
        "features": llama_cpp.llama_print_system_info().decode("utf-8", "replace"),
    }


if __name__ == "__main__":
    print(json.dumps(build_facts()))
