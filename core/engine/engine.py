"""The engine: continuous batching. One thread runs all generations together, over llama.cpp as llama/ has it.

    HTTP threads ── submit(generation) ──> inbox ──┐
                                                   ▼
                              the engine's one thread: receive → switch model → admit → step
                                                step = plan → llama_decode → choose → tell
    HTTP threads <── Channel ──────────────────────┘

The engine's thread decides everything about a Context and a Sampler. Two kinds of helpers touch them, and only while
it waits for them: the pool that chooses tokens side by side (each thread has one Sampler and reads the Context's
logits), and the siding's thread, which computes in its own Context (siding.py). llama/ says what each object bears.

A request has one Channel on which its events come, and everything else is handed over through the inbox: nothing here
waits for a lock while it computes. llama_decode releases the GIL: HTTP threads run meanwhile.
"""

import contextlib
import logging
import queue
import threading
import time
import traceback
from typing import Any, Callable, Dict, List, Optional, Union

from core.engine.admission import make_ready
from core.engine.aside import Aside
from core.engine.generation import Generation
from core.engine.keeping import Keeping, SlotTask
from core.engine.llama.build import build_facts
from core.engine.llama.model import Model
from core.engine.llama.native import uses_gpu
from core.engine.loading import Loading
from core.engine.running import Running
from core.engine.sampler import biases_of
from core.engine.stepping import Stepping
from core.engine.tokenizing import Closed
from core.errors import APIError
from core.models import ModelFile
from core.sampling import Sampling
from core.settings import EngineSettings

log = logging.getLogger("comeapi.engine")

LONGEST_STEPS = 10  # a step that takes longer than so many times the longest so far hangs
STALL_SECONDS = 2.5  # a step that takes longer, and LONGEST_STEPS times what it should, stalls
PAUSE = 0.05  # seconds between two looks whether readers have taken what had come; 256 events are left till then

Message = Union[Generation, ModelFile, SlotTask, None]  # to run; to load; to do; to wake up


