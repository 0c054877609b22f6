"""Find out what runs a model fastest on this machine, in about 3 minutes, and keep it for the next start.

    python comeapi.py tune                   the model that would be loaded at start
    python comeapi.py tune --model NAME      another one

Few choices matter, and which is right depends on the processor and the model:

    weights    repacked for this processor when they are loaded, or as they are in the file (other fast kernels then);
               for answers, and for prompts
    attention  plain, llama.cpp's flash attention, or plain with cells in bf16; with short and with long texts
    plan       two backends with half of the cores, which idle ones lend, or one with all of them

Each is measured against the default, alternating, and changed only where another one is 5 % faster; what is 5 % slower
is measured once. The result is a small JSON file beside the model; comeapi.py reads it at its start and says so. It
counts for nothing elsewhere.
"""

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Sequence, Tuple

from core import hardware, options, tuned
from core.commands import machine
from core.commands.driving import Load, drive, warm_up
from core.commands.serving import chosen, served
from core.models import ModelFile
from core.options import between, setting
from core.settings import FolderSettings
from core.system.launch import ROOT
from core.system.plan import shares

BETTER = 1.05  # times as fast as the default: else the default stays
HOPELESS = 0.95  # times as fast as the default in the first round: such a choice is not measured again
ROUNDS = 2
_SECONDS = 1.2  # that one figure is measured for
_PROMPT = 512  # tokens
_SHORT = 60  # tokens, of a prompt where plans are compared
_WARMUP = 64  # tokens
_DEPTH = 2048  # tokens in the cells where attention is measured
Figures = Dict[str, float]
Choice = Dict[str, Any]  # settings that differ from the defaults


@dataclass(frozen=True)
class Config(FolderSettings):
    """What to tune for."""

    seconds: int = setting(150, "about how long to measure", "tune", check=between(20, 3600))
    dry_run: bool = setting(False, "print the result, and keep nothing", "tune")
    measure: str = setting("", "only measure with these settings, as JSON", "other", metavar="JSON")


@dataclass(frozen=True)
class Question:
    """What there is to choose from, the default first, and the figures that decide."""

    what: str
    choices: Sequence[Choice]
    figures: Sequence[str]


@dataclass(frozen=True)
class _Served(Load):
    """How servers are started while plans are compared, and what each client asks for."""

    safe_mode: bool = False  # as chosen before


_CLIENTS = ("1 client", "5 clients", "8 clients")
_QUESTIONS = (
    Question(
        "weights",
        ({}, {"prompt_weights": "loaded"}, {"prompt_weights": "mapped"}, {"safe_mode": True}),
        ("prompt", "1 stream", "8 streams"),
    ),
    Question(
        "attention",
        ({}, {"flash_attn": "on"}, {"cache_type_k": "bf16", "cache_type_v": "bf16"}),
        ("prompt", "1 stream", "deep prompt", "deep streams"),
    ),
)


def main(argv: List[str]) -> None:
    """Measure, print a table, keep the result."""
    config = options.parse(Config, __doc__, argv=argv, program="comeapi.py tune")
    model = chosen(config)
    if config.measure:
        print(json.dumps(_measure(model, json.loads(config.measure))))
        return
    tune = Tuning(model, config)
    choices = tune.run()
    if config.dry_run:
        print("Would keep: %s" % json.dumps(choices))
        return
    try:
        path = tuned.save(model, tune.version, choices, tune.table)
    except OSError as error:
        options.fail("the result can't be kept: %s" % error)
    print("Kept in %s; comeapi.py uses it from its next start on." % path)


