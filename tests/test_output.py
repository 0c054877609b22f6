"""Standard output and error: whatever becomes of their reader, no print blocks or raises, and the programs work on."""

import fcntl
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import PATIENCE, ROOT, call, free_ports, wait_until

from core.output import Writer

SMALL_PIPE = 4096
F_SETPIPE_SZ = 1031  # Linux


def pipe(size=SMALL_PIPE):
    """Return both ends of a pipe that holds so many bytes, as files."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, F_SETPIPE_SZ, size)
    return os.fdopen(reader, "rb", 0), os.fdopen(writer, "w", encoding="utf-8")


def test_lines_come_in_their_order():
    behind = io.StringIO()
    writer = Writer(behind)
    for number in range(100):
        print(number, file=writer)
    print("no newline", end="", file=writer)
    writer.drain(time.monotonic() + PATIENCE)
    assert behind.getvalue() == "".join("%d\n" % number for number in range(100)) + "no newline"


def test_what_a_stalled_reader_has_missed_is_told_when_it_reads_again():
    reader, behind = pipe()
    writer = Writer(behind, most=10_000)
    for number in range(2000):
        print("line %d" % number, file=writer)  # would block for ever
    began = time.monotonic()
    writer.drain(began + 0.2)
    assert time.monotonic() - began < 5
    got = []
    thread = threading.Thread(target=lambda: got.extend(reader))
    thread.start()
    writer.drain(time.monotonic() + PATIENCE)
    print("line 2000", file=writer)
    writer.drain(time.monotonic() + PATIENCE)
    behind.close()
    thread.join(PATIENCE)
    reader.close()
    expected = 0
    for line in got:
        lost = re.fullmatch(rb"\((\d+) lines of output were lost\)\n", line)
        assert lost or line == b"line %d\n" % expected
        expected += int(lost.group(1)) if lost else 1
    assert expected == 2001 and 100 < len(got) < 2000


def test_a_full_disk_raises_nothing_and_what_it_refused_is_told_when_there_is_room():
    class Disk(io.StringIO):
        full = True

        def write(self, text):
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    disk = Disk()
    writer = Writer(disk)
    print("one\ntwo", file=writer)
    writer.drain(time.monotonic() + PATIENCE)
    disk.full = False
    print("three", file=writer)
    writer.drain(time.monotonic() + PATIENCE)
    assert disk.getvalue() == "(2 lines of output were lost)\nthree\n"


def test_many_threads_print_whole_lines():
    behind = io.StringIO()
    writer = Writer(behind)
    threads = [
        threading.Thread(target=lambda: [writer.write("x" * 50 + "\n") for _ in range(200)]) for _ in range(8)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    writer.drain(time.monotonic() + PATIENCE)
    assert behind.getvalue() == ("x" * 50 + "\n") * 1600


EXIT = """
import atexit, threading
held, hold = threading.Event(), threading.Event()
atexit.register(lambda: (hold.set(), held.wait()))  # before all others, so that it runs after them
import sys
sys.path.insert(0, %r)
from core import process
process.prepare_terminal()
print("told")
changed = sys.stdout._changed

def halted_in_the_middle():
    hold.wait()
    changed.acquire()
    held.set()
    threading.Event().wait()

threading.Thread(target=halted_in_the_middle, daemon=True).start()
"""


def test_a_program_ends_though_its_writer_thread_was_halted_by_pythons_end():
    done = subprocess.run([sys.executable, "-c", EXIT % ROOT], stdout=subprocess.PIPE, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, b"told\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_a_terminal_can_not_spell_is_told_all_the_same(unbuffered):
    code = "import sys; sys.path.insert(0, %r); from core import output; output.install(); print('\\u2696 up')" % ROOT
    surroundings = dict(os.environ, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONUNBUFFERED=unbuffered)
    surroundings.pop("PYTHONIOENCODING", None)
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, env=surroundings, timeout=PATIENCE)
    assert done.stdout.decode("ascii") == "? up\n"


# ------------------------------------------------------------------------------------------------- programs


class Silent:
    """A program of ours whose output goes where the given files say; ended with the test."""

    def __init__(self, *arguments, **files):
        clean = {key: value for key, value in os.environ.items() if not key.startswith("COMEAPI_")}
        command = [sys.executable, *map(str, arguments)]
        self.process = subprocess.Popen(command, cwd=ROOT, env=clean, **dict({"stdin": subprocess.DEVNULL}, **files))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.terminate()
        try:
            self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()


def healthy(url):
    try:
        answer = call(url + "/health", timeout=5)
    except OSError:
        return None
    return answer.json if answer.status == 200 else None


def outputs(kind):
    """Return how standard output and error are given to a program, and what to close after the test."""
    if kind == "full":
        full = open("/dev/full", "w")
        return {"stdout": full, "stderr": full}, [full]
    if kind == "stalled":
        reader, writer = pipe()
        return {"stdout": writer, "stderr": writer}, [reader, writer]
    if kind == "gone":
        reader, writer = pipe()
        reader.close()
        return {"stdout": writer, "stderr": writer}, [writer]
    return {"preexec_fn": lambda: os.closerange(0, 3)}, []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "stalled", "closed"])
def test_comeapi_starts_serves_and_restarts_whoever_reads_its_output(kind):
    base = free_ports(2)
    own, url = "http://127.0.0.1:%d" % base, "http://127.0.0.1:%d" % (base + 1)
    files, opened = outputs(kind)
    arguments = ["--backends", 1, "--base-port", base, "--port", base + 1, "--access-log", "--threads", 1]
    with Silent("comeapi.py", *arguments, **files) as program:
        wait_until(lambda: healthy(url))
        for _ in range(100):  # their log lines fill the pipe
            assert call(url + "/status", timeout=10).status == 200
            assert call(own + "/health", timeout=10).status == 200
        before = healthy(own)["pid"]
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: (healthy(own) or {"pid": before})["pid"] != before)
        program.process.send_signal(signal.SIGTERM)
        assert program.process.wait(PATIENCE) == 0
    for each in opened:
        each.close()


@pytest.mark.parametrize("kind", ["full", "gone", "stalled", "closed"])
def test_a_balancer_answers_whoever_reads_its_log(kind):
    port = free_ports(1)
    url = "http://127.0.0.1:%d" % port
    files, opened = outputs(kind)
    with Silent("balancer.py", "--backends", 0, "--port", port, "--access-log", **files) as program:
        wait_until(lambda: reachable(url))
        for _ in range(150):
            answer = call(url + "/status", timeout=10)
            assert answer.status == 200 and answer.json["total_backends"] == 0
        if kind == "closed":  # otherwise a socket has one of their numbers
            assert {os.readlink("/proc/%d/fd/%d" % (program.process.pid, number)) for number in range(3)} == {
                os.devnull
            }
    for each in opened:
        each.close()


def reachable(url):
    try:
        return call(url + "/status", timeout=5).status == 200
    except OSError:
        return False
