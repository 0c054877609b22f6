"""What the hostile tables share: raw sockets, servers under attack, and the reading of what came back.

    talk(port, data)     send bytes, read the answers, find out whether the connection was kept
    Fort                 a server under attack: started again where an attack has killed it, so that one death is told
                         by the one case that did it
    Script, Upstream     a backend that answers each request with the bytes it is given
    expect               compares what came with a line such as "400/431 close"
"""

import contextlib
import json
import os
import re
import signal
import socket
import struct
import threading
import time

from conftest import Program, running

PATIENCE = 20  # seconds after which a server that does not answer counts as hung
HOST = b"Host: 127.0.0.1\r\n"
FUZZED = {"cases": 0, "slowest": 0.0}  # what test_fuzz.py has tried, and the seconds of the slowest case
PROBE = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Request-Id: probe\r\n\r\n"


class Hung(AssertionError):
    """The server neither answered nor closed the connection in time."""


# ------------------------------------------------------------------------------------------------ raw sockets


class Reply:
    """One answer as it came over the wire."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def header(self, name):
        """Return a header's value, or an empty text. Two of one name are a fault that no server may show."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) <= 1, values
        return values[0] if values else ""

    @property
    def json(self):
        return json.loads(self.body.decode("utf-8"))

    @property
    def error(self):
        """The error object; its four fields must be there, and llama-server's numbers at most."""
        error = self.json["error"]
        assert set(error) - {"n_prompt_tokens", "n_ctx"} == {"message", "type", "param", "code"}, error
        return error


class Line:
    """A connection, and what was read from it and is not used yet."""

    def __init__(self, port, patience=PATIENCE):
        self.sock = socket.create_connection(("127.0.0.1", port), patience)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def send(self, data):
        """Send what the server takes; it may close before it has taken all."""
        with contextlib.suppress(ConnectionError):
            self.sock.sendall(data)

    def half_close(self):
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def reset(self):
        """Close with a reset instead of an end."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def more(self):
        """Read on; False at the end. Raises Hung."""
        try:
            data = self.sock.recv(1 << 16)
        except socket.timeout:
            raise Hung("neither an answer nor an end; so far: %r" % self.buffer[:200])
        except ConnectionError:
            return False
        self.buffer += data
        return bool(data)

    def reply(self, head=False):
        """Return the next answer, or None at the end. Raises Hung."""
        while b"\r\n\r\n" not in self.buffer:
            if not self.more():
                assert not self.buffer, "an end in the middle of a head: %r" % self.buffer[:200]
                return None
        top, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        lines = top.decode("latin-1").split("\r\n")
        match = re.fullmatch(r"HTTP/1\.1 (\d{3}) [ -~]*", lines[0])
        assert match, "no status line: %r" % lines[0][:200]
        pairs = []
        for line in lines[1:]:
            field = re.fullmatch(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+): ?([\t -~\x80-\xff]*)", line)
            assert field, "not a header: %r" % line[:200]
            pairs.append(field.groups())
        reply = Reply(int(match.group(1)), pairs, b"")
        if not head and reply.status >= 200 and reply.status not in (204, 304):
            reply.body = self._body(reply)
        return reply

    def _body(self, reply):
        if reply.header("transfer-encoding"):
            return b"".join(iter(self._chunk, b""))
        if reply.header("content-length"):
            return self._take(int(reply.header("content-length")))
        while self.more():
            pass
        body, self.buffer = self.buffer, b""
        return body

    def _chunk(self):
        while b"\r\n" not in self.buffer:
            assert self.more(), "an end in the middle of chunks"
        size, _, self.buffer = self.buffer.partition(b"\r\n")
        return self._take(int(size, 16) + 2)[:-2]

    def _take(self, count):
        while len(self.buffer) < count:
            assert self.more(), "%d bytes of the body are missing" % (count - len(self.buffer))
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def fate(self):
        """Return "keep" where the connection takes another request, "close" where it has ended. Raises Hung."""
        self.send(PROBE)
        with contextlib.suppress(ConnectionError):
            reply = self.reply()
            if reply is not None:
                assert reply.header("x-request-id") == "probe", "an answer that nobody asked for: %d" % reply.status
                return "keep"
        return "close"


def talk(port, data, answers=1, head=False, half=False, patience=PATIENCE):
    """Send bytes; return the answers, at most so many, and the connection's fate: "keep" or "close".

    Interim answers (1xx), which any request may get, are left out.
    """
    with Line(port, patience) as line:
        line.send(data)
        if half:
            line.half_close()
        replies = []
        while len(replies) < answers:
            reply = line.reply(head)
            if reply is None:
                return replies, "close"
            if reply.status >= 200:
                replies.append(reply)
        return replies, line.fate()


def post(port, path, body, headers=b"", patience=PATIENCE):
    """POST a body, JSON unless it is bytes; return the answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode("utf-8")
    head = b"POST %b HTTP/1.1\r\n%bContent-Length: %d\r\nConnection: close\r\n%b\r\n" % (
        path.encode("latin-1"), b"" if b"Host:" in headers else HOST, len(data), headers,
    )  # fmt: skip
    with Line(port, patience) as line:
        line.send(head + data)
        reply = line.reply()
    assert reply is not None, "closed without an answer"
    return reply


def get(port, path="/health", headers=b"", patience=PATIENCE, method=b"GET"):
    """GET a path; return the answer."""
    with Line(port, patience) as line:
        head = b"%b %b HTTP/1.1\r\n%bConnection: close\r\n%b\r\n"
        line.send(head % (method, path.encode("latin-1"), b"" if b"Host:" in headers else HOST, headers))
        reply = line.reply(method == b"HEAD")
    assert reply is not None, "closed without an answer"
    return reply