class Tuning:
    """Asks one question after another; each is measured with what was chosen before."""

    def __init__(self, model: ModelFile, config: Config):
        self.version = ""
        self.table: List[Dict[str, Any]] = []
        self._model = model
        self._failure = ""
        self._until = time.monotonic() + config.seconds

    def run(self) -> Choice:
        """Return the choices that differ from the defaults."""
        print("%s (%.1f GB) on %s, %d cores" % (
            self._model.name, self._model.size / 1e9, hardware.processor().name, hardware.cores()))  # fmt: skip
        load = machine.load()
        if load and load > 0.5:
            print("  ⚠️  Others are busy here (load %.1f): a quiet machine gives truer figures." % load)
        weights, attention = _QUESTIONS
        chosen_so_far = self._ask(weights, {})
        plan = self._ask_plan(chosen_so_far)  # it matters more than attention
        return dict(chosen_so_far, **self._ask(attention, chosen_so_far), **plan)

    def _ask(self, question: Question, before: Choice) -> Choice:
        """Return the best choice; nothing, where none is clearly better than the default. `before`: what was chosen."""
        if time.monotonic() > self._until:
            print("  %-10s not measured: the time is up" % question.what)
            return {}
        return self._decide(question, lambda choice: self._measured(question, dict(before, **choice)))

    def _decide(self, question: Question, measured: Callable[[Choice], Figures]) -> Choice:
        """Measure the choices in turn, tell what was seen of each, and return the best one."""
        seen: List[List[Figures]] = [[] for _ in question.choices]
        scores = [0.0 for _ in seen]
        for _ in range(ROUNDS):
            least = scores[0] * HOPELESS
            for index, choice in enumerate(question.choices):
                if scores[index] >= least:
                    seen[index].append(measured(choice))
            scores = [score(figures, question.figures) for figures in seen]
        best = max(range(len(scores)), key=lambda index: scores[index])
        best = best if scores[best] > scores[0] * BETTER else 0
        if not scores[best]:
            options.fail(self._failure)
        for index, choice in enumerate(question.choices):
            self._tell(question, choice, seen[index], scores[index] / (scores[0] or scores[best]), index == best)
        return question.choices[best]

    def _ask_plan(self, before: Choice) -> Choice:
        """Return how many backends, and slots, serve clients best; nothing where that is the default."""
        cores, load = hardware.cores(), _Served(prompt_tokens=_SHORT)
        if cores == 1 or time.monotonic() > self._until:
            return {}

        def measured(choice: Choice) -> Figures:
            shape = [(cores, 8)] if choice else [(share, 4) for share in shares(cores, 2)]
            with served(self._model, load, shape, balanced=True, more=before) as service:
                warm_up(service, load.prompt_tokens)
                rows = [drive("", service, load, count) for count in (1, 5, 8)]
            return {name: row.tokens_per_second for name, row in zip(_CLIENTS, rows)}

        return self._decide(Question("plan", ({}, {"backends": 1, "slots": 8}), _CLIENTS), measured)

    def _measured(self, question: Question, settings: Choice) -> Figures:
        """Measure in a process of its own: a crash there is an answer, too."""
        model, wanted = self._model, dict(settings, figures=list(question.figures))
        command = [sys.executable, "-m", "core.commands.tune", "--models=" + os.path.dirname(model.path)]
        command += ["--model=" + model.name, "--measure=" + json.dumps(wanted)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.returncode:
            self._failure = "measuring ended with status %d%s" % (done.returncode, _last_line(done.stderr))
            return {name: 0.0 for name in question.figures}
        figures = json.loads(done.stdout.decode("utf-8"))
        self.version = figures.pop("version")
        return figures

    def _tell(self, question: Question, choice: Choice, seen: List[Figures], ratio: float, best: bool) -> None:
        means = {name: sum(each[name] for each in seen) / len(seen) for name in question.figures}
        figures = ", ".join("%s %.0f/s" % (name, mean) for name, mean in means.items())
        mark = "  <-" if best else ""
        print("  %-10s %-24s %5.2fx  %s%s" % (question.what, _in_words(choice), ratio, figures, mark), flush=True)
        self.table.append({"what": question.what, "choice": choice, "ratio": round(ratio, 3), "figures": means})


def _in_words(choice: Choice) -> str:
    """Return a choice in words; that of several settings by its first one."""
    return next(("%s %s" % each for each in choice.items()), "as it is")


def _last_line(output: bytes) -> str:
    return "".join(": " + line for line in output.decode("utf-8", "replace").strip().splitlines()[-1:])


def score(seen: Sequence[Figures], names: Sequence[str]) -> float:
    """Return one number for figures of several rounds: the geometric mean of each one's best; 0 where one is 0."""
    best = [max(each[name] for each in seen) for name in names]
    return math.exp(sum(math.log(each) for each in best) / len(best)) if all(best) else 0.0


# ------------------------------------------------------------------------------------- in a process of its own


def _measure(model: ModelFile, settings: Dict[str, Any]) -> Dict[str, Any]:
    """Measure tokens per second with some settings: prompts aside, where they go aside. Imports llama_cpp."""
    from core.engine.llama.build import build_facts
    from core.engine.llama.context import Context
    from core.engine.llama.model import Model
    from core.engine.making import can_set_aside, context_aside, mapped_for_prompts
    from core.settings import EngineSettings

    wanted = settings.pop("figures")
    depth = min(_DEPTH, (model.context_length or _DEPTH) // 2)
    engine = EngineSettings(**dict({"slots": 8, "ctx_size": depth + 2 * _PROMPT}, **settings))
    with contextlib.ExitStack() as opened:

        def open_one(it: Any) -> Any:
            return opened.enter_context(contextlib.closing(it))

        loaded = open_one(Model(model, engine, lambda share: True))
        streams = prompts = open_one(Context(loaded, engine))
        if can_set_aside(loaded, engine):
            mapped = mapped_for_prompts(loaded, engine)
            prompts = open_one(context_aside(open_one(mapped) if mapped else loaded, engine))
        decode = _Decode(streams, prompts)
        measures: Dict[str, Callable[[], float]] = {
            "prompt": lambda: decode.prompt(0),
            "1 stream": lambda: decode.streams(1),
            "8 streams": lambda: decode.streams(8),
            "deep prompt": lambda: decode.deep_prompt(depth),
            "deep streams": lambda: decode.streams(4),
        }
        figures: Dict[str, Any] = {name: measures[name]() for name in wanted}
    return dict(figures, version=str(build_facts()["version"]))


class _Decode:
    """Decodes made-up tokens, streams in one context and prompts in another, or the same, and counts them."""

    def __init__(self, streams: Any, prompts: Any):
        self._streams = streams
        self._prompts = prompts
        self._depth = 0  # tokens that the prompts' first slot holds before what is measured

    def prompt(self, start: int) -> float:
        """Return the tokens a second of a prompt's part after `start` tokens, again and again."""
        self._evaluate(start, _WARMUP)
        rows, began = 0, time.monotonic()
        while not rows or time.monotonic() - began < _SECONDS:
            self._prompts.trim(0, start)
            rows += self._evaluate(start, _PROMPT)
        return rows / (time.monotonic() - began)

    def deep_prompt(self, depth: int) -> float:
        """Return the same at a depth: that many tokens before it, or as many as come in time."""
        self._prompts.forget(0)
        began = time.monotonic()
        while self._depth < depth and time.monotonic() - began < 4 * _SECONDS:
            self._depth += self._evaluate(self._depth, _PROMPT // 2)
        return self.prompt(self._depth)

    def streams(self, count: int) -> float:
        """Return the tokens a second of so many streams together, each after the prompt so far."""
        self._prompts.trim(0, self._depth)
        cells = self._prompts.save(0) if self._depth else None
        for slot in range(count):
            self._streams.forget(slot)
            if cells:
                self._streams.load(slot, cells)
        rows, step, began = 0, 0, time.monotonic()
        while (not rows or time.monotonic() - began < _SECONDS) and step < _PROMPT:
            rows += self._run(self._streams, [(slot, self._depth + step, 1) for slot in range(count)])
            step += 1
        return rows / (time.monotonic() - began)

    def _evaluate(self, start: int, count: int) -> int:
        """Evaluate so much of a prompt, in pieces as large as are computed at once; returns its tokens."""
        piece = self._prompts.n_ubatch
        for done in range(0, count, piece):
            self._run(self._prompts, [(0, start + done, min(piece, count - done))])
        return count

    def _run(self, context: Any, runs: Sequence[Tuple[int, int, int]]) -> int:
        """Decode (slot, start, count); returns the rows."""
        from core.engine.llama.batch import Run

        status, _ = context.decode(
            [Run(slot, start, _tokens(slot * 7 + start, count), 1) for slot, start, count in runs]
        )
        if status:
            options.fail("llama_decode answered %d" % status)
        return sum(count for _, _, count in runs)


def _tokens(start: int, count: int) -> List[int]:
    return [300 + (start + number) % 200 for number in range(count)]


if __name__ == "__main__":
    main(sys.argv[1:])
