"""Server-sent events: values as events, and a stream of them. Source: the WHATWG standard, section 9.2.

    event(value)            one event, whose data is JSON
    event_stream(values)    a Stream of them
"""

import contextlib
import json
from typing import Any, Callable, Iterator

from core.errors import APIError
from core.http.messages import IDLE, Stream

EVENT_STREAM = "text/event-stream"
PING = b": ping\n\n"  # a comment: every client of server-sent events skips it
DONE = b"data: [DONE]\n\n"


def event(value: Any, name: str = "") -> bytes:
    """Return one server-sent event whose data is `value` as JSON."""
    head = b"event: %s\n" % name.encode("ascii") if name else b""
    return head + b"data: " + json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"


def error_event(error: APIError) -> bytes:
    """Return the server-sent event that ends a stream which failed."""
    return event(error.envelope())


def event_stream(
    values: Iterator[Any],
    done: bytes = DONE,
    render: Callable[[Any], bytes] = event,
    error: Callable[[APIError], bytes] = error_event,
) -> Stream:
    """Return a Stream of server-sent events: each value as `render` has it, then `done`; IDLE passes through."""
    headers = (("Cache-Control", "no-cache"), ("X-Accel-Buffering", "no"))
    return Stream(_events(values, done, render), 200, EVENT_STREAM, headers, PING, error)


def _events(values: Iterator[Any], done: bytes, render: Callable[[Any], bytes]) -> Iterator[Any]:
    with contextlib.closing(values):
        for value in values:
            yield value if value is IDLE else render(value)
        if done:
            yield done
