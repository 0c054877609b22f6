"""A backend to be killed, stopped and slowed: chaos_backend.py PORT. Eight slots; SIGUSR1 makes it ten times slower, or
as fast again. POST /plain takes up to 0.2 s, POST /stream sends 20 events, each with its number, /long a million."""

import os
import random
import signal
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from core.service import Config, Route, Service, event_stream, json_reply  # noqa: E402

pace = [1.0]


def wait(seconds):
    threading.Event().wait(seconds * pace[0])


def plain(request):
    wait(random.random() * 0.2)
    return json_reply({"echo": request.json()["n"]})


def numbers(count=20):
    for number in range(count):
        wait(0.02)
        yield {"n": number}


def main():
    routes = [
        Route("GET", "/health", lambda request: json_reply({"status": "ok", "slots": 8, "pid": os.getpid()})),
        Route("POST", "/plain", plain),
        Route("POST", "/stream", lambda request: event_stream(numbers())),
        Route("POST", "/long", lambda request: event_stream(numbers(10**6))),
    ]
    signal.signal(signal.SIGUSR1, lambda *_: pace.reverse())
    pace.append(10.0)
    Service(Config(port=int(sys.argv[1])), routes).start()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
