"""comeapi.py doctor: what is found on a machine, what is thought of it, and what is advised."""

import json
import os
import socket
import subprocess
import sys
import textwrap

import pytest
from conftest import MODELS, PATIENCE, ROOT

from core.commands import checks
from core.commands.bandwidth import read_bandwidth
from core.commands.checks import GOOD, NOTE, PROBLEM
from core.commands.trial import Trial, trial
from core.hardware import Processor, processor
from core.models import ModelFile

DEMO = os.path.join(ROOT, "models", "demo.gguf")
GB = 10**9
IMPORTED = {"step": "import", "version": "0.3.36", "gpu": False, "features": "CPU : AVX2 = 1 | AVX512 = 0 | FMA = 1 | "}
WELL = Trial({"import": IMPORTED, "decode": {}}, 0, "")
CRASHED = Trial({"import": IMPORTED}, -11, "")
MISSING = Trial({}, 1, "ModuleNotFoundError: No module named 'llama_cpp'")
TOOLS = {"a C++ compiler": "/usr/bin/c++", "CMake": "/usr/bin/cmake"}
MODEL = ModelFile("m.gguf", "/m/m.gguf", 2 * GB, "llama", quantization="Q4_K", context_length=4096, vocabulary=32000)


# ------------------------------------------------------------------------------------------- what is thought


def test_an_old_or_a_narrow_python_is_a_problem():
    assert checks.python((3, 11, 7), True, "cpython").level == GOOD
    assert checks.python((3, 7, 1), True, "cpython").level == PROBLEM
    assert "32 bits" in checks.python((3, 11, 7), False, "cpython").says


def test_without_llama_cpp_python_it_says_what_to_install_first():
    assert checks.library([WELL], TOOLS) == checks.Finding("llama-cpp-python", GOOD, "0.3.36, no GPU")
    found = checks.library([MISSING], TOOLS)
    assert found.level == PROBLEM and "No module named" in found.says and found.do.startswith("python -m pip install")
    found = checks.library([MISSING], dict(TOOLS, CMake=""))
    assert "CMake must be installed first" in found.do


def test_a_build_that_crashes_is_known_with_its_cure():
    (found,) = checks.quantized([WELL])
    assert found.level == GOOD
    (found,) = checks.quantized([CRASHED, WELL])
    assert found.level == NOTE and "safe mode" in found.says and "-mno-amx-int8" in found.do
    (found,) = checks.quantized([CRASHED, CRASHED])
    assert found.level == PROBLEM and "Build it on this machine" in found.do
    (found,) = checks.quantized([Trial({"import": IMPORTED}, None, "")])
    assert found.level == PROBLEM
    assert list(checks.quantized([MISSING])) == []


def test_a_build_for_a_lesser_processor_is_noticed():
    built = checks.features([WELL])
    assert built == ("AVX2", "FMA")
    assert checks.processor(Processor("X", ("avx2", "fma")), built).level == GOOD
    found = checks.processor(Processor("X", ("avx2", "avx512f")), built)
    assert found.level == NOTE and "without AVX512" in found.says
    assert checks.processor(Processor("X", ("avx2",)), ()).level == GOOD


def test_company_on_the_cores_is_noticed():
    assert checks.company(4, 1.0).level == GOOD and checks.company(4, None).level == GOOD
    assert checks.company(4, 3.0).level == NOTE


def test_a_model_is_told_how_many_backends_fit_and_how_fast_it_can_be_at_most():
    found = checks.model(MODEL, 20 * GB, 20e9, False)
    assert found.figures["most_tokens_per_second"] == 10.0 and "at most 10.0 tokens/s" in found.says
    assert found.figures["backends_that_fit"] == 20 * GB // found.figures["memory_of_a_backend"] > 1
    found = checks.model(MODEL, 1 * GB, None, False)
    assert found.level == NOTE and "0 backends fit" in found.says and "--ctx-size" in found.do
    assert "at most" not in checks.model(MODEL, None, 20e9, True).says


def test_a_mixture_of_experts_is_told_no_bound():
    found = checks.model(ModelFile("m", "/m", 2 * GB, "mixtral", sparse=True), 20 * GB, 20e9, False)
    assert "most_tokens_per_second" not in found.figures and "some of its weights" in found.says


