"""How fast this machine is with a model, in several shapes, measured in one run.

    python comeapi.py bench                                        the model that would be loaded at start
    python comeapi.py bench --model NAME --json figures.json       another one; the figures into a file, too
    python comeapi.py bench --plot figures.svg                     a picture of them

Every shape is measured with real processes and real HTTP, except the first, which shows what the hardware can do:

    bare decode      llama_decode in a loop, N sequences, no sampling, no HTTP
    one by one       one request after another on one backend with all threads: what a simple server does
    original shape   five processes of one thread and one request each, behind the balancer, five clients
    engine           one backend with all threads, at 1, 2, 4, … clients
    whole system     what `python comeapi.py` would start here, through the balancer
    long prompt      a long prompt alone, then while four streams run: how long it takes, how long they stand still

Machines are noisy, so compare ratios within one run only. Figures of a row: generated tokens per second, with the time
for prompts included; the same without it; time to the first token; largest gap between two tokens of any stream; peak
memory of all its processes; Python's own share of the engine's time.
"""

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, Iterator, List, Optional, Tuple

from core import hardware, options
from core.commands.plot import Bar, chart
from core.http.client import Client
from core.models import BadModel, ModelFile, choose, locate
from core.options import between, setting
from core.settings import FolderSettings

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


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
    threads: int = setting(0, "CPU threads; 0 for all cores", "bench", flags=("-t",), check=between(0, 1024))
    safe_mode: bool = setting(False, "measure in safe mode", "bench")
    json: str = setting("", "write the figures into this file, too", "bench", metavar="FILE")
    plot: str = setting("", "draw the tokens per second into this file, as SVG", "bench", metavar="FILE")
    bare: int = setting(0, "only run a bare decode loop of so many sequences", "other", check=between(0, 64))


@dataclass
class Row:
    """One measured shape. Times in seconds, memory in bytes."""

    shape: str
    clients: int
    tokens_per_second: float = 0.0
    decode_tokens_per_second: float = 0.0
    first_token_p50: float = 0.0
    first_token_p95: float = 0.0
    largest_gap: float = 0.0
    peak_memory: int = 0
    python_share: float = 0.0  # of the engine's time: what neither decoding nor sampling took
    ratio: float = 0.0  # to one by one


@dataclass
class _Stream:
    """What one client saw of one answer: when each event came, and the server's own account."""

    started: float
    moments: List[float] = field(default_factory=list)
    summary: Dict[str, Any] = field(default_factory=dict)


def main(argv: List[str]) -> None:
    """Measure, print a table, and write the JSON file that was asked for."""
    config = options.parse(Config, __doc__, argv=argv, program="comeapi.py bench")
    try:
        folder, name = locate(config.models, config.model)
        model = choose(folder, name)
    except BadModel as problem:
        options.fail(str(problem))
    if config.bare:
        print(json.dumps(_bare_decode(model, config)))
        return
    print(_where(model), flush=True)
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
        _processor(),
        hardware.cores(),
        platform.system(),
        platform.python_version(),
    )


