"""Find out what runs a model fastest on this machine, in about 3 minutes, and keep it for the next start.

    python comeapi.py tune                   the model that would be loaded at start
    python comeapi.py tune --model NAME      another one

Few choices matter, and which is right depends on the processor and the model:

    weights    repacked for this processor when they are loaded, or as they are in the file (other fast kernels then)
    attention  plain, or llama.cpp's flash attention, with short and with long texts in the cells
    ubatch     how many tokens of a prompt are computed at once
    plan       two backends with half of the cores, which idle ones lend, or one with all of them

Each is measured against the default, alternating, and changed only where another one is 5 % faster. The result is a
small JSON file beside the model; comeapi.py reads it at its start and says so. It counts for nothing elsewhere.
"""

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
from core.commands.driving import Load, drive
from core.commands.serving import chosen, served
from core.models import ModelFile
from core.options import between, setting
from core.settings import FolderSettings
from core.system.launch import ROOT
from core.system.plan import shares

BETTER = 1.05  # times as fast as the default: else the default stays
ROUNDS = 2
_SECONDS = 1.2  # that one figure is measured for
_PROMPT = 512  # tokens
_DEPTH = 2048  # tokens in the cells where attention is measured
Figures = Dict[str, float]


@dataclass(frozen=True)
class Config(FolderSettings):
    """What to tune for."""

    seconds: int = setting(150, "about how long to measure", "tune", check=between(20, 3600))
    dry_run: bool = setting(False, "print the result, and keep nothing", "tune")
    measure: str = setting("", "only measure with these settings, as JSON", "other", metavar="JSON")


@dataclass(frozen=True)
class Question:
    """One choice: a setting, its values (the default first), and the figures that decide between them."""

    what: str
    name: str
    values: Sequence[Any]
    figures: Sequence[str]


@dataclass(frozen=True)
class _Served(Load):
    """How servers are started while plans are compared, and what each client asks for."""

    safe_mode: bool = False  # as chosen before


