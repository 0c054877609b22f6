"""What guessing ahead gains or costs on this machine: known texts, told by a model as if it had written them.

    python tests/load_drafts.py MODEL.gguf [TOKENIZER.gguf] [--threads N] [--tokens N] [--streams 1,4,8]

Whether a guess comes true depends on the text, not on who writes it: so the next token is taken from the text, after
the model was computed and its sampler was run as ever. A model with random weights does, then; TOKENIZER lends it words
(llama.cpp's sources have vocabularies without models: models/ggml-vocab-qwen2.gguf). Tokens/s of all streams in sum,
without guesses : with them, one after the other, twice. Let nothing else run.
"""

import argparse
import json
import os
import random
import re

import llama_cpp
from conftest import ROOT
from engines import launch, result, run

from core.ask import Ask
from core.engine.choosing import Choosing
from core.engine.generation import Generation
from core.engine.llama.model import Model
from core.models import inspect
from core.sampling import Sampling


def read(*parts):
    """Return a file of the project's."""
    with open(os.path.join(ROOT, *parts), encoding="utf-8") as file:
        return file.read()


def paragraphs():
    """Return paragraphs of prose."""
    parts = read("core", "balancing", "README.md").split("\n\n")
    return [each for each in parts if each[:1].isalpha() and "|" not in each]


def edit():
    """A file, and the same with some of its names changed."""
    old = read("core", "engine", "scheduler.py")[:6000]
    new = old.replace("generation", "request").replace("Generation", "Request").replace("cells", "memory")
    return "Call generations requests, and cells memory, in this file:\n%s\nThe new file:\n" % old, new


def code():
    """A file that nothing in the prompt says."""
    return "Write the journal of a balancer.\n", read("core", "balancing", "journal.py")


def records():
    """JSON that repeats its keys."""
    rng = random.Random(1)
    people = [
        {"id": each, "name": rng.choice(["Ann", "Bob"]), "age": rng.randrange(18, 80), "member": rng.random() < 0.5}
        for each in range(60)
    ]
    return "Give 60 people as JSON.\n", json.dumps(people, indent=1)


def chat():
    """Prose that nothing in the prompt says."""
    return "How does it find dead backends?\n", "\n\n".join(paragraphs())


def summary():
    """Quotations from the prompt, with a few words before each."""
    source = "\n\n".join(paragraphs())[:8000]
    sentences = [each for each in re.split(r"(?<=\.)\s+", source) if 60 < len(each) < 200]
    words = ["First it says: ", "It is more precise later: ", "Who runs it should know: ", "Of failures it tells: "]
    quoted = ['%s"%s" ' % (words[place % 4], each) for place, each in enumerate(sentences[::3])]
    return "Sum up, with quotations:\n%s\nSummary:\n" % source, "".join(quoted)


def story():
    """What the demo model tells; it repeats itself as small models do."""
    engine = launch(ctx_size=1024)
    try:
        told = [run(engine, max_tokens=300, sampling=Sampling(temperature=0.8, seed=seed))[0] for seed in range(4)]
        return "Tell stories.\n", "\n".join(told)
    finally:
        engine.stop()


KINDS = (edit, code, records, chat, summary, story)


class Tokenizer:
    """A model file's words."""

    def __init__(self, path):
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)

    def tokens(self, text):
        """Return a text's tokens."""
        data = text.encode()
        buffer = (llama_cpp.llama_token * (len(data) + 8))()
        vocab = llama_cpp.llama_model_get_vocab(self._model)
        return list(buffer[: llama_cpp.llama_tokenize(vocab, data, len(data), buffer, len(buffer), False, False)])


def tell_texts(texts):
    """Let engines choose the next token from the text whose prompt a generation has."""
    choose = Choosing._sample

    def told(self, generation, row):
        choose(self, generation, row)
        begin = generation.prompt_tokens
        return texts[tuple(generation.tokens[:begin])][len(generation.tokens) - begin]

    Choosing._sample = told
    Model.ends = lambda self, token: False  # the number of its end is another word's in TOKENIZER


def speed(engine, model, prompt, count, streams):
    """Return the tokens/s of so many streams that all tell the same text, while they generate."""
    ask = Ask(model=model, prompt=list(prompt), max_tokens=count, sampling=Sampling(ignore_eos=True))
    generations = [Generation(ask) for _ in range(streams)]
    for each in generations:
        engine.submit(each)
    for each in generations:
        assert result(each)[2].completion_tokens == count
    first, end = min(each.times["first"] for each in generations), max(each.times["end"] for each in generations)
    return streams * count / (end - first)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("tokenizer", nargs="?")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--streams", default="1,4,8")
    given = parser.parse_args()
    model, tokenizer = inspect(given.model), Tokenizer(given.tokenizer or given.model)
    texts = {kind.__name__: [tokenizer.tokens(part) for part in kind()] for kind in KINDS}
    tell_texts({tuple(prompt): answer for prompt, answer in texts.values()})
    counts = [int(each) for each in given.streams.split(",")]
    common = {"threads": given.threads, "slots": max(counts), "siding": "off"}
    engines = [launch(model, draft_max=most, **common) for most in (0, -1)]
    for _ in range(2):
        for name, (prompt, answer) in texts.items():
            for streams in counts:
                count = min(given.tokens, len(answer))
                plain, guessing = [speed(each, model, prompt, count, streams) for each in engines]
                speeds = (name, streams, plain, guessing, guessing / plain)
                print("%-8s %d streams  %6.1f : %6.1f  = %.2f" % speeds, flush=True)
    print(dict(engines[1].tally.counts))


if __name__ == "__main__":
    main()
