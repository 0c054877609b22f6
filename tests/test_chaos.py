"""Streams through real backends that are killed and stopped all the time: each is one whole answer, to the letter.

COMEAPI_CHAOS_STREAMS says how many streams (default 100). Run alone, it prints how long the pauses were:

    python -m pytest -m slow -s tests/test_chaos.py
"""

import json
import os
import random
import signal
import sys
import threading
import time
import urllib.request

import pytest
from conftest import PATIENCE, Program, free_ports, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it kills and stops processes"),
]
STREAMS = int(os.environ.get("COMEAPI_CHAOS_STREAMS", "100"))
TOKENS = 300
# What is evaluated in one batch differs as little as can be from what was evaluated token by token.
EXACT = ("--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}"
)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "friends": {"type": "array", "minItems": 9, "items": {"type": "string"}},
    },
    "required": ["name", "friends"],
}
# A call in which everything is given but the blanks: the demo model knows no calls, and free text in one is a row of
# near-ties, which rounding decides.
STEPS = ["go to the forest", "find the bear", "give it a red ball", "walk to the river", "say good night"]
CALL = {
    "type": "object",
    "properties": {"step_%d" % number: {"const": step} for number, step in enumerate(STEPS * 3)},
    "required": ["step_%d" % number for number in range(len(STEPS) * 3)],
}
TOOL = {"name": "tell", "description": "Tell a story", "parameters": CALL}


def openai(messages, **body):
    return "/v1/chat/completions", dict(
        {"messages": messages, "max_tokens": TOKENS, "temperature": 0, "stream": True}, **body
    )


def anthropic(messages, **body):
    return "/v1/messages", dict({"messages": messages, "max_tokens": TOKENS, "temperature": 0, "stream": True}, **body)


def ollama(messages, **body):
    options = {"num_predict": TOKENS, "temperature": 0}
    return "/api/chat", dict({"model": "demo.gguf", "messages": messages, "options": options}, **body)


