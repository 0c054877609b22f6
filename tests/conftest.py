"""What the tests share: real processes on free ports, a small HTTP client, and stand-ins for backends.

Everything listens on loopback, waits on events, and ends by its own process' number.
"""

import json
import os
import queue
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
RAMBLE = {"temperature": 100.0, "top_k": 0, "top_p": 1.0, "max_tokens": 300}  # hardly ever ends by itself
PATIENCE = 60  # seconds after which a test that waits for an event has failed


class Answer:
    """An HTTP answer, read whole."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body.decode("utf-8"))

    @property
    def events(self):
        """The data of the server-sent events, without the last [DONE]."""
        lines = self.body.decode("utf-8").split("\n\n")
        data = [line[len("data: ") :] for line in lines if line.startswith("data: ")]
        assert data[-1] == "[DONE]", data[-1]
        return [json.loads(text) for text in data[:-1]]


_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def call(url, body=None, headers=None, method=None, timeout=PATIENCE):
    """Call a URL; a body that is not bytes is sent as JSON. Returns an Answer of any status."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode("utf-8")
    request = urllib.request.Request(url, data=data, headers=headers or {}, method=method)
    try:
        with _opener.open(request, timeout=timeout) as answer:
            return Answer(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read())


def in_parallel(function, arguments):
    """Call a function with each argument at once; returns the results, an exception where one was raised."""
    arguments = list(arguments)
    results = [None] * len(arguments)

    def run(index):
        try:
            results[index] = function(arguments[index])
        except Exception as error:  # the test says whether this was to be expected
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(arguments))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    return results


def wait_until(condition, timeout=PATIENCE):
    """Wait for a condition that no event announces; returns its value."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, "waited too long for " + condition.__name__
        threading.Event().wait(0.02)


def free_ports(count):
    """Return the first of `count` consecutive ports that nobody listens on."""
    for _ in range(200):
        first = random.randrange(20000, 32000)  # below the range that systems hand out by themselves
        sockets = [socket.socket() for _ in range(count)]
        try:
            for offset, sock in enumerate(sockets):
                sock.bind(("127.0.0.1", first + offset))
            return first
        except OSError:
            continue
        finally:
            for sock in sockets:
                sock.close()
    raise AssertionError("no free ports")


def running(pid):
    """Whether a process is there (a zombie is not)."""
    try:
        with open("/proc/%d/stat" % pid) as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Program:
    """One of the programs, as a process of its own; its output comes line by line."""

    def __init__(self, name, *arguments, **environment):
        command = [sys.executable, os.path.join(ROOT, name)] + [str(each) for each in arguments]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("COMEAPI_")}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(clean, PYTHONIOENCODING="utf-8", **environment),
        )
        self.lines = []
        self.errors = []
        self._fresh = queue.SimpleQueue()
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.lines, True), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stderr, self.errors, False), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self):
        return self.process.pid

    def wait_for_line(self, part, timeout=PATIENCE):
        """Wait for a new line of output that holds `part`, and return it."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                line = self._fresh.get(timeout=max(0, deadline - time.monotonic()))
            except queue.Empty:
                line = None
            assert line is not None, "%r did not come; output:\n%s" % (part, "\n".join(self.lines + self.errors))
            if part in line:
                return line

    def wait_for_event(self, what):
        """Wait for an announcement of a program started with --child, and return its facts."""
        return json.loads(self.wait_for_line('"event": "%s"' % what))

    def end(self, timeout=PATIENCE):
        """Wait for the program's end and return its exit status."""
        status = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(5)
        return status

    def close(self):
        """End it, politely first, and close its pipes."""
        self.process.stdin.close()
        try:
            self.process.terminate()
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        for reader in self._readers:
            reader.join(5)
        self.process.stdout.close()
        self.process.stderr.close()

    def _read(self, pipe, lines, announce):
        for raw in pipe:
            line = raw.decode("utf-8", "replace").rstrip()
            lines.append(line)
            if announce:
                self._fresh.put(line)
        if announce:
            self._fresh.put(None)


@pytest.fixture
def start():
    """Start programs that end with the test."""
    programs = []

    def starter(name, *arguments, **environment):
        programs.append(Program(name, *arguments, **environment))
        return programs[-1]

    yield starter
    for program in reversed(programs):
        program.close()


@pytest.fixture(scope="session")
def backend():
    """One backend process with the demo model, for tests that leave it as it was."""
    program = Program("backend.py", "--child", "--port", 0, "--threads", 1, "--max-queue", 32)
    program.url = program.wait_for_event("listening")["url"]
    program.wait_for_event("ready")
    yield program
    program.close()