def statuses(text):
    """Return the statuses of "400/431"."""
    return {int(each) for each in text.split("/")}


def expect(replies, fate, wanted):
    """Check answers against a line such as "200 400/431 close", or "200 any" where either fate is right."""
    *texts, end = wanted.split()
    got = " ".join([str(reply.status) for reply in replies] + [fate])
    right = len(replies) == len(texts) and all(
        reply.status in statuses(text) for reply, text in zip(replies, texts)
    )
    assert right and end in (fate, "any"), "got %r, not %r: %r" % (got, wanted, [each.body[:300] for each in replies])
    for reply in replies:
        if reply.status >= 400 and reply.body:
            assert reply.error["message"] and len(reply.body) < 4096, reply.body[:300]


# ------------------------------------------------------------------------------------------- under attack


class Fort:
    """A server under attack. `good(fort)` sends a good request and checks its answer."""

    def __init__(self, name, arguments, good=None, ready="listening"):
        self._command = (name,) + tuple(arguments)
        self._good = good or (lambda fort: get(fort.port))
        self._ready = ready
        self.program = None
        self.port = 0
        self.start()

    def start(self):
        self.program = Program(*self._command)
        url = self.program.wait_for_event("listening")["url"]
        if self._ready != "listening":
            self.program.wait_for_event(self._ready)
        self.port = self.port or int(url.rpartition(":")[2])
        self._command = tuple(self.port if each == 0 else each for each in self._command)  # the same one next time

    @property
    def pid(self):
        return self.program.pid

    def alive(self):
        """Whether the process is there."""
        return self.program.process.poll() is None and running(self.pid)

    def check(self):
        """Assert that the process is there and answers a good request; put another in its place where not."""
        try:
            assert self.alive(), "it died: %s\n%s" % (self.program.process.poll(), "\n".join(self.program.errors[-15:]))
            assert self._good(self).status == 200, "the next good request was not answered"
        except Exception:
            self.replace()
            raise

    def replace(self):
        """Start another one in its place."""
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
        self.program.close()
        self.start()

    def memory(self):
        """Return the resident memory in MiB."""
        with open("/proc/%d/status" % self.pid) as status:
            return int(re.search(r"VmRSS:\s+(\d+) kB", status.read()).group(1)) / 1024

    def close(self):
        self.program.close()


def small_generate(fort):
    """A good request that reaches the engine."""
    return post(fort.port, "/generate", {"model_name": "demo.gguf", "prompt": "Hi", "max_tokens": 1})


@contextlib.contextmanager
def unharmed(*forts):
    """Check after a case that each server is the same process and answers; also where the case itself failed."""
    try:
        yield
    except Hung:
        for fort in forts:
            with contextlib.suppress(Exception):
                fort.check()
        raise
    for fort in forts:
        fort.check()


# ---------------------------------------------------------------------------------------------- upstreams

FINE = b'{"status": "ok", "slots": 4, "model": "m.gguf"}'
MODELS = b'{"models": [{"name": "m.gguf", "loaded": true}]}'


def answer(body, head=b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"):
    """Return a well-formed answer's bytes."""
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


class Upstream:
    """A backend that answers requests with the bytes it is given, on a port of its own.

    `script` maps the first words of a request ("GET /health", …; "" for any other) to bytes, to an iterator's maker
    that yields pieces of bytes (maybe for ever), or to None, which never answers. `heads` keeps what was asked.
    """

    def __init__(self, script, linger=0.0, read_body=True):
        self.script = dict({"GET /health": answer(FINE), "GET /models": answer(MODELS)}, **script)
        self.heads = []
        self.bodies = []
        self._linger = linger  # seconds that a connection stays open after its answer
        self._read_body = read_body
        self._closed = threading.Event()
        self._sock = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._sock.getsockname()[1]
        self.url = "http://127.0.0.1:%d" % self.port
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock):
        with sock, contextlib.suppress(OSError, ValueError):
            sock.settimeout(60)
            buffer = b""
            while not self._closed.is_set():
                while b"\r\n\r\n" not in buffer:
                    data = sock.recv(65536)
                    if not data:
                        return
                    buffer += data
                head, _, buffer = buffer.partition(b"\r\n\r\n")
                self.heads.append(head)
                length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
                count = int(length.group(1)) if length else 0
                while self._read_body and len(buffer) < count:
                    buffer += sock.recv(65536)
                body, buffer = buffer[:count], buffer[count:]
                self.bodies.append(body)
                if not self._answer(sock, head):
                    self._closed.wait(self._linger)
                    return

    def _answer(self, sock, head):
        """Answer one request; False where the connection is to be closed after it."""
        names = [name for name in self.script if name and head.startswith(name.encode())]
        what = self.script[names[0]] if names else self.script.get("", answer(b'{"fine": true}'))
        if what is None:
            self._closed.wait(60)
            return False
        pieces = what() if callable(what) else [what]
        for piece in pieces:
            if self._closed.is_set():
                return False
            sock.sendall(piece)
        return bool(names) or what is self.script.get("good")

    def close(self):
        self._closed.set()
        self._sock.close()


def pieces(data, count, every=0.0):
    """Return a maker of `count` times the same bytes, `every` so many seconds apart."""

    def make():
        for _ in range(count):
            yield data
            if every:
                time.sleep(every)

    return make
