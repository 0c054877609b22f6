"""What the balancer costs: a mock backend, a load generator, and figures. Each is a process of its own, on raw sockets.

    python tests/load.py                  all figures, as lines of JSON
    python tests/load.py latency rate     some of them: latency, rate, burst, streams
    python tests/load.py choice scale     not among "all": a choice among 200 backends; 4 balancers before 200 backends
    python tests/load.py backend PORT     the mock backend;  backend 0 200 8: 200 of them with 8 slots each

The mock answers POST with a small JSON object, and POST /sse?n=150&every=0.2 with so many events, each of which tells
its number and when it was sent. It and the clients are one thread each with non-blocking sockets, so that on few cores
they take little from what is measured. The clients' times hold their own work, too. With slots, it tells balancers
which are free, as backends do (core/places.py), but lets none wait for a turn.
"""

import contextlib
import heapq
import json
import os
import re
import selectors
import socket
import subprocess
import sys
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BODY = b'{"model_name": "m", "prompt": "Once upon a time", "max_tokens": 16}'
ANSWER = b'{"response": "there was a king", "finish_reason": "stop"}'
sys.path.insert(0, ROOT)
_NAME = re.compile(rb"x-comeapi-balancer: *([^\r]*)", re.I)
_LENGTH = re.compile(rb"content-length: *(\d+)", re.I)


def post(path=b"/generate", body=BODY):
    """Return a request as bytes."""
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (path, len(body)) + body


# --------------------------------------------------------------------------------------------- the mock backend


class Mock:
    """Backends that do nothing, quickly, in one thread; or one. `gets` counts what is asked beside work."""

    def __init__(self, port, count=1, slots=10000):
        from core.places import Places

        self._selector = selectors.DefaultSelector()
        self._health = b'{"status": "ok", "slots": %d, "pid": 1, "model": "m"}' % slots
        self._places = {}  # of each listener
        for _ in range(count):
            listener = socket.create_server(("127.0.0.1", port), backlog=4096)
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)
            self._places[listener] = Places(slots)
        self.ports = [listener.getsockname()[1] for listener in self._places]
        self.gets = 0
        self._here = {}  # of each connection: its listener's places
        self._leave = {}  # of each stream: what gives its place back
        self._buffers = {}
        self._timers = []  # (when, tie, socket, next number, how many, seconds between)

    def run(self):
        while True:
            patience = max(0, self._timers[0][0] - time.monotonic()) if self._timers else None
            for key, _ in self._selector.select(patience):
                if key.fileobj in self._places:
                    self._accept(key.fileobj)
                else:
                    self._read(key.fileobj)
            while self._timers and self._timers[0][0] <= time.monotonic():
                self._event(*heapq.heappop(self._timers))

    def _accept(self, listener):
        sock, _ = listener.accept()
        self._here[sock] = self._places[listener]
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffers[sock] = b""
        self._selector.register(sock, selectors.EVENT_READ)

    def _read(self, sock):
        try:
            data = sock.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._close(sock)
            return
        data = self._buffers[sock] + data
        head, found, rest = data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        length = int(length.group(1)) if length else 0
        if found and len(rest) >= length:
            self._buffers[sock] = rest[length:]
            self._answer(sock, head)
        else:
            self._buffers[sock] = data

    def _answer(self, sock, head):
        from core.errors import APIError

        name, places = _NAME.search(head), self._here[sock]
        headers = {"x-comeapi-balancer": name.group(1).decode()} if name else {}
        told = "".join("%s: %s\r\n" % pair for pair in places.told(headers)).encode()
        stream = re.match(rb"POST /sse\?n=(\d+)&every=([\d.]+)", head)
        if stream:
            place = places.place(headers)
            try:
                place.__enter__()
            except APIError as error:
                told += "".join("%s: %s\r\n" % pair for pair in error.headers).encode()
                sock.send(b"HTTP/1.1 503 Full\r\n%bContent-Length: 0\r\n\r\n" % told)
                return
            self._leave[sock] = place
            kind = b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            sock.send(b"HTTP/1.1 200 OK\r\n" + told + kind)
            count, every = int(stream.group(1)), float(stream.group(2))
            first = time.monotonic() + every * (id(sock) % 997) / 997  # not all at the same moment
            heapq.heappush(self._timers, (first, id(sock), sock, 0, count, every))
            return
        body = self._looked_up(head) if head.startswith(b"GET ") else ANSWER
        kind = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        sock.send(b"HTTP/1.1 200 OK\r\n" + told + kind + body)

    def _looked_up(self, head):
        if head.startswith(b"GET /gets"):
            return b'{"gets": %d}' % self.gets
        self.gets += 1
        return self._health if head.startswith(b"GET /health") else b'{"models": [{"name": "m", "loaded": true}]}'

    def _event(self, when, tie, sock, number, count, every):
        data = b'data: {"n": %d, "t": %.6f, "response": " word"}\n\n' % (number, time.monotonic())
        chunk = b"%x\r\n%b\r\n" % (len(data), data)
        last = number + 1 == count
        if last and sock in self._leave:
            self._leave.pop(sock).__exit__(None, None, None)
        try:
            sock.send(chunk + b"0\r\n\r\n" if last else chunk)
        except OSError:
            return
        if not last:
            heapq.heappush(self._timers, (when + every, tie, sock, number + 1, count, every))

    def _close(self, sock):
        if sock in self._leave:
            self._leave.pop(sock).__exit__(None, None, None)
        del self._here[sock]
        self._selector.unregister(sock)
        del self._buffers[sock]
        sock.close()


