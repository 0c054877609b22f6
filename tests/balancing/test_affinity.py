"""Conversations on real backends: what the prefix policy saves, against round-robin.

The backends together have a slot, and so a cache, for each conversation; its turns come in any order with the others.
"""

import random
import threading

import pytest
from conftest import Program, call, in_parallel, wait_until

from balancer import Balancer, Config

pytestmark = pytest.mark.slow
CONVERSATIONS, TURNS, BACKENDS = 20, 6, 4
WORDS = "king queen cat dog tree river house moon little old happy sad ran sang found lost the a in under with".split()


@pytest.fixture(scope="module")
def backends():
    programs = [
        Program("backend.py", "--child", "--port", 0, "--threads", 1, "--slots", 5, "--max-queue", 64)
        for _ in range(BACKENDS)
    ]
    for each in programs:
        each.url = each.wait_for_event("listening")["url"]
        each.wait_for_event("ready")
    yield programs
    for each in programs:
        each.close()


class Conversation:
    """Each turn says again all that was said before."""

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.history, self.cached, self.tokens = "", 0, 0

    def turn(self, url):
        self.history += " ".join(self.chance.choice(WORDS) for _ in range(40)) + ". "
        body = {"model_name": "demo.gguf", "prompt": self.history, "max_tokens": 8, "ignore_eos": True}
        answer = call(url + "/generate", body).json
        self.history += answer["response"] + " "
        self.cached += answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        self.tokens += answer["usage"]["prompt_tokens"]


def hold(url, policy):
    """Hold all conversations and return them: they begin one after another; then everyone's second turn comes, in any
    order and four at once, everyone's third, and so on."""
    chance, lock = random.Random(policy), threading.Lock()
    conversations = [Conversation(policy + str(number)) for number in range(CONVERSATIONS)]
    for each in conversations:
        each.turn(url)
    to_come = [each for _ in range(TURNS - 1) for each in chance.sample(conversations, CONVERSATIONS)]
    talking = set()

    def talk(_):
        while True:
            with lock:
                if not to_come:
                    return
                now = next((each for each in to_come if each not in talking), None)
                if now:
                    to_come.remove(now)
                    talking.add(now)
            if now:
                now.turn(url)
                talking.discard(now)

    assert in_parallel(talk, range(4)) == [None] * 4
    return conversations


def outcome(backends, policy):
    """Return the share of the prompts' tokens that was cached, and the requests that each backend got."""
    urls = tuple(each.url for each in backends)
    balancer = Balancer(Config(port=0, backend=urls, policy=policy)).start()
    try:
        wait_until(lambda: balancer.status()["healthy_backends"] == BACKENDS)
        conversations = hold(balancer.url, policy)
        loads = [each["requests"] for each in balancer.status()["backends"]]
    finally:
        balancer.stop(0)
    cached, tokens = sum(each.cached for each in conversations), sum(each.tokens for each in conversations)
    print("%s: %d of %d prompt tokens cached; requests %s" % (policy, cached, tokens, loads))
    return cached / tokens, loads


def test_conversations_find_their_cache_and_no_backend_is_overloaded(backends):
    in_turn, _ = outcome(backends, "round-robin")
    by_prefix, loads = outcome(backends, "prefix")
    assert by_prefix >= 3 * in_turn
    assert max(loads) <= 1.5 * sum(loads) / BACKENDS