KINDS = {
    "plain": (openai, {}),
    "plain, Anthropic": (anthropic, {}),
    "plain, Ollama": (ollama, {}),
    "schema": (
        openai, {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}}
    ),
    "schema, Ollama": (ollama, {"format": SCHEMA}),
    "tool call": (openai, {"tools": [{"type": "function", "function": TOOL}], "tool_choice": "required"}),
    "tool call, Anthropic": (
        anthropic,
        {"tools": [{"name": "tell", "input_schema": CALL}], "tool_choice": {"type": "any"}},
    ),
    "thought": (openai, {"chat_template_kwargs": {"enable_thinking": True}}),
    "thought, Anthropic": (anthropic, {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
    "two answers": (openai, {"n": 2}),
    "not streamed": (openai, {"stream": False}),
}  # fmt: skip
SEEDS = ["Once upon a time", "Tell me a story of a bear", "むかしむかし", "Who are you?"]


class Backends:
    """Three backends that are started again when they are killed."""

    def __init__(self, folder):
        template = folder / "template.jinja"
        template.write_text(TEMPLATE)
        self._options = ("--chat-template", template, "--slots", 8, "--threads", 1, *EXACT)
        first = free_ports(3)
        self.ports = [first, first + 1, first + 2]
        self.programs = [self._start(port) for port in self.ports]

    def _start(self, port):
        program = Program("backend.py", "--child", "--port", port, *self._options)
        program.wait_for_event("ready")
        return program

    def kill(self, index):
        program = self.programs[index]
        program.process.kill()
        program.process.wait()
        program.close()
        self.programs[index] = self._start(self.ports[index])

    def kill_all(self, _index):
        for program in self.programs:
            program.process.kill()
        for index in range(len(self.programs)):
            self.kill(index)

    def stop_and_kill(self, index):
        self.programs[index].process.send_signal(signal.SIGSTOP)
        time.sleep(6)
        self.kill(index)

    def close(self):
        for program in self.programs:
            program.process.send_signal(signal.SIGCONT)
            program.close()


@pytest.fixture
def backends(tmp_path):
    made = Backends(tmp_path)
    yield made
    made.close()


def read(url, kind, seed):
    """Ask for an answer of a kind; returns its text, and the longest gap between two pieces."""
    dialect, body = KINDS[kind]
    path, body = dialect([{"role": "user", "content": SEEDS[seed]}], **body)
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    last, gap, pieces = time.monotonic(), 0.0, []
    with urllib.request.urlopen(request, timeout=PATIENCE * 4) as answer:
        for line in answer:
            now = time.monotonic()
            last, gap = now, max(gap, now - last)
            if line.startswith((b"data:", b"{")):
                pieces.append(line.decode())
    return text_of(pieces), gap


def text_of(pieces):
    """Return all that an answer says, by index, and how it ends; without ids, times and counts of cached tokens."""
    said = {}
    for piece in pieces:
        data = piece.partition("data: ")[2] or piece
        if data.strip() == "[DONE]":
            said["done"] = True
            continue
        collect(json.loads(data), "", said)
    return said


_TEXTS = (
    "content", "reasoning_content", "text", "thinking", "partial_json", "arguments", "response", "error", "name",
    "finish_reason", "stop_reason", "done_reason", "completion_tokens", "output_tokens", "eval_count",
)  # fmt: skip


def collect(value, where, said):
    if isinstance(value, dict):
        where += "/%s" % value["index"] if "index" in value else ""
        for key, each in value.items():
            if key in _TEXTS and isinstance(each, (str, int)):
                said[where + "/" + key] = said.get(where + "/" + key, "") + str(each)
            else:
                collect(each, where, said)
    elif isinstance(value, list):
        for each in value:
            collect(each, where, said)


@pytest.mark.parametrize("mishap, pause", [("kill", 1.5), ("kill_all", 3.0), ("stop_and_kill", 2.0)])
def test_every_stream_through_dying_backends_is_whole_and_the_same(backends, start, mishap, pause):
    urls = [option for port in backends.ports for option in ("--backend", "http://127.0.0.1:%d" % port)]
    balancer = start("balancer.py", "--child", "--port", 0, "--migrations", 50, "--health-interval", 1, *urls)
    url = balancer.wait_for_event("listening")["url"]
    wait_until(lambda: healthy(url) == 3)
    cases = [(kind, seed) for seed in range(len(SEEDS)) for kind in KINDS]
    undisturbed = {case: read(url, *case)[0] for case in cases}
    chance, over = random.Random(5), threading.Event()

    def havoc():
        while not over.wait(pause):
            getattr(backends, mishap)(chance.randrange(3))

    rogue = threading.Thread(target=havoc)
    rogue.start()
    try:
        wrong, gaps = read_all(url, [cases[number % len(cases)] for number in range(STREAMS)], undisturbed)
    finally:
        over.set()
        rogue.join()
    metrics = urllib.request.urlopen(url + "/metrics").read().decode()
    moves = [line for line in metrics.splitlines() if line.startswith("comeapi_migrations_total{")]
    places = [gaps[len(gaps) * percent // 100] for percent in (50, 95)] + [gaps[-1]]
    report = "%d streams, %s: gaps p50 %.2f s, p95 %.2f s, largest %.2f s; %s" % (STREAMS, mishap, *places, moves)
    print(report)
    assert not wrong, "%d wrong: %r; %s" % (len(wrong), wrong[:2], report)
    assert moves


def read_all(url, todo, undisturbed):
    """Read answers, ten at once; returns those that were not as they had been undisturbed, and all gaps, sorted."""
    wrong, gaps, lock = [], [], threading.Lock()

    def client():
        while True:
            with lock:
                if not todo:
                    return
                case = todo.pop()
            try:
                text, gap = read(url, *case)
                gaps.append(gap)
                if text != undisturbed[case]:
                    wrong.append((case, text, undisturbed[case]))
            except Exception as error:
                wrong.append((case, repr(error), ""))

    clients = [threading.Thread(target=client) for _ in range(10)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    return wrong, sorted(gaps)


def healthy(url):
    return json.loads(urllib.request.urlopen(url + "/status").read().decode())["healthy_backends"]
