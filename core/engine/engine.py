"""The engine: continuous batching. One thread runs all requests together, over llama.cpp as llama.py has it.

    HTTP threads ── submit(job) ──> inbox ──┐
                                            ▼
                              the engine's one thread: receive → switch model → admit → step
                                                        step = plan → llama_decode → sample → emit
    HTTP threads <── job.events ────────────┘

The engine's thread decides everything about a Context and a Sampler. Two kinds of helpers touch them, and only while
it waits for them: the pool that chooses tokens side by side (each thread has one Sampler and reads the Context's
logits), and the siding's thread, which computes in its own Context (siding.py). llama.py says what each object bears.

Every request has one queue on which its events come, and everything else is handed over through the inbox: nothing here
waits for a lock while it computes. llama_decode releases the GIL: HTTP threads run meanwhile.
"""

import collections
import logging
import queue
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Callable, Dict, List, Optional, Union

from core.engine.jobs import Embedded, Job, Piece
from core.engine.llama import Context, Model, Sampler, build_facts, halts_well
from core.engine.sampling import Sampling
from core.engine.scheduler import Chunk, Pace, Reuse, Scheduler, Sequence
from core.engine.siding import Siding
from core.errors import APIError
from core.hardware import cores
from core.models import ModelFile
from core.settings import EngineSettings

log = logging.getLogger("comeapi.engine")


# -------------------------------------------------------------------------------------------------- engine

SELF_TEST_TOKENS = 8
ASIDE_TOKENS = 128  # a prompt of which more are pending goes to the siding
SIDING_ROWS = 512
SIDING_UBATCH = 128  # rows: enough for the fast kernels, and no operation takes long
LARGE_VOCABULARY = 32768  # tokens; from here on choosing one takes longer than handing the work to another thread
LONGEST_STEPS = 10  # a step that takes longer than so many times the longest so far hangs
PAUSE = 0.05  # seconds between two looks whether readers have taken what had come; 256 events are left till then
_LEAST = -9999.0  # a log probability that stands for minus infinity, which JSON does not have
_NO_ROOM = 1  # llama_decode: no room in the cells; they are as they were before


