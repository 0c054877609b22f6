"""What is left of a backend that lacks memory or keeps dying: rung by rung, and what is told of it."""

import os
import re
import shutil
import signal
import sys

import pytest
from conftest import call, wait_until
from test_supervision import DEMO, STORY, System, pid_in

from core.system.ladder import LADDER, TOO_OFTEN, Ladder

OOM = "killed by the kernel, out of memory (SIGKILL)"


@pytest.fixture
def system(start, tmp_path):
    def make(*arguments, **how):
        return System(start, tmp_path, *arguments, **how)

    return make


def all_steps(ladder):
    """Let it starve until nothing is left; returns the options of each step."""
    steps = []
    while not ladder.unusable:
        steps.append(ladder.starve(OOM))
    return steps


# ------------------------------------------------------------------------------------------------- the rungs


def test_a_backend_that_lacks_memory_gets_less_rung_by_rung_then_it_is_unusable():
    ladder = Ladder(8, 4096, sparing=True)
    assert all_steps(ladder) == [["--safe-mode"], ["--slots=4"], ["--slots=2", "--ctx-size=2048"], []]
    assert ladder.unusable == OOM + ", with 2 slots of 2048 tokens"
    assert len(LADDER) == 4


def test_safe_mode_is_left_out_where_it_spares_nothing_or_is_on():
    assert all_steps(Ladder(4, 4096, sparing=False))[0] == ["--slots=2"]
    ladder = Ladder(4, 4096, sparing=True)
    ladder.protect()
    assert all_steps(ladder)[0] == ["--slots=2"]


def test_a_rung_that_spares_nothing_is_left_out():
    assert all_steps(Ladder(1, 4096, sparing=False)) == [["--ctx-size=2048"], []]
    assert all_steps(Ladder(1, 600, sparing=False)) == [["--ctx-size=512"], []]
    assert all_steps(Ladder(1, 256, sparing=False)) == [[]]
    assert all_steps(Ladder(2, 0, sparing=False)) == [["--slots=1"], []]


def test_it_stays_down_and_says_why_but_is_unusable_only_until_it_works():
    ladder = Ladder(4, 4096, sparing=False)
    assert ladder.note == ""
    ladder.starve(OOM)
    assert ladder.note == "with 2 slots of 4096 tokens, for lack of memory: " + OOM
    all_steps(ladder)
    assert ladder.note.startswith("unusable, tried again every 30 s: killed by the kernel")
    ladder.ready()
    assert ladder.note == "with 1 slot of 2048 tokens, for lack of memory: " + OOM


def test_dying_again_and_again_without_being_ready_is_told_once():
    ladder = Ladder(4, 4096, sparing=True)
    assert [ladder.died(True, "exit 1") for _ in range(20)] == [False] * 20
    assert [ladder.died(False, "exit 1") for _ in range(9)].count(True) == 1
    assert ladder.note == "unusable, tried again every 30 s: it died %d times in a row, the last time of: exit 1" % (
        TOO_OFTEN
    )
    ladder.ready()
    assert ladder.note == "" and not ladder.died(False, "exit 1")


# ---------------------------------------------------------------------------------------------- real processes


def why(made):
    return call(made.url + "/status").json["backends"][0]["why"]


def slots(made):
    return call(made.own + "/health").json["slots"]


@pytest.fixture
def kills(tmp_path):
    """The count of the kernel's kills, as the file that OOM_KILLS_FILE names."""
    path = tmp_path / "oom-kills"
    path.write_bytes(b"")
    return path


def test_a_backend_that_a_person_kills_three_times_stays_as_it_is(system, kills):
    made = system(OOM_KILLS_FILE=str(kills))
    for _ in range(3):
        os.kill(pid_in(made.wait_for("🟢 Backend 1")), signal.SIGKILL)
        assert "killed (SIGKILL), not for lack of memory" in made.wait_for("Backend 1 died")
    made.wait_for("🟢 Backend 1")
    assert slots(made) == 4 and not made.said("🪜")


