"""Choosing the next tokens after a decode, and telling them: text, probabilities, the end.

    guess      tokens that may come next, as far as it pays, for the next decode to confirm (drafting.py, draftmodel.py)
    extend     rows of logits ── Sampler ──> tokens ── TextOut ──> Pieces, or the end of the generation
"""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List, Optional, Union

from core.engine.drafting import worthwhile
from core.engine.draftmodel import Wanted
from core.engine.generation import Generation
from core.engine.outcome import Piece
from core.engine.pace import Pace
from core.engine.running import Running
from core.errors import APIError
from core.hardware import cores
from core.sampling import Sampling

LARGE_VOCABULARY = 32768  # tokens; from here on looking at all takes longer than handing the work to another thread
_LEAST = -9999.0  # a log probability that stands for minus infinity, which JSON does not have

Choice = Union[int, APIError, None]  # the token that was chosen; why none could be; None where the request leaves none


class Choosing:
    """Extends generations by the tokens that their samplers choose. The engine's thread's, with a pool of helpers."""

    def __init__(self, running: Running):
        self._running = running
        most = min(cores(), running.settings.slots)
        self._helpers = ThreadPoolExecutor(most, thread_name_prefix="sampler")

    def close(self) -> None:
        """End the helpers."""
        self._helpers.shutdown()

    def guess(self, pace: Pace) -> None:
        """Guess ahead: from the text, where the times of steps so far say that it pays; else by a draft model."""
        resident, streams = self._running.model, self._running.scheduler.streams()
        if not resident.drafts:
            return
        self._guess_from_texts(streams, pace)
        if resident.draft_model:
            bare = [generation for generation in streams if not generation.drafts]
            most = self._running.settings.guesses_by_model
            wanted = [Wanted(each.slot, each.tokens, self._room(each, most)) for each in bare]
            guesses = resident.draft_model.guess(wanted)
            for generation in bare:
                generation.drafts = guesses[generation.slot]

    def _guess_from_texts(self, streams: List[Generation], pace: Pace) -> None:
        """Guess what follows in each stream's text by that text, as far as it pays for all of them together.

        Not beside prompts: llama.cpp computes texts of many lengths in as many parts, and what they cost is not known.
        """
        settings = self._running.settings
        if self._running.scheduler.prompts() or not pace.price(len(streams), 0):
            return  # the price is of steps without prompts, and one of them must have been seen
        longest = settings.step_target if len(streams) > 1 else math.inf  # others wait for the step, too

        def price(guesses: int) -> float:
            seconds = pace.price(len(streams), guesses)
            allowed = seconds <= longest and guesses <= settings.guesses_at_once
            return seconds if allowed or not guesses else math.inf

        rooms = [self._room(each, settings.guesses_from_text(each.names_seed)) for each in streams]
        found = [each.lookup.guess(each.tokens, room) if room else [] for each, room in zip(streams, rooms)]
        chances = [each.lookup.chances(len(guesses)) for each, guesses in zip(streams, found)]
        for generation, guesses, count in zip(streams, found, worthwhile(chances, price)):
            generation.drafts = guesses[:count]

    def _room(self, generation: Generation, most: int) -> int:
        """Return how many tokens may be guessed for a generation, of `most`."""
        settings = self._running.settings
        left = generation.ask.max_tokens - generation.generated
        room = min(left, self._running.model.context.n_ctx - len(generation.tokens)) - 1
        return max(0, min(most, settings.rows // settings.slots - 1, room))

    def extend(self, rows: Dict[Generation, int]) -> None:
        """Choose the next token of each generation from its row of the last decode; guesses' rows follow it."""
        started = time.monotonic()
        tokens = self._choose(rows)
        self._running.tally.seconds["sample"] += time.monotonic() - started
        for (generation, row), token in zip(rows.items(), tokens):
            self._take(generation, row, token)

    # ---- choosing

    def _choose(self, rows: Dict[Generation, int]) -> List[Choice]:
        """Choose each one's next token; side by side where several look at all tokens of a large vocabulary."""
        model, context = self._running.model.model, self._running.model.context
        if sum(not each.sampler.narrow for each in rows) < 2 or model.vocabulary < LARGE_VOCABULARY:
            return [self._sample(generation, row) for generation, row in rows.items()]
        context.settle()
        return list(self._helpers.map(self._sample, rows.keys(), rows.values()))

    def _sample(self, generation: Generation, row: int) -> Choice:
        """Choose a generation's next token; for the threads that do so side by side, too."""
        context, sampler = self._running.model.context, generation.sampler
        try:
            if generation.awaited is not None:
                return sampler.follow(context, row, generation.awaited)
            return sampler.sample(context, row, generation.generated)
        except APIError as error:
            return error

    def _take(self, generation: Generation, row: int, token: Choice) -> None:
        """Add a chosen token to a generation, and one more for each guess that the choice confirms."""
        counts = self._running.tally.counts
        drafts, generation.drafts = generation.drafts, []
        generation.guessed += len(drafts)
        for offset in range(len(drafts) + 1):
            token = self._sample(generation, row + offset) if offset else token
            self._add(generation, token, row + offset)
            ended = generation.sampler is None
            if ended or offset == len(drafts) or token != drafts[offset]:
                break
            generation.done += 1  # the guess is in its cell already
            generation.confirmed += 1
            counts["drafts_accepted"] += 1
        if drafts:
            counts["drafts"] += len(drafts)
            counts["draft_rounds"] += 1
            self._running.model.context.trim(generation.slot, generation.done)

    # ---- telling

    def _add(self, generation: Generation, token: Choice, row: int) -> None:
        """Add a token chosen from a row, tell the reader, and end the generation where it is over."""
        model = self._running.model.model
        if "first" not in generation.times:
            generation.mark("first")
        over = self._over(generation)  # before its first token: no token is wanted, or it was begun at its end
        if over:
            return self._finish(generation, over)
        if not isinstance(token, int):
            return self._end_without(generation, token)
        told_before = generation.awaited is not None
        generation.generated += 1
        self._running.tally.counts["generated_tokens"] += not told_before
        if model.ends(token):
            return self._finish(generation, "stop")
        generation.tokens.append(token)
        text = generation.text.push(model.piece(token, token in generation.shown))
        if not told_before:
            timings = generation.timings() if generation.ask.timings else None
            generation.tell(Piece(text, [token], self._probabilities(generation, token, row), timings))
        over = self._over(generation)
        if over:
            self._finish(generation, over)

    def _over(self, generation: Generation) -> str:
        """Return why a generation is over, or an empty text."""
        if generation.text.stopped:
            return "stop"
        over = generation.generated >= generation.ask.max_tokens or self._is_full(generation) or _is_late(generation)
        return "length" if over else ""

    def _is_full(self, generation: Generation) -> bool:
        shifts = self._running.settings.context_shift
        return not shifts and len(generation.tokens) >= self._running.model.context.n_ctx

    def _finish(self, generation: Generation, reason: str) -> None:
        rest = generation.text.finish()
        if rest:
            generation.tell(Piece(rest, []))
        truncated = bool(generation.dropped) or (reason == "length" and self._is_full(generation))
        self._running.end(generation, generation.finished(reason, truncated))

    def _end_without(self, generation: Generation, error: Optional[APIError]) -> None:
        """End a generation that has no next token: by an error, or because the request leaves none."""
        if error:
            self._running.end(generation, error)
        elif generation.generated:
            self._finish(generation, "stop")
        else:
            self._running.end(generation, _no_candidates(generation.ask.sampling))

    def _probabilities(self, generation: Generation, token: int, row: int) -> List[Dict[str, Any]]:
        """Return a token's probability and the likeliest ones', as llama-server shows them, where they are wanted.

        They are those before any sampler, unless the request wants those after all of them.
        """
        resident, sampling = self._running.model, generation.ask.sampling
        most = sampling.n_probs
        if not most:
            return []
        if sampling.post_sampling_probs:
            chosen, top = generation.sampler.likeliest(token, most)
            after = [dict(self._describe(each), prob=value) for each, value in top]
            return [dict(self._describe(token), prob=chosen, top_probs=after)]
        chosen, top = resident.context.log_probabilities(row, resident.model.vocabulary, token, most)
        before = [dict(self._describe(each), logprob=_rounded(value)) for each, value in top]
        return [dict(self._describe(token), logprob=_rounded(chosen), top_logprobs=before)]

    def _describe(self, token: int) -> Dict[str, Any]:
        described = self._running.model.described
        if token not in described:
            piece = self._running.model.model.piece(token)
            described[token] = piece.decode("utf-8", "replace"), list(piece)
        text, codes = described[token]
        return {"id": token, "token": text, "bytes": codes}


def _is_late(generation: Generation) -> bool:
    """Whether an answer with a line break has taken longer than its request allows."""
    late = time.monotonic() - generation.times["first"] > generation.ask.time_limit
    return late and generation.text.has_line_break


def _rounded(log_probability: float) -> float:
    return round(max(log_probability, _LEAST), 6)


def _no_candidates(sampling: Sampling) -> APIError:
    names = {"grammar": sampling.grammar, "logit_bias": sampling.logit_bias, "ignore_eos": sampling.ignore_eos}
    given = ["'%s'" % name for name, value in names.items() if value]
    message = "The answer can't begin: %s of this request leave%s no token to choose."
    param = "grammar" if sampling.grammar else "logit_bias"
    return APIError(400, message % (" and ".join(given), "" if len(given) > 1 else "s"), "no_candidates", param)
