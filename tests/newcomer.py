"""A newcomer with a fresh copy of the project, who pastes a README's commands into terminals, as they are printed.

    commands_in(text)        a text's commands, in order
    House                    a copy of the project, with a network of its own where the system has namespaces
    House.paste(command)     one command, on a terminal;  run_python(source): a program

Nothing is put in place of a command. The folder of the interpreter at hand leads the PATH, and its packages are on
PYTHONPATH: so `pip install` finds its packages installed, and fetches nothing. `pull` gets the demo model under a real
one's name, from a stand-in for Hugging Face. What goes on until Ctrl-C gets Ctrl-C once it has shown that it works: a
service when the next one needs its place, as a person would do it.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile

from conftest import PATIENCE, ROOT
from terminals import Terminal

DEMO = os.path.join(ROOT, "models", "demo.gguf")
SHELLS = ("bash", "sh", "console")
_INLINE = re.compile(r"`((?:[A-Z_]+=\S+ )*(?:\.venv/bin/\w+|python3?|curl|sudo) [^`]*)`")
# What goes on until it is stopped: what it shows when it works, and what a person types then; "" for a service.
LASTING = {
    r"(comeapi)\.py( models 127.*)?$": ("Try: ", ""),
    r"python (backend)\.py ": ("🟢", ""),
    r"python (balancer)\.pyz?\b": ("http://", ""),
    r"status --watch$": ("REQUESTS", "\x03"),
    r"^[^|]* chat$": ("> ", "Hello\n\x04"),
}
RIVALS = {"comeapi": ("comeapi", "backend", "balancer"), "balancer": ("comeapi", "balancer"), "backend": ("comeapi",)}
# Says where the stand-in for Hugging Face is, and stays until its input ends. In a network of its own, that begins.
_NETWORK = """
import fcntl, os, socket, struct, sys
from filehost import Host
with socket.socket() as sock:
    fcntl.ioctl(sock, 0x8914, struct.pack("16sh", b"lo", 1)) if len(sys.argv) > 2 else None  # SIOCSIFFLAGS, IFF_UP
host = Host()
with open(sys.argv[1], "rb") as demo:
    host.add("Qwen/Qwen3-4B-GGUF", **{"Qwen3-4B-Q4_K_M__gguf": demo.read()})
print(host.url, flush=True)
sys.stdin.read()
"""


def commands_in(text, sentences=False):
    """Return (language, command) of a text, in order: lines of shells, blocks of Python; and those in sentences."""
    found, fence, block = [], None, []
    for line in text.splitlines():
        if line.startswith("```"):
            if fence == "python":
                found.append(("python", "\n".join(block)))
            fence, block = (line[3:].strip() or "text" if fence is None else None), []
        elif fence is None:
            found += [("sh", command) for command in _INLINE.findall(line) if sentences]
        elif fence in SHELLS:
            found.append(("sh", line))
        else:
            block.append(line)
    return found


class Shell(Terminal):
    """A shell with one command, on a terminal."""

    @staticmethod
    def command_line(*command):
        return list(command)


class House:
    """A fresh copy of the project in a folder. `environment` is the newcomer's."""

    def __init__(self, folder):
        self.folder = str(folder / "comeapi")
        leave_out = shutil.ignore_patterns(".git", ".venv", ".ci-venv", "__pycache__", ".*_cache", "*.gguf")
        shutil.copytree(ROOT, self.folder, ignore=leave_out)
        self.add_model("demo.gguf")
        self.running = {}  # shell → (its service or None, its command)
        self._open_network()
        self.environment = {
            "HOME": str(folder), "XDG_STATE_HOME": str(folder), "HF_ENDPOINT": self.mirror,
            "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path.endswith("-packages")),
            "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }  # fmt: skip

    def _open_network(self):
        """Open a network of its own, where the printed ports are free and nobody else is; else take that of all."""
        self._inside = []
        for apart in (["unshare", "--map-root-user", "--net"], []):
            command = [*apart, sys.executable, "-c", _NETWORK, DEMO, *apart[:1]]
            try:
                self._network = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                    env=dict(os.environ, PYTHONPATH=os.path.join(ROOT, "tests", "commands")),
                )  # fmt: skip
            except OSError:  # no unshare on this system
                continue
            self.mirror = self._network.stdout.readline().decode().strip()
            if self.mirror and apart:
                target = str(self._network.pid)
                self._inside = ["nsenter", "--target", target, "--user", "--net", "--preserve-credentials", "--"]
            if self.mirror:
                return
            self._close_network()  # namespaces are forbidden here
        raise AssertionError("the stand-in for Hugging Face does not start")

    @property
    def apart(self):
        """Whether it has a network of its own."""
        return bool(self._inside)

    def add_model(self, name):
        """Put the demo model into the models folder, under some name."""
        shutil.copy(DEMO, os.path.join(self.folder, "models", name))

    def make_environment(self):
        """Make .venv, as the README's first command does."""
        self.paste("python3 -m venv --without-pip .venv")

    def paste(self, command):
        """Run a command on a terminal, and see that it works. A service goes on; what has its place ends before."""
        match, (ready, keys) = _lasting(command)
        service = match and not keys and match.group(1)
        if service:
            self.end(RIVALS[service])
        shell = Shell(*self._inside, "bash", "-c", command, folder=self.folder, **self.environment)
        self.running[shell] = (service, command)
        if ready:
            shell.wait_for(ready)
        if not service:
            shell.type(keys)
            return self._finish(shell)
        return shell.text

    def run_python(self, source):
        """Run a program of Python's, from a file; one that has a balancer in it takes its place. Returns its output."""
        self.end(RIVALS["balancer"] if "import Balancer" in source else ())
        with tempfile.NamedTemporaryFile("w", suffix=".py", dir=self.folder, encoding="utf-8", delete=False) as file:
            file.write(source)
        return self.paste(".venv/bin/python " + os.path.basename(file.name))

    def end(self, names=tuple(RIVALS)):
        """End services, with Ctrl-C."""
        for shell in [shell for shell, (service, _) in self.running.items() if service in names]:
            shell.type("\x03")
            self._finish(shell)

    def close(self):
        """End everything."""
        for shell in self.running:
            shell.close()
        self._close_network()

    def _finish(self, shell):
        """Wait for a command's end. It has worked."""
        status = shell.end()
        shell.close()
        _, command = self.running.pop(shell)
        assert status == 0, "%s\nended with status %d:\n%s" % (command, status, shell.text)
        assert '{"error"' not in shell.text, "%s\n%s" % (command, shell.text)
        return shell.text

    def _close_network(self):
        self._network.stdin.close()
        self._network.wait(PATIENCE)
        self._network.stdout.close()


def _lasting(command):
    """Return the match of a command that goes on until it is stopped, and its entry in LASTING."""
    found = ((re.search(pattern, command), entry) for pattern, entry in LASTING.items())
    return next((each for each in found if each[0]), (None, ("", "")))
