"""comeapi.py, backend.py or balancer.py with shorter limits, so that tests need not wait: hasty.run("backend").

Signs of life come every 0.5 s, and 3 s without one are silence. What has died is started again after 0.2 s, then 0.4 s;
a balancer that has worked for 1 s, at once. While the file that HANG_FILE names exists, llama_decode does not return;
where a number stands in it, only when it comes to a slot's token with that number, or a later one. The kernel has
killed as many processes for lack of memory as the file that OOM_KILLS_FILE names has bytes.
"""

import contextlib
import importlib
import os
import sys
import threading

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import core.memory  # noqa: E402
import core.opening  # noqa: E402
import core.process  # noqa: E402
import core.system.child  # noqa: E402
import core.system.ladders  # noqa: E402
import core.system.supervisor  # noqa: E402

PROGRAM = """
import sys
sys.path[:1] = [%r]
import hasty
hasty.run(%r)
"""


def write_programs(folder):
    """Write the three programs, with these limits, into a folder; returns the path of comeapi.py."""
    for name in ("comeapi", "backend", "balancer"):
        (folder / (name + ".py")).write_text(PROGRAM % (os.path.dirname(os.path.abspath(__file__)), name))
    return folder / "comeapi.py"


def run(name):
    """Run a program's main()."""
    core.process.PULSE_SECONDS, core.process.PAUSE_SECONDS = 0.5, 1.0
    core.system.child.SILENT_SECONDS = 3.0
    core.system.child.FIRST_DELAY = 0.2
    for module in (core.system.child, core.system.supervisor, core.system.ladders):
        module.LONGEST_DELAY = 0.4
    core.system.supervisor.STEADY_BALANCER = 1.0
    core.opening.FIRST_DELAY, core.opening.LOOK_SECONDS = 0.2, 0.2
    if "OOM_KILLS_FILE" in os.environ:
        core.memory.oom_kills = lambda: os.path.getsize(os.environ["OOM_KILLS_FILE"])
    program = importlib.import_module(name)
    if name == "comeapi":
        program.HERE = os.path.dirname(os.path.abspath(sys.argv[0]))
    if name == "backend" and "HANG_FILE" in os.environ:
        let_decode_hang(os.environ["HANG_FILE"])
    program.main()


def let_decode_hang(path):
    """Let llama_decode wait while a file is there, and it has come to the token whose number stands in it."""
    import core.engine.llama.context

    decode = core.engine.llama.context.Context.decode

    def hangs(chunks):
        with contextlib.suppress(FileNotFoundError), open(path, encoding="ascii") as file:
            return max(chunk.start + len(chunk.tokens) for chunk in chunks) >= int(file.read() or 0)
        return False

    def hanging(self, chunks):
        while hangs(chunks):
            threading.Event().wait(0.05)
        return decode(self, chunks)

    core.engine.llama.context.Context.decode = hanging
