"""Engines in the tests' own process, with the demo model, and what to ask them."""

import os
import queue

from conftest import PATIENCE, ROOT

from core.engine.engine import Engine
from core.engine.jobs import Job, Piece
from core.engine.sampling import Sampling
from core.models import ModelFolder
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


def result(job):
    """Return a job's text, its tokens and its last event."""
    text, tokens = "", []
    while True:
        event = job.events.get(timeout=PATIENCE)
        if not isinstance(event, Piece):
            return text, tokens, event
        text += event.text
        tokens += event.tokens


def run(engine, **job):
    """Run a job, of STORY and GREEDY where nothing else is said, and return its result."""
    job = Job(**dict({"model": DEMO, "prompt": STORY, "sampling": GREEDY}, **job))
    engine.submit(job)
    return result(job)


def cells_are_known(engine):
    """Whether llama.cpp holds in each slot just as many cells as the scheduler knows of."""
    slots = range(engine.settings.slots)
    return [engine._context.positions(slot) for slot in slots] == [len(engine._scheduler.cells(slot)) for slot in slots]
