"""The READMEs are true: a newcomer pastes each command as it is printed, and it works.

NOT_RUN has the commands that are not run here, each with the reason; one that is no longer printed fails a test. Nor is
tests/README.md run, which is for people who work on the project.
"""

import importlib.util
import os
import re
import shutil
import socket

import pytest
from conftest import ROOT

pytest.importorskip("terminals", reason="no pseudo-terminals here")
from newcomer import House, commands_in  # noqa: E402

TESTS = "it runs these tests"
PACKAGES = "it changes the packages of the system or of the interpreter, from the network"
CERTIFICATES = "the certificates are the reader's; tests/http/test_trust.py tries it"
FOR_MINUTES = "it takes minutes; tests/commands/ tries it"
REBUILD = ".venv/bin/pip install --force-reinstall --no-cache-dir llama-cpp-python"
NOT_RUN = {
    ".venv/bin/pip install pytest pytest-xdist && .venv/bin/python -m pytest -n 2": TESTS,
    "sudo apt install build-essential cmake": PACKAGES,
    "sudo dnf install gcc-c++ cmake": PACKAGES,
    "CFLAGS=-mno-amx-int8 CXXFLAGS=-mno-amx-int8 " + REBUILD: PACKAGES,
    "CMAKE_ARGS=-DGGML_CUDA=on " + REBUILD: PACKAGES,
    ".venv/bin/python comeapi.py offline ../comeapi-offline": FOR_MINUTES,
    ".venv/bin/python comeapi.py tune": FOR_MINUTES,
    ".venv/bin/python comeapi.py bench": FOR_MINUTES,
    ".venv/bin/python comeapi.py bench --model demo.gguf --plot bench.svg": FOR_MINUTES,
    ".venv/bin/python comeapi.py pull https://example.com/model.gguf           # any URL": "there is no such model",
    "python backend.py --host 0.0.0.0 --tls-cert gpu1.pem --client-ca ca.pem             "
    "# serves nobody who shows no certificate of ca.pem's": CERTIFICATES,
    "python balancer.py --backend https://gpu1:8080 --backend-ca ca.pem --backend-cert balancer.pem": CERTIFICATES,
    "curl http://127.0.0.1:9000/v1/responses -d "
    '\'{"input": "Tell me a story", "previous_response_id": "resp_…", "stream": true}\'': "… is a reader's answer",
}
FOLDERS = ("core", "core/apis", "core/balancing", "core/engine", "models")
PORTS = (8080, 8081, 8082, 8083, 8084, 9000)
_SAID = re.compile(r'("prompt": |"content": |echo )"[^"]*"')  # what differs between languages


def text_of(folder=""):
    with open(os.path.join(ROOT, folder, "README.md"), encoding="utf-8") as file:
        return file.read()


ENGLISH, _, JAPANESE = text_of().partition("\n## 日本語\n")


@pytest.fixture
def newcomer(tmp_path):
    if shutil.which("bash") is None or shutil.which("curl") is None:
        pytest.skip("bash or curl is missing")
    made = House(tmp_path)
    try:
        if not made.apart and not all(map(is_free, PORTS)):
            pytest.skip("no network namespaces here, and the printed ports are taken")
        yield made
    finally:
        made.close()


def is_free(port):
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def paste_all(newcomer, commands):
    """Do what a text tells, in its order."""
    for language, command in commands:
        if language == "sh" and command not in NOT_RUN:
            newcomer.paste(command)
        elif language == "python" and importlib.util.find_spec(command.split()[1]):  # the openai package may be missing
            assert newcomer.run_python(command).strip()
    newcomer.end()


def test_a_newcomer_can_paste_all_commands(newcomer):
    paste_all(newcomer, commands_in(ENGLISH, sentences=True))


@pytest.mark.slow
def test_a_newcomer_can_paste_all_commands_of_the_japanese_part(newcomer):
    paste_all(newcomer, commands_in(JAPANESE, sentences=True))


def test_both_languages_have_the_same_commands():
    english, japanese = (
        {(language, _SAID.sub(r"\1…", command)) for language, command in commands_in(part, sentences=True)}
        for part in (ENGLISH, JAPANESE)
    )
    assert english == japanese


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_the_commands_of_a_folder_can_be_pasted(newcomer, folder):
    newcomer.make_environment()
    if folder == "core":
        newcomer.add_model("qwen.gguf")
    if folder == "core/apis":
        newcomer.paste(".venv/bin/python comeapi.py")
    newcomer.environment.update(ADMIN="sesame", COMEAPI_ADMIN_KEY="sesame")
    paste_all(newcomer, commands_in(text_of(folder)))


def test_what_is_not_run_is_still_printed():
    printed = {command for folder in ("", *FOLDERS) for _, command in commands_in(text_of(folder), sentences=True)}
    assert set(NOT_RUN) <= printed
