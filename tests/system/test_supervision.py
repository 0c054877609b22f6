"""What comeapi.py does about children that die, hang, are stopped or can't start: it never gives the service up.

comeapi.py runs with shorter limits here (hasty.py): a sign of life every 0.5 s, 3 s without one are silence.
"""

import os
import queue
import shutil
import signal
import threading
import time

import hasty
import pytest
from conftest import ROOT, call, free_ports, running, wait_until

import core.system.child
from core.system.child import Child

MODELS = os.path.join(ROOT, "models")
DEMO = os.path.join(MODELS, "demo.gguf")
STORY = {"model_name": "demo.gguf", "prompt": "Once upon a time", "max_tokens": 5}
BEFORE = """
import sys
if "--child" in sys.argv:
    port = int([each for each in sys.argv if each.startswith("--port=")][0].partition("=")[2])
    with open("%s%%d" %% port, "a") as file:
        file.write("x")
        file.flush()
        lives = file.tell()
    first = port == %d
    %s
"""


class System:
    """comeapi.py with one backend and short limits, running.

    Its backends run the line `before` first: `lives` counts a backend's starts, `first` is true of the first one.
    """

    def __init__(self, start, folder, *arguments, before="", models=MODELS, **environment):
        base = free_ports(4)
        self.own, self.url = "http://127.0.0.1:%d" % base, "http://127.0.0.1:%d" % (base + 3)
        program = hasty.write_programs(folder)
        if before:
            path = folder / "backend.py"
            path.write_text(BEFORE % (folder / "lives", base, before) + path.read_text())
        ports = ("--base-port", base, "--port", base + 3)
        options = ("--models", models, "--threads", 1, "--backends", 1)
        self.program = start(str(program), *options, *ports, *arguments, **environment)
        self.wait_for = self.program.wait_for_line

    def said(self, part):
        """How many lines hold this."""
        return sum(part in line for line in self.program.lines)

    def serves(self, **headers):
        try:
            return call(self.url + "/generate", STORY, headers).status == 200
        except OSError:
            return False


def pid_in(line):
    return int(line.partition("(PID ")[2].partition(")")[0])


@pytest.fixture
def system(start, tmp_path):
    def make(*arguments, **how):
        return System(start, tmp_path, *arguments, **how)

    return make


# --------------------------------------------------------------------------------------------- who is silent


@pytest.mark.slow
def test_a_stopped_backend_and_a_stopped_balancer_are_started_again(system):
    made = system()
    backend, balancer = pid_in(made.wait_for("🟢 Backend 1")), pid_in(made.wait_for("🚀"))
    for pid in (backend, balancer):
        os.kill(pid, signal.SIGSTOP)
    for _ in range(2):
        line = made.wait_for("died")
        assert "no sign of life for" in line and "(killed). Starting it again " in line
    assert pid_in(made.wait_for("🟢 Backend 1")) != backend
    wait_until(made.serves)
    assert not running(backend) and not running(balancer)


@pytest.mark.slow
def test_whoever_was_stopped_himself_blames_nobody(system):
    made = system()
    made.wait_for("🚀")
    made.program.process.send_signal(signal.SIGSTOP)
    time.sleep(4)  # longer than any silence that is allowed
    made.program.process.send_signal(signal.SIGCONT)
    assert made.serves()
    made.program.process.send_signal(signal.SIGTERM)
    assert made.program.end() == 0
    assert not made.said("died")


def test_a_backend_whose_engine_hangs_is_started_again(system, tmp_path):
    hang = tmp_path / "hang"
    made = system("--step-timeout", 1, "--batch-size", 32, HANG_FILE=str(hang))
    first = pid_in(made.wait_for("🟢 Backend 1"))
    made.wait_for("🚀")
    hang.write_bytes(b"")
    client = threading.Thread(target=made.serves, daemon=True)
    client.start()
    assert "the engine hangs: a step has not ended for" in made.wait_for("Backend 1 died")
    hang.unlink()
    assert pid_in(made.wait_for("🟢 Backend 1")) != first
    wait_until(made.serves)
    client.join()


@pytest.fixture
def child():
    """Start a Child that runs Python lines; killed with the test."""
    children = []

    def make(lines):
        children.append(Child("Child", ["-c", lines], dict(os.environ), make.events))
        children[-1].start()
        return children[-1]

    make.events = queue.SimpleQueue()
    yield make
    for each in children:
        each.ask_to_stop()
        each.kill()
        while make.events.get(timeout=30)[2].get("event") != "exit":
            pass


WAIT = "import sys; sys.stdin.read()"


