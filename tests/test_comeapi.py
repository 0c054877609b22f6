"""The whole system: its plan, its restarts, and real processes that are killed, stopped and restarted."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import socket
import textwrap
import threading
import time
import xml.etree.ElementTree

import pytest
from conftest import MODELS, PATIENCE, RAMBLE, ROOT, Streaming, call, free_ports, running, wait_until

from comeapi import Config
from core.models import ModelFile
from core.system.child import RestartPolicy
from core.system.plan import make_plan

STORY = {"model_name": "demo.gguf", "prompt": "Once upon a time in a magical forest,", "max_tokens": 60}
GB = 10**9
SMALL = ModelFile("s.gguf", "/m/s.gguf", 1 * GB, "llama", quantization="F16", context_length=4096, vocabulary=32000)
QUANTIZED = ModelFile(
    "q.gguf", "/m/q.gguf", 2 * GB, "llama", quantization="Q4_K", context_length=4096, vocabulary=32000
)


# ------------------------------------------------------------------------------------------------- the plan


def plan(model=SMALL, cores=8, memory=64 * GB, gpu=False, **config):
    return make_plan(Config(**config), model, cores, memory, gpu)


@pytest.mark.parametrize(
    "cores, threads", [(1, (1,)), (2, (1, 1)), (3, (2, 1)), (4, (2, 2)), (7, (4, 3)), (16, (8, 8))]
)
def test_two_backends_share_all_cores_and_one_core_has_one(cores, threads):
    made = plan(cores=cores)
    assert made.threads == threads and made.slots == 4


def test_a_gpu_has_one_backend_with_eight_slots():
    made = plan(gpu=True, cores=8)
    assert made.threads == (8,) and made.slots == 8
    assert "GPU" in made.notes[0]


def test_the_originals_shape_can_be_asked_for():
    made = plan(cores=2, backends=5, slots=1)
    assert made.threads == (1,) * 5 and made.slots == 1
    assert "5 backends, 5 requests at once" in made.notes[0]


def test_threads_can_be_asked_for():
    assert plan(cores=8, threads=3).threads == (3, 3)


def test_backends_are_fewer_where_memory_is_short_and_the_plan_says_so():
    made = plan(QUANTIZED, cores=8, memory=5 * GB, backends=5)
    assert made.backends == 2
    assert "only 5.0 GB is free: starting 2" in made.notes[1]
    assert plan(QUANTIZED, memory=1 * GB).backends == 1
    assert "may not fit" in plan(QUANTIZED, memory=1 * GB).notes[-1]


def test_weights_that_are_not_repacked_are_shared():
    assert plan(SMALL, memory=3 * GB, backends=5).backends == 5
    assert plan(QUANTIZED, memory=4 * GB, backends=5).backends == 1
    assert plan(QUANTIZED, memory=4 * GB, backends=5, safe_mode=True).backends == 5


def test_a_smaller_cache_type_needs_less_memory():
    model = dataclasses.replace(SMALL, kv_bytes=10**6)
    assert plan(model, memory=25 * GB, backends=5).backends == 1
    assert plan(model, memory=25 * GB, backends=5, cache_type_k="q8_0", cache_type_v="q8_0").backends == 2


def test_unknown_memory_changes_nothing():
    assert plan(QUANTIZED, memory=None, backends=7).backends == 7


@pytest.mark.parametrize("worked", [0, 20])
def test_deaths_are_followed_by_longer_and_longer_waits_but_never_by_none(worked):
    policy = RestartPolicy()
    assert [policy.died(worked) for _ in range(8)] == [1, 2, 4, 8, 16, 30, 30, 30]
    assert {policy.died(worked) for _ in range(2000)} == {30}
    assert policy.died(worked=100) == 1


def test_a_balancer_gets_its_first_restart_at_once():
    policy = RestartPolicy(at_once=True, steady=5.0)
    assert [policy.died(0) for _ in range(4)] == [0, 1, 2, 4]
    assert [policy.died(worked) for worked in (6, 6, 1, 1)] == [0, 0, 1, 2]


# ---------------------------------------------------------------------------------------------- the system


class System:
    """comeapi.py, running."""

    def __init__(self, start, *arguments, **environment):
        base = free_ports(4)
        self.base, self.port = base, base + 3
        self.url = "http://127.0.0.1:%d" % self.port
        self.program = start("comeapi.py", "--base-port", base, "--port", self.port, *arguments, **environment)

    def wait_until_ready(self):
        self.program.wait_for_line("🚀")
        return self

    def pids(self):
        """Return the number of each process that was announced last under its name."""
        found = {}
        for line in self.program.lines:
            match = re.search(r"(Backend \d|ComeAPI): \S+ \(PID (\d+)\)", line)
            if match:
                found[match.group(1)] = int(match.group(2))
        return found

    def generate(self, **body):
        return call(self.url + "/generate", dict(STORY, **body))


@pytest.fixture
def system(start):
    def make(*arguments, **environment):
        return System(start, *arguments, **environment)

    return make


def test_one_command_serves_the_demo_model_and_says_how_to_use_it(system):
    running_system = system().wait_until_ready()
    try_it = running_system.program.wait_for_line("curl")
    ready = [line for line in running_system.program.lines if line.startswith("🟢")]
    pattern = r"🟢 Backend [12]: http://127\.0\.0\.1:\d+ \(PID \d+\) demo\.gguf loaded in \d+\.\d s, \d+ MB in memory"
    assert len(ready) >= 1 and all(re.fullmatch(pattern, line) for line in ready)
    assert running_system.program.lines[0].startswith("Plan: ") and running_system.program.lines[1].startswith(
        "Memory: "
    )
    command = try_it.partition("curl ")[2]
    url, body = re.fullmatch(r"(\S+) -d '(.*)'", command).groups()
    assert call(url, body.encode()).json["response"]
    assert call(running_system.url + "/status").json["total_backends"] == len(ready)
    assert call(running_system.url + "/status").json["healthy_backends"] == len(ready)


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM"])
def test_stopping_lets_running_requests_finish_and_leaves_no_process(system, how):
    running_system = system().wait_until_ready()
    pids = running_system.pids()
    body = dict(STORY, **dict(RAMBLE, max_tokens=400))
    streams = [Streaming(running_system.url + "/generate", body) for _ in range(4)]
    running_system.program.process.send_signal(getattr(signal, how))
    assert running_system.program.end() == 0
    assert [stream.end().events[-1]["usage"]["completion_tokens"] for stream in streams] == [400] * 4
    assert len(pids) >= 2 and not any(running(pid) for pid in pids.values())


def test_a_second_signal_stops_at_once(system):
    running_system = system().wait_until_ready()
    pids = running_system.pids()
    # A request whose body never comes is a running request: it would hold the drain up.
    with socket.create_connection(("127.0.0.1", running_system.port)) as sock:
        sock.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n")
        wait_until(lambda: "comeapi_http_requests_active 2" in call(running_system.url + "/metrics").body.decode())
        running_system.program.process.send_signal(signal.SIGINT)
        running_system.program.wait_for_line("again to stop at once")
        running_system.program.process.send_signal(signal.SIGINT)
        assert running_system.program.end(timeout=25) == 1  # less than a drain takes
    wait_until(lambda: not any(running(pid) for pid in pids.values()))


def test_no_child_outlives_a_parent_that_was_killed(system):
    running_system = system().wait_until_ready()
    pids = running_system.pids()
    running_system.program.process.kill()
    wait_until(lambda: not any(running(pid) for pid in pids.values()))


def test_killing_a_backend_under_load_costs_no_request_and_it_comes_back(system):
    running_system = system("--backends", 2).wait_until_ready()
    expected = running_system.generate(temperature=0).json["response"]
    victim = running_system.pids()["Backend 1"]
    done = threading.Event()
    answers = []

    def client(_):
        while not done.is_set():
            answers.append(running_system.generate(temperature=0))

    clients = [threading.Thread(target=client, args=(index,), daemon=True) for index in range(6)]
    for each in clients:
        each.start()
    wait_until(lambda: len(answers) > 10)
    os.kill(victim, signal.SIGKILL)
    running_system.program.wait_for_line("Backend 1 died")
    line = running_system.program.wait_for_line("🟢 Backend 1")
    assert "PID %d" % victim not in line
    wait_until(lambda: call(running_system.url + "/status").json["healthy_backends"] == 2)
    at = len(answers)
    wait_until(lambda: len(answers) > at + 10)
    done.set()
    for each in clients:
        each.join(PATIENCE)
    assert {answer.status for answer in answers} == {200}
    assert {answer.json["response"] for answer in answers} == {expected}


@pytest.mark.slow
def test_random_kills_for_a_while_cost_no_request(system):
    """A soak: backends die at random under load. COMEAPI_SOAK_SECONDS says for how long."""
    running_system = system("--backends", 2).wait_until_ready()
    expected = running_system.generate(temperature=0).json["response"]
    done = threading.Event()
    answers = []

    def client(_):
        while not done.is_set():
            answers.append(running_system.generate(temperature=0))

    clients = [threading.Thread(target=client, args=(index,), daemon=True) for index in range(8)]
    for each in clients:
        each.start()
    chance = random.Random(11)
    end = time.monotonic() + float(os.environ.get("COMEAPI_SOAK_SECONDS", 120))
    kills = 0
    while time.monotonic() < end:
        name = chance.choice(["Backend 1", "Backend 2"])
        os.kill(running_system.pids()[name], signal.SIGKILL)
        kills += 1
        running_system.program.wait_for_line(name + " died")
        running_system.program.wait_for_line("🟢 " + name)
        wait_until(lambda: call(running_system.url + "/status").json["healthy_backends"] == 2)
    done.set()
    for each in clients:
        each.join(PATIENCE)
    assert kills >= 2 and len(answers) > 50
    assert {answer.status for answer in answers} == {200}
    assert {answer.json["response"] for answer in answers} == {expected}


def test_a_request_waits_while_the_only_backend_is_started_again(system):
    running_system = system("--backends", 1).wait_until_ready()
    os.kill(running_system.pids()["Backend 1"], signal.SIGKILL)
    running_system.program.wait_for_line("Backend 1 died")
    assert running_system.generate(max_tokens=3).status == 200


def test_a_balancer_that_dies_is_started_again(system):
    running_system = system("--backends", 1).wait_until_ready()
    os.kill(running_system.pids()["ComeAPI"], signal.SIGKILL)
    running_system.program.wait_for_line("Balancer died")

    def answers_again():
        try:
            return running_system.generate(max_tokens=3).status == 200
        except OSError:
            return False

    wait_until(answers_again)


def test_keys_guard_the_whole_system_and_are_in_no_command_line(system):
    running_system = system("--backends", 1, "--api-key", "top-secret").wait_until_ready()
    assert running_system.generate().status == 401
    assert call("http://127.0.0.1:%d/status" % running_system.base).status == 401
    key = {"Authorization": "Bearer top-secret"}
    assert call(running_system.url + "/generate", STORY, key).status == 200
    assert [each["name"] for each in call(running_system.url + "/models", headers=key).json["models"]] == ["demo.gguf"]
    for pid in running_system.pids().values() if os.path.isdir("/proc/self") else ():
        with open("/proc/%d/cmdline" % pid, "rb") as command_line:
            assert b"top-secret" not in command_line.read()


def test_the_positional_form_works(start):
    base = free_ports(3)
    program = start("comeapi.py", MODELS, "127.0.0.1", base, 2, "--port", base + 2)
    program.wait_for_line("🚀 ComeAPI: http://127.0.0.1:%d" % (base + 2))


def test_the_bench_measures_every_shape_and_writes_its_figures(start, tmp_path):
    figures = tmp_path / "figures.json"
    arguments = ("--clients", "1,2", "--tokens", 8, "--requests", 1, "--long-prompt", 200, "--threads", 1)
    picture = tmp_path / "figures.svg"
    program = start("comeapi.py", "bench", "--json", figures, "--plot", picture, *arguments)
    assert program.end() == 0, program.errors
    rows = json.loads(figures.read_text())["rows"]
    shapes = ["one by one", "original shape", "bare decode", "engine", "long prompt", "  and 4 streams"]
    shapes += ["whole system", "  and 4 streams"] + ["whole system"] * 2
    assert [row["shape"] for row in rows if row["clients"] != 2 or row["shape"] == "whole system"] == shapes
    served = [row for row in rows if row["peak_memory"]]
    assert len(served) == 6 and served[0]["ratio"] == 1
    for row in served:
        assert row["tokens_per_second"] > 0 and row["first_token_p50"] > 0 and row["peak_memory"] > 10**7
    drawn = xml.etree.ElementTree.parse(str(picture)).getroot()
    text = " | ".join(each.text for each in drawn.iter("{http://www.w3.org/2000/svg}text"))
    for row in served:
        assert row["shape"] in text and "| %.1f (" % row["tokens_per_second"] in text
    assert any("tokens/s" in line and "ratio" in line for line in program.lines)


# --------------------------------------------------------------------------------- backends that misbehave

FAKE_BACKEND = """
import http.server, json, os, signal, sys, threading
arguments = sys.argv[1:]
def say(**facts):
    print(json.dumps(facts), flush=True)
