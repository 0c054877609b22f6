"""A web server of files on loopback that misbehaves as it is told: cuts, stalls, redirects, lies."""

import hashlib
import http.server
import json
import re
import threading


class Host:
    """Serves `files` (path → bytes), with Range and If-Range. `tricks` are taken one by one, a request each.

    A trick is a function that is given the request handler and the file's bytes, and answers. Those of `api_tricks`
    answer what is asked of a repository. Every request is noted in `seen` as (path, headers). `release` ends stalls.
    """

    def __init__(self):
        self.files, self.tricks, self.api_tricks, self.seen = {}, [], [], []
        self.repositories = {}
        self.etag = '"first"'
        self.release = threading.Event()
        host = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                host.seen.append((self.path, self.headers))
                host.answer(self)

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = "http://127.0.0.1:%d" % self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.release.set()
        self.server.shutdown()
        self.server.server_close()

    def add(self, repository, commit="a" * 40, **files):
        """Add a repository with files (name with __ for a dot → bytes)."""
        named = {name.replace("__", ".").replace("_SLASH_", "/"): data for name, data in files.items()}
        self.list_as(repository, [_sibling(name, data) for name, data in named.items()], commit)
        for name, data in named.items():
            self.files["/%s/resolve/%s/%s" % (repository, commit, name)] = data

    def list_as(self, repository, siblings, commit="a" * 40):
        self.repositories["/api/models/%s/revision/main" % repository] = {"sha": commit, "siblings": siblings}

    def requests_for(self, part):
        return [headers for path, headers in self.seen if part in path]

    def answer(self, handler):
        path = handler.path.partition("?")[0]
        if path.startswith("/api/") and self.api_tricks:
            return self.api_tricks.pop(0)(handler, b"")
        if path in self.repositories:
            return say(handler, 200, json.dumps(self.repositories[path]).encode())
        if path not in self.files:
            return say(handler, 404, b"")
        if self.tricks:
            return self.tricks.pop(0)(handler, self.files[path])
        self.serve(handler, self.files[path])

    def serve(self, handler, data):
        """Answer as a good server does."""
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        same = handler.headers.get("If-Range", self.etag) == self.etag
        if not asked or not same:
            return say(handler, 200, data, ETag=self.etag)
        first = int(asked.group(1))
        if first >= len(data):
            return say(handler, 416, b"")
        span = "bytes %d-%d/%d" % (first, len(data) - 1, len(data))
        say(handler, 206, data[first:], ETag=self.etag, Content_Range=span)

    # ---- tricks

    def cut(self, after):
        """Close the connection after so many bytes of the body."""

        def trick(handler, data):
            asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
            first = int(asked.group(1)) if asked else 0
            body = data[first:]
            head = {"Content_Range": "bytes %d-%d/%d" % (first, len(data) - 1, len(data))} if asked else {}
            say(handler, 206 if asked else 200, body[:after], length=len(body), ETag=self.etag, **head)
            handler.close_connection = True

        return trick

    def pause(self, after):
        """Send so many bytes, then wait for `release`, then send the rest."""

        def trick(handler, data):
            say(handler, 200, data[:after], length=len(data), ETag=self.etag)
            handler.wfile.flush()
            self.release.wait(60)
            handler.wfile.write(data[after:])

        return trick

    def stall(self, after):
        """Send so many bytes, then nothing, until the test is over."""

        def trick(handler, data):
            say(handler, 200, data[:after], length=len(data), ETag=self.etag)
            handler.wfile.flush()
            self.release.wait(60)
            handler.close_connection = True

        return trick


def _sibling(name, data):
    return {"rfilename": name, "size": len(data), "lfs": {"sha256": hashlib.sha256(data).hexdigest()}}


def say(handler, status, body, length=None, **headers):
    """Answer with a status, headers (with _ for -) and a body; `length` may lie."""
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    try:
        handler.wfile.write(body)
    except OSError:  # the client has had enough
        handler.close_connection = True


def status(number, **headers):
    """Return a trick: answer with this status."""
    return lambda handler, data: say(handler, number, b"", **headers)