def test_a_backend_that_the_kernel_kills_for_memory_comes_back_with_less_and_status_says_so(system, kills):
    made = system(OOM_KILLS_FILE=str(kills))
    pid = pid_in(made.wait_for("🟢 Backend 1"))
    made.wait_for("🚀")
    kills.write_bytes(b"x")
    os.kill(pid, signal.SIGKILL)
    line = made.wait_for("🪜")
    assert line == (
        "🪜 Backend 1 died: killed by the kernel, out of memory (SIGKILL). Starting it again in 0.2 s "
        "with 2 slots of 1024 tokens, until comeapi.py is restarted."
    )
    pid = pid_in(made.wait_for("🟢 Backend 1"))
    assert slots(made) == 2
    wait_until(made.serves)
    wait_until(lambda: why(made) == "ok (with 2 slots of 1024 tokens, for lack of memory: %s)" % OOM)
    os.kill(pid, signal.SIGKILL)  # by a person
    made.wait_for("🟢 Backend 1")
    assert slots(made) == 2 and made.said("🪜") == 1


def test_a_backend_at_the_end_of_its_ladder_is_told_to_be_unusable_while_the_rest_serves(system, kills, tmp_path):
    room = tmp_path / "there is room"
    starve = 'first and not __import__("os").path.exists(%r) and ' % str(room)
    starve += 'sys.exit(print("std::bad_alloc", file=sys.stderr) or 1)'
    made = system("--backends", 2, before=starve, OOM_KILLS_FILE=str(kills))
    line = made.wait_for("❌ Backend 1 is unusable: ")
    assert "std::bad_alloc, with 1 slot of 512 tokens. It is tried again every 0.4 s, while the rest serves." in line
    wait_until(made.serves)
    wait_until(lambda: "unusable, tried again" in why(made))
    room.touch()
    made.wait_for("🟢 Backend 1")
    wait_until(lambda: why(made).startswith("ok (with 1 slot of 512 tokens"))
    assert made.said("unusable") == 1 and made.said("🪜") == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resource.prlimit")
def test_a_context_for_which_there_is_no_memory_becomes_smaller_by_itself(system):
    import resource

    wide = ("--ctx-size", 100_000, "--rope-scaling", "yarn", "--rope-freq-scale", "0.01", "--siding", "off")
    made = system(*wide)
    # Before it starts any: its children inherit this. 4 slots need 1.3 GB, Python and its threads 0.6.
    resource.prlimit(made.program.pid, resource.RLIMIT_AS, (1_600_000_000, resource.RLIM_INFINITY))
    line = made.wait_for("🪜")
    assert "with 2 slots of 100000 tokens" in line and ("failed to allocate" in line or "is too large" in line)
    made.wait_for("🟢 Backend 1")
    assert slots(made) == 2
    wait_until(made.serves)


# ---------------------------------------------------------------------------------------------- a second model


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resource.prlimit")
def test_a_second_model_that_can_not_fit_is_refused_with_figures_and_the_first_goes_on(start, tmp_path):
    import resource

    shutil.copy(DEMO, tmp_path / "a.gguf")
    with open(DEMO, "rb") as file:
        data = bytearray(file.read())
    at = data.index(b"llama.context_length") + len(b"llama.context_length") + 4
    data[at : at + 4] = (200_000).to_bytes(4, "little")  # 4 slots need 2.5 GB
    (tmp_path / "wide.gguf").write_bytes(data)
    backend = start(
        "backend.py", "--child", "--models", tmp_path, "--model", "a", "--port", 0, "--threads", 1, "--ctx-size", 0
    )
    url = backend.wait_for_event("listening")["url"]
    assert backend.wait_for_event("ready")["memory"] > 10 << 20
    with open("/proc/%d/statm" % backend.pid) as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    none = resource.prlimit(backend.pid, resource.RLIMIT_AS, (mapped + 500_000_000, resource.RLIM_INFINITY))
    refused = call(url + "/generate", dict(STORY, model_name="wide"))
    assert refused.status == 503 and refused.headers["Retry-After"] == "30"
    error = refused.json["error"]
    assert error["code"] == "out_of_memory"
    pattern = r"wide\.gguf is too large: it needs at least 2\.5 GB of memory, 0\.\d GB are free\."
    assert re.fullmatch(pattern, error["message"])
    state = call(url + "/status").json
    assert state["model"] == "a.gguf" and state["status"] == "ready" and 10 < state["memory_mb"] < 1000
    assert call(url + "/generate", dict(STORY, model_name="a")).status == 200
    resource.prlimit(backend.pid, resource.RLIMIT_AS, none)
    assert call(url + "/generate", dict(STORY, model_name="wide")).status == 200  # where there is room
