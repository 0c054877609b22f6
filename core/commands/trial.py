"""What llama-cpp-python can do here, tried in a process of its own: it may crash. Prints a line of JSON for each step.

    python -m core.commands.trial MODEL SAFE     a small unquantized GGUF file; 1 for safe mode, 0 for full speed

    {"step": "import", "version", "gpu", "features"}   llama_cpp was loaded
    {"step": "quantize"}                               a quantized copy of the model was written
    {"step": "decode"}                                 and computed with: the machine runs this build

Some virtual machines advertise processor instructions that they do not have (AMX); a build that uses them dies of
SIGSEGV or SIGILL in the first decode of quantized weights. trial() starts this process and says how far it came.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import Any, Dict, List, Optional

from core.system.launch import ROOT, own_environment

_SECONDS = 60.0
_PROMPT = range(300, 332)  # any tokens


@dataclass(frozen=True)
class Trial:
    """How far a trial came: what each step printed, the exit status, and the last line on standard error."""

    steps: Dict[str, Dict[str, Any]]
    status: Optional[int]  # None: it did not end in time
    said: str

    @property
    def crashed(self) -> bool:
        """Whether the process was ended by a crash after it had loaded llama_cpp."""
        return "import" in self.steps and self.status is not None and (self.status < 0 or self.status > 1 << 30)


def trial(model: str, safe: bool) -> Trial:
    """Try a model in a process of its own."""
    command = [sys.executable, "-m", "core.commands.trial", model, "1" if safe else "0"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=own_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    status: Optional[int]
    try:
        out, err = process.communicate(timeout=_SECONDS)
        status = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        status = None
    said = err.decode("utf-8", "replace").strip().splitlines()
    return Trial(_steps(out), status, said[-1] if said else "")


def _steps(out: bytes) -> Dict[str, Dict[str, Any]]:
    steps = {}
    for line in out.splitlines():
        if line.startswith(b"{"):  # a crash may have cut the last one short
            facts = json.loads(line.decode("utf-8"))
            steps[facts["step"]] = facts
    return steps


def _try(model: str, safe: bool) -> None:
    """Take the steps. Imports llama_cpp: only in a process of its own."""
    from core.engine.llama.batch import Run
    from core.engine.llama.build import build_facts
    from core.engine.llama.context import Context
    from core.engine.llama.model import Model
    from core.engine.llama.native import quantize
    from core.models import inspect
    from core.settings import EngineSettings

    _say("import", **build_facts())
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "quantized.gguf")
        quantize(model, path)
        _say("quantize")
        settings = EngineSettings(slots=1, ctx_size=64, safe_mode=safe)
        loaded = Model(inspect(path), settings, lambda share: True)
        context = Context(loaded, settings)
        context.decode([Run(0, 0, _PROMPT, logits=1)])
        context.decode([Run(0, len(_PROMPT), [_PROMPT[0]], logits=1)])
        context.close()
        loaded.close()
    _say("decode")


def _say(step: str, **facts: Any) -> None:
    print(json.dumps(dict(facts, step=step)), flush=True)


def main(argv: List[str]) -> None:
    """Try, and say how it went."""
    _try(argv[0], argv[1] == "1")


if __name__ == "__main__":
    main(sys.argv[1:])