# ------------------------------------------------------------------------------------------------- the clients


def connect(port):
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def whole(data):
    """Whether an answer with a Content-Length has arrived whole."""
    head, found, rest = data.partition(b"\r\n\r\n")
    length = _LENGTH.search(head)
    return bool(found) and length is not None and len(rest) >= int(length.group(1))


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))]


def latencies(port, count):
    """Return the seconds of so many requests, one after another on one connection."""
    sock, request, times = connect(port), post(), []
    for _ in range(count):
        started = time.perf_counter()
        sock.sendall(request)
        data = sock.recv(65536)
        while not whole(data):
            data += sock.recv(65536)
        times.append(time.perf_counter() - started)
        assert data.startswith(b"HTTP/1.1 200"), data[:200]
    sock.close()
    return times


def latency(port, mock_port, count=4000):
    """What one kept-alive client waits more than without the balancer, in milliseconds."""
    for each in (port, mock_port):
        latencies(each, 300)
    through, direct = latencies(port, count), latencies(mock_port, count)
    figures = {"requests": count}
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        figures["direct_%s_ms" % name] = percentile(direct, share) * 1e3
        figures["through_%s_ms" % name] = percentile(through, share) * 1e3
        figures["added_%s_ms" % name] = (percentile(through, share) - percentile(direct, share)) * 1e3
    return figures


def rate(port, clients=16, seconds=5.0):
    """Requests a second of so many kept-alive clients."""
    selector, request = selectors.DefaultSelector(), post()
    buffers, done, bad = {}, 0, 0
    for _ in range(clients):
        sock = connect(port)
        buffers[sock] = b""
        selector.register(sock, selectors.EVENT_READ)
        sock.sendall(request)
    started = time.monotonic()
    while time.monotonic() < started + seconds:
        for key, _ in selector.select(1):
            sock = key.fileobj
            buffers[sock] += sock.recv(65536)
            if whole(buffers[sock]):
                bad += not buffers[sock].startswith(b"HTTP/1.1 200")
                done += 1
                buffers[sock] = b""
                sock.sendall(request)
    elapsed = time.monotonic() - started
    for sock in buffers:
        sock.close()
    return {"clients": clients, "requests_per_second": done / elapsed, "errors": bad}


def burst(port, count):
    """So many new connections at once, a request each."""
    selector, request, sockets = selectors.DefaultSelector(), post(), []
    started = time.monotonic()
    for _ in range(count):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", port))
        selector.register(sock, selectors.EVENT_WRITE, [b""])
        sockets.append(sock)
    good, bad = 0, 0
    while good + bad < count and time.monotonic() < started + 60:
        for key, events in selector.select(1):
            sock = key.fileobj
            try:
                if events & selectors.EVENT_WRITE:
                    sock.send(request)
                    selector.modify(sock, selectors.EVENT_READ, key.data)
                    continue
                data = sock.recv(65536)
            except OSError:
                data = b""
            key.data[0] += data
            if not data or whole(key.data[0]):
                selector.unregister(sock)
                if data and key.data[0].startswith(b"HTTP/1.1 200"):
                    good += 1
                else:
                    bad += 1
    for sock in sockets:
        sock.close()
    return {"connections": count, "errors": count - good, "seconds": time.monotonic() - started}


_EVENT = re.compile(rb'data: \{"n": (\d+), "t": ([\d.]+)')


