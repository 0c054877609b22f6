"""The balancer under comeapi.py is killed (kill -9) in the middle of answers: each goes on, its user sees a pause."""

import sys
import threading
import types

import pytest
from conftest import PATIENCE, Program, call, wait_until
from test_chaos import System, read

from core.system.holder import make_holder

FAR = 100  # the number of a token that each of these answers has, long after its 20th line

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can do it")


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    programs = []

    def start(*arguments, **environment):
        programs.append(Program(*arguments, **environment))
        return programs[-1]

    try:
        yield System(start, tmp_path_factory.mktemp("system"), "--backends", 2, "--slots", 4)
    finally:
        for program in programs:
            program.close()


@pytest.mark.parametrize("kind", ["plain", "plain, Anthropic", "schema, Ollama", "two answers"])
def test_a_stream_goes_on_when_the_balancer_is_killed(system, kind):
    undisturbed, _ = read(system.url, kind, 0)

    def kill_at(number):
        if number == 20:
            system.kill()
            system.hang_file.unlink()

    system.hang_file.write_text(str(FAR))
    text, _ = read(system.url, kind, 0, kill_at)
    assert text == undisturbed
    assert call(system.url + "/status").json["adopted"] == 1


def test_a_plain_answer_goes_on_when_the_balancer_is_killed(system):
    undisturbed, _ = read(system.url, "not streamed", 0)
    system.hang_file.touch()
    texts = []
    client = threading.Thread(target=lambda: texts.append(read(system.url, "not streamed", 0)[0]), daemon=True)
    client.start()
    wait_until(lambda: sum(each["in_flight"] for each in call(system.url + "/status").json["backends"]))
    threading.Event().wait(0.2)  # a younger one is asked again by its client
    system.kill()
    system.hang_file.unlink()
    client.join(PATIENCE)
    assert texts == [undisturbed]


def test_connections_over_tls_are_not_held_since_their_keys_die_with_the_balancer():
    assert make_holder(types.SimpleNamespace(tls_cert="cert.pem")) is None
