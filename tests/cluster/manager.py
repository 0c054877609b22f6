"""A service manager for the tests: hands listening sockets to programs, and hears what they tell, as systemd does."""

import contextlib
import os
import socket
import subprocess
import sys

from conftest import PATIENCE, Program

# Puts the descriptors where sd_listen_fds(3) has them, then becomes the program.
_PASS = """
import os, sys
numbers, command = [int(each) for each in sys.argv[1].split(",") if each], sys.argv[2:]
high = [os.dup2(each, 100 + n) for n, each in enumerate(numbers)]
for n, each in enumerate(high):
    os.dup2(each, 3 + n)
os.environ.update(LISTEN_FDS=str(len(numbers)), LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="http")
os.execv(command[0], command)
"""


class Service(Program):
    """A program that is started with sockets, as by a socket unit. `sockets` stay open here."""

    def __init__(self, sockets, name, *arguments, **environment):
        self._sockets = sockets
        super().__init__(name, *arguments, **environment)

    def _start(self, command, environment):
        numbers = [each.fileno() for each in self._sockets]
        passing = [sys.executable, "-c", _PASS, ",".join(map(str, numbers))]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(passing + command, env=environment, pass_fds=numbers, **pipes)


@contextlib.contextmanager
def service(sockets, name, *arguments, **environment):
    """Run a program with sockets; it ends with the block."""
    program = Service(sockets, name, *arguments, **environment)
    try:
        yield program
    finally:
        program.close()


def listening(host="127.0.0.1"):
    """Return a socket that listens on a free port."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.bind((host, 0))
    sock.listen(128)
    return sock


def port_of(sock):
    """Return the port of a socket."""
    return sock.getsockname()[1]


class Ear:
    """A notify socket, and what was told by it."""

    def __init__(self, folder):
        self.path = os.path.join(str(folder), "notify")
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(self.path)
        self._sock.settimeout(PATIENCE)
        self.heard = []

    def hear(self, what):
        """Return the lines of the next message that holds `what` as a line's beginning."""
        while True:
            lines = self._sock.recv(65536).decode("utf-8").split("\n")
            self.heard += lines
            if any(line.startswith(what) for line in lines):
                return lines

    def close(self):
        """Close it."""
        self._sock.close()
