"""A service that says what a test tells it to: /status, /models, and a chat that comes word by word."""

import http.server
import json
import threading

HEALTHY = {
    "url": "http://127.0.0.1:8080", "healthy": True, "state": "up", "why": "ok", "model": "m.gguf", "in_flight": 1,
    "capacity": 4, "avg_response_time": 0.012, "requests": 7, "error_count": 0,
}  # fmt: skip


class FakeService:
    """`words` are what the next answers say; an Event among them is waited for. `bodies` are what was asked."""

    def __init__(self):
        self.backends, self.queued = [HEALTHY], 0
        self.words = ["Hello", " there"]
        self.bodies, self.keys = [], []
        self.refusal = None
        self.left = threading.Event()  # a client has gone away in the middle of an answer
        self.release = threading.Event()
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                service.keys.append(self.headers.get("Authorization"))
                if self.path == "/models":
                    self.say({"models": [{"name": "m.gguf", "loaded": True}, {"name": "other.gguf"}]})
                elif self.path == "/status":
                    self.say({"backends": service.backends, "queued": service.queued})

            def do_POST(self):
                service.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                if service.refusal:
                    return self.say({"error": {"message": service.refusal[1]}}, service.refusal[0])
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("X-ComeAPI-Backend", "http://127.0.0.1:8080")
                self.end_headers()
                service.speak(self.wfile)

            def say(self, facts, status=200):
                body = json.dumps(facts).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = "http://127.0.0.1:%d" % self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def speak(self, wfile):
        try:
            for word in self.words:
                if isinstance(word, threading.Event):
                    while not word.wait(0.05):
                        wfile.write(b": still here\n\n")
                        wfile.flush()
                    continue
                delta = word if isinstance(word, dict) else {"content": word}
                wfile.write(b"data: " + json.dumps({"choices": [{"delta": delta}]}).encode() + b"\n\n")
                wfile.flush()
            timings = {"predicted_n": 2, "predicted_per_second": 34.5, "cache_n": 3}
            wfile.write(b"data: " + json.dumps({"choices": [{"delta": {}}], "timings": timings}).encode() + b"\n\n")
            wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.left.set()

    def close(self):
        self.release.set()
        self.server.shutdown()
        self.server.server_close()
