"""comeapi.py offline: a folder from which a machine without a network installs and runs everything."""

import glob
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import MODELS, ROOT, Program, call, free_ports

pytest.importorskip("pip")
NOWHERE = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "https_proxy": "http://127.0.0.1:9"}


def small_wheel(folder, name="llama_cpp_python"):
    """Write a wheel that holds next to nothing."""
    path = folder / (name + "-9.9-py3-none-any.whl")
    with zipfile.ZipFile(str(path), "w") as wheel:
        about = name + "-9.9.dist-info/"
        wheel.writestr(name + ".py", "")
        wheel.writestr(about + "METADATA", "Metadata-Version: 2.1\nName: %s\nVersion: 9.9\n" % name.replace("_", "-"))
        wheel.writestr(about + "WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(about + "RECORD", "")
    return path


def offline(start, *arguments, **environment):
    program = start("comeapi.py", "offline", *arguments, COMEAPI_MODELS=MODELS, **environment)
    return program.end(300), program


def test_the_folder_holds_the_project_the_wheels_the_model_and_the_command(start, tmp_path):
    code, program = offline(start, tmp_path / "out", "--wheel", small_wheel(tmp_path), **NOWHERE)
    assert code == 0, program.errors
    names = set(os.listdir(str(tmp_path / "out")))
    assert {"comeapi.py", "backend.py", "balancer.py", "core", "models", "wheels", "README.md", "OFFLINE.txt"} <= names
    assert os.listdir(str(tmp_path / "out" / "wheels")) == ["llama_cpp_python-9.9-py3-none-any.whl"]
    assert glob.glob(str(tmp_path / "out" / "models" / "*.gguf")) == [str(tmp_path / "out" / "models" / "demo.gguf")]
    assert not glob.glob(str(tmp_path / "out" / "**" / "__pycache__"), recursive=True)
    said = program.lines[-1].partition("run: ")[2]
    assert said in (tmp_path / "out" / "OFFLINE.txt").read_text(encoding="utf-8") and "--no-index" in said


def test_it_can_be_made_again_but_touches_no_folder_of_something_else(start, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    wheel = small_wheel(tmp_path)
    code, program = offline(start, tmp_path / "mine", "--wheel", wheel, **NOWHERE)
    assert code == 1 and "holds something else" in program.errors[-1]
    assert os.listdir(str(tmp_path / "mine")) == ["thesis.txt"]
    assert "in the project itself" in offline(start, os.path.join(ROOT, "x"), "--wheel", wheel)[1].errors[-1]
    assert [offline(start, tmp_path / "out", "--wheel", wheel, **NOWHERE)[0] for _ in range(2)] == [0, 0]


def test_what_pip_can_not_get_is_said_with_what_to_do(start, tmp_path):
    code, program = offline(start, tmp_path / "out", "--wheel", tmp_path / "none.whl", **NOWHERE)
    assert code == 1 and "--wheel FILE" in program.errors[-1]
    code, program = offline(start, tmp_path / "out", "--wheel", small_wheel(tmp_path, "other"), **NOWHERE)
    assert code == 1 and "no wheel of llama-cpp-python" in program.errors[-1]


def test_a_model_in_several_files_is_copied_whole(start, tmp_path):
    (tmp_path / "models").mkdir()
    for number in (1, 2):
        shutil.copy(os.path.join(MODELS, "demo.gguf"), str(tmp_path / "models" / ("m-%05d-of-00002.gguf" % number)))
    wheel = small_wheel(tmp_path)
    code, program = offline(start, tmp_path / "out", "--models", tmp_path / "models", "--wheel", wheel, **NOWHERE)
    assert code == 0, program.errors
    assert len(glob.glob(str(tmp_path / "out" / "models" / "m-*.gguf"))) == 2


def kept_wheel():
    """Return the built wheel of llama-cpp-python that .ci/run keeps; skip where there is none."""
    kept = glob.glob(os.path.join(os.path.expanduser("~"), ".cache", "comeapi", "llama-cpp-python-*", "*.whl"))
    if not kept:
        pytest.skip("no built wheel of llama-cpp-python is kept here")
    return kept[0]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="the command is a shell's")
def test_a_machine_without_a_network_installs_and_serves_from_it(start, tmp_path, monkeypatch):
    code, program = offline(start, tmp_path / "out", "--wheel", kept_wheel())
    if code and any("Could not find a version" in line for line in program.errors):
        pytest.skip("no package index can be reached, for what llama-cpp-python needs")
    assert code == 0, program.errors
    install, _, run = program.lines[-1].partition("run: ")[2].rpartition(" && ")
    assert run == ".venv/bin/python comeapi.py"
    done = subprocess.run(
        ["sh", "-c", install.replace("python3", sys.executable, 1)], cwd=str(tmp_path / "out"),
        env=dict(os.environ, **NOWHERE), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    base = free_ports(4)
    monkeypatch.setattr(Program, "python", str(tmp_path / "out" / ".venv" / "bin" / "python"))
    served = start(str(tmp_path / "out" / "comeapi.py"), "--base-port", base, "--port", base + 3)
    served.wait_for_line("🚀")
    body = {"model_name": "demo.gguf", "prompt": "Once upon a time", "max_tokens": 5}
    assert call("http://127.0.0.1:%d/generate" % (base + 3), body).json["response"]
