"""Engines in the tests' own process, with the demo model, and what to ask them."""

import os
import queue

from conftest import PATIENCE, ROOT

from core.ask import Ask
from core.engine.engine import Engine
from core.engine.generation import Generation
from core.engine.outcome import Piece, Replayed
from core.models import ModelFolder
from core.sampling import Sampling
from core.settings import EngineSettings

DEMO = ModelFolder(os.path.join(ROOT, "models")).find("demo.gguf")
GREEDY = Sampling(temperature=0)
RAMBLING = Sampling(temperature=100, top_k=0, top_p=1.0, seed=3, ignore_eos=True)
STORY = "Once upon a time in a magical forest,"


def launch(model=DEMO, **settings):
    """Start an engine and wait until its model is ready."""
    events = queue.SimpleQueue()
    engine = Engine(EngineSettings(**dict({"threads": 1}, **settings)), lambda what, **facts: events.put((what, facts)))
    engine.seen = events
    engine.start(model)
    while model and events.get(timeout=PATIENCE)[0] != "ready":
        pass
    return engine


def asked(begun=(), **ask):
    """Return a generation: of STORY and GREEDY on the demo model, where nothing else is said."""
    return Generation(Ask(**dict({"model": DEMO, "prompt": STORY, "sampling": GREEDY}, **ask)), begun=begun)


def next_event(generation):
    """Return a generation's next event, as soon as it comes."""
    return generation.channel.get(PATIENCE)[1]


def result(generation):
    """Return a generation's text, its tokens and its last event."""
    text, tokens = "", []
    while True:
        event = next_event(generation)
        if isinstance(event, Replayed):
            continue
        if not isinstance(event, Piece):
            return text, tokens, event
        text += event.text
        tokens += event.tokens


def run(engine, begun=(), **ask):
    """Run a generation, as asked() has it, and return its result."""
    generation = asked(begun, **ask)
    engine.submit(generation)
    return result(generation)


def cells_are_known(engine):
    """Whether llama.cpp holds in each slot just as many cells as the scheduler knows of."""
    slots = range(engine.settings.slots)
    context = engine._running.resident.context
    return [context.positions(slot) for slot in slots] == [len(engine._scheduler.cells(slot)) for slot in slots]
