"""Streams of server-sent events, as the tests' own servers give them."""

from core.http.sse import EVENTS, event


def event_stream(values):
    """Return a Stream of values, one event each, and the last event that OpenAI's clients wait for."""
    return EVENTS.stream(_events(values))


def _events(values):
    try:
        for value in values:
            yield event(value)
        yield EVENTS.done
    finally:
        getattr(values, "close", list)()
