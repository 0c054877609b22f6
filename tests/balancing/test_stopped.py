"""Backends that stop without dying (SIGSTOP): what waits for them, streams of them, or is being sent to them."""

import json
import os
import signal
import threading
import time

import pytest
from conftest import PATIENCE, call, free_ports, wait_until

from balancer import Balancer, Config

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="POSIX only")


class Cluster:
    """Two backends as processes of their own, and a balancer with its default patience before them."""

    def __init__(self, start):
        ports = [free_ports(1), free_ports(1)]
        self.processes = [start("tests/chaos_backend.py", port) for port in ports]
        urls = tuple("http://127.0.0.1:%d" % port for port in ports)
        self.balancer = Balancer(Config(port=0, backend=urls, max_body=16 << 20)).start()
        wait_until(lambda: self.balancer.status()["healthy_backends"] == 2)

    def state(self, number):
        return self.balancer.status()["backends"][number]

    def signal(self, number, what):
        os.kill(self.processes[number].pid, what)

    def post(self, path, body):
        """Start a request in the background; returns its thread and the list that its answer will be in."""
        answers = []
        url = self.balancer.url + path
        thread = threading.Thread(target=lambda: answers.append(call(url, body)), daemon=True)
        thread.start()
        return thread, answers

    def close(self):
        for number in (0, 1):
            self.signal(number, signal.SIGCONT)
        self.balancer.stop(0)


@pytest.fixture
def cluster(start):
    cluster = Cluster(start)
    yield cluster
    cluster.close()


def test_a_stopped_backend_is_found_out_in_seconds_and_only_its_streams_are_lost(cluster):
    stream, streamed = cluster.post("/long", {})
    wait_until(lambda: cluster.balancer.pool.everyone()[0].heard > 0)  # it has the stream, and its bytes flow
    cluster.signal(0, signal.SIGSTOP)
    stopped = time.monotonic()
    small = [cluster.post("/plain", {"n": n}) for n in range(4)]
    large = [cluster.post("/plain", {"n": n, "padding": "x" * (12 << 20)}) for n in range(4)]
    wait_until(lambda: cluster.state(0)["in_flight"] > 3)  # it was given some of both
    wait_until(lambda: cluster.state(0)["state"] == "down")
    noticed = time.monotonic() - stopped
    for thread, answers in small + large:
        thread.join(PATIENCE)
        assert answers[0].status == 200
    stream.join(PATIENCE)
    lost = json.loads(streamed[0].body.decode().rstrip().rpartition("data: ")[2])
    assert lost["error"]["code"] == "backend_broke" and "probes" in lost["error"]["message"]
    wait_until(lambda: cluster.state(0)["in_flight"] == 0)
    assert noticed < 8  # 4 s where the machine has nothing else to do
    cluster.signal(0, signal.SIGCONT)
    wait_until(lambda: cluster.state(0)["healthy"])
