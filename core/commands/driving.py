"""One client of a server that is measured: it asks by llama.cpp's own API, and notes when each token comes.

    numbers(start, count)    a prompt that no other one shares its beginning with
    ask(url, prompt, tokens) ──> Stream
"""

import json
import re
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

from core.http.client import Client

_JSON = {"Content-Type": "application/json"}
_GOES_ON, _ENDS = re.compile(b'"stop": ?false'), re.compile(b'"stop": ?true')


@dataclass
class Stream:
    """What one client saw of one answer: when each event came, and the server's own account."""

    started: float
    moments: List[float] = field(default_factory=list)
    summary: Dict[str, Any] = field(default_factory=dict)


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
