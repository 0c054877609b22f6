"""comeapi.py chat and status: what a person sees and types, and what a script gets."""

import json
import os
import subprocess
import sys

import pytest
from conftest import PATIENCE, ROOT
from services import HEALTHY, FakeService
from terminals import Terminal, screen

import comeapi
from core.commands.chat import read_message
from core.commands.status import state_of, table


@pytest.fixture
def service():
    made = FakeService()
    yield made
    made.close()


@pytest.fixture
def terminal(tmp_path):
    opened = []

    def open_one(*command, **environment):
        opened.append(Terminal(*command, XDG_STATE_HOME=str(tmp_path), **environment))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


def piped(*arguments, text=""):
    """Run comeapi.py with a pipe on every side. Returns the exit status, the output and the errors."""
    done = subprocess.run(
        [sys.executable, "comeapi.py"] + [str(each) for each in arguments], cwd=ROOT, input=text.encode("utf-8"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=PATIENCE,
        env=dict(os.environ, PYTHONIOENCODING="utf-8"),
    )  # fmt: skip
    return done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8")


# ------------------------------------------------------------------------------------------------- messages


def read(*lines):
    left = list(lines)
    return read_message(lambda prompt: left.pop(0))


def test_a_line_is_a_message():
    assert read("Hello there", "not this") == "Hello there"


def test_a_backslash_at_the_end_goes_on_in_the_next_line():
    assert read("one\\", "two\\", "three", "not this") == "one\ntwo\nthree"


def test_everything_between_three_quotes_is_one_message():
    assert read('"""', "one", "", "two\\", '"""', "not this") == "one\n\ntwo\\"
    assert read('"""one', 'two"""') == "one\ntwo"
    assert read('"""one"""', "not this") == "one"


# ----------------------------------------------------------------------------------------------------- chat


def test_an_answer_streams_and_says_how_fast_it_was(service, terminal):
    talk = terminal("comeapi.py", "chat", "--url", service.url)
    talk.wait_for("> ")
    talk.type("Hi\n")
    talk.wait_for("Hello there")
    assert "2 tokens, 34.5 tokens/s" in talk.wait_for("> ")
    talk.type("And then?\n")
    talk.wait_for("Hello there")
    talk.wait_for("> ")
    talk.type("\x04")
    assert talk.end() == 0
    assert [each["content"] for each in service.bodies[1]["messages"]] == ["Hi", "Hello there", "And then?"]


def test_ctrl_c_stops_the_answer_and_not_the_program(service, terminal):
    talk = terminal("comeapi.py", "chat", "--url", service.url)
    service.words = ["So", " far", service.release, "never"]
    talk.wait_for("> ")
    talk.type("Hi\n")
    talk.wait_for("So far")
    talk.type("\x03")
    talk.wait_for("(stopped)")
    assert service.left.wait(PATIENCE)  # the service knows that nobody listens any more
    talk.wait_for("> ")
    talk.type("\x03")
    talk.wait_for("/quit ends")
    talk.wait_for("> ")
    service.words = ["Fine"]
    talk.type("Go on\n")
    talk.wait_for("Fine")
    talk.wait_for("> ")
    assert [each["content"] for each in service.bodies[1]["messages"]] == ["Hi", "So far", "Go on"]
    talk.type("/quit\n")
    assert talk.end() == 0


def test_commands_change_the_model_the_system_message_and_the_conversation(service, terminal):
    talk = terminal("comeapi.py", "chat", "--url", service.url)
    for line, said in (
        ("/help", "/clear"), ("/model", "→ m.gguf"), ("/model nobody", "There is no model nobody"),
        ("/model other", "Talking to other"), ("/system Be brief.", "System message: Be brief."), ("/what", "no /what"),
        ("Hi", "Hello there"), ("/clear", "Forgotten"), ("//slash", "Hello there"),
    ):  # fmt: skip
        talk.wait_for("> ")
        talk.type(line + "\n")
        talk.wait_for(said)
    body = service.bodies[-1]
    assert body["model"] == "other"
    assert [each["content"] for each in body["messages"]] == ["Be brief.", "/slash"]


def test_what_was_not_answered_was_never_said(service, terminal):
    talk = terminal("comeapi.py", "chat", "--url", service.url)
    service.refusal = (503, "All slots are\x1b[2J busy.")
    talk.wait_for("> ")
    talk.type("Hi\n")
    assert "\x1b[2J" not in talk.wait_for("All slots are[2J busy.")
    service.refusal = None
    talk.wait_for("> ")
    talk.type("Hello?\n")
    talk.wait_for("Hello there")
    assert len(service.bodies[-1]["messages"]) == 1


def test_lines_of_earlier_talks_can_be_had_again(service, terminal):
    pytest.importorskip("readline")
    for line in ("What is the capital of Assyria?\n", "\x1b[A\x1b[A\n"):
        talk = terminal("comeapi.py", "chat", "--url", service.url)
        talk.wait_for("> ")
        talk.type(line)
        talk.wait_for("Hello there")
        talk.wait_for("> ")
        talk.type("/quit\n")
        assert talk.end() == 0
    assert service.bodies[1]["messages"][0]["content"] == "What is the capital of Assyria?"


def test_a_models_words_do_not_command_the_terminal_and_thoughts_are_dimmed(service, terminal):
    talk = terminal("comeapi.py", "chat", "--url", service.url)
    service.words = [{"reasoning_content": "hm\x1b]0;owned\x07m"}, "a\x1b[2Jb\x9b5nc"]
    talk.wait_for("> ")
    talk.type("Hi\n")
    talk.wait_for("\x1b[2mhm]0;ownedm\x1b[0m")
    talk.wait_for("a[2Jb5nc")


def test_without_colours_the_terminal_is_sent_none(service, terminal):
    talk = terminal("comeapi.py", "chat", "--url", service.url, NO_COLOR="1", TERM="dumb")
    talk.wait_for("> ")
    talk.type("Hi\n")
    talk.wait_for("tokens/s")
    assert "\x1b[2m" not in talk.text and "\x1b[1m" not in talk.text


def test_a_pipe_is_answered_once_and_gets_the_answer_alone(service):
    assert piped("chat", "--url", service.url, text="Hi\nthere\n") == (0, "Hello there\n", "")
    assert service.bodies[0]["messages"] == [{"role": "user", "content": "Hi\nthere"}]
    assert service.bodies[0]["stream"] is True and "temperature" not in service.bodies[0]


def test_a_pipe_of_nothing_and_a_service_that_is_not_there_are_one_clear_line_each(service):
    code, out, err = piped("chat", "--url", service.url)
    assert (code, out) == (2, "") and "standard input is empty" in err
    service.close()
    code, out, err = piped("chat", "--url", service.url, text="Hi")
    assert (code, out) == (1, "") and "Start it with: python comeapi.py" in err and err.count("\n") == 1


def test_the_demo_model_answers_by_the_real_service(backend):
    code, out, err = piped("chat", "--url", backend.url, "--temperature", "0", text="Hello, how are you?")
    assert code == 0 and err == "" and len(out) > 5


# --------------------------------------------------------------------------------------------------- status

DOWN = dict(HEALTHY, healthy=False, state="down", why="Connection\x1b[2J refused", url="http://127.0.0.1:8081")


@pytest.mark.parametrize(
    "backends, code", [([HEALTHY], 0), ([HEALTHY, DOWN], 1), ([DOWN], 2), ([], 2)]
)
def test_the_exit_status_says_whether_all_is_well(service, backends, code):
    service.backends = backends
    assert state_of(backends) == code
    assert piped("status", "--url", service.url)[0] == code


def test_the_table_says_what_each_backend_does_and_why_it_does_not(service):
    service.backends, service.queued = [HEALTHY, DOWN], 3
    code, out, _ = piped("status", "--url", service.url)
    lines = out.splitlines()
    assert lines[0] == "🟠 %s: 1 of 2 backends up, 2 of 8 slots busy, 3 waiting" % service.url
    assert lines[2].split() == ["http://127.0.0.1:8080", "up", "m.gguf", "1", "of", "4", "12", "ms", "7", "0"]
    assert lines[4] == "http://127.0.0.1:8081: Connection[2J refused"


def test_a_backend_that_nobody_has_asked_has_no_time_to_its_first_byte():
    assert table([dict(HEALTHY, requests=0, avg_response_time=0.0)])[1].split()[-3:] == ["-", "0", "0"]


def test_columns_stand_below_each_other_whatever_letters_are_in_them():
    lines = table([dict(HEALTHY, model="日本語.gguf"), HEALTHY])
    assert [line.index("1 of 4") + 3 * ("日" in line) for line in lines[1:]] == [lines[2].index("1 of 4")] * 2


def test_a_key_is_shown_to_the_service_and_its_lack_is_explained(service, start):
    piped("status", "--url", service.url, "--api-key", "secret")
    assert service.keys == ["Bearer secret"]
    balancer = start("balancer.py", "--port", 0, "--backends", 0, "--api-key", "right", "--child")
    url = balancer.wait_for_event("listening")["url"]
    code, out, _ = piped("status", "--url", url, "--api-key", "wrong")
    assert code == 2 and "401" in out and "--api-key" in out
    assert "0 of 0 backends" in piped("status", "--url", url, "--api-key", "right")[1]


def test_what_does_not_answer_or_is_something_else_is_said(service, backend):
    code, out, _ = piped("status", "--url", backend.url)
    assert code == 2 and "one backend, not a balancer" in out
    service.close()
    code, out, _ = piped("status", "--url", service.url)
    assert code == 2 and "python comeapi.py" in out


def test_watching_writes_the_table_anew_in_its_place(service, terminal):
    watch = terminal("comeapi.py", "status", "--watch", "--interval", "0.1", "--url", service.url)
    watch.wait_for("m.gguf")
    service.backends = [dict(HEALTHY, model="second.gguf")]
    watch.wait_for("second.gguf")
    watch.type("\x03")
    assert watch.end() == 0
    shown = screen(watch.text)
    assert sum("BACKEND" in line for line in shown) == 1 and not any(" m.gguf" in line for line in shown)


def test_the_real_balancer_is_understood(start, backend):
    balancer = start("balancer.py", "--port", 0, "--backend", backend.url, "--child")
    url = balancer.wait_for_event("listening")["url"]
    balancer.wait_for_event("up")
    code, out, _ = piped("status", "--url", url)
    assert code == 0 and "demo.gguf" in out, json.dumps(out)


def test_the_help_names_every_command_and_each_has_its_own():
    text = piped("--help")[1]
    for name in comeapi.COMMANDS:
        assert name in text
        code, own, _ = piped(name, "--help")
        assert code == 0 and "python comeapi.py %s" % name in own
