"""A pseudo-terminal with a program in it: what a person sees and types. POSIX only."""

import os
import select
import signal
import subprocess
import sys
import time

import pytest
from conftest import PATIENCE, ROOT

pty = pytest.importorskip("pty")
fcntl = pytest.importorskip("fcntl")
termios = pytest.importorskip("termios")


class Terminal:
    """One of our programs on a terminal of 100 columns and 30 lines. `text` is all that it has written."""

    def __init__(self, *command, folder=None, **environment):
        self._fd, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, b"\x1e\x00\x64\x00\x00\x00\x00\x00")
        surroundings = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "INPUTRC")}
        surroundings.update(dict({"TERM": "xterm", "PYTHONIOENCODING": "utf-8"}, **environment))

        def own_terminal():
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            self.command_line(*command), cwd=folder, stdin=inner, stdout=inner, stderr=inner, env=surroundings,
            preexec_fn=own_terminal, close_fds=True,
        )  # fmt: skip
        os.close(inner)
        self.text = ""
        self._seen = 0

    @staticmethod
    def command_line(program, *arguments):
        return [sys.executable, os.path.join(ROOT, program)] + [str(each) for each in arguments]

    def wait_for(self, part):
        """Wait until it has written `part` after what was waited for last. Returns what came up to there."""
        deadline = time.monotonic() + PATIENCE
        while part not in self.text[self._seen :]:
            assert self._read(deadline), "%r did not come:\n%s" % (part, self.text)
        end = self.text.index(part, self._seen) + len(part)
        came, self._seen = self.text[self._seen : end], end
        return came

    def type(self, text):
        os.write(self._fd, text.encode("utf-8"))

    def end(self):
        """Read until it ends. Returns its exit status."""
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline):
            pass
        return self.process.wait(PATIENCE)

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(PATIENCE)
        os.close(self._fd)

    def _read(self, deadline):
        if not select.select([self._fd], [], [], max(0, deadline - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # Linux: the program has ended
            return False
        self.text += data.decode("utf-8", "replace")
        return bool(data)


def screen(text, columns=100):
    """Return the lines that a terminal shows after a text, without colours."""
    lines, row, column, at = [""], 0, 0, 0
    while at < len(text):
        if text[at] == "\x1b":
            end = at + 2
            while not text[end].isalpha():
                end += 1
            number = text[at + 2 : end]
            if text[end] == "A":
                row -= int(number or 1)
            elif text[end] == "J":
                lines = lines[:row] + [lines[row][:column]]
            at = end + 1
            continue
        if text[at] == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif text[at] == "\r":
            column = 0
        else:
            lines[row] = (lines[row] + " " * (column - len(lines[row])))[:column] + text[at] + lines[row][column + 1 :]
            column += 1
        at += 1
    return lines
