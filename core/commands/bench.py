"""How fast this machine is with a model, in several shapes, measured in one run.

    python comeapi.py bench                                        the model that would be loaded at start
    python comeapi.py bench --model NAME --json figures.json       another one; the figures into a file, too
    python comeapi.py bench --peer build/bin/llama-server          llama.cpp's own server in the same table
    python comeapi.py bench --company 1                            while one other process keeps a core busy
    python comeapi.py bench --mixed 4                              every fourth prompt is a long one
    python comeapi.py bench --plot figures.svg                     a picture of them

Every shape is measured with real processes and real HTTP, except the first, which shows what the hardware can do:

    bare decode      llama_decode in a loop, N sequences, no sampling, no HTTP
    one by one       one request after another on one backend with all threads: what a simple server does
    original shape   five processes of one thread and one request each, behind the balancer, five clients
    engine           one backend with all threads, at 1, 2, 4, … clients
    llama-server     llama.cpp's own server with all threads, driven by the same client (--peer)
    whole system     what `python comeapi.py` would start here, through the balancer
    long prompt      a long prompt alone, then while four streams run: how long it takes, how long they stand still

Each is warmed up by four requests. Machines are noisy, so compare ratios within one run only. Figures of a row:
generated tokens per second, with the time for prompts included; the same without it; time to the first token; largest
gap between two tokens of any stream; peak memory of all its processes; Python's own share of the engine's time.
"""

import contextlib
import json
import os
import platform
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Dict, Iterator, List, Tuple

from core import hardware, options
from core.commands.driving import Load, Row, Stream, ask, drive, warm_up
from core.commands.plot import Bar, chart
from core.commands.serving import Service, advice, chosen, peer_served, served
from core.models import ModelFile
from core.options import between, setting
from core.settings import FolderSettings
from core.system.launch import ROOT
from core.system.plan import shares


def _counts(text: str) -> str:
    """Check a list of client counts such as 1,5,8. Raises ValueError."""
    if not text or not all(part.isdigit() and 0 < int(part) <= 64 for part in text.split(",")):
        raise ValueError("%r is not a list of numbers from 1 to 64, such as 1,5,8" % text)
    return text


@dataclass(frozen=True)
class Config(FolderSettings):
    """What to measure."""

    clients: str = setting("1,2,4,5,8,16", "numbers of clients at once", "bench", check=_counts)
    tokens: int = setting(64, "tokens generated for each request", "bench", check=between(8, 4096))
    requests: int = setting(2, "requests of each client, one after another", "bench", check=between(1, 100))
    prompt_tokens: int = setting(32, "tokens of each prompt, all different; about", "bench", check=between(8, 4096))
    long_prompt: int = setting(
        1500,
        "tokens of the long prompt that arrives while four streams run; about",
        "bench",
        check=between(64, 1 << 20),
    )
    mixed: int = setting(
        0,
        "make every so-manieth prompt as long as the long one, as where some clients send documents; 0: none",
        "bench",
        check=between(0, 64),
    )
    threads: int = setting(0, "CPU threads; 0 for all cores", "bench", flags=("-t",), check=between(0, 1024))
    safe_mode: bool = setting(False, "measure in safe mode", "bench")
    peer: str = setting("", "measure this llama-server, too", "bench", metavar="PROGRAM")
    company: int = setting(
        0, "let so many other processes keep a core busy each meanwhile", "bench", check=between(0, 64)
    )
    only: str = setting("", "measure only the shapes whose names begin so, such as whole,llama", "bench")
    json: str = setting("", "write the figures into this file, too", "bench", metavar="FILE")
    plot: str = setting("", "draw the tokens per second into this file, as SVG", "bench", metavar="FILE")
    bare: int = setting(0, "only run a bare decode loop of so many sequences", "other", check=between(0, 64))

    @property
    def load(self) -> Load:
        """What each client asks for."""
        return Load(self.requests, self.tokens, self.prompt_tokens, self.mixed, self.long_prompt)


def main(argv: List[str]) -> None:
    """Measure, print a table, and write the JSON file that was asked for."""
    config = options.parse(Config, __doc__, argv=argv, program="comeapi.py bench")
    model = chosen(config)
    if config.bare:
        print(json.dumps(_bare_decode(model, config)))
        return
    print(_where(model), flush=True)
    with _company(config.company):
        rows = list(_measured(model, config))
    _print_table(rows)
    if config.json:
        with open(config.json, "w", encoding="utf-8") as file:
            json.dump({"machine": _where(model), "rows": [asdict(row) for row in rows]}, file, indent=1)
    if config.plot:
        with open(config.plot, "w", encoding="utf-8") as file:
            file.write(_picture(rows, model))


