"""Settings that more than one program has. Each stands here once: its name, default, check and help text.

The names are llama.cpp's where it has one. A program's Config is a dataclass made of these and its own.
"""

from dataclasses import dataclass

from core.service import between, setting


@dataclass(frozen=True)
class FolderSettings:
    """Where the models are, and which one comes first."""

    models: str = setting("", "folder of GGUF files (default: models, beside this program)", "model", metavar="DIR")
    model: str = setting(
        "",
        "model to load at start: a name in the folder, or a file's path (default: the first by name, demo.gguf last)",
        "model",
        flags=("-m",),
        metavar="NAME",
    )


@dataclass(frozen=True)
class EngineSettings:
    """How a model is loaded and run."""

    slots: int = setting(4, "requests at once", "engine", flags=("--parallel", "-np"), check=between(1, 256))
    ctx_size: int = setting(
        4096,
        "tokens that a slot holds, prompt and answer; 0 for all that the model was trained with, which is the most",
        "engine",
        flags=("-c",),
        check=between(0, 1 << 24),
    )
    threads: int = setting(0, "CPU threads; 0 for all cores", "engine", flags=("-t",), check=between(0, 1024))
    batch_size: int = setting(512, "most tokens in one step", "engine", flags=("-b",), check=between(32, 1 << 16))
    gpu_layers: int = setting(
        -1,
        "layers to keep on the GPU, where the build can use one; -1 for all",
        "engine",
        flags=("-ngl",),
        check=between(-1, 1 << 16),
    )
    step_target: float = setting(
        0.25,
        "seconds that one step may take while answers are being generated; prompts are cut to fit",
        "engine",
        check=between(0.01, 60, float),
    )
    safe_mode: bool = setting(
        False,
        "leave the weights as they are in the file, not repacked for this CPU: about 20 % slower, for machines where "
        "llama.cpp crashes otherwise (comeapi.py turns it on by itself)",
        "engine",
    )
    max_queue: int = setting(
        64, "requests that may wait for a slot of one backend; more get 503", "limits", check=between(0, 1 << 20)
    )
    verbose: bool = setting(False, "show llama.cpp's own log", "engine")


@dataclass(frozen=True)
class RelaySettings:
    """How a balancer treats its backends."""

    health_interval: float = setting(
        30.0, "seconds between probes of a backend that is up", "health", check=between(0.1, 3600, float)
    )
    health_timeout: float = setting(5.0, "seconds a probe may take", "health", check=between(0.1, 600, float))
    connect_timeout: float = setting(3.0, "seconds a connection may take", "health", check=between(0.1, 600, float))
    timeout: float = setting(
        600.0, "seconds without a byte from a backend before 504", "limits", check=between(0.1, 86400, float)
    )
    queue_timeout: float = setting(
        30.0, "seconds to wait for a backend to come back before 503", "limits", check=between(0, 86400, float)
    )
    retries: int = setting(
        2, "how often a request is sent again after a backend broke off", "limits", check=between(0, 100)
    )


@dataclass(frozen=True)
class ChildSettings:
    """How a program behaves when another one has started it."""

    child: bool = setting(False, "started by another program: announce in JSON, stop when standard input ends", "other")
