"""Jobs' way through the engine, as the HTTP APIs need it: several at once, cancelled when their client goes.

Runner.model       the model that a request names
Runner.events      what comes of jobs, as it comes; closed early, it cancels them
Runner.results     what came of jobs, when all is there
Endpoints          what the routes of all APIs share
"""

import collections
import queue
import time
from typing import Any, Dict, Iterator, List, Optional, Tuple
from typing import Sequence as Many

from core import fields
from core.chat.conversation import ChatAsk, Conversation
from core.engine.jobs import Embedded, Finished, Job, Result
from core.errors import APIError, HangUp
from core.http.messages import IDLE, Request
from core.models import ModelFile, ModelFolder

MOST_PROBABILITIES = 450000  # of tokens, in one whole answer; some 100 MB
POLL_SECONDS = 0.1  # how often a waiting request looks whether its client is still there


def _probabilities(event: Any) -> int:
    """Return how many tokens' probabilities an event tells."""
    return sum(1 + len(each["top_logprobs"]) for each in getattr(event, "probabilities", ()))


class _Tagged:
    """A job's events, put into the queue of all jobs of one request."""

    def __init__(self, index: int, queue_of_all: "queue.SimpleQueue[Tuple[int, Any]]"):
        self._index = index
        self._queue = queue_of_all

    def put(self, event: Any) -> None:
        self._queue.put((self._index, event))

    def qsize(self) -> int:
        """Return how many events of all the request's jobs have not been taken."""
        return self._queue.qsize()


class Runner:
    """Runs requests' jobs on one engine."""

    def __init__(self, engine: Any, folder: ModelFolder):
        self.engine = engine
        self.folder = folder

    def model(self, name: Optional[str], embeds: bool = False) -> ModelFile:
        """Return the model called `name`; without one, the model that is loaded, else the folder's default.

        Raises APIError 404 where there is none, 400 where it is not for this.
        """
        name = name or self.engine.model_name()
        model = self.folder.find(name, "model") if name else self.folder.default()
        if model is None:
            raise APIError(404, "There is no model here.", "model_not_found", "model")
        if model.embeds != embeds:
            what = "gives embeddings, not text" if model.embeds else "gives text, not embeddings"
            raise APIError(400, "%s %s." % (model.name, what), "model_unsuitable", "model")
        return model

    def events(self, jobs: Many[Job]) -> Iterator[Any]:
        """Yield (a job's index, its next event) until all have ended, and IDLE while nothing comes.

        Closed early, it cancels those that are still at work. An APIError of one ends all of them.
        """
        everything: "queue.SimpleQueue[Tuple[int, Any]]" = queue.SimpleQueue()
        waiting = collections.deque(enumerate(jobs))
        running: Dict[int, Job] = {}
        try:
            while running or waiting:
                self._submit_some(waiting, running, everything)
                try:
                    index, event = everything.get(timeout=POLL_SECONDS)
                except queue.Empty:
                    yield IDLE
                    continue
                if isinstance(event, (Finished, Embedded, APIError)):
                    del running[index]
                if isinstance(event, APIError):
                    raise event
                yield index, event
        finally:
            for job in running.values():
                self.engine.cancel(job)

    def _submit_some(self, waiting: Any, running: Dict[int, Job], events: Any) -> None:
        """Submit as many of one request's jobs as there are slots; others' requests shall have their chance, too."""
        while waiting and len(running) < self.engine.settings.slots:
            index, job = waiting[0]
            job.events = _Tagged(index, events)
            try:
                self.engine.submit(job)
            except APIError as error:
                if error.code == "queue_full" and running:
                    return  # its turn comes when another one ends
                raise
            running[index] = job
            waiting.popleft()

    def text(self, tokens: Many[int], field: str = "prompt") -> str:
        """Return tokens of the model that is loaded as text. `field` is the request's. Raises APIError 400, 503."""
        return self.engine.vocabulary().detokenize(tokens, field).decode("utf-8", "replace")

    def results(self, jobs: Many[Job], request: Request) -> List[Result]:
        """Wait for the end of jobs and return what came of them.

        Raises APIError, 400 where more probabilities come than memory should hold, and HangUp when the client leaves.
        """
        results = [Result(job) for job in jobs]
        events = self.events(jobs)
        room = MOST_PROBABILITIES
        looked = time.monotonic()
        try:
            for each in events:
                if each is not IDLE:
                    index, event = each
                    results[index].take(event)
                    room -= _probabilities(event)
                if room < 0:
                    message = "The answer has more than %d probabilities; ask for fewer, for fewer tokens, or a stream."
                    raise APIError(400, message % MOST_PROBABILITIES, "too_many_probabilities", "n_probs")
                if time.monotonic() - looked >= POLL_SECONDS:  # a fast model is never idle
                    looked = time.monotonic()
                    if request.hung_up():
                        raise HangUp("the client closed the connection")
        finally:
            events.close()
        return results


class Endpoints:
    """What the APIs' routes share. `template` takes the place of the models' own; `fingerprint` says what computes."""

    def __init__(self, runner: Runner, template: str, fingerprint: str):
        self._runner = runner
        self._template = template
        self._fingerprint = fingerprint

    def _conversation(self, ask: ChatAsk) -> Conversation:
        with fields.named(ask.own):
            return Conversation(ask, self._runner.model(ask.model), self._template)