def _where(model: ModelFile) -> str:
    """Return the line that says what was measured on what."""
    return "%s (%s, %.1f GB) on %s, %d cores, %s, Python %s" % (
        model.name,
        model.quantization,
        model.size / 1e9,
        hardware.processor().name,
        hardware.cores(),
        platform.system(),
        platform.python_version(),
    )


@contextlib.contextmanager
def _company(count: int) -> Iterator[None]:
    """Run so many processes that keep a core busy each."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


# ------------------------------------------------------------------------------------------------ the shapes


def _measured(model: ModelFile, config: Config) -> Iterator[Row]:
    """Measure one shape after another and print each; a row's ratio is to the row "one by one"."""
    counts = [int(part) for part in config.clients.split(",")]
    threads = config.threads or hardware.cores()
    reference = 0.0
    for row in _rows(model, config, counts, threads):
        reference = reference or (row.tokens_per_second if row.shape == "one by one" else 0.0)
        row.ratio = row.tokens_per_second / reference if reference else 0.0
        rate = "%7.1f tokens/s" % row.tokens_per_second if row.tokens_per_second else ""
        print("  %-16s %2d clients  %s" % (row.shape, row.clients, rate), flush=True)
        yield row


def _rows(model: ModelFile, config: Config, counts: List[int], threads: int) -> Iterator[Row]:
    """Yield the rows of those shapes that are wanted."""
    shapes = {
        "one by one": _one_by_one,
        "original shape": _original_shape,
        "engine": _engine,
        "long prompt": _long_prompt,
        "llama-server": _peer,
        "whole system": _whole_system,
    }
    wanted = tuple(config.only.split(","))
    for name, measure in shapes.items():
        if name.startswith(wanted):
            yield from measure(model, config, counts, threads)


def _one_by_one(model: ModelFile, config: Config, counts: List[int], threads: int) -> Iterator[Row]:
    with served(model, config, [(threads, 1)]) as service:
        yield from _driven("one by one", service, config, [1])


def _original_shape(model: ModelFile, config: Config, counts: List[int], threads: int) -> Iterator[Row]:
    with served(model, config, [(1, 1)] * 5, balanced=True) as service:
        yield from _driven("original shape", service, config, [5])


def _engine(model: ModelFile, config: Config, counts: List[int], threads: int) -> Iterator[Row]:
    with served(model, config, [(threads, max(counts))]) as service:
        for row in _driven("engine", service, config, counts):
            yield _bare_row(model, config, row.clients)
            yield row


def _peer(model: ModelFile, config: Config, counts: List[int], threads: int) -> Iterator[Row]:
    if config.peer:
        with peer_served(model, config, threads, max(counts)) as service:
            yield from _driven("llama-server", service, config, counts)


def _whole_system(model: ModelFile, config: Config, counts: List[int], threads: int) -> Iterator[Row]:
    with served(model, config, _plan(threads, max(counts)), balanced=True) as service:
        yield from _driven("whole system", service, config, counts)


def _driven(shape: str, service: Service, config: Config, counts: List[int]) -> Iterator[Row]:
    """Measure each number of clients, once the service is warm."""
    warm_up(service, config.prompt_tokens)
    for count in counts:
        yield drive(shape, service, config.load, count)


