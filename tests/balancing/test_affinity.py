"""Conversations on real backends: what the prefix policy saves, against round-robin, and behind two balancers.

The backends together have a slot, and so a cache, for each conversation; its turns come in any order with the others.
"""

import contextlib
import random
import threading

import pytest
from conftest import Program, call, in_parallel, wait_until

from balancer import Balancer, Config

pytestmark = pytest.mark.slow
CONVERSATIONS, TURNS, BACKENDS = 20, 6, 4
WORDS = "king queen cat dog tree river house moon little old happy sad ran sang found lost the a in under with".split()


@contextlib.contextmanager
def backends():
    """Run backends; those of an earlier balancer would still count that one as there, and its conversations' caches."""
    programs = [
        Program("backend.py", "--child", "--port", 0, "--threads", 1, "--slots", 5, "--max-queue", 64)
        for _ in range(BACKENDS)
    ]
    try:
        urls = [each.wait_for_event("listening")["url"] for each in programs]
        for each in programs:
            each.wait_for_event("ready")
        yield tuple(urls)
    finally:
        for each in programs:
            each.close()


class Conversation:
    """Each turn says again all that was said before."""

    def __init__(self, seed, number):
        self.chance = random.Random(seed)
        self.history, self.next, self.cached, self.tokens = "", number, 0, 0

    def turn(self, urls):
        self.history += " ".join(self.chance.choice(WORDS) for _ in range(40)) + ". "
        body = {"model_name": "demo.gguf", "prompt": self.history, "max_tokens": 8, "ignore_eos": True}
        answer = call(urls[self.next % len(urls)] + "/generate", body).json
        self.next += 1
        self.history += answer["response"] + " "
        self.cached += answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        self.tokens += answer["usage"]["prompt_tokens"]


def hold(urls, seed, count, at_once):
    """Hold all conversations and return them: they begin one after another; then everyone's second turn comes, in any
    order and some `at_once`, everyone's third, and so on. A conversation's turns go to one balancer after the other."""
    chance, lock = random.Random(seed), threading.Lock()
    conversations = [Conversation(seed + str(number), number) for number in range(count)]
    for each in conversations:
        each.turn(urls)
    to_come = [each for _ in range(TURNS - 1) for each in chance.sample(conversations, count)]
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
                now.turn(urls)
                talking.discard(now)

    assert in_parallel(talk, range(at_once)) == [None] * at_once
    return conversations


def outcome(policy, balancers=1, count=CONVERSATIONS, at_once=4):
    """Return the share of the prompts' tokens that was cached, and the requests that each backend got."""
    with contextlib.ExitStack() as stack:
        config = Config(port=0, backend=stack.enter_context(backends()), policy=policy, health_interval=1.0)
        fronts = [Balancer(config).start() for _ in range(balancers)]
        for each in fronts:
            stack.callback(each.stop, 0)
            wait_until(lambda each=each: each.status()["healthy_backends"] == BACKENDS)
            wait_until(lambda each=each: each.pool.shared == (balancers > 1))
        conversations = hold([each.url for each in fronts], policy, count, at_once)
        tables = [[each["requests"] for each in front.status()["backends"]] for front in fronts]
    loads = [sum(column) for column in zip(*tables)]
    cached, tokens = sum(each.cached for each in conversations), sum(each.tokens for each in conversations)
    share = 100 * cached / tokens
    print("%d × %s, %d conversations: %.1f %% cached; requests %s" % (balancers, policy, count, share, loads))
    return share, loads


def test_conversations_find_their_cache_and_no_backend_is_overloaded():
    in_turn, _ = outcome("round-robin")
    by_prefix, loads = outcome("prefix")
    assert by_prefix >= 3 * in_turn
    assert max(loads) <= 1.5 * sum(loads) / BACKENDS


def test_conversations_find_their_cache_from_any_balancer():
    one, _ = outcome("prefix", count=8, at_once=2)  # more at once, or at one home, leave it for their load
    two, _ = outcome("prefix", balancers=2, count=8, at_once=2)
    assert two >= 0.95 * one
