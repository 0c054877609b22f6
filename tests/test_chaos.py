"""Streams through real backends that are killed and stopped all the time: each is one whole answer, to the letter.

COMEAPI_SOAK_STREAMS says how many streams (default 100). Run alone, it prints how long the pauses were:

    python -m pytest -m slow -s tests/test_chaos.py
"""

import collections
import json
import os
import random
import re
import signal
import sys
import threading
import time
import urllib.request

import hasty
import pytest
from conftest import MODELS, PATIENCE, Program, call, free_ports, wait_until
from load import memory

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it kills and stops processes"),
]
STREAMS = int(os.environ.get("COMEAPI_SOAK_STREAMS", "100"))
SECONDS = float(os.environ.get("COMEAPI_SOAK_SECONDS", "120"))  # how long the crowd stays
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


# The template lets a model think; only the kinds "thought" shall, else thoughts are all that comes.
def openai(messages, **body):
    plain = {"messages": messages, "max_tokens": TOKENS, "temperature": 0, "stream": True}
    return "/v1/chat/completions", dict(plain, **dict({"chat_template_kwargs": {"enable_thinking": False}}, **body))


def anthropic(messages, **body):
    plain = {"messages": messages, "max_tokens": TOKENS, "temperature": 0, "stream": True}
    return "/v1/messages", dict(plain, **dict({"thinking": {"type": "disabled"}}, **body))


def ollama(messages, **body):
    options = {"num_predict": TOKENS, "temperature": 0}
    plain = {"model": "demo.gguf", "messages": messages, "options": options, "think": False}
    return "/api/chat", dict(plain, **body)


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
# In the answers to these, the likeliest next token is always likelier than the second by 0.6 % and more: so what
# batches round otherwise decides nothing.
SEEDS = ["Tell me a story of a fox", "Tell me a story of a bear", "A story about the moon, please", "Who are you?"]


class Backends:
    """Backends that are started again when they are killed. `log` has what all of them wrote."""

    def __init__(self, folder, count=3, slots=8, more=()):
        hasty.write_programs(folder)
        self._folder = folder
        template = folder / "template.jinja"
        template.write_text(TEMPLATE)
        self._options = ("--chat-template", template, "--slots", slots, "--threads", 1, *EXACT, *more)
        self.log = []
        first = free_ports(count)
        self.ports = range(first, first + count)
        self.programs = [self._start(port) for port in self.ports]

    def _start(self, port):
        hang = str(self._hang_file(port))
        program = Program(str(self._folder / "backend.py"), "--child", "--port", port, *self._options, HANG_FILE=hang)
        program.wait_for_event("ready")
        return program

    def kill(self, index):
        program = self.programs[index]
        program.process.kill()
        program.process.wait()
        program.close()
        self.log += program.errors
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

    def hang_and_kill(self, index):
        file = self._hang_file(self.ports[index])
        file.touch()
        time.sleep(6)
        file.unlink()
        self.kill(index)

    def _hang_file(self, port):
        return self._folder / ("hang %d" % port)

    def close(self):
        for program in self.programs:
            program.process.send_signal(signal.SIGCONT)
            program.close()
            self.log += program.errors


@pytest.fixture
def backends(tmp_path):
    made = Backends(tmp_path)
    yield made
    made.close()


def read(url, kind, seed, at_line=lambda number: None):
    """Ask for an answer of a kind; returns its text, and the longest gap between two pieces.

    `at_line` is called with the number of each line that comes.
    """
    dialect, body = KINDS[kind]
    path, body = dialect([{"role": "user", "content": SEEDS[seed]}], **body)
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    last, gap, pieces = time.monotonic(), 0.0, []
    with urllib.request.urlopen(request, timeout=PATIENCE * 4) as answer:
        for number, line in enumerate(answer):
            at_line(number)
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
    "content", "reasoning_content", "text", "thinking", "partial_json", "arguments", "response", "error", "message",
    "name",
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


@pytest.mark.parametrize(
    "mishap, pause", [("kill", 1.5), ("kill_all", 3.0), ("stop_and_kill", 2.0), ("hang_and_kill", 2.0)]
)
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


class System:
    """comeapi.py, whose balancer can be killed. While `hang_file` is there, its backends' engines wait."""

    def __init__(self, start, folder, *arguments):
        template = folder / "template.jinja"
        template.write_text(TEMPLATE)
        base = free_ports(4)
        options = ("--base-port", base, "--port", base + 3, "--models", MODELS, "--chat-template", template)
        self.hang_file = folder / "hang"
        self.program = start(
            str(hasty.write_programs(folder)), *options, "--threads", 1, *EXACT, *arguments,
            HANG_FILE=str(self.hang_file),
        )  # fmt: skip
        self.url = "http://127.0.0.1:%d" % (base + 3)
        self.pid = self._pid_in("🚀")

    def _pid_in(self, part):
        return int(self.program.wait_for_line(part).partition("(PID ")[2].partition(")")[0])

    def kill(self):
        """Kill the balancer; returns when the next one serves."""
        os.kill(self.pid, signal.SIGKILL)
        self.pid = self._pid_in("🟢 Balancer")

    def adopted(self):
        """Return the lines of /metrics that tell what became of the last dead balancer's answers."""
        metrics = urllib.request.urlopen(self.url + "/metrics").read().decode()
        return [line for line in metrics.splitlines() if line.startswith("comeapi_adopted_answers_total{")]