def test_a_broken_model_and_a_folder_without_a_real_one_say_what_to_do():
    assert checks.model(ModelFile("m", "/m", 5, problem="it is cut short"), None, None, False).level == PROBLEM
    assert checks.folder("/m", [], GB).level == PROBLEM
    assert "pull" in checks.folder("/m", [ModelFile("demo.gguf", "/m", 5)], GB).do
    assert checks.folder("/m", [MODEL], GB) == checks.Finding("Models", GOOD, "1 in /m, whose disk has 1.0 GB free")


def test_a_taken_port_names_the_option_that_moves_it():
    assert checks.port(9000, "--port", "").level == GOOD
    assert checks.port(9000, "--port", "ComeAPI").level == GOOD
    assert "--port 9100" in checks.port(9000, "--port", "another program").do


def test_slow_memory_is_noticed():
    assert checks.bandwidth(20e9).level == GOOD and "20.0 GB/s" in checks.bandwidth(20e9).says
    assert checks.bandwidth(2e9).level == NOTE and checks.bandwidth(None).level == NOTE


# ---------------------------------------------------------------------------------------------- what is found


def test_this_machine_computes_with_quantized_weights():
    found = trial(DEMO, safe=True)
    assert list(found.steps) == ["import", "quantize", "decode"] and found.status == 0, found
    assert "=" in found.steps["import"]["features"]


CRASHING = """
import importlib.util, os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "core.engine.llama.context":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            plain = module.Context.decode
            def decode(self, runs):
                if sys.argv[-1] == "0":
                    os.kill(os.getpid(), signal.SIGSEGV)
                return plain(self, runs)
            module.Context.decode = decode
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Finder())
"""


def doctor(*arguments, **environment):
    """Run it. Returns the exit status and its output."""
    done = subprocess.run(
        [sys.executable, "comeapi.py", "doctor", "--models", MODELS] + [str(each) for each in arguments], cwd=ROOT,
        env=dict(os.environ, PYTHONIOENCODING="utf-8", **environment),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=PATIENCE,
    )  # fmt: skip
    assert done.stderr == b""
    return done.returncode, done.stdout.decode("utf-8")


def test_a_crash_of_the_build_does_not_end_the_doctor(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(CRASHING))
    code, out = doctor(PYTHONPATH=str(tmp_path))
    assert code == 0 and "Quantized models: this build crashes at full speed (status -11)" in out
    assert "-mno-amx-int8" in out


def test_a_missing_library_is_a_problem_and_the_exit_status_says_so(tmp_path):
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('No module named llama_cpp')")
    code, out = doctor(PYTHONPATH=str(tmp_path))
    assert code == 1 and "❌ llama-cpp-python: " in out and "→ " in out and "pip install llama-cpp-python" in out


def test_all_is_said_as_json_for_programs(backend):
    port = int(backend.url.rpartition(":")[2])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        code, out = doctor("--json", "--base-port", port, "--backends", 1, "--port", taken.getsockname()[1])
    told = json.loads(out)
    found = {each["name"]: each for each in told["findings"]}
    assert code == 0 and told["ok"] is True
    assert "ComeAPI is running there" in found["Port %d" % port]["says"]
    (other,) = [each for name, each in found.items() if name.startswith("Port") and name != "Port %d" % port]
    assert "another program has it" in other["says"] and "--port" in other["do"]
    assert found["demo.gguf"]["figures"]["most_tokens_per_second"] > 0
    assert found["Memory's speed"]["figures"]["bytes_per_second"] > 10**8


def test_the_memorys_speed_is_measured_quickly_and_not_where_memory_is_short(monkeypatch):
    rate = read_bandwidth()
    assert rate is None or 10**8 < rate < 10**13
    monkeypatch.setattr("core.commands.bandwidth.available_memory", lambda: 1 << 20)
    assert read_bandwidth() is None


def test_the_processor_has_a_name():
    assert processor().name


@pytest.mark.parametrize("name", ["crash", "timeout"])
def test_a_trial_that_did_not_end_well_is_told_from_one_that_did(name):
    ended = {"crash": Trial({"import": IMPORTED}, -4, ""), "timeout": Trial({"import": IMPORTED}, None, "")}[name]
    assert ended.crashed is (name == "crash") and not WELL.crashed and not MISSING.crashed
