"""Programs of two versions side by side: an older commit's code and the present one, as balancer and as backend."""

import contextlib
import io
import json
import os
import subprocess
import tarfile
import threading

import pytest
from conftest import LASTING_OPTIONS, MODELS, PATIENCE, ROOT, Program, Streaming, call, wait_until

from core.carriage import CARRY, Frames, proof

pytestmark = pytest.mark.slow
OLDER = ("HEAD~1", "HEAD~10")
LONG = 1500  # tokens of an answer that is still on its way when its backend dies
ADMIN, SECRET = "the-admins-key", "the balancer's own"
STORY = {"model_name": "demo.gguf", "prompt": "Once upon a time", "temperature": 0, "ignore_eos": True}


def git(*arguments):
    """Return what git prints; raises OSError and CalledProcessError."""
    command = ("git", "-c", "safe.directory=*", *arguments)
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout


@pytest.fixture(scope="module", params=OLDER)
def old(request, tmp_path_factory):
    """The folder of an older version."""
    try:
        archive = git("archive", "--format=tar", request.param, "core", "backend.py", "balancer.py")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no git history to take an older version from (%s)" % request.param)
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        if hasattr(tarfile, "data_filter"):
            files.extraction_filter = tarfile.data_filter
        files.extractall(str(folder))
    return str(folder)


@pytest.fixture
def running():
    """Start programs of a version, which end with the test."""
    with contextlib.ExitStack() as stack:

        def starter(folder, name, *options):
            program = Program(
                os.path.join(folder, name), "--child", "--port", 0, "--carry-secret", SECRET, *options,
                COMEAPI_MODELS=MODELS,
            )  # fmt: skip
            stack.callback(program.close)
            program.url = program.wait_for_event("listening")["url"]
            if name == "backend.py":
                program.wait_for_event("ready")
            return program

        yield starter


def backend(running, folder):
    return running(folder, "backend.py", "--threads", 1, "--slots", 2, *LASTING_OPTIONS)


def balancer(running, folder, backends):
    options = [option for each in backends for option in ("--backend", each.url)]
    front = running(folder, "balancer.py", "--admin-key", ADMIN, "--health-interval", 1, *options)
    wait_until(lambda: all(each["carries"] for each in call(front.url + "/status").json["backends"]))
    return front


def change(front, url, gone=False):
    """Tell a balancer of a backend, or with `gone`, to drain it and forget it."""
    headers = {"Authorization": "Bearer " + ADMIN}
    if gone:
        assert call(front.url + "/admin/backends?url=" + url, None, headers, "DELETE").status < 300
        wait_until(lambda: url not in [each["url"] for each in call(front.url + "/status").json["backends"]])
    else:
        assert call(front.url + "/admin/backends", {"url": url}, headers).status < 300
        wait_until(lambda: all(each["carries"] for each in call(front.url + "/status").json["backends"]))


class Load:
    """Clients that ask again and again, at the address that is right at the moment, whole and streamed."""

    def __init__(self, front):
        self.front = front
        self.bad, self.good = [], 0
        self._over = threading.Event()
        self._clients = [threading.Thread(target=self._ask, args=(number,), daemon=True) for number in range(3)]
        for client in self._clients:
            client.start()

    def _ask(self, number):
        while not self._over.is_set():
            try:
                answer = call(self.front.url + "/generate", dict(STORY, max_tokens=40, stream=number == 0))
                whole = answer.status == 200 and b"error" not in answer.body
                whole = whole and (number > 0 or answer.body.endswith(b"data: [DONE]\n\n"))
            except OSError as error:
                whole, answer = False, error
            self.good += whole
            self.bad += [] if whole else [getattr(answer, "body", answer)]

    def end(self):
        self._over.set()
        for client in self._clients:
            client.join(PATIENCE)


def fingerprint(program):
    """Return what a backend tells a balancer of its model, whether or not its /health tells it."""
    data = json.dumps(dict(STORY, max_tokens=1)).encode()
    headers = {"X-Request-Id": "r1", CARRY: proof(SECRET, "/generate", "r1", data)}
    ((note, _), *_) = Frames().feed(call(program.url + "/generate", data, headers).body)
    return note["head"]["fingerprint"]


@pytest.mark.parametrize("front_is_old", [True, False])
def test_an_answer_moves_between_backends_of_both_versions_behind_either(old, running, front_is_old):
    for first, second in ((old, ROOT), (ROOT, old)):
        dying, heir = backend(running, first), backend(running, second)
        told, front = fingerprint(dying), balancer(running, old if front_is_old else ROOT, [dying])
        story = Streaming(front.url + "/generate", dict(STORY, max_tokens=LONG))
        change(front, heir.url)
        dying.process.kill()
        answer = story.end()
        if fingerprint(heir) == told:
            assert b"error" not in answer.body, answer.body[-300:]
            assert answer.events[-1]["usage"]["completion_tokens"] == LONG
        else:  # that version computes otherwise
            assert b"no other one could go on with its answer" in answer.body[-500:], answer.body[-500:]
            assert call(front.url + "/generate", dict(STORY, max_tokens=2)).status == 200


def test_a_service_goes_over_to_the_next_version_piece_by_piece_and_loses_nothing(old, running):
    olds = [backend(running, old) for _ in range(2)]
    before, after = balancer(running, old, olds), balancer(running, ROOT, olds)
    load = Load(before)
    wait_until(lambda: load.good > 5)
    load.front = after  # the balancer first: it knows whether a backend can go on with what another one has begun
    before.close()
    for before in olds:  # then the backends, one after another
        change(after, backend(running, ROOT).url)
        change(after, before.url, gone=True)
        before.close()
    done = load.good
    wait_until(lambda: load.good > done + 5)
    load.end()
    assert load.bad == [] and load.good > 20
    versions = {each["version"] for each in call(after.url + "/status").json["backends"]}
    assert versions == {call(after.url + "/health").json["version"]}
