"""A backend to be killed, stopped and slowed: chaos_backend.py PORT. Eight slots; SIGUSR1 makes it ten times slower, or
as fast again. POST /plain takes up to 0.2 s, or `seconds`; POST /stream sends 20 events, each with its number, /long a
million. A body that holds POISON ends the process, a stream's after five events."""

import os
import random
import signal
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from streams import event_stream  # noqa: E402

from core.http.messages import json_reply  # noqa: E402
from core.http.routing import Route  # noqa: E402
from core.http.server import ServerConfig, Service  # noqa: E402
from core.jsonbody import read_json  # noqa: E402

pace = [1.0]


def wait(seconds):
    threading.Event().wait(seconds * pace[0])


def plain(request):
    body = read_json(request.body)
    wait(body.get("seconds", random.random() * 0.2))
    die_of(request)
    return json_reply({"echo": body["n"], "pid": os.getpid()})


def numbers(request, count=20):
    for number in range(count):
        wait(0.02)
        if number == 5:
            die_of(request)
        yield {"n": number}


def die_of(request):
    if b"POISON" in request.body:
        os._exit(1)


def main():
    routes = [
        Route("GET", "/health", lambda request: json_reply({"status": "ok", "slots": 8, "pid": os.getpid()})),
        Route("POST", "/plain", plain),
        Route("POST", "/stream", lambda request: event_stream(numbers(request))),
        Route("POST", "/long", lambda request: event_stream(numbers(request, 10**6))),
    ]
    signal.signal(signal.SIGUSR1, lambda *_: pace.reverse())
    pace.append(10.0)
    Service(ServerConfig(port=int(sys.argv[1]), max_body=16 << 20), routes).start()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