def _plan(threads: int, clients: int) -> List[Tuple[int, int]]:
    """Return the threads and slots of each backend that comeapi.py would start, with room for so many clients."""
    backends = 1 if threads == 1 else 2
    return [(share, max(4, clients // backends)) for share in shares(threads, backends)]


def _long_prompt(model: ModelFile, config: Config, counts: List[int], threads: int) -> Iterator[Row]:
    """Measure a long prompt alone and beside four streams, where the model's context holds it."""
    if model.context_length and model.context_length < 2 * config.long_prompt:
        return
    context = 2 * config.long_prompt + 64
    with served(model, config, [(threads, 5)], context=context) as service:
        yield from _beside("long prompt", service, config)
    with served(model, config, _plan(threads, 5), balanced=True, context=context) as service:
        yield from _beside("whole system", service, config)
    if config.peer:
        with peer_served(model, config, threads, 5, context) as service:
            yield from _beside("llama-server", service, config)


def _beside(shape: str, service: Service, config: Config) -> Iterator[Row]:
    """Measure a long prompt alone, then beside four streams."""
    warm_up(service, min(config.long_prompt, 150))  # long enough for the siding
    prompt = service.prompt(5 * 10**6, config.long_prompt)
    alone = ask(service.url, prompt, 4)
    yield Row(shape, 1, first_token_p50=alone.moments[0] - alone.started)
    crowded, streams = _beside_streams(service, prompt, length=max(256, config.long_prompt // 2))
    ready = crowded.moments[0]
    pairs = [pair for each in streams for pair in zip(each.moments, each.moments[1:])]
    gap = max((late - early for early, late in pairs if late > crowded.started and early < ready), default=0.0)
    yield Row("  and 4 streams", 5, first_token_p50=ready - crowded.started, largest_gap=gap)


def _beside_streams(service: Service, prompt: str, length: int) -> Tuple[Stream, List[Stream]]:
    """Ask for a prompt while four streams run. Returns its stream, and the four."""
    streams: List[Stream] = []
    began = [threading.Event() for _ in range(4)]

    def run(index: int) -> None:
        streams.append(ask(service.url, service.prompt(index * 1000, 8), length, began[index]))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for event in began:
        event.wait()
    crowded = ask(service.url, prompt, 4)
    for thread in threads:
        thread.join()
    return crowded, streams


# ----------------------------------------------------------------------------------------------- bare decode


def _bare_row(model: ModelFile, config: Config, sequences: int) -> Row:
    """Measure the bare loop in a process of its own."""
    command = [sys.executable, "-m", "core.commands.bench", "--bare=%d" % sequences, "--tokens=%d" % config.tokens]
    command += ["--models=" + os.path.dirname(model.path), "--model=" + model.name, "--threads=%d" % config.threads]
    command += ["--safe-mode"] if config.safe_mode else []
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE)
    if done.returncode:
        options.fail("the bare decode loop ended with status %d%s" % (done.returncode, advice(done.returncode)))
    rate = json.loads(done.stdout.decode("utf-8"))["tokens_per_second"]
    return Row("bare decode", sequences, rate, rate)


def _bare_decode(model: ModelFile, config: Config) -> Dict[str, float]:
    """Decode one token of each of N sequences again and again. Imports llama_cpp: only in a process of its own."""
    from core.engine.llama.batch import Run
    from core.engine.llama.context import Context
    from core.engine.llama.model import Model
    from core.settings import EngineSettings

    prompt = 32
    settings = EngineSettings(
        slots=config.bare, ctx_size=config.tokens + 2 * prompt, threads=config.threads, safe_mode=config.safe_mode
    )
    loaded = Model(model, settings, lambda share: True)
    context = Context(loaded, settings)
    slots = range(config.bare)
    for slot in slots:
        context.decode([Run(slot, 0, range(300, 300 + prompt), logits=1)])
    started = time.monotonic()
    for step in range(prompt, prompt + config.tokens):
        status, _ = context.decode([Run(slot, step, [300 + step], logits=1) for slot in slots])
        if status:
            options.fail("llama_decode answered %d" % status)
    seconds = time.monotonic() - started
    context.close()
    loaded.close()
    return {"tokens_per_second": config.bare * config.tokens / seconds}


# -------------------------------------------------------------------------------------------------- the table


def _print_table(rows: List[Row]) -> None:
    print("\n%-16s %7s %9s %7s %10s %9s %9s %9s %9s %7s" % _HEAD)
    for row in rows:
        print(_line(row))
    best = max(rows, key=lambda row: row.ratio)
    if best.ratio:
        print("\nBest: %s with %d clients, %.1f times one by one." % (best.shape, best.clients, best.ratio))


def _picture(rows: List[Row], model: ModelFile) -> str:
    """Return an SVG file: the tokens per second of each shape, marked with what a bare loop decodes."""
    bare = {row.clients: row.tokens_per_second for row in rows if row.shape == "bare decode"}
    bars = [
        Bar(
            "%s, %d client%s" % (row.shape, row.clients, "" if row.clients == 1 else "s"),
            row.tokens_per_second,
            row.shape,
            "%.1f×" % row.ratio,
            bare.get(row.clients) if row.shape == "engine" else None,
        )
        for row in rows
        if row.tokens_per_second and row.shape != "bare decode"
    ]
    return chart("Tokens per second", _where(model), "tokens/s; ×: to one by one", "a bare decode loop", bars)


_HEAD = ("shape", "clients", "tokens/s", "ratio", "decoding/s", "first p50", "first p95", "gap", "memory", "python")


def _line(row: Row) -> str:
    if row.shape == "bare decode":
        return "%-16s %7d %9.1f" % (row.shape, row.clients, row.tokens_per_second)
    if not row.tokens_per_second:
        times = row.first_token_p50 * 1e3, row.largest_gap * 1e3
        return ("%-16s %7d" % (row.shape, row.clients)) + "%37.0fms %18.0fms" % times
    return "%-16s %7d %9.1f %6.2fx %10.1f %7.0fms %7.0fms %7.0fms %7.2fGB %6.1f%%" % (
        row.shape,
        row.clients,
        row.tokens_per_second,
        row.ratio,
        row.decode_tokens_per_second,
        row.first_token_p50 * 1e3,
        row.first_token_p95 * 1e3,
        row.largest_gap * 1e3,
        row.peak_memory / 1e9,
        row.python_share * 100,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