class Engine:
    """Runs jobs in one continuous batch. Start it once; any thread may submit, cancel and look at its state.

    `on_event(what, **facts)` is told, in the engine's thread, of "loading" (model), "progress" (share), "ready"
    (model, seconds) and "failed" (model, why); `on_failure` is called if that thread ends by a defect.
    """

    def __init__(
        self,
        settings: EngineSettings,
        on_event: Callable[..., None] = lambda what, **facts: None,
        on_failure: Callable[[], None] = lambda: None,
    ):
        self.settings = settings
        self.fingerprint = "llama-cpp-python-" + str(build_facts()["version"])
        self._on_event = on_event
        self._on_failure = on_failure
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()  # Jobs; ModelFiles to load; None to wake up
        self._scheduler = Scheduler(settings.slots, settings.rows)
        self._pace = Pace(settings.step_target, settings.rows)
        self._model: Optional[Model] = None
        self._context: Optional[Context] = None
        self._stopping = False
        self._idle = True  # waiting for something to do
        self._resumed = 0.0  # when the whole process was found to have stood still
        self._siding: Optional[Siding] = None
        self._drafts = False  # whether to guess ahead
        self._described: Dict[int, Any] = {}  # a token's text and bytes, shared by all that tell its probability
        self._samplers = ThreadPoolExecutor(min(cores(), settings.slots), thread_name_prefix="sampler")
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        # Written by the engine's thread, read by any:
        self.status = "starting"  # then loading, ready, failed, stopped
        self.load_progress = 0.0
        self.heartbeat = time.monotonic()  # when the thread came to the beginning of a step
        self.longest_step = 0.0  # seconds
        self.slowest_batch = 0.0  # seconds that a full batch may take, judged by the self-test
        self.stuck = 0.0  # seconds for which a step has lasted that hangs; 0 where none does. Written by look()
        self.counts: collections.Counter = collections.Counter()
        self.largest_batch = 0  # sequences in one step
        self.step_seconds = 0.0
        # What the thread's time went to: "decode" and "sample" in llama.cpp, "step" with them and Python's share; and
        # "siding", waiting for a part of a long prompt.
        self.seconds: Dict[str, float] = {"decode": 0.0, "sample": 0.0, "step": 0.0, "siding": 0.0}

    # ---- for any thread

    def start(self, model: Optional[ModelFile] = None) -> None:
        """Start the thread, which loads `model` first, if one is given."""
        if model:
            self._inbox.put(model)
        else:
            self.status = "ready"
        self._thread.start()

    def load(self, model: ModelFile) -> None:
        """Load a model in place of the one that is loaded; `on_event` is told what comes of it."""
        self._inbox.put(model)

    def stop(self, timeout: Optional[float] = None) -> bool:
        """End the thread; jobs that are left end with an error. Returns whether it has ended in `timeout` seconds."""
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
        busy = self.status == "ready" and not self._idle
        age = now - max(self.heartbeat, self._resumed)
        self.stuck = age if busy and age > self.step_limit() else 0.0
        return self.stuck

    def step_limit(self) -> float:
        """Return the seconds after which a step that has not ended hangs."""
        return max(self.settings.step_timeout, LONGEST_STEPS * self.longest_step, self.slowest_batch)

    def submit(self, job: Job) -> None:
        """Hand a job over. Raises APIError 400 for a prompt that does not fit, 503 where the line is full."""
        if self.stuck:
            raise APIError(503, "The engine hangs.", "engine_down", headers=[("Retry-After", "5")])
        if self.status in ("failed", "stopped"):
            raise APIError(503, "The engine has %s." % self.status, "engine_down", headers=[("Retry-After", "1")])
        if self.busy() + self.queued() >= self.settings.slots + self.settings.max_queue:
            message = "All %d slots are busy and %d requests wait." % (self.settings.slots, self.settings.max_queue)
            raise APIError(503, message, "queue_full", headers=[("Retry-After", "1")])
        job.mark("submitted")
        sequence = Sequence(job, job.model.path, reuse=job.cache_prompt and not job.embed)
        model, context = self._model, self._context
        if model and context and model.file.path == job.model.path:
            # Here, not in the engine's thread, where a long prompt or a large grammar would stall every stream.
            tokens = model.prompt_tokens(job.prompt, job.suffix, _room(job, context))
            if tokens is not None:  # None: unloaded just now; it will be loaded again
                sequence.tokens = _fitting(job, tokens, context)
                if not job.embed:
                    job.sampler = Sampler.make(model, job.sampling, job.seed, context.n_ctx)
        self._inbox.put(sequence)

    def cancel(self, job: Job) -> None:
        """Stop working on a job; no more events come of it."""
        job.cancelled = True
        self._inbox.put(None)

    def model_name(self) -> Optional[str]:
        """The name of the model that is loaded."""
        model = self._model
        return model.file.name if model else None

    def vocabulary(self) -> Model:
        """Return the model that is loaded, to tokenize with. Raises APIError 503 where none is."""
        model = self._model
        if model is None:
            raise APIError(503, "No model is loaded yet.", "not_ready", headers=[("Retry-After", "1")])
        return model

    def context_size(self) -> int:
        """How many tokens a slot holds; 0 before a model is loaded."""
        context = self._context
        return context.n_ctx if context else 0

    def running(self) -> List[Sequence]:
        """What has a slot now."""
        return self._scheduler.running

    def busy(self) -> int:
        """How many slots are taken."""
        return len(self._scheduler.running)

    def queued(self) -> int:
        """How many jobs wait for a slot."""
        return len(self._scheduler.waiting) + self._inbox.qsize()

    # ---- the thread

    def _main(self) -> None:
        try:
            while not self._stopping:
                self._beat()
                self._receive()
                self._switch_model()
                self._beat()
                started = time.monotonic()
                self._admit()
                self._step()
                seconds = time.monotonic() - started
                self.seconds["step"] += seconds
                self._evaluate_aside(seconds)
                self._note_step(started)
            self.status = "stopped"
        except Exception:
            self.status = "failed"
            log.error("the engine failed:\n%s", traceback.format_exc())
        finally:
            self._fail_all(APIError(503, "The engine has %s." % self.status, "engine_down"))
            self._unload()
            self._samplers.shutdown()
            if self.status == "failed":
                self._on_failure()

    def _beat(self) -> None:
        self.heartbeat = time.monotonic()

    def _note_step(self, started: float) -> None:
        """Remember how long a step took, if the process did not stand still meanwhile."""
        if started > self._resumed:
            self.longest_step = max(self.longest_step, time.monotonic() - started)

    def _receive(self) -> None:
        """Take in what has been handed over; wait for it when there is nothing else to do."""
        running = self._scheduler.running
        paused = bool(running) and all(sequence.paused for sequence in running)
        self._idle = paused or not (running or self._scheduler.waiting)
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

    def _take(self, message: Any) -> None:
        if isinstance(message, Sequence):
            self._scheduler.submit(message)
        elif isinstance(message, ModelFile):
            self._load(message)
        else:  # woken up: by a cancellation, if not to stop
            for sequence in self._everyone():
                if sequence.job.cancelled:
                    self._end(sequence, None)

    def _everyone(self) -> List[Sequence]:
        return self._scheduler.running + list(self._scheduler.waiting)

    # ---- models

    def _switch_model(self) -> None:
        """Load the model that the first in line needs, once nothing runs on the other one."""
        wanted = self._scheduler.wanted_model()
        if wanted is None or wanted == self._resident() or self._scheduler.running:
            return
        self._load(self._scheduler.waiting[0].job.model)

    def _resident(self) -> Optional[str]:
        return self._model.file.path if self._model else None

    def _load(self, file: ModelFile) -> None:
        """Swap models, and run a few tokens through the new one. What fails, fails those who wait for it."""
        if file.path == self._resident():
            return
        self._unload()
        started = time.monotonic()
        self.status, self.load_progress = "loading", 0.0
        self._on_event("loading", model=file.name)
        try:
            self._model = Model(file, self.settings, self._progress)
            self._context = Context(self._model, self.settings)
            self._drafts = self.settings.draft_max > 0 and self._model.forgets_partly
            self._scheduler.whole_only = not self._model.forgets_partly
            # A copy moves all cells of a slot; evaluating about so many of a prompt's tokens takes as long.
            self._scheduler.copy_cost = max(16, self._context.n_ctx // 128)
            self._self_test()
        except APIError as error:
            self._unload()
            self._on_event("failed", model=file.name, why=error.message)
            for sequence in [each for each in self._scheduler.waiting if each.model == file.path]:
                self._end(sequence, error)
        else:
            self._on_event("ready", model=file.name, seconds=round(time.monotonic() - started, 3))
        self._beat()
        self.status = "ready"

    def _make_siding(self) -> Optional[Siding]:
        """Return a siding where llama.cpp can halt a decode, and this model's cells can be moved."""
        settings = self.settings
        wanted = settings.siding == "on" or (settings.siding == "auto" and halts_well(settings))
        if not wanted or settings.slots == 1 or not self._model.plain_cells or not self._cells_move():
            return None
        settings = replace(settings, slots=1, batch_size=SIDING_ROWS, ubatch_size=SIDING_UBATCH, draft_max=0)
        return Siding(Context(self._model, settings))

    def _cells_move(self) -> bool:
        """Whether slot 0's cells can be copied by way of a buffer."""
        try:
            moved = self._context.load(1, self._context.save(0))
        except APIError as error:
            log.warning("long prompts are evaluated in batches: %s", error.message)
            return False
        moved = moved and self._context.positions(1) == self._context.positions(0)
        self._context.forget(1)
        return moved

    def _progress(self, share: float) -> bool:
        self._beat()
        if share - self.load_progress >= 0.05:
            self.load_progress = share
            self._on_event("progress", share=round(share, 2))
        return not self._stopping

    def _self_test(self) -> None:
        """Run a prompt and a single token: where this machine can't run this model, better now than in a request."""
        sequence = Sequence(tokens=[0] * SELF_TEST_TOKENS, slot=0)
        if self._model.file.embeds:
            started = time.monotonic()
            status, _ = self._context.embed([sequence])
            self._context.forget(0)
            self.slowest_batch = (time.monotonic() - started) * self._context.n_batch / SELF_TEST_TOKENS
            return self._passed(status)
        sampler = Sampler(self._model, Sampling(temperature=0), 0, self._context.n_ctx)
        for chunk in (Chunk(sequence, 0, SELF_TEST_TOKENS - 1), Chunk(sequence, SELF_TEST_TOKENS - 1, 1)):
            started = time.monotonic()
            status, rows = self._context.decode([chunk])
            self._passed(status)
        # In a batch of many, a row costs no more than alone.
        self.slowest_batch = (time.monotonic() - started) * self.settings.rows
        sampler.sample(self._context, rows[sequence])
        sampler.close()
        self._siding = self._make_siding()  # now, while slot 0 holds cells to try it with
        self._scheduler.aside = ASIDE_TOKENS if self._siding else 0
        self._context.forget(0)

    def _passed(self, status: int) -> None:
        if status:
            message = "%s fails its self-test: llama_decode answers %d." % (self._model.file.name, status)
            raise APIError(500, message, "model_broken", "model_name")

    def _unload(self) -> None:
        if self._siding:
            self._siding.close()
            self._siding = None
        model, context = self._model, self._context
        self._model = self._context = None
        self._described = {}
        self._scheduler.restart()
        if context:
            context.close()
        if model:
            model.close()

    # ---- one step

    def _admit(self) -> None:
        """Give free slots to those who wait for the model that is loaded."""
        while True:
            sequence = self._scheduler.next_in_line(self._resident())
            if sequence is None:
                return
            try:
                self._prepare(sequence)
            except APIError as error:
                self._end(sequence, error)
            else:
                self._reuse(self._scheduler.admit())

    def _prepare(self, sequence: Sequence) -> None:
        """Make a sequence ready to be evaluated. Raises APIError 400."""
        job = sequence.job
        if job.embed != self._model.file.embeds:
            does = "gives embeddings, not text" if self._model.file.embeds else "gives text, not embeddings"
            raise APIError(400, "%s %s." % (self._model.file.name, does), "model_unsuitable", "model")
        if not sequence.tokens:  # its model was not loaded when it came
            tokens = self._model.prompt_tokens(job.prompt, job.suffix, _room(job, self._context))
            sequence.tokens = _fitting(job, tokens or [], self._context)
        job.mark("admitted")
        job.prompt_tokens = len(sequence.tokens)
        if job.embed:
            return
        job.shown = self._model.markers(job.markers)
        if not job.sampler or job.sampler.model is not self._model:
            self._close_sampler(job)
            job.sampler = Sampler.make(self._model, job.sampling, job.seed, self._context.n_ctx)
        if job.sampling.penalizes:
            job.sampler.remember(sequence.tokens)

    def _reuse(self, reuse: Reuse) -> None:
        """Take over cells that hold the beginning of a prompt."""
        sequence = reuse.sequence
        count = self._context.reuse(reuse.source, sequence.slot, reuse.count)
        self._scheduler.reused(reuse, count)
        sequence.job.cached_tokens = count
        self.counts["cached_tokens"] += count
        self.counts["cache_hits"] += count > 0

    def _step(self) -> None:
        """Plan a batch, evaluate it, and choose each sequence's next token."""
        if self._model and self._model.file.embeds:
            return self._embed()
        copy = self._scheduler.next_reuse()
        if copy:
            self._reuse(copy)
        for sequence in self._scheduler.running:
            sequence.paused = sequence.generating and sequence.job.unread
        self._draft()
        streams = len(self._scheduler.streams())
        share = 0.5 if self._siding and self._siding.sequence else 1.0
        chunks = self._scheduler.plan(self._pace.budget(streams, share))
        if not chunks:
            return
        started = time.monotonic()
        self._evaluate(chunks)
        self._observe(chunks, streams, time.monotonic() - started)

    def _embed(self) -> None:
        """Compute the embeddings of as many prompts as one batch holds; their cells are of no use to anybody."""
        batch: List[Sequence] = []
        for sequence in self._scheduler.running:
            if sum(len(each.tokens) for each in batch) + len(sequence.tokens) <= self._context.n_batch:
                batch.append(sequence)
        if not batch:
            return
        started = time.monotonic()
        status, vectors = self._context.embed(batch)
        self.seconds["decode"] += time.monotonic() - started
        if status:
            return self._step_failed(status, [Chunk(sequence, 0, len(sequence.tokens)) for sequence in batch])
        self.counts["steps"] += 1
        self.largest_batch = max(self.largest_batch, len(batch))
        for sequence, vector in zip(batch, vectors):
            self.counts["prompt_tokens"] += len(sequence.tokens)
            self._context.forget(sequence.slot)
            self._end(sequence, Embedded(vector, len(sequence.tokens)))

    def _evaluate_aside(self, step: float) -> None:
        """Let a long prompt be evaluated in the siding, after a step that took so many seconds, until the next is due.

        Where steps are long, it gets as much time as they do: it comes to its end, too.
        """
        siding = self._siding
        if not siding:
            return
        if siding.sequence and siding.over:
            return self._come_back(siding.sequence)
        sequence = siding.sequence or self._scheduler.next_aside()
        if sequence is None:
            return
        if not siding.sequence:
            siding.start(sequence, self._context.save(sequence.slot) if sequence.done else None)
        target = self.settings.step_target
        started = time.monotonic()
        siding.run(max(target - step, target * 0.8, step))
        self.seconds["siding"] += time.monotonic() - started

    def _come_back(self, sequence: Sequence) -> None:
        """Put what was evaluated aside into its sequence's slot; where that fails, it begins anew, in batches."""
        cells = self._siding.collect()
        done = len(sequence.tokens) - 1
        if cells and self._context.load(sequence.slot, cells):
            self.counts["prompt_tokens"] += done - sequence.done
            self.counts["prompts_aside"] += 1
        else:
            log.warning("a prompt of %d tokens could not be evaluated aside", done + 1)
            self._context.forget(sequence.slot)
            sequence.job.cached_tokens = done = 0
        self._scheduler.returned(sequence, done)

    def _evaluate(self, chunks: List[Chunk]) -> None:
        """Decode chunks and extend those who can sample. What llama_decode refuses is made smaller, or fails."""
        started = time.monotonic()
        status, rows = self._context.decode(chunks)
        self.seconds["decode"] += time.monotonic() - started
        if status == _NO_ROOM:
            self._make_room(chunks)
        elif status:
            self._step_failed(status, chunks)
        else:
            self._scheduler.commit(chunks)
            started = time.monotonic()
            tokens = self._choose(rows)
            self.seconds["sample"] += time.monotonic() - started
            for (sequence, row), token in zip(rows.items(), tokens):
                self._take_tokens(sequence, row, token)

    def _choose(self, rows: Dict[Sequence, int]) -> List["Choice"]:
        """Choose each sequence's next token; side by side, since over a large vocabulary that takes a while."""
        if len(rows) < 2 or self._model.vocabulary < LARGE_VOCABULARY:
            return [self._sample(sequence, row) for sequence, row in rows.items()]
        self._context.settle()
        return list(self._samplers.map(self._sample, rows.keys(), rows.values()))

    def _sample(self, sequence: Sequence, row: int) -> "Choice":
        """Choose a sequence's next token; for the threads that do so side by side, too."""
        try:
            return sequence.job.sampler.sample(self._context, row)
        except APIError as error:
            return error

    def _take_tokens(self, sequence: Sequence, row: int, token: "Choice") -> None:
        """Add a sequence's chosen token, and one more for each guess that the choice confirms."""
        drafts, sequence.drafts = sequence.drafts, []
        for offset in range(len(drafts) + 1):
            token = self._sample(sequence, row + offset) if offset else token
            self._extend(sequence, token, row + offset)
            ended = sequence.job.sampler is None
            if ended or offset == len(drafts) or token != drafts[offset]:
                break
            sequence.done += 1  # the guess is in its cell already
            self.counts["drafts_accepted"] += 1
        if drafts:
            self.counts["drafts"] += len(drafts)
            self._context.trim(sequence.slot, sequence.done)

    def _draft(self) -> None:
        """Guess ahead where few streams are running: then a batch has rows to spare."""
        streams = self._scheduler.streams()
        if not self._drafts or 2 * len(streams) > self.settings.slots:
            return
        most = min(self.settings.draft_max, self.settings.rows // self.settings.slots - 1)
        for sequence in streams:
            job = sequence.job
            room = min(job.max_tokens - job.generated, self._context.n_ctx - len(sequence.tokens)) - 1
            sequence.drafts = job.lookup.guess(sequence.tokens, max(0, min(most, room)))

    def _make_room(self, chunks: List[Chunk]) -> None:
        """Try again where there was no room for a batch: without idle cells, then in smaller parts; then one fails."""
        for chunk in chunks:
            chunk.sequence.drafts = []
        chunks = [replace(chunk, drafts=()) for chunk in chunks]
        idle = self._scheduler.idle_slots()
        if idle:
            for slot in idle:
                self._forget(slot)
            self._evaluate(chunks)
        elif len(chunks) > 1:
            middle = len(chunks) // 2
            self._evaluate(chunks[:middle])
            self._evaluate([chunk for chunk in chunks[middle:] if chunk.start == chunk.sequence.done])
        elif chunks[0].count > 1:
            self._evaluate([Chunk(chunks[0].sequence, chunks[0].start, chunks[0].count // 2)])
        else:
            message = "The key-value cache has no room for this request; a smaller one may fit."
            self._end(chunks[0].sequence, APIError(503, message, "no_room", headers=[("Retry-After", "1")]))
            self._forget(chunks[0].sequence.slot)

    def _observe(self, chunks: List[Chunk], streams: int, seconds: float) -> None:
        rows = sum(chunk.count for chunk in chunks)
        self._pace.observe(streams, rows - streams, seconds)
        self.step_seconds = seconds
        self.largest_batch = max(self.largest_batch, len(chunks))
        self.counts["steps"] += 1
        self.counts["prompt_tokens"] += rows - streams

    def _extend(self, sequence: Sequence, token: "Choice", row: int) -> None:
        """Add a token chosen from a row to a sequence, tell its reader, and end it where it is over."""
        job = sequence.job
        if not job.generated:
            job.mark("first")
        if not job.max_tokens:
            return self._finish(sequence, "length")
        if not isinstance(token, int):
            return self._end_without(sequence, token)
        job.generated += 1
        self.counts["generated_tokens"] += 1
        if self._model.ends(token):
            return self._finish(sequence, "stop")
        sequence.tokens.append(token)
        probabilities = self._probabilities(token, row, job.sampling.n_probs) if job.sampling.n_probs else []
        text = job.text.push(self._model.piece(token, token in job.shown))
        job.events.put(Piece(text, [token], probabilities))
        if job.text.stopped:
            self._finish(sequence, "stop")
        elif job.generated >= job.max_tokens or len(sequence.tokens) >= self._context.n_ctx:
            self._finish(sequence, "length")

    def _end_without(self, sequence: Sequence, error: Optional[APIError]) -> None:
        """End a sequence that has no next token: by an error, or because the request leaves none."""
        if error:
            self._end(sequence, error)
        elif sequence.job.generated:
            self._finish(sequence, "stop")
        else:
            self._end(sequence, _no_candidates(sequence.job.sampling))

    def _probabilities(self, token: int, row: int, most: int) -> List[Dict[str, Any]]:
        """Return a token's probability and the likeliest ones', before any sampler, as llama-server shows them."""
        chosen, top = self._context.log_probabilities(row, self._model.vocabulary, token, most)
        described = [self._describe(each, value) for each, value in top]
        return [dict(self._describe(token, chosen), top_logprobs=described)]

    def _describe(self, token: int, log_probability: float) -> Dict[str, Any]:
        if token not in self._described:
            piece = self._model.piece(token)
            self._described[token] = piece.decode("utf-8", "replace"), list(piece)
        text, codes = self._described[token]
        return {"id": token, "token": text, "bytes": codes, "logprob": round(max(log_probability, _LEAST), 6)}

    def _finish(self, sequence: Sequence, reason: str) -> None:
        rest = sequence.job.text.finish()
        if rest:
            sequence.job.events.put(Piece(rest, []))
        full = reason == "length" and len(sequence.tokens) >= self._context.n_ctx
        self._end(sequence, sequence.job.finished(reason, full))

    def _end(self, sequence: Sequence, last_event: Any) -> None:
        """Take a sequence out of the engine; its slot is free for the next one at once."""
        if self._siding and self._siding.sequence is sequence:
            self._siding.abandon()
        self._scheduler.release(sequence)
        self._close_sampler(sequence.job)
        self.counts["cancelled" if last_event is None else "ended"] += 1
        if last_event is not None:
            sequence.job.events.put(last_event)

    @staticmethod
    def _close_sampler(job: Job) -> None:
        if job.sampler:
            job.sampler.close()
            job.sampler = None

    def _step_failed(self, status: int, chunks: List[Chunk]) -> None:
        """Fail what was in a step that broke, and go on in a new context: nobody knows what the old one holds.

        Whoever was not in it begins anew with all its tokens, and goes on where it was.
        """
        log.error("llama_decode answered %d to a batch of %d sequences", status, len(chunks))
        error = APIError(500, "llama.cpp could not evaluate this request (status %d)." % status, "decode_failed")
        for chunk in chunks:
            self._end(chunk.sequence, error)
        self._context.close()
        self._context = Context(self._model, self.settings)
        self._scheduler.restart()
        for sequence in self._scheduler.running:
            sequence.job.cached_tokens = 0

    def _forget(self, slot: int) -> None:
        self._context.forget(slot)
        self._scheduler.forget(slot)

    def _fail_all(self, error: APIError) -> None:
        with_error = [message for message in _drained(self._inbox) if isinstance(message, Sequence)]
        for sequence in self._everyone() + with_error:
            self._end(sequence, error)


Choice = Union[int, APIError, None]  # the token that was chosen; why none could be; None where the request leaves none


def _room(job: Job, context: Context) -> int:
    """Return how many tokens a prompt may have."""
    return context.n_batch if job.embed else context.n_ctx - 1


def _no_candidates(sampling: Sampling) -> APIError:
    names = {"grammar": sampling.grammar, "logit_bias": sampling.logit_bias, "ignore_eos": sampling.ignore_eos}
    given = ["'%s'" % name for name, value in names.items() if value]
    message = "The answer can't begin: %s of this request leave%s no token to choose."
    param = "grammar" if sampling.grammar else "logit_bias"
    return APIError(400, message % (" and ".join(given), "" if len(given) > 1 else "s"), "no_candidates", param)


def _fitting(job: Job, tokens: List[int], context: Context) -> List[int]:
    """Return a prompt's tokens if they leave room for an answer. Raises APIError 400 otherwise."""
    if not tokens:
        raise APIError(400, "The prompt holds no tokens.", "empty_prompt", "prompt")
    if job.embed and len(tokens) > context.n_batch:
        message = "The text has %d tokens; an embedding takes at most %d." % (len(tokens), context.n_batch)
        raise APIError(400, message, "context_length_exceeded", "input")
    if not job.embed and len(tokens) >= context.n_ctx:
        message = "The prompt has %d tokens; the context holds %d, the answer included."
        raise APIError(400, message % (len(tokens), context.n_ctx), "context_length_exceeded", "prompt")
    return tokens


def _drained(inbox: "queue.SimpleQueue[Any]") -> List[Any]:
    messages = []
    while True:
        try:
            messages.append(inbox.get_nowait())
        except queue.Empty:
            return messages
