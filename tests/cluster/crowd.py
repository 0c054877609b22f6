"""Clients that ask without a pause while a cluster changes under them: none of their requests may fail."""

import threading

from conftest import PATIENCE, Streaming, call, wait_until

TOKENS = 60


class Crowd:
    """Clients that ask `url` in turn for a stream and for a whole answer, until leave()."""

    def __init__(self, url, count=4):
        self.failures = []
        self.answered = 0
        self._url = url
        self._over = threading.Event()
        self._lock = threading.Lock()  # guards answered and failures
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self, number):
        while not self._over.is_set():
            number += 1
            try:
                said = self._ask(number)
            except Exception as error:  # whatever it is, a request was lost
                said = repr(error)
            with self._lock:
                self.answered += not said
                self.failures += [said] if said else []

    def _ask(self, number):
        """Ask once; return what was wrong with the answer, or nothing."""
        body = {"model": "demo", "prompt": "Story %d:" % number, "max_tokens": TOKENS, "ignore_eos": True}
        if number % 2:
            answer = call(self._url + "/v1/completions", body)
            whole = answer.status == 200 and answer.json["usage"]["completion_tokens"] == TOKENS
        else:
            answer = Streaming(self._url + "/v1/completions", dict(body, stream_options={"include_usage": True})).end()
            whole = answer.events[-1]["usage"]["completion_tokens"] == TOKENS
        return "" if whole else "%d %s" % (answer.status, answer.body[-500:])

    def wait_for(self, more=8):
        """Wait until so many more requests have been answered."""
        goal = self.answered + more
        wait_until(lambda: self.answered >= goal or self.failures)

    def leave(self):
        """Let the last requests end. Returns what was lost; `pytest -s` shows how many were answered."""
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in self._threads)
        print("%d requests answered, %d lost" % (self.answered, len(self.failures)))
        return self.failures
