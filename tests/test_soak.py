"""A soak: 50 clients, while backends are killed, stopped, slowed and started again at random.

COMEAPI_SOAK_SECONDS says for how long (default 120), COMEAPI_SOAK_SEED which mishaps happen.
"""

import collections
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import PATIENCE, ROOT, call, free_ports, wait_until
from load import memory

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it stops processes and reads /proc"),
]
SECONDS = float(os.environ.get("COMEAPI_SOAK_SECONDS", "120"))
CLIENTS = 50


class Backend:
    """A backend's process, and what is done to it."""

    def __init__(self, port):
        self.port, self.process, self.kills = port, None, 0
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, os.path.join(ROOT, "tests", "chaos_backend.py"), str(self.port)]
        )

    def kill(self):
        self.kills += 1
        self.process.kill()
        self.process.wait()

    def killed(self, chance):
        self.kill()
        time.sleep(chance.uniform(0, 2))
        self.start()

    def stopped(self, chance):
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(chance.uniform(0.5, 8))
        self.process.send_signal(signal.SIGCONT)

    def stopped_and_killed(self, chance):
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(chance.uniform(0.5, 8))
        self.killed(chance)

    def slowed(self, chance):
        self.process.send_signal(signal.SIGUSR1)
        time.sleep(chance.uniform(0.5, 4))
        self.process.send_signal(signal.SIGUSR1)

    MISHAPS = (killed, stopped, stopped_and_killed, slowed)


class Client(threading.Thread):
    """Asks again and again; `outcomes` counts how it went."""

    def __init__(self, url, name, over, outcomes):
        super().__init__(daemon=True)
        self.url, self.name_, self.over, self.outcomes = url, name, over, outcomes
        self.start()

    def run(self):
        number = 0
        while not self.over.is_set():
            number += 1
            ask = self.stream if random.random() < 0.3 else self.plain
            try:
                outcome = ask(number)
            except Exception as error:  # it is counted as a failure, with its reason
                outcome = "failed: %r" % error
            self.outcomes.append(outcome)

    def plain(self, number):
        answer = call(self.url + "/plain", {"n": number, "client": self.name_}, timeout=120)
        good = answer.status == 200 and answer.json["echo"] == number
        return "answered" if good else refused(answer)

    def stream(self, number):
        answer = call(self.url + "/stream", {"n": number, "client": self.name_}, timeout=120)
        if answer.status != 200:
            return refused(answer)
        events = [part[6:] for part in answer.body.decode().split("\n\n") if part.startswith("data: ")]
        if events[-1] != "[DONE]":
            return (
                "broke off after its first byte" if "error" in json.loads(events[-1]) else "failed: cut without a word"
            )
        return (
            "streamed" if [json.loads(each)["n"] for each in events[:-1]] == list(range(20)) else "failed: not in order"
        )


def refused(answer):
    """What a request met that got no answer: two deaths, which the client is told of, or anything else."""
    if answer.status == 500 and answer.json["error"]["code"] == "backend_killed":
        return "killed twice"
    return "failed: %d %s" % (answer.status, answer.body[:200])


def sockets(pid):
    return len(os.listdir("/proc/%d/fd" % pid))


def test_whatever_happens_to_the_backends_no_request_without_a_first_byte_fails_but_what_is_killed_twice(start):
    seed = int(os.environ.get("COMEAPI_SOAK_SEED", random.randrange(10**6)))
    print("COMEAPI_SOAK_SEED=%d" % seed)
    first = free_ports(4)
    backends = [Backend(first + index) for index in range(4)]
    arguments = ["--backend=http://127.0.0.1:%d" % each.port for each in backends]
    arguments += ["--health-interval=1", "--health-timeout=1", "--recovery-timeout=60", "--slow-start=2"]
    balancer = start("balancer.py", "--child", "--port", 0, *arguments)
    url = balancer.wait_for_event("listening")["url"]
    wait_until(lambda: call(url + "/status").json["healthy_backends"] == 4)
    over, outcomes = threading.Event(), []
    resting = memory(balancer.pid) + (sockets(balancer.pid),)
    try:
        clients = [Client(url, name, over, outcomes) for name in range(CLIENTS)]
        mishaps = [threading.Thread(target=happen, args=(each, seed + each.port, over)) for each in backends]
        for each in mishaps:
            each.start()
        over.wait(SECONDS / 4)
        early = memory(balancer.pid)
        over.wait(SECONDS * 3 / 4)
        late = memory(balancer.pid)
        over.set()
        for each in mishaps + clients:
            each.join(PATIENCE * 3)
        wait_until(lambda: memory(balancer.pid)[1] <= resting[1] + 2)  # threads
        wait_until(lambda: sockets(balancer.pid) <= resting[2] + 8, PATIENCE * 2)  # some idle for 60 s
        rested = memory(balancer.pid) + (sockets(balancer.pid),)
        status = call(url + "/status").json
    finally:
        over.set()
        for each in backends:
            each.process.send_signal(signal.SIGCONT)
            each.kill()
    counted = collections.Counter(each.partition(":")[0] for each in outcomes)
    print(json.dumps(dict(counted, early=early, late=late, resting=resting, rested=rested)))
    assert [each for each in outcomes if each.startswith("failed")] == []
    # The second death comes to a request that runs alone, so that one kill is the second of one request at most.
    assert counted["killed twice"] <= sum(each.kills for each in backends)
    assert counted["answered"] > SECONDS * 10 and counted["streamed"] > SECONDS
    assert late[0] < early[0] * 1.3 + 10  # megabytes
    assert all(each["in_flight"] == 0 for each in status["backends"]) and status["queued"] == 0


def happen(backend, seed, over):
    """Let one thing after another happen to a backend, with some peace between."""
    chance = random.Random(seed)
    while not over.wait(chance.uniform(1, 8)):
        chance.choice(Backend.MISHAPS)(backend, chance)