def test_every_stream_through_a_balancer_that_is_killed_is_whole_and_the_same(start, tmp_path):
    system = System(start, tmp_path, "--backends", 3, "--slots", 4)
    cases = [(kind, seed) for seed in range(len(SEEDS)) for kind in KINDS]
    undisturbed = {case: read(system.url, *case)[0] for case in cases}
    over, adopted = threading.Event(), []

    def havoc():
        while not over.wait(4.0):
            system.kill()
            over.wait(2.0)
            adopted.extend(system.adopted())

    rogue = threading.Thread(target=havoc)
    rogue.start()
    try:
        todo = [cases[number % len(cases)] for number in range(STREAMS)]
        wrong, gaps = read_all(system.url, todo, undisturbed, again=True)
    finally:
        over.set()
        rogue.join()
    places = [gaps[len(gaps) * percent // 100] for percent in (50, 95)] + [gaps[-1]]
    report = "%d streams, balancer: gaps p50 %.2f s, p95 %.2f s, largest %.2f s" % (STREAMS, *places)
    print(report, sums(adopted))
    assert not wrong, "%d wrong: %r; %s" % (len(wrong), wrong[:2], report)
    assert adopted and not [line for line in adopted if "cut off" in line or "given up" in line]


def sums(lines):
    """Add up lines of /metrics."""
    total = collections.Counter()
    for name, _, count in (line.rpartition(" ") for line in lines):
        total[name] += int(count)
    return dict(total)


def read_once_more(url, *case):
    """Read an answer; ask again where the connection ended before a byte of it, as every client's library does."""
    while True:
        lines = []
        try:
            return read(url, *case, at_line=lines.append)
        except OSError:
            if lines:
                raise


def read_all(url, todo, undisturbed, again=False):
    """Read answers, ten at once; returns those that were not as they had been undisturbed, and all gaps, sorted."""
    wrong, gaps, lock = [], [], threading.Lock()

    def client():
        while True:
            with lock:
                if not todo:
                    return
                case = todo.pop()
            try:
                text, gap = (read_once_more if again else read)(url, *case)
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


def test_a_crowd_before_two_backends_that_are_killed_gets_every_answer_once_or_is_told_to_come_back(tmp_path, start):
    """200 clients, 2 backends of 4 slots, a kill every 10 seconds, 100 places in the queue."""
    backends = Backends(tmp_path, count=2, slots=4, more=("--access-log",))
    urls = [option for port in backends.ports for option in ("--backend", "http://127.0.0.1:%d" % port)]
    balancer = start("balancer.py", "--child", "--port", 0, "--queue-size", 100, "--migrations", 50, *urls)
    url = balancer.wait_for_event("listening")["url"]
    try:
        wait_until(lambda: healthy(url) == 2)
        crowd = Crowd(url)
        clients = [threading.Thread(target=crowd.client, args=(number,)) for number in range(200)]
        for each in clients:
            each.start()
        time.sleep(min(10, SECONDS / 2))
        before, kill_at, end = memory(balancer.pid)[0], time.monotonic(), time.monotonic() + SECONDS
        chance = random.Random(6)
        while time.monotonic() < end:
            time.sleep(0.2)
            if time.monotonic() >= kill_at + 10:
                kill_at = time.monotonic()
                backends.kill(chance.randrange(2))
        crowd.over.set()
        for each in clients:
            each.join()
        grown = memory(balancer.pid)[0] - before
    finally:
        backends.close()
    print("%d answers, %d times refused, %d MB grown" % (crowd.answered, crowd.refused, grown))
    assert not crowd.wrong, crowd.wrong[:3]
    assert crowd.answered > 200 and crowd.refused
    answered = collections.Counter(re.findall(r'(\d+-\d+) "POST /generate" 200 ', "\n".join(backends.log)))
    assert answered and not [id for id, times in answered.items() if times > 1]
    assert grown < 24


class Crowd:
    """Clients that ask again and again; what comes of it."""

    def __init__(self, url):
        self.url, self.over = url, threading.Event()
        self.answered = self.refused = 0
        self.wrong = []
        self._lock = threading.Lock()  # guards the counts

    def client(self, number):
        turn = 0
        while not self.over.is_set():
            turn += 1
            body = {"model_name": "demo.gguf", "prompt": "Once upon a time", "max_tokens": 40, "stream": turn % 2 == 0}
            answer = call(self.url + "/generate", body, {"X-Request-Id": "%d-%d" % (number, turn)}, timeout=300)
            good = answer.status == 200 and (answer.events[-1]["done"] if body["stream"] else answer.json["response"])
            refused = answer.status == 429 and "retry-after" in answer.headers
            with self._lock:
                self.answered += bool(good)
                self.refused += refused
                if not good and not refused:
                    self.wrong.append((answer.status, answer.body[-300:]))
            if refused:
                self.over.wait(0.5)


def healthy(url):
    return json.loads(urllib.request.urlopen(url + "/status").read().decode())["healthy_backends"]