def streams(ports, count=1000, events=150, every=0.2):
    """So many streams at once: what was lost, and how late the events came, from their sending to their reading."""
    selector = selectors.DefaultSelector()
    request = post(b"/sse?n=%d&every=%g" % (events, every))
    states = {}
    for number in range(count):
        sock = connect(ports[number % len(ports)])
        states[sock] = [b"", 0, True, False]  # the rest of the data, events so far, in order, ended
        selector.register(sock, selectors.EVENT_READ)
        sock.sendall(request)
    delays, left = [], count
    deadline = time.monotonic() + events * every * 3 + 60
    while left and time.monotonic() < deadline:
        for key, _ in selector.select(1):
            sock = key.fileobj
            state = states[sock]
            try:
                data = sock.recv(65536)
            except OSError:
                data = b""
            now = time.monotonic()
            buffer = state[0] + data
            end = 0
            for match in _EVENT.finditer(buffer):
                state[2] = state[2] and int(match.group(1)) == state[1]
                state[1] += 1
                delays.append(now - float(match.group(2)))
                end = match.end()
            state[0] = buffer[end:]
            state[3] = state[0].endswith(b"0\r\n\r\n")
            if state[3] or not data:
                selector.unregister(sock)
                left -= 1
    for sock in states:
        sock.close()
    whole_ones = sum(state[1] == events and state[2] and state[3] for state in states.values())
    return {
        "streams": count,
        "events": len(delays),
        "lost_streams": count - whole_ones,
        "delay_p50_ms": percentile(delays, 0.5) * 1e3,
        "delay_p99_ms": percentile(delays, 0.99) * 1e3,
        "delay_max_ms": max(delays) * 1e3,
    }


# ------------------------------------------------------------------------------------------------- many backends