def test_a_child_has_longer_to_begin_than_to_go_on(child, monkeypatch):
    monkeypatch.setattr(core.system.child, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(core.system.child, "START_SECONDS", 3600.0)
    made = child(WAIT)
    time.sleep(0.4)
    assert not made.hangs(time.monotonic())
    made.heard({"event": "listening"})
    assert "no sign of life" in wait_until(lambda: made.hangs(time.monotonic()))
    assert not made.hangs(time.monotonic() - 10)  # it was silent only after that
    made.forgive()
    assert not made.hangs(time.monotonic())
    monkeypatch.setattr(core.system.child, "START_SECONDS", 0.0)
    late = child(WAIT)
    assert wait_until(lambda: late.hangs(time.monotonic()))


def test_a_child_that_prints_nonsense_is_heard_all_the_same(child):
    child(r"""print('1\n[]\nnull\n"x"\n{"a\n{' + "y" * 200000 + '\n{"event": 3}\n{"event": "listening"}')""")
    assert [child.events.get(timeout=30)[2]["event"] for _ in range(2)] == [3, "listening"]
    child.events.put((None, 0, {"event": "exit"}))


# ------------------------------------------------------------------------------------------ who can't start


def test_a_backend_that_has_served_is_never_given_up(system):
    made = system(before='sys.exit(print("the disk is on fire", file=sys.stderr) or 78) if 2 <= lives <= 4 else 0')
    pid = pid_in(made.wait_for("🟢 Backend 1"))
    made.wait_for("🚀")
    os.kill(pid, signal.SIGKILL)
    assert "SIGKILL" in made.wait_for("died")
    assert "the disk is on fire. Starting it again in 0.4 s" in made.wait_for("died")
    assert "died in the same way, 2 times in a row now" in made.wait_for("died")
    made.program.process.send_signal(signal.SIGTERM)
    assert made.program.end() == 0
    assert made.said("[backend 1] the disk is on fire") == 1


def test_a_backend_that_can_not_work_is_tried_again_once_another_serves(system):
    fire = 'sys.exit(print("the disk is on fire", file=sys.stderr) or 78) if first and lives == 1 else 0'
    made = system("--backends", 2, before=fire)
    assert "not starting it again before something serves" in made.wait_for("❌ Backend 1")
    made.wait_for("🟢 Backend 1")


@pytest.mark.slow
def test_a_balancer_that_has_served_is_never_given_up(system, tmp_path):
    made = system()
    pid = pid_in(made.wait_for("🚀"))
    good = (tmp_path / "balancer.py").read_text()
    (tmp_path / "balancer.py").write_text("import sys; sys.exit(2)")
    os.kill(pid, signal.SIGKILL)
    made.wait_for("Balancer died")
    assert "exit 2. Starting it again in 0.2 s" in made.wait_for("Balancer died")
    (tmp_path / "balancer.py").write_text(good)
    wait_until(made.serves)


# -------------------------------------------------------------------------------------- a model file cut short


@pytest.fixture
def models(tmp_path):
    """A folder with a copy of the demo model, which may be broken."""
    folder = tmp_path / "own-models"
    folder.mkdir()
    shutil.copy(DEMO, folder / "demo.gguf")
    return folder


def cut(folder):
    os.truncate(folder / "demo.gguf", 300_000)


def restore(folder):
    """Put the whole file back, in pieces, as a slow copy does."""
    with open(DEMO, "rb") as whole, open(folder / "demo.gguf", "wb") as file:
        for data in iter(lambda: whole.read(1 << 20), b""):
            file.write(data)
            file.flush()


def test_backends_wait_for_a_model_file_that_was_cut_short_and_come_back_by_themselves(system, models):
    made = system(models=models)
    pid = pid_in(made.wait_for("🟢 Backend 1"))
    cut(models)
    if running(pid):
        os.kill(pid, signal.SIGKILL)  # where its weights are a copy of its own, it would work on
    line = made.wait_for("🟠 Backend 1 has no model yet")
    assert "demo.gguf can't be loaded: it is cut short" in line
    health = call(made.own + "/health")
    assert health.status == 503 and health.json["status"] == "waiting"
    assert health.json["error"]["code"] == "not_ready" and "cut short" in health.json["error"]["message"]
    os.remove(models / "demo.gguf")
    made.wait_for("🟠 Backend 1 has no model yet")
    restore(models)
    made.wait_for("🟢 Backend 1")
    wait_until(made.serves)
    assert made.program.process.poll() is None and made.said("died") == 1


def test_with_only_a_broken_model_it_says_what_is_wrong_and_waits_for_a_good_one(system, models):
    cut(models)
    made = system(models=models)
    line = made.wait_for("🟠")
    assert "demo.gguf: it is cut short" in line and "Waiting for a good file; Ctrl-C stops." in line
    assert made.program.errors == []
    restore(models)
    made.wait_for("🚀")
    assert made.serves()


def test_waiting_for_a_model_ends_at_ctrl_c(system, models):
    cut(models)
    made = system(models=models)
    made.wait_for("🟠")
    made.program.process.send_signal(signal.SIGINT)
    assert made.program.end() == 0 and made.program.lines[1:] == ["✅ Stopped."]


def test_a_backend_alone_waits_too_and_answers_meanwhile(start, models, tmp_path):
    with open(DEMO, "rb") as file:  # whole, but llama.cpp refuses it
        (models / "demo.gguf").write_bytes(file.read().replace(b"output_norm.weight", b"output_n0rm.weight"))
    shutil.copy(DEMO, models / "good.gguf")
    hasty.write_programs(tmp_path)
    program = str(tmp_path / "backend.py")
    backend = start(program, "--models", models, "--model", "demo.gguf", "--port", free_ports(1), "--threads", 1)
    line = backend.wait_for_line("🟠")
    assert "demo.gguf can't be loaded" in line and "output_norm" in line and backend.process.poll() is None
    restore(models)
    assert "demo.gguf loaded" in backend.wait_for_line("🟢")


def test_a_backend_that_waits_serves_another_model_that_a_request_names(start, models):
    cut(models)
    shutil.copy(DEMO, models / "good.gguf")
    backend = start("backend.py", "--child", "--models", models, "--model", "demo", "--port", 0, "--threads", 1)
    url = backend.wait_for_event("listening")["url"]
    backend.wait_for_event("waiting")
    broken = call(url + "/generate", STORY)
    assert broken.status == 500 and broken.json["error"]["code"] == "model_broken"
    assert call(url + "/generate", dict(STORY, model_name="good")).status == 200
    assert call(url + "/health").status == 200


def test_a_backend_of_comeapis_waits_for_a_folder_that_is_empty_for_the_moment(start, tmp_path):
    folder = tmp_path / "models"
    backend = start("backend.py", "--child", "--models", folder, "--model", "demo.gguf", "--port", 0, "--threads", 1)
    assert "No such file or directory" in backend.wait_for_event("waiting")["why"]
    folder.mkdir()
    shutil.copy(DEMO, folder / "demo.gguf")
    assert backend.wait_for_event("ready")["model"] == "demo.gguf"


# ------------------------------------------------------------------------------------------- keys and options


def environment_of(pid):
    """Return the COMEAPI_ variables that a process was started with, without the prefix."""
    with open("/proc/%d/environ" % pid, "rb") as file:
        pairs = [each.decode().partition("=")[::2] for each in file.read().split(b"\0") if each]
    return {name[len("COMEAPI_") :]: value for name, value in pairs if name.startswith("COMEAPI_")}


def test_children_get_the_keys_that_are_theirs(system):
    others = {"COMEAPI_KEY_RATE": "100", "COMEAPI_LAZY": "1"}
    made = system(COMEAPI_ADMIN_KEY="boss", COMEAPI_API_KEY="one,two", **others)
    backend = environment_of(pid_in(made.wait_for("🟢 Backend 1")))
    balancer = environment_of(pid_in(made.wait_for("🚀")))
    secret = balancer["BACKEND_KEY"]
    assert len(balancer["CARRY_SECRET"]) >= 32
    assert backend.pop("CARRY_SECRET") == balancer["CARRY_SECRET"]
    assert len(secret) >= 32 and backend == {"API_KEY": "one,two," + secret}
    assert balancer["ADMIN_KEY"] == "boss" and balancer["API_KEY"] == "one,two"
    statuses = [call(made.own + "/models", headers={"X-Api-Key": key}).status for key in ("", "boss", secret, "two")]
    assert statuses == [401, 401, 200, 200]
    assert made.serves(**{"X-Api-Key": "one"})


def test_without_keys_nothing_is_locked_on_loopback(system):
    made = system()
    assert set(environment_of(pid_in(made.wait_for("🟢 Backend 1")))) == {"CARRY_SECRET"}
    assert "BACKEND_KEY" not in environment_of(pid_in(made.wait_for("🚀")))


def test_backends_that_other_machines_reach_are_never_open(system):
    made = system("--backend-host", "0.0.0.0")
    made.wait_for("🟢 Backend 1")
    assert call(made.own + "/generate", STORY).status == 401
    made.wait_for("🚀")
    assert made.serves()
    assert not any("without an API key" in line for line in made.program.errors)
