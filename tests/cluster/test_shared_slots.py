"""Two balancers before four real backends with two slots each: none is overfilled, and no request is lost."""

import contextlib
import threading
import time

import pytest
from conftest import PATIENCE, Program, call, in_parallel, wait_until

from balancer import Balancer, Config

pytestmark = pytest.mark.slow
CLIENTS, EACH = 12, 6


@pytest.fixture(scope="module")
def urls():
    with contextlib.ExitStack() as stack:
        programs = [
            Program("backend.py", "--child", "--port", 0, "--threads", 1, "--slots", 2) for _ in range(4)
        ]  # fmt: skip
        for each in programs:
            stack.callback(each.close)
        found = [each.wait_for_event("listening")["url"] for each in programs]
        for each in programs:
            each.wait_for_event("ready")
        yield tuple(found)


def watched(urls, over, queued, free):
    """Note, again and again, how many requests wait in the backends, and how many slots they say are free."""
    while not over.wait(0.01):
        for url in urls:
            told = call(url + "/health").json
            queued.append(told["queued"])
            free.append(told["free_slots"])


def seconds(urls, balancers):
    """Return how long all clients take for their requests, and what was seen in the backends meanwhile."""
    with contextlib.ExitStack() as stack:
        fronts = [Balancer(Config(port=0, backend=urls)).start() for _ in range(balancers)]
        for each in fronts:
            stack.callback(each.stop, 0)
            wait_until(lambda each=each: each.status()["healthy_backends"] == 4)
        over, queued, free = threading.Event(), [], []
        watching = threading.Thread(target=watched, args=(urls, over, queued, free))
        watching.start()

        def client(number):
            url = fronts[number % balancers].url + "/generate"
            body = {"model_name": "demo.gguf", "prompt": "Once upon a time", "max_tokens": 60, "ignore_eos": True}
            return [call(url, dict(body, seed=number)).status for _ in range(EACH)]

        started = time.monotonic()
        try:
            assert in_parallel(client, range(CLIENTS)) == [[200] * EACH] * CLIENTS
            took = time.monotonic() - started
        finally:
            over.set()
            watching.join(PATIENCE)
    return took, sum(each > 0 for each in queued) / len(queued), min(free)


def test_two_balancers_share_the_slots_of_real_backends(urls):
    seconds(urls, 1)  # what is done first takes longer
    one, _, _ = seconds(urls, 1)
    two, queued, free = seconds(urls, 2)
    print("%d requests: %.2f s with one balancer, %.2f s with two; %.3f" % (CLIENTS * EACH, one, two, queued))
    assert queued < 0.2  # a request that is handed over and not yet begun is seen now and then
    assert free == 0  # they were busy
    assert two < 1.5 * one