def choice(count=200, slots=8):
    """How long a pool takes for a request at half load, from its coming to its leaving: CPU time, in microseconds."""
    from core.balancing.backends import Report
    from core.balancing.membership import Membership
    from core.balancing.policies import POLICIES
    from core.balancing.pool import Pool
    from core.balancing.probing import Probing
    from core.balancing.request import Wish, beginnings, head_of
    from core.balancing.specs import Spec
    from core.places import Told

    figures = {"backends": count, "slots": slots}
    for policy, shared in (("round-robin", False), ("least-busy", False), ("prefix", False), ("prefix", True)):
        pool = Pool(POLICIES[policy]())
        Membership(pool, [Spec("http://10.0.0.%d:8080" % number) for number in range(count)])
        probing, models = Probing(pool), [{"name": "m", "loaded": True}]
        for backend in probing.due(0):
            probing.probed(backend, Report(True, slots=slots, model="m", told=True, models=models, life=1), 30)
        wishes = []
        for number in range(count * slots // 2):
            fields = {"model": "m", "prompt": "%05d " % number * 200}
            wishes.append(Wish("", "m", True, beginnings(fields), head_of(fields) if shared else 0))
            pool.request(wishes[-1], set())
        started = time.process_time()
        for wish in wishes[:500]:
            ticket = pool.request(wish, set())
            pool.told(ticket.backend, Told(slots, 0))
            pool.answered(ticket.backend, 0.1, 200)
            pool.release(ticket)
        name = policy + (", several balancers" if shared else "")
        figures[name + " us"] = (time.process_time() - started) / len(wishes[:500]) * 1e6
    return figures


def processor_seconds(pid):
    with open("/proc/%d/stat" % pid) as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def get(port, path):
    with urllib.request.urlopen("http://127.0.0.1:%d%s" % (port, path), timeout=30) as answer:
        return answer.read()


def scale(backends=200, slots=8, balancers=4, clients=100, events=200, every=0.05, quiet=60.0):
    """Several balancers before many backends: at rest, then with streams at 20 tokens a second."""
    setup = Setup(backends=backends, slots=slots, balancers=balancers)
    try:
        feed = urllib.request.urlopen("http://127.0.0.1:%d/events" % setup.ports[0], timeout=30)
        history, now = (sum(map(len, iter(feed.readline, b"\n"))) for _ in range(2))
        feed.close()
        time.sleep(5)  # looks for the page end
        pids = [each.pid for each in setup.balancers]
        gets, used = json.loads(get(setup.mock_port, "/gets"))["gets"], [processor_seconds(pid) for pid in pids]
        time.sleep(quiet)
        used = [(processor_seconds(pid) - before) / quiet * 100 for pid, before in zip(pids, used)]
        probes = (json.loads(get(setup.mock_port, "/gets"))["gets"] - gets) / quiet
        before, started = [processor_seconds(pid) for pid in pids], time.monotonic()
        figures = streams(setup.ports, clients, events, every)
        seconds = time.monotonic() - started
        busy = [(processor_seconds(pid) - was) / seconds * 100 for pid, was in zip(pids, before)]
        rest = {
            "backends": backends, "slots": slots, "balancers": balancers, "probes_per_second": probes,
            "balancer_idle_cpu_percent": max(used), "balancer_busy_cpu_percent": max(busy),
            "balancer_megabytes": max(memory(pid)[0] for pid in pids), "status_bytes": len(get(setup.port, "/status")),
            "feed_history_bytes": history, "feed_bytes_per_second": now,
        }  # fmt: skip
        return dict(figures, **rest, **{"rate_" + name: value for name, value in rate(setup.port, 16).items()})
    finally:
        setup.close()


# ------------------------------------------------------------------------------------------------- the figures


def start(command, said):
    """Start a process; return it and the line that says `said`."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    for line in process.stdout:
        if said in line:
            return process, json.loads(line.decode())
    raise SystemExit("%s did not start" % command)


def memory(pid):
    """Return a process' memory in megabytes, and its threads, at this moment."""
    with open("/proc/%d/status" % pid) as status:
        facts = dict(line.split(":", 1) for line in status)
    return int(facts["VmRSS"].split()[0]) / 1024, int(facts["Threads"])


def let_it_roam(pid):
    """Let a balancer run on all cores, as `--one-core off` does."""
    for thread in os.listdir("/proc/%d/task" % pid):
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.sched_setaffinity(int(thread), os.sched_getaffinity(0))


class Setup:
    """Mock backends, or one, and balancers in front of them, or one."""

    def __init__(self, *options, backends=1, slots=10000, balancers=1):
        mock = [sys.executable, os.path.abspath(__file__), "backend", "0", str(backends), str(slots)]
        self.mock, facts = start(mock, b"ports")
        self.mock_port = facts["ports"][0]
        command = [sys.executable, os.path.join(ROOT, "balancer.py"), "--child", "--port", "0", *options]
        for port in facts["ports"]:
            command += ["--backend", "http://127.0.0.1:%d" % port]
        self.balancers, self.ports = [], []
        for _ in range(balancers):
            balancer, facts = start(command, b'"listening"')
            self.balancers.append(balancer)
            self.ports.append(int(facts["url"].rpartition(":")[2]))
        self.balancer, self.port = self.balancers[0], self.ports[0]
        for balancer in self.balancers:
            for _ in range(backends):
                while b'"up"' not in balancer.stdout.readline():
                    pass

    def close(self):
        for process in (*self.balancers, self.mock):
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


def measure(which, setup):
    """Return one kind's figures."""
    if which == "latency":
        return latency(setup.port, setup.mock_port)
    if which == "rate":
        figures = dict(rate(setup.port), direct_requests_per_second=rate(setup.mock_port)["requests_per_second"])
        let_it_roam(setup.balancer.pid)
        return dict(figures, on_all_cores_requests_per_second=rate(setup.port)["requests_per_second"])
    if which == "burst":
        return {"bursts": [burst(setup.port, 64), burst(setup.port, 500)]}
    code = "import json, load; print(json.dumps(load.streams([%d])))" % setup.port
    reader = subprocess.Popen(
        [sys.executable, "-c", code], cwd=os.path.dirname(os.path.abspath(__file__)), stdout=subprocess.PIPE
    )
    most = (0.0, 0)
    while reader.poll() is None:
        most = tuple(map(max, most, memory(setup.balancer.pid)))
        time.sleep(0.5)
    with reader.stdout:
        figures = json.loads(reader.stdout.read().decode())
    return dict(figures, balancer_megabytes=most[0], balancer_threads=most[1])


def main():
    if sys.argv[1:2] == ["backend"]:
        mock = Mock(*map(int, sys.argv[2:]))
        print(json.dumps({"ports": mock.ports}), flush=True)
        mock.run()
    with open("/proc/loadavg") as load:
        print(json.dumps({"load_average": load.read().split()[0], "cores": os.cpu_count()}))
    for which in sys.argv[1:] or ("latency", "rate", "burst", "streams"):
        if which in ("choice", "scale"):
            figures = choice() if which == "choice" else scale()
        else:
            setup = Setup()
            try:
                figures = measure(which, setup)
            finally:
                setup.close()
        rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}
        print(json.dumps(dict({"what": which}, **rounded)), flush=True)


if __name__ == "__main__":
    main()
