"""What the tests share: real processes on free ports, a small HTTP client, and what they take from the machine.

Everything listens on loopback, waits on events, and ends by its own process' number. Tests in folders below import from
here as well (test_surroundings.py says what that asks of their names).
"""

import atexit
import contextlib
import json
import os
import queue
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
RAMBLE = {"temperature": 100.0, "top_k": 0, "top_p": 1.0, "max_tokens": 300, "ignore_eos": True}
PATIENCE = 60  # seconds after which a test that waits for an event has failed
# The demo model with room for answers that last until a test has seen them: ten seconds and more on any machine.
LASTING = {"ctx_size": 8192, "rope_scaling": "yarn", "rope_freq_scale": 0.125, "yarn_orig_ctx": 1024}
LASTING_OPTIONS = ["--%s=%s" % (name.replace("_", "-"), value) for name, value in LASTING.items()]


# ------------------------------------------------------------------------------------------ the surroundings

OWN_VARIABLES = ("COMEAPI_SOAK_", "COMEAPI_FUZZ_")  # what tells the tests how long to go on
MEDDLING = {
    "COLUMNS", "FORCE_COLOR", "PYTHON_COLORS", "PYTHONASYNCIODEBUG", "PYTHONDEVMODE", "PYTHONINSPECT",
    "PYTHONOPTIMIZE", "PYTHONPROFILEIMPORTTIME", "PYTHONVERBOSE", "PYTHONWARNINGS",
}  # fmt: skip


def leave_out_the_users_surroundings():
    """Take away what the user's shell may have set that changes what programs do: settings, proxies, signals, limits.

    Locale, umask, HOME, TMPDIR, TZ, and SIGINT or SIGHUP where they are ignored, stay: the programs must do with them.
    """
    for name in list(os.environ):
        setting = name.startswith(("COMEAPI_", "LLAMA_A")) and not name.startswith(OWN_VARIABLES)
        if setting or name in MEDDLING or name.lower().endswith("_proxy"):
            del os.environ[name]
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, nobody learns a child's exit status
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    if soft != resource.RLIM_INFINITY and soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))


leave_out_the_users_surroundings()


def let_programs_be_compiled_once():
    """Let the tests' programs share their compiled modules, where Python may not leave such files beside the sources.

    Hundreds of processes are started, and one in three of a backend's moments before it serves would go into compiling.
    """
    if sys.dont_write_bytecode:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = tempfile.mkdtemp(prefix="comeapi-compiled-")
        atexit.register(shutil.rmtree, os.environ["PYTHONPYCACHEPREFIX"], True)


let_programs_be_compiled_once()


def folder_of_the_demo_model():
    """Return a models folder that holds the demo model alone: the project's, unless its user has put others there."""
    folder = os.path.join(ROOT, "models")
    if [name for name in os.listdir(folder) if name.endswith(".gguf")] == ["demo.gguf"]:
        return folder
    alone = tempfile.mkdtemp(prefix="comeapi-tests-")
    atexit.register(shutil.rmtree, alone, True)
    shutil.copy(os.path.join(folder, "demo.gguf"), alone)
    return alone


MODELS = folder_of_the_demo_model()


# ------------------------------------------------------------------------------------------- clients and waits


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


class Streaming:
    """A streamed answer that has begun: its first event is here; end() reads the rest."""

    def __init__(self, url, body, headers=None):
        data = json.dumps(dict(body, stream=True)).encode("utf-8")
        self._answer = _opener.open(urllib.request.Request(url, data=data, headers=headers or {}), timeout=PATIENCE)
        self._begun = b""
        while b"data: " not in self._begun:  # there may be pings before it
            line = self._answer.readline()
            assert line, self._begun
            self._begun += line

    def end(self):
        """Return the whole Answer."""
        with self._answer:
            return Answer(self._answer.status, self._answer.headers, self._begun + self._answer.read())


@contextlib.contextmanager
def balanced_backend(*options):
    """Run a backend with these options, and a balancer in front of it that has found it up. Yields the balancer."""
    backend = Program("backend.py", "--child", "--port=0", "--threads=1", *options)
    balancer = None
    try:
        url = backend.wait_for_event("listening")["url"]
        backend.wait_for_event("ready")
        balancer = Program("balancer.py", "--child", "--port=0", "--backend=" + url)
        balancer.url = balancer.wait_for_event("listening")["url"]
        wait_until(lambda: call(balancer.url + "/status").json["healthy_backends"] == 1)
        yield balancer
    finally:
        for program in (balancer, backend):
            if program:
                program.close()


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


def prompt_once(attempt, seconds, tries=5):
    """Call attempt(), which returns how long something took, until that is less than `seconds`; at most `tries` times.

    A busy machine makes anything slow now and then; what is slow by itself is so every time.
    """
    took = []
    while not took or took[-1] >= seconds:
        assert len(took) < tries, "never within %g s: %s" % (seconds, took)
        took.append(attempt())


def seconds_until(condition):
    """Wait for a condition and return how long that took."""
    started = time.monotonic()
    wait_until(condition)
    return time.monotonic() - started


def free_ports(count):
    """Return the first of `count` consecutive ports that nobody listens on, neither by TCP nor by UDP."""
    chance = random.SystemRandom()  # pytest-randomly gives every test, of every run beside this one, the same numbers
    for _ in range(200):
        first = chance.randrange(20000, 32000)  # below the range that systems hand out by themselves
        kinds = [socket.SOCK_STREAM, socket.SOCK_DGRAM] * count
        sockets = [socket.socket(socket.AF_INET, kind) for kind in kinds]
        try:
            for number, sock in enumerate(sockets):
                sock.bind(("127.0.0.1", first + number // 2))
            return first
        except OSError:
            continue
        finally:
            for sock in sockets:
                sock.close()
    raise AssertionError("no free ports")


def no_such_name(*_arguments, **_named):
    """Stand in for socket.getaddrinfo where no name is known."""
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def running(pid):
    """Whether a process is there (a zombie is not)."""
    try:
        with open("/proc/%d/stat" % pid) as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Program:
    """One of the programs, as a process of its own; its output comes line by line."""

    python = sys.executable

    def __init__(self, name, *arguments, **environment):
        command = [self.python, os.path.join(ROOT, name)] + [str(each) for each in arguments]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("COMEAPI_")}
        if MODELS != os.path.join(ROOT, "models"):
            clean["COMEAPI_MODELS"] = MODELS
        self.process = self._start(command, dict(clean, PYTHONIOENCODING="utf-8", **environment))
        self.lines = []
        self.errors = []
        self._fresh = queue.SimpleQueue()
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.lines, True), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stderr, self.errors, False), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _start(self, command, environment):
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(command, env=environment, **pipes)

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
            reader.join(PATIENCE)
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
    try:
        program.url = program.wait_for_event("listening")["url"]
        program.wait_for_event("ready")
        yield program
    finally:
        program.close()
