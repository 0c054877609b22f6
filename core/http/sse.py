"""Server-sent events: values as events. Source: the WHATWG standard, section 9.2.

    event(value)     one event, whose data is JSON
    Form             how the events of a stream are written; EVENTS is that of most APIs
"""

import json
from dataclasses import dataclass
from typing import Any, Callable

from core.errors import APIError
from core.http.messages import Pieces, Stream

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


@dataclass(frozen=True)
class Form:
    """How a stream is written: each event by `render`, at the end `done`, in silence `ping`, an error by `error`."""

    content_type: str = EVENT_STREAM
    render: Callable[[Any], bytes] = event
    error: Callable[[APIError], bytes] = error_event
    done: bytes = DONE
    ping: bytes = PING

    def stream(self, pieces: Pieces) -> Stream:
        """Return the Stream of pieces that have been written like this."""
        headers = (("Cache-Control", "no-cache"), ("X-Accel-Buffering", "no"))
        return Stream(pieces, 200, self.content_type, headers, self.ping, self.error)


EVENTS = Form()
