"""What the engine has done so far: counts and times, written by its thread, read by any."""

import collections
from typing import Counter, Dict


class Tally:
    """Counts and times since the engine's start.

    `counts`: steps, step_generations (of all steps in sum), prompt_tokens, cached_tokens, cache_hits, prompts_aside,
    generated_tokens, drafts, drafts_accepted, draft_rounds, ended, cancelled. `seconds` says what the thread's time
    went to: "decode" and "sample" in llama.cpp, "step" with them and Python's share; and "siding", waiting for a part
    of a long prompt.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = collections.Counter()
        self.seconds: Dict[str, float] = {"decode": 0.0, "sample": 0.0, "step": 0.0, "siding": 0.0}
        self.largest_batch = 0  # generations in one step
        self.step_seconds = 0.0  # how long the last step took
        self.longest_step = 0.0  # seconds
        self.most_tokens = 0  # of one generation, its prompt's included
        self.served_seconds: Dict[str, float] = {"prompt": 0.0, "predicted": 0.0}  # in sum, of those that have ended

    def count_batch(self, generations: int) -> None:
        """Count a step in which so many generations took part."""
        self.counts["steps"] += 1
        self.counts["step_generations"] += generations
        self.largest_batch = max(self.largest_batch, generations)

    def count_ended(self, tokens: int, timings: Dict[str, float]) -> None:
        """Count a generation of so many tokens that has ended well."""
        self.most_tokens = max(self.most_tokens, tokens)
        for part in self.served_seconds:
            self.served_seconds[part] += timings[part + "_ms"] / 1e3