class Engine:
    """Runs generations in one continuous batch. Start it once; any thread may submit, cancel and look at its state.

    `on_event(what, **facts)` is told, in the engine's thread, of "loading" (model), "progress" (share), "ready"
    (model, seconds, memory: bytes of this process, or None) and "failed" (model, why, memory: whether that was what
    lacked); `on_failure` is called if that thread ends by a defect.
    """

    def __init__(
        self,
        settings: EngineSettings,
        on_event: Callable[..., None] = lambda what, **facts: None,
        on_failure: Callable[[], None] = lambda: None,
    ):
        self.settings = settings
        self.fingerprint = "llama-cpp-python-%s" % build_facts()["version"]
        self.on_gpu = uses_gpu(settings)  # layers of the model are on a GPU
        self.build = "b%s-comeapi" % build_facts()["version"]  # as llama-server spells it: b, a number and a name
        self._on_failure = on_failure
        self._inbox: "queue.SimpleQueue[Message]" = queue.SimpleQueue()
        self._running = Running(settings)
        self._scheduler = self._running.scheduler
        self._stepping = Stepping(self._running)
        self._aside = Aside(self._running, self._stepping.threads)
        self._keeping = Keeping(self._running)
        self._loading = Loading(self._running, on_event, self._goes_on)
        self._stopping = False
        self._idle = True  # waiting for something to do
        self._resumed = 0.0  # when the whole process was found to have stood still
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        # Written and read by any thread: how much of each LoRA adapter goes with requests that name none
        self.lora_scales = settings.lora_scales
        # Written by the engine's thread, read by any:
        self.tally = self._running.tally
        self._state = "starting"  # then ready, failed, stopped
        self.heartbeat = time.monotonic()  # when the thread came to the beginning of a step
        self.stuck = 0.0  # seconds for which a step has lasted that hangs; 0 where none does. Written by look()

    # ---- for any thread

    @property
    def status(self) -> str:
        """Return the state in a word: starting, loading, ready, failed, stopped."""
        return "loading" if self._loading.loading else self._state

    @property
    def load_progress(self) -> float:
        """Return the share that is loaded of the model that is being loaded."""
        return self._loading.progress

    def start(self, model: Optional[ModelFile] = None) -> None:
        """Start the thread, which loads `model` first, if one is given."""
        if model:
            self._inbox.put(model)
        else:
            self._state = "ready"
        self._thread.start()

    def load(self, model: ModelFile) -> None:
        """Load a model in place of the one that is loaded; `on_event` is told what comes of it."""
        self._inbox.put(model)

    def stop(self, timeout: Optional[float] = None) -> bool:
        """End the thread; generations that are left end with an error. Returns whether it ended within `timeout` s."""
        self._stopping = True
        self._inbox.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def look(self, now: float, paused: bool) -> float:
        """Look whether the thread hangs in a step; return `stuck`. For one thread, every few seconds.

        `paused` says that the whole process stood still between the last look and `now`, a moment by time.monotonic():
        that time counts for nothing. Loading is no step; it may take as long as its disk does.
        """
        if paused:
            self._resumed = now
        age = self._age(now)
        self.stuck = age if age > self.step_limit() else 0.0
        return self.stuck

    def stalled(self) -> float:
        """Return the seconds for which a step has lasted that stalls; 0 where none does.

        It may still end: it is much slower than steps like it, but not yet so slow that the engine hangs. Streams
        need not wait for that where another backend can go on with them.
        """
        age = self._age(time.monotonic())
        return age if age > max(STALL_SECONDS, LONGEST_STEPS * self._stepping.expected) else 0.0

    def _age(self, now: float) -> float:
        """Return the seconds for which the step has lasted; 0 where there is none."""
        busy = self.status == "ready" and not self._idle
        return now - max(self.heartbeat, self._resumed) if busy else 0.0

    def step_limit(self) -> float:
        """Return the seconds after which a step that has not ended hangs."""
        return max(self.settings.step_timeout, LONGEST_STEPS * self.tally.longest_step, self._slowest_batch())

    def _slowest_batch(self) -> float:
        resident = self._running.resident
        return resident.slowest_batch if resident else 0.0

    def submit(self, generation: Generation) -> None:
        """Hand a generation over. Raises APIError 400 for a prompt that does not fit, 503 where the line is full."""
        if self.stuck:
            raise APIError(503, "The engine hangs.", "engine_down", headers=[("Retry-After", "5")])
        if self.status in ("failed", "stopped"):
            raise APIError(503, "The engine has %s." % self.status, "engine_down", headers=[("Retry-After", "1")])
        if self.busy() + self.queued() >= self.settings.slots + self.settings.max_queue:
            message = "All %d slots are busy and %d requests wait." % (self.settings.slots, self.settings.max_queue)
            raise APIError(503, message, "queue_full", headers=[("Retry-After", "1")])
        generation.mark("submitted")
        resident = self._running.resident
        if resident and resident.model.file.path == generation.model:
            make_ready(generation, resident)
        self._inbox.put(generation)

    def enqueue(self, task: SlotTask) -> None:
        """Hand over something to do with a slot. Raises APIError 503 where the engine does not run, or hangs."""
        if self.stuck or self.status in ("failed", "stopped"):
            raise APIError(503, "The engine does not run.", "engine_down", headers=[("Retry-After", "1")])
        self._inbox.put(task)

    def cancel(self, generation: Generation) -> None:
        """Stop working on a generation; no more events come of it."""
        generation.cancelled = True
        self._inbox.put(None)

    def model_name(self) -> Optional[str]:
        """The name of the model that is loaded."""
        resident = self._running.resident
        return resident.model.file.name if resident else None

    def vocabulary(self) -> Model:
        """Return the model that is loaded, to tokenize with. Raises APIError 503 where none is."""
        resident = self._running.resident
        if resident is None:
            raise APIError(503, "No model is loaded yet.", "not_ready", headers=[("Retry-After", "1")])
        return resident.model

    def biases(self, path: str, sampling: Sampling) -> Dict[int, float]:
        """Return what a request adds to tokens' logits; nothing where its model, of that path, is not loaded."""
        with contextlib.suppress(APIError, Closed):
            model = self.vocabulary()
            with model.readers:
                return biases_of(model, sampling) if model.file.path == path else {}
        return {}

    def context_size(self) -> int:
        """How many tokens a slot holds; 0 before a model is loaded."""
        resident = self._running.resident
        return resident.context.n_ctx if resident else 0

    def running(self) -> List[Generation]:
        """What has a slot now."""
        return self._scheduler.running

    def busy(self) -> int:
        """How many slots are taken."""
        return len(self._scheduler.running)

    def queued(self) -> int:
        """How many generations wait for a slot."""
        return len(self._scheduler.waiting) + self._inbox.qsize()

    # ---- the thread

    def _main(self) -> None:
        try:
            while not self._stopping:
                self._beat()
                self._receive()
                self._loading.switch()
                self._stepping.choose_threads()
                self._beat()
                started = time.monotonic()
                self._keeping.run()
                self._stepping.admit()
                self._stepping.step()
                seconds = time.monotonic() - started
                self.tally.seconds["step"] += seconds
                self._aside.give_time(seconds)
                self._note_step(started)
            self._state = "stopped"
        except Exception:
            self._state = "failed"
            log.error("the engine failed:\n%s", traceback.format_exc())
        finally:
            self._end_all(APIError(503, "The engine has %s." % self.status, "engine_down"))
            self._loading.unload()
            self._stepping.close()
            if self.status == "failed":
                self._on_failure()

    def _beat(self) -> None:
        self.heartbeat = time.monotonic()

    def _goes_on(self) -> bool:
        """Note a sign of life while a model loads; return whether to go on loading."""
        self._beat()
        return not self._stopping

    def _note_step(self, started: float) -> None:
        """Remember how long a step took, if the process did not stand still meanwhile."""
        if started > self._resumed:
            self.tally.longest_step = max(self.tally.longest_step, time.monotonic() - started)

    def _receive(self) -> None:
        """Take in what has been handed over; wait for it when there is nothing else to do."""
        running = self._scheduler.running
        paused = bool(running) and all(generation.paused for generation in running)
        self._idle = paused or not (running or self._scheduler.waiting)
        if self._idle:
            self._stepping.rest()
        try:
            wait = PAUSE if paused else 1
            message = self._inbox.get(timeout=wait) if self._idle else self._inbox.get_nowait()
            self._beat()
            self._idle = False
            while True:
                self._take(message)
                message = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _take(self, message: Message) -> None:
        if isinstance(message, Generation):
            self._scheduler.submit(message)
        elif isinstance(message, SlotTask):
            self._keeping.add(message)
        elif isinstance(message, ModelFile):
            self._state = "ready"
            self._loading.load(message)
        else:  # woken up: by a cancellation, if not to stop
            for generation in self._everyone():
                if generation.cancelled:
                    self._running.end(generation, None)

    def _everyone(self) -> List[Generation]:
        return self._scheduler.running + list(self._scheduler.waiting)

    def _end_all(self, error: APIError) -> None:
        """End everything that runs, waits, or has just been handed over."""
        handed_over = _drained(self._inbox)
        for generation in self._everyone() + [each for each in handed_over if isinstance(each, Generation)]:
            self._running.end(generation, error)
        for task in handed_over:
            if isinstance(task, SlotTask):
                self._keeping.add(task)
        self._keeping.fail(error)


def _drained(inbox: "queue.SimpleQueue[Any]") -> List[Any]:
    messages = []
    while True:
        try:
            messages.append(inbox.get_nowait())
        except queue.Empty:
            return messages
