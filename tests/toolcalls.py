"""What the tests of tool calls share: tools as requests offer them, and answers put together from their deltas."""

import itertools
import random

from core.chat.families import HERMES
from core.chat.parser import AnswerParser, Offer
from core.chat.syntaxes import Style

NAMES = ("get_weather", "now", "search-2")
PLACE = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def tool(name="get_weather", **more):
    return {"type": "function", "function": dict({"name": name}, **more)}


def pieces(text, seed):
    """Cut a text at random; seed 0 leaves it whole and seed 1 gives single characters."""
    rng, at = random.Random(seed), 0
    while at < len(text):
        size = len(text) if seed == 0 else 1 if seed == 1 else rng.randint(1, 9)
        yield text[at : at + size]
        at += size


def parse(text, syntax=HERMES, thinking=False, seed=0, names=NAMES, texts=(), style=None, cut=None):
    """Return an answer's reasoning, content and calls (each [name, arguments]), put together from its deltas.

    `texts` are the parameters that are texts. The answer comes in the pieces of a seed, or in two with a `cut`.
    """
    ids = ("call_%d" % number for number in itertools.count())
    offer = Offer(dict.fromkeys(names, frozenset(texts))) if syntax or style else None
    parser = AnswerParser(style or Style(syntax or HERMES), offer, thinking, lambda: next(ids))
    parts = pieces(text, seed) if cut is None else (text[:cut], text[cut:])
    deltas = [delta for piece in parts for delta in parser.push(piece)] + parser.finish()
    reasoning = "".join(delta.reasoning for delta in deltas)
    content = "".join(delta.content for delta in deltas)
    calls = []
    for delta in deltas:
        assert bool(delta.reasoning) + bool(delta.content) + (delta.call is not None) == 1
        if delta.call is None:
            continue
        if delta.call.name:  # the first of a call, as OpenAI streams it
            assert (delta.call.index, delta.call.id) == (len(calls), "call_%d" % len(calls))
            assert delta.call.arguments == ""
            calls.append([delta.call.name, ""])
        else:
            assert delta.call.index == len(calls) - 1 and not delta.call.id
            calls[-1][1] += delta.call.arguments
    assert parser.calls == len(calls)
    return reasoning, content, calls


WEATHER = ["get_weather", '{"city": "Oslo"}']
NOW = ["now", "{}"]