def option(name):
    return [each for each in arguments if each.startswith(name + "=")][0][len(name) + 1:]
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *arguments):
        pass
server = http.server.HTTPServer(("127.0.0.1", int(option("--port"))), Health)
threading.Thread(target=server.serve_forever, daemon=True).start()
say(event="listening", url="http://127.0.0.1:" + option("--port"), pid=os.getpid())
say(event="loading", model="demo.gguf")
%s
say(event="ready", model="demo.gguf", seconds=0.1)
os.read(0, 1)
"""


@pytest.fixture
def faked(tmp_path, start):
    """Start a system whose backend.py does what the given lines say while it loads its model."""

    def make(lines, *arguments):
        for name in ("comeapi.py", "balancer.py"):
            shutil.copy(os.path.join(ROOT, name), tmp_path / name)
        shutil.copytree(os.path.join(ROOT, "core"), tmp_path / "core")
        (tmp_path / "models").mkdir()
        shutil.copy(os.path.join(ROOT, "models", "demo.gguf"), tmp_path / "models" / "demo.gguf")
        (tmp_path / "backend.py").write_text(FAKE_BACKEND % textwrap.dedent(lines))
        base = free_ports(4)
        program = tmp_path / "comeapi.py"
        return start(str(program), "--base-port", base, "--port", base + 3, *arguments, FIRST_PORT=str(base))

    return make


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGILL", "SIGABRT"])
def test_a_backend_that_crashes_in_its_self_test_is_restarted_in_safe_mode_with_one_clear_line(faked, name):
    crash = 'if "--safe-mode" not in arguments: os.kill(os.getpid(), signal.%s)' % name
    program = faked(crash, "--backends", 1)
    line = program.wait_for_line("safe mode")
    assert "Backend 1 crashed (%s) in its first test of demo.gguf" % name in line
    program.wait_for_line("🟢 Backend 1")
    program.wait_for_line("🚀")


def test_backends_that_crash_together_are_all_restarted_in_safe_mode_at_once(faked):
    program = faked('if "--safe-mode" not in arguments: os.kill(os.getpid(), signal.SIGSEGV)', "--backends", 3)
    program.wait_for_line("🚀")
    told = [line for line in program.lines if line.startswith("🛟")]
    assert len(told) == 3 and sum("Crash at first decode" in line for line in told) == 1
    assert not any("died" in line for line in program.lines)


def test_a_crash_because_the_file_was_cut_short_meanwhile_is_an_ordinary_death(faked, tmp_path):
    model = str(tmp_path / "models" / "demo.gguf")
    program = faked('os.truncate(%r, 1000); os.kill(os.getpid(), signal.SIGBUS)' % model, "--backends", 1)
    assert "SIGBUS" in program.wait_for_line("Backend 1 died")
    assert not any("safe mode" in line for line in program.lines)


def test_a_crash_after_the_self_test_is_an_ordinary_death(faked, tmp_path):
    lines = """
        if not os.path.exists(%r):
            open(%r, "w").close()
            say(event="ready", model="demo.gguf", seconds=0.1)
            os.kill(os.getpid(), signal.SIGSEGV)
    """ % ((str(tmp_path / "crashed"),) * 2)
    program = faked(lines, "--backends", 1)
    assert "SIGSEGV" in program.wait_for_line("Backend 1 died")
    program.wait_for_line("🟢 Backend 1")
    assert not any("safe mode" in line for line in program.lines)


def test_a_backend_that_can_not_work_is_given_up_and_the_rest_keeps_serving(faked):
    lines = """
        if option("--port") == os.environ["FIRST_PORT"]:
            sys.stderr.write("the disk is on fire\\n")
            sys.exit(78)
    """
    program = faked(lines, "--backends", 2)
    line = program.wait_for_line("❌ Backend 1")
    assert "not starting it again" in line and "the disk is on fire" in line
    program.wait_for_line("🚀")
    assert program.process.poll() is None


def test_when_nothing_is_left_that_could_serve_it_ends_and_says_why(faked):
    program = faked('sys.stderr.write("the disk is on fire\\n"); sys.exit(78)', "--backends", 2)
    line = program.wait_for_line("❌ Backend")
    assert "not starting it again" in line and "the disk is on fire" in line
    assert program.end() == 1


# ------------------------------------------------------------------------------------- what can't be started


def refused(start, *arguments, **environment):
    program = start("comeapi.py", *arguments, **environment)
    assert program.end() > 0
    assert len(program.errors) == 1 and program.lines == [], (program.errors, program.lines)
    return program.errors[0]


def test_a_port_in_use_is_one_clear_line_that_names_the_option(start):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        line = refused(start, "--base-port", free_ports(2), "--port", port)
        assert "port %d: Address already in use; choose another with --port" % port in line
        assert "choose another with --base-port" in refused(start, "--base-port", port, "--port", free_ports(1))


def test_a_balancer_port_among_the_backends_is_refused(start):
    assert "also a backend's" in refused(start, "--base-port", 9000, "--port", 9000)


def test_a_missing_or_empty_models_folder_is_one_clear_line(start, tmp_path):
    assert "does not exist" in refused(start, tmp_path / "missing")
    assert "holds no .gguf file" in refused(start, tmp_path)


def test_a_machine_without_llama_cpp_is_told_how_to_get_it(start, tmp_path):
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('No module named llama_cpp')")
    line = refused(start, PYTHONPATH=str(tmp_path))
    assert "pip install llama-cpp-python" in line


def test_a_wrong_option_is_one_clear_line(start):
    assert "--backends" in refused(start, "--backends", "-3")
    assert "COMEAPI_PORT" in refused(start, COMEAPI_PORT="front door")


def test_help_reads_well(start):
    program = start("comeapi.py", "--help")
    assert program.end() == 0
    text = "\n".join(program.lines)
    for part in ("--backends", "--slots", "--ctx-size", "(default 9000)", "network:", "plan:", "COMEAPI_BACKENDS"):
        assert part in text
    assert max(map(len, program.lines)) <= 120
    assert "python comeapi.py" in text
