"""What the tests of the web page share: a backend that says what a test wants, and what a user does on the page."""

import json
import queue
import shutil

from conftest import PATIENCE

from core.http.messages import Stream, json_reply
from core.http.routing import Route
from core.http.server import ServerConfig, Service
from core.http.sse import event

try:
    from playwright import sync_api as playwright
except ImportError:
    playwright = None  # conftest.py skips the tests that need it

CHROMIUMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
TABS = ("now", "chat", "try")


def system_browser():
    """Return where the system has a Chromium; None where it has none: then playwright may have its own."""
    return next(filter(None, map(shutil.which, CHROMIUMS)), None)


class Talker:
    """A backend that says what the test puts into `words`; None ends the answer, a dictionary is a chunk of its own."""

    def __init__(self, models=("m.gguf",)):
        self.words, self.asked, self.left = queue.SimpleQueue(), [], queue.SimpleQueue()
        listed = {"models": [{"name": name, "loaded": name == models[0]} for name in models]}
        routes = [
            Route("GET", "/health", lambda request: json_reply(self.state)),
            Route("GET", "/models", lambda request: json_reply(listed)),
        ]
        self.state = {"status": "ok", "slots": 4, "model": models[0], "pid": 1, "memory_mb": 1234.5}
        self.state.update(prompt_tokens=30, cached_tokens=10, generated_tokens=0)
        self.service = Service(ServerConfig(port=0), routes, fallback=self.answer).start()
        self.url = self.service.url

    def say(self, *words):
        for word in words:
            self.words.put(word)

    def answer(self, request):
        self.asked.append(json.loads(request.body.decode()))
        if not self.asked[-1].get("stream"):
            return json_reply({"choices": [{"message": {"role": "assistant", "content": "a whole answer"}}]})
        return Stream(self.chunks(request), 200, "text/event-stream")

    def chunks(self, request):
        try:
            yield chunk({"role": "assistant", "content": ""})
            while True:
                word = request.wait(self.word, PATIENCE)
                if word == [None]:
                    break
                yield event(word[0]) if isinstance(word[0], dict) else chunk({"content": word[0]})
            yield b"data: [DONE]\n\n"
        finally:
            self.left.put(True)

    def word(self, seconds):
        try:
            return [self.words.get(timeout=seconds)]
        except queue.Empty:
            return None


def chunk(delta):
    return event({"model": "m.gguf", "choices": [{"index": 0, "delta": delta}]})


USAGE = {
    "choices": [],
    "usage": {"prompt_tokens": 40, "completion_tokens": 17, "prompt_tokens_details": {"cached_tokens": 25}},
    "timings": {"predicted_per_second": 12.5},
}


def ask(page, text):
    """Write a message and send it."""
    page.fill("#input", text)
    page.keyboard.press("Enter")


def answers(page):
    return page.locator(".message.assistant")


def see(locator, text):
    """Wait until an element holds a text."""
    playwright.expect(locator).to_contain_text(text, timeout=PATIENCE * 1000)