def _processor() -> str:
    with contextlib.suppress(OSError):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


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
    with _served(model, config, [(threads, 1)]) as service:
        yield _row("one by one", service, model, config, 1)
    with _served(model, config, [(1, 1)] * 5, balanced=True) as service:
        yield _row("original shape", service, model, config, 5)
    with _served(model, config, [(threads, max(counts))]) as service:
        for count in counts:
            yield _bare_row(model, config, count)
            yield _row("engine", service, model, config, count)
    yield from _long_prompt(model, config, threads)
    backends = 1 if threads == 1 else 2
    shares = [
        (threads // backends + (i < threads % backends), max(4, max(counts) // backends)) for i in range(backends)
    ]
    with _served(model, config, shares, balanced=True) as service:
        for count in [each for each in counts if each in (5, 8)] or counts[-1:]:
            yield _row("whole system", service, model, config, count)


def _row(shape: str, service: "_Service", model: ModelFile, config: Config, clients: int) -> Row:
    """Measure one number of clients against a service that is running."""
    streams: List[_Stream] = []
    before = _engine_seconds(service.backend)
    threads = [
        threading.Thread(target=_client, args=(service, model, config, index, streams)) for index in range(clients)
    ]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - started
    if len(streams) != clients * config.requests:
        options.fail(
            "%s with %d clients: %d requests failed" % (shape, clients, clients * config.requests - len(streams))
        )
    generated = sum(stream.summary["usage"]["completion_tokens"] for stream in streams)
    rates = [stream.summary["timings"]["predicted_per_second"] for stream in streams]
    firsts = sorted(stream.moments[0] - stream.started for stream in streams)
    gaps = [late - early for each in streams for early, late in zip(each.moments, each.moments[1:])]
    return Row(
        shape,
        clients,
        tokens_per_second=generated / seconds,
        decode_tokens_per_second=statistics.mean(rates) * clients,
        first_token_p50=firsts[len(firsts) // 2],
        first_token_p95=firsts[min(len(firsts) - 1, int(len(firsts) * 0.95))],
        largest_gap=max(gaps, default=0.0),
        peak_memory=sum(_peak_memory(pid) for pid in service.pids),
        python_share=_python_share(before, _engine_seconds(service.backend)),
    )


def _client(service: "_Service", model: ModelFile, config: Config, index: int, streams: List[_Stream]) -> None:
    """Send one request after another, each with a prompt of its own."""
    for number in range(config.requests):
        prompt = service.prompt(index * 7919 + number * 104729, config.prompt_tokens)
        stream = _ask(service.url, model, prompt, config.tokens)
        if stream.summary:
            streams.append(stream)


def _numbers(start: int, count: int) -> str:
    """Return a prompt whose beginning no other prompt shares: numbers of seven digits."""
    return " ".join("%d" % (10**6 + start + n) for n in range(count))


def _ask(url: str, model: ModelFile, prompt: str, tokens: int, begun: Optional[threading.Event] = None) -> _Stream:
    """Send one request and note when each token came; `begun` is set with the first one."""
    body = {"model_name": model.name, "prompt": prompt, "max_tokens": tokens, "stream": True}
    body.update(ignore_eos=True, cache_prompt=False)
    client = Client()
    stream = _Stream(time.monotonic())
    answer = client.open(url + "/generate", "POST", {}, json.dumps(body).encode(), timeout=600)
    received = b""
    for piece in answer.pieces():
        received += piece
        if b'"done": false' in piece:
            stream.moments.append(time.monotonic())
            if begun:
                begun.set()
    client.close()
    last = [line for line in received.split(b"\n\n") if b'"done": true' in line]
    if answer.status == 200 and last:
        stream.summary = json.loads(last[0][len(b"data: ") :].decode("utf-8"))
    return stream


def _long_prompt(model: ModelFile, config: Config, threads: int) -> Iterator[Row]:
    """Measure a long prompt alone and beside four streams, where the model's context holds it."""
    if model.context_length and model.context_length < 2 * config.long_prompt:
        return
    with _served(model, config, [(threads, 5)], context=2 * config.long_prompt + 64) as service:
        prompt = service.prompt(5 * 10**6, config.long_prompt)
        alone = _ask(service.url, model, prompt, 4)
        yield Row("long prompt", 1, first_token_p50=alone.moments[0] - alone.started)
        crowded, streams = _beside_streams(service, model, prompt, length=max(256, config.long_prompt // 2))
    ready = crowded.moments[0]
    pairs = [pair for each in streams for pair in zip(each.moments, each.moments[1:])]
    gap = max((late - early for early, late in pairs if crowded.started < late < ready), default=0.0)
    yield Row("  and 4 streams", 5, first_token_p50=ready - crowded.started, largest_gap=gap)


def _beside_streams(service: "_Service", model: ModelFile, prompt: str, length: int) -> Tuple[_Stream, List[_Stream]]:
    """Ask for a prompt while four streams run. Returns its stream, and the four."""
    streams: List[_Stream] = []
    began = [threading.Event() for _ in range(4)]

    def run(index: int) -> None:
        streams.append(_ask(service.url, model, service.prompt(index * 1000, 8), length, began[index]))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for event in began:
        event.wait()
    crowded = _ask(service.url, model, prompt, 4)
    for thread in threads:
        thread.join()
    return crowded, streams


# ------------------------------------------------------------------------------------------------ processes


@dataclass
class _Service:
    """What is measured: a backend, or a balancer in front of some."""

    url: str
    backend: str  # the first one's own address
    pids: List[int]
    tokens_per_number: float  # of a prompt; it depends on the model's vocabulary

    def prompt(self, start: int, tokens: int) -> str:
        """Return a prompt of its own of about so many tokens."""
        return _numbers(start, max(1, round(tokens / self.tokens_per_number)))


@contextlib.contextmanager
def _served(
    model: ModelFile, config: Config, shapes: List[Tuple[int, int]], balanced: bool = False, context: int = 0
) -> Iterator[_Service]:
    """Run a backend for each (threads, slots), and a balancer in front where there is to be one."""
    context = context or 2 * config.prompt_tokens + config.tokens + 64
    running: List[subprocess.Popen] = []
    try:
        urls = []
        for threads, slots in shapes:
            arguments = ["--port=0", "--models=" + os.path.dirname(model.path), "--model=" + model.name]
            arguments += ["--threads=%d" % threads, "--slots=%d" % slots, "--ctx-size=%d" % context]
            arguments += ["--safe-mode"] if config.safe_mode else []
            running.append(_start("backend.py", arguments))
        for process in running:
            urls.append(_wait_for(process, "listening")["url"])
            _wait_for(process, "ready")
        url = urls[0]
        if balanced:
            running.append(_start("balancer.py", ["--port=0"] + ["--backend=" + each for each in urls]))
            url = _wait_for(running[-1], "listening")["url"]
            _wait_for_all(url, len(urls))
        sample = _ask(urls[0], model, _numbers(0, 4), 1)
        per_number = sample.summary["usage"]["prompt_tokens"] / 4
        yield _Service(url, urls[0], [process.pid for process in running], per_number)
    finally:
        for process in reversed(running):
            if process.stdin:
                process.stdin.close()
        for process in running:
            process.wait()
            if process.stdout:
                process.stdout.close()


def _start(program: str, arguments: List[str]) -> subprocess.Popen:
    command = [sys.executable, os.path.join(ROOT, program), "--child", "--drain-timeout=0"] + arguments
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _wait_for(process: subprocess.Popen, what: str) -> Dict[str, Any]:
    """Return a child's announcement of `what`. Ends the program if the child ends first."""
    for line in process.stdout or ():
        facts = json.loads(line.decode("utf-8"))
        if facts["event"] == what:
            return facts
    status = process.wait()
    options.fail("a process ended with status %d before it was ready%s" % (status, _advice(status)))


def _advice(status: int) -> str:
    return "; with --safe-mode it may work (README.md, 'Crash at first decode')" if status < 0 else ""


def _wait_for_all(url: str, count: int) -> None:
    """Wait until a balancer has found all its backends up."""
    client = Client()
    while json.loads(client.open(url + "/status").read_and_close().decode("utf-8"))["healthy_backends"] < count:
        time.sleep(0.05)
    client.close()


def _engine_seconds(url: str) -> Dict[str, float]:
    """Return what a backend's engine has spent its time on."""
    client = Client()
    facts = json.loads(client.open(url + "/status").read_and_close().decode("utf-8"))
    client.close()
    return facts["engine_seconds"]


def _python_share(before: Dict[str, float], after: Dict[str, float]) -> float:
    spent = {name: after[name] - before[name] for name in after}
    return 1 - (spent["decode"] + spent["sample"]) / spent["step"] if spent["step"] else 0.0


def _peak_memory(pid: int) -> int:
    """Return a process' largest resident set so far, in bytes; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        with open("/proc/%d/status" % pid, encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) * 1024
    return 0


# ----------------------------------------------------------------------------------------------- bare decode


def _bare_row(model: ModelFile, config: Config, sequences: int) -> Row:
    """Measure the bare loop in a process of its own."""
    command = [sys.executable, "-m", "core.commands.bench", "--bare=%d" % sequences, "--tokens=%d" % config.tokens]
    command += ["--models=" + os.path.dirname(model.path), "--model=" + model.name, "--threads=%d" % config.threads]
    command += ["--safe-mode"] if config.safe_mode else []
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE)
    if done.returncode:
        options.fail("the bare decode loop ended with status %d%s" % (done.returncode, _advice(done.returncode)))
    rate = json.loads(done.stdout.decode("utf-8"))["tokens_per_second"]
    return Row("bare decode", sequences, rate, rate)


def _bare_decode(model: ModelFile, config: Config) -> Dict[str, float]:
    """Decode one token of each of N sequences again and again. Imports llama_cpp: only in a process of its own."""
    from core.engine.llama import Context, Model, Run
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