_CLIENTS = ("1 client", "5 clients", "8 clients")
_QUESTIONS = (
    Question("weights", "safe_mode", (False, True), ("prompt", "1 stream", "8 streams")),
    Question("attention", "flash_attn", ("auto", "on"), ("prompt", "1 stream", "deep prompt", "deep streams")),
    Question("ubatch", "ubatch_size", (0, 512), ("prompt", "deep prompt")),
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

    def run(self) -> Dict[str, Any]:
        """Return the choices that differ from the defaults."""
        print("%s (%.1f GB) on %s, %d cores" % (
            self._model.name, self._model.size / 1e9, hardware.processor().name, hardware.cores()))  # fmt: skip
        load = machine.load()
        if load and load > 0.5:
            print("  ⚠️  Others are busy here (load %.1f): a quiet machine gives truer figures." % load)
        choices: Dict[str, Any] = {}
        weights, *others = _QUESTIONS
        self._choose(weights, choices)
        plan = self._ask_plan(choices)  # it matters more than the others
        for question in others:
            self._choose(question, choices)
        return dict(choices, **plan)

    def _choose(self, question: Question, choices: Dict[str, Any]) -> None:
        """Ask a question, and note the answer where it is not the default."""
        if time.monotonic() > self._until:
            print("  %-10s not measured: the time is up" % question.what)
            return
        best = self._ask(question, choices)
        if best != question.values[0]:
            choices[question.name] = best

    def _ask(self, question: Question, choices: Dict[str, Any]) -> Any:
        """Return the best value of a setting; the default, where none is clearly better."""
        seen: Dict[Any, List[Figures]] = {value: [] for value in question.values}
        for _ in range(ROUNDS):
            for value in question.values:
                seen[value].append(self._measured(question, dict(choices, **{question.name: value})))
        return self._decide(question, seen)

    def _decide(self, question: Question, seen: Dict[Any, List[Figures]]) -> Any:
        scores = {value: score(figures, question.figures) for value, figures in seen.items()}
        default = question.values[0]
        best = max(scores, key=lambda value: scores[value])
        best = best if scores[best] > scores[default] * BETTER else default
        if not scores[best]:
            options.fail(self._failure)
        for value in question.values:
            ratio = scores[value] / (scores[default] or scores[best])
            self._tell(question, value, seen[value], ratio, value == best)
        return best

    def _ask_plan(self, choices: Dict[str, Any]) -> Dict[str, Any]:
        """Return how many backends, and slots, serve clients best; nothing where that is the default."""
        cores = hardware.cores()
        if cores == 1 or time.monotonic() > self._until:
            return {}
        shapes = {2: [(share, 4) for share in shares(cores, 2)], 1: [(cores, 8)]}
        seen: Dict[Any, List[Figures]] = {backends: [] for backends in shapes}
        for _ in range(ROUNDS):
            for backends, shape in shapes.items():
                with served(self._model, _Served(), shape, balanced=True, more=choices) as service:
                    figures = {
                        name: drive("", service, _Served(), count).tokens_per_second
                        for name, count in zip(_CLIENTS, (1, 5, 8))
                    }
                seen[backends].append(figures)
        question = Question("plan", "backends", list(shapes), _CLIENTS)
        best = self._decide(question, seen)
        return {"backends": 1, "slots": 8} if best == 1 else {}

    def _measured(self, question: Question, settings: Dict[str, Any]) -> Figures:
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

    def _tell(self, question: Question, value: Any, seen: List[Figures], ratio: float, best: bool) -> None:
        means = {name: sum(each[name] for each in seen) / len(seen) for name in question.figures}
        figures = ", ".join("%s %.0f/s" % (name, mean) for name, mean in means.items())
        mark = "  <-" if best else ""
        print("  %-10s %-12s %-5s %5.2fx  %s%s" % (question.what, question.name, value, ratio, figures, mark))
        sys.stdout.flush()
        self.table.append({"setting": question.name, "value": value, "ratio": round(ratio, 3), "figures": means})


def _last_line(output: bytes) -> str:
    return "".join(": " + line for line in output.decode("utf-8", "replace").strip().splitlines()[-1:])


def score(seen: Sequence[Figures], names: Sequence[str]) -> float:
    """Return one number for figures of several rounds: the geometric mean of each one's best; 0 where one is 0."""
    best = [max(each[name] for each in seen) for name in names]
    return math.exp(sum(math.log(each) for each in best) / len(best)) if all(best) else 0.0


# ------------------------------------------------------------------------------------- in a process of its own


def _measure(model: ModelFile, settings: Dict[str, Any]) -> Dict[str, Any]:
    """Measure tokens per second with some settings. Imports llama_cpp."""
    from core.engine.llama.build import build_facts
    from core.engine.llama.context import Context
    from core.engine.llama.model import Model
    from core.settings import EngineSettings

    wanted = settings.pop("figures")
    depth = min(_DEPTH, (model.context_length or _DEPTH) // 2)
    engine = EngineSettings(**dict({"slots": 8, "ctx_size": depth + 2 * _PROMPT}, **settings))
    loaded = Model(model, engine, lambda share: True)
    context = Context(loaded, engine)
    decode = _Decode(context)
    measures: Dict[str, Callable[[], float]] = {
        "prompt": lambda: decode.prompt(0),
        "1 stream": lambda: decode.streams(1),
        "8 streams": lambda: decode.streams(8),
        "deep prompt": lambda: decode.deep_prompt(depth),
        "deep streams": lambda: decode.streams(4),
    }
    figures: Dict[str, Any] = {name: measures[name]() for name in wanted}
    context.close()
    loaded.close()
    return dict(figures, version=str(build_facts()["version"]))


class _Decode:
    """Decodes made-up tokens, and counts how many a second."""

    def __init__(self, context: Any):
        self._context = context
        self._depth = 0

    def prompt(self, start: int) -> float:
        """Return the tokens a second of a prompt's piece after `start` tokens, again and again."""
        self._run([(0, start, _PROMPT // 4)])  # warms up
        rows, began = 0, time.monotonic()
        while not rows or time.monotonic() - began < _SECONDS:
            self._context.trim(0, start)
            rows += self._run([(0, start, _PROMPT)])
        return rows / (time.monotonic() - began)

    def deep_prompt(self, depth: int) -> float:
        """Return the same at a depth: that many tokens before it, or as many as come in time."""
        self._context.forget(0)
        began = time.monotonic()
        while self._depth < depth and time.monotonic() - began < 4 * _SECONDS:
            self._depth += self._run([(0, self._depth, _PROMPT // 2)])
        return self.prompt(self._depth)

    def streams(self, count: int) -> float:
        """Return the tokens a second of so many streams together, each after what the first slot holds."""
        self._context.trim(0, self._depth)
        for slot in range(1, count):
            self._context.reuse(0, slot, self._depth) if self._depth else self._context.forget(slot)
        rows, step, began = 0, 0, time.monotonic()
        while (not rows or time.monotonic() - began < _SECONDS) and step < _PROMPT:
            rows += self._run([(slot, self._depth + step, 1) for slot in range(count)])
            step += 1
        return rows / (time.monotonic() - began)

    def _run(self, runs: Sequence[Tuple[int, int, int]]) -> int:
        """Decode (slot, start, count); returns the rows."""
        from core.engine.llama.batch import Run

        status, _ = self._context.decode(
            [Run(slot, start, _tokens(slot * 7 + start, count), 1) for slot, start, count in runs]
        )
        if status:
            options.fail("llama_decode answered %d" % status)
        return sum(count for _, _, count in runs)


def _tokens(start: int, count: int) -> List[int]:
    return [300 + (start + number) % 200 for number in range(count)]


if __name__ == "__main__":
    main(sys.argv[1:])
