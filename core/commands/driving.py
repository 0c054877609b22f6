"""The clients of a server that is measured: they ask by llama.cpp's own API, and note when each token comes.

    numbers(start, count)                     a prompt that no other one shares its beginning with
    ask(url, prompt, tokens) ──> Stream       one answer
    warm_up(service, prompt_tokens)                      before anything is measured
    drive(shape, service, load, clients) ──> Row         so many clients at once
"""

import contextlib
import json
import re
import statistics
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Optional, Protocol

from core import options
from core.http.client import Client

_JSON = {"Content-Type": "application/json"}
_GOES_ON, _ENDS = re.compile(b'"stop": ?false'), re.compile(b'"stop": ?true')


@dataclass
class Stream:
    """What one client saw of one answer: when each event came, and the server's own account."""

    started: float
    moments: List[float] = field(default_factory=list)
    summary: Dict[str, Any] = field(default_factory=dict)


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


@dataclass(frozen=True)
class Load:
    """What each client asks for: so many requests of so many tokens; every `mixed`-th has a prompt of `long_prompt`."""

    requests: int = 1
    tokens: int = 32
    prompt_tokens: int = 32
    mixed: int = 0
    long_prompt: int = 0


def prompt_sizes(load: Load, index: int) -> Iterator[int]:
    """Yield the tokens of each prompt of the client with this number."""
    for number in range(load.requests):
        long = load.mixed and (index + number) % load.mixed == 0
        yield load.long_prompt if long else load.prompt_tokens


def room(load: Load) -> int:
    """Return the size of a context that holds each of the prompts and its answer; tokenizers differ."""
    return 2 * max(load.prompt_tokens, load.long_prompt if load.mixed else 0) + load.tokens + 64


class Served(Protocol):
    """A server that runs (serving.py)."""

    url: str
    pids: List[int]

    def prompt(self, start: int, tokens: int) -> str:
        """Return a prompt of its own of about so many tokens."""

    def engine_seconds(self) -> Dict[str, float]:
        """Return what its engine has spent its time on; nothing where that is not told."""


def numbers(start: int, count: int) -> str:
    """Return a prompt whose beginning no other prompt shares: numbers of seven digits."""
    return " ".join("%d" % (10**6 + start + n) for n in range(count))


def ask(url: str, prompt: str, tokens: int, begun: Optional[threading.Event] = None) -> Stream:
    """Send one request and note when each token came; `begun` is set with the first one.

    It goes by llama.cpp's own API, which its server and ours have alike.
    """
    body = {"prompt": prompt, "n_predict": tokens, "stream": True, "ignore_eos": True, "cache_prompt": False}
    client = Client()
    stream = Stream(time.monotonic())
    answer = client.open(url + "/completion", "POST", _JSON, json.dumps(body).encode(), timeout=600)
    received = b""
    for piece in answer.pieces():
        received += piece
        if _GOES_ON.search(piece):
            stream.moments.append(time.monotonic())
            if begun:
                begun.set()
    client.close()
    last = [event for event in received.split(b"\n\n") if _ENDS.search(event)]
    if answer.status == 200 and last:
        stream.summary = json.loads(last[0][len(b"data: ") :].decode("utf-8"))
    return stream


def warm_up(service: Served, prompt_tokens: int) -> None:
    """Let a service make what it makes at its first requests."""
    drive("warm-up", service, Load(tokens=32, prompt_tokens=prompt_tokens), 4)


def drive(shape: str, service: Served, load: Load, clients: int) -> Row:
    """Measure one number of clients against a service that is running, under a load."""
    streams: List[Stream] = []
    before = service.engine_seconds()
    threads = [threading.Thread(target=_client, args=(service, load, index, streams)) for index in range(clients)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - started
    if len(streams) != clients * load.requests:
        options.fail(
            "%s with %d clients: %d requests failed" % (shape, clients, clients * load.requests - len(streams))
        )
    generated = sum(stream.summary["tokens_predicted"] for stream in streams)
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
        python_share=_python_share(before, service.engine_seconds()),
    )


def _client(service: Served, load: Load, index: int, streams: List[Stream]) -> None:
    """Send one request after another, each with a prompt of its own."""
    for number, size in enumerate(prompt_sizes(load, index)):
        prompt = service.prompt(index * 7919 + number * 104729, size)
        stream = ask(service.url, prompt, load.tokens)
        if stream.summary:
            streams.append(stream)


def _python_share(before: Dict[str, float], after: Dict[str, float]) -> float:
    spent = {name: after[name] - before[name] for name in after}
    return 1 - (spent["decode"] + spent["sample"]) / spent["step"] if spent.get("step") else 0.0


def _peak_memory(pid: int) -> int:
    """Return a process' largest resident set so far, in bytes; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        with open("/proc/%d/status" % pid, encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) * 1024
    return 0
