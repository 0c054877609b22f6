"""A backend's metrics: the engine's state and counts, by our names and by llama-server's.

    measure(metrics, engine)    adds them to a service's; they are read when somebody asks

llama-server's names are those of its --metrics (server-task.cpp), so that dashboards made for it go on.
"""

import time
from typing import TYPE_CHECKING, Any, Callable, List, Tuple

from core.http.metrics import Metrics

if TYPE_CHECKING:  # it needs llama_cpp
    from core.engine.engine import Engine

_COUNTS = {  # the engine's counts, by our names
    "prompt_tokens": ("comeapi_backend_prompt_tokens_total", "Prompt tokens evaluated."),
    "cached_tokens": ("comeapi_backend_cached_tokens_total", "Prompt tokens not evaluated again."),
    "cache_hits": ("comeapi_backend_cache_hits_total", "Requests that reused cells."),
    "prompts_aside": ("comeapi_backend_prompts_aside_total", "Prompts evaluated in the siding."),
    "generated_tokens": ("comeapi_backend_generated_tokens_total", "Tokens generated."),
    "steps": ("comeapi_backend_steps_total", "Batches evaluated."),
    "cancelled": ("comeapi_backend_cancelled_total", "Requests whose client left."),
}
_THEIR_COUNTS = {  # the same by llama-server's
    "prompt_tokens": ("prompt_tokens_total", "Prompt tokens evaluated."),
    "cached_tokens": ("prompt_tokens_cached_total", "Prompt tokens not evaluated again."),
    "generated_tokens": ("tokens_predicted_total", "Tokens generated."),
    "steps": ("n_decode_total", "Batches evaluated."),
    "drafts": ("spec_decode_num_draft_tokens_total", "Tokens guessed ahead."),
    "drafts_accepted": ("spec_decode_num_accepted_tokens_total", "Guesses that were right."),
    "draft_rounds": ("spec_decode_num_drafts_total", "Times that tokens were guessed ahead."),
}


def measure(metrics: Metrics, engine: "Engine") -> None:
    """Put the engine's state among the metrics."""
    gauges = _gauges(metrics, engine)
    counters = [(metrics.counter(*told), name) for name, told in _COUNTS.items()]
    counters += [(metrics.counter("llamacpp:" + name, help), key) for key, (name, help) in _THEIR_COUNTS.items()]
    seconds = metrics.counter("comeapi_backend_engine_seconds_total", "What the engine's time went to.", "part")
    theirs = _Theirs(metrics, engine)

    def collect() -> None:
        for part, value in engine.tally.seconds.items():
            seconds.set(value, part)
        for gauge, read in gauges:
            gauge.set(read())
        for counter, name in counters:
            counter.set(engine.tally.counts[name])
        theirs.collect()

    metrics.collect(collect)


def _gauges(metrics: Metrics, engine: "Engine") -> List[Tuple[Any, Callable[[], float]]]:
    told: List[Tuple[str, str, Callable[[], float]]] = [
        ("comeapi_backend_slots", "Requests that can run at once.", lambda: engine.settings.slots),
        ("comeapi_backend_busy_slots", "Requests that are running.", engine.busy),
        ("comeapi_backend_queued_requests", "Requests that wait for a slot.", engine.queued),
        ("comeapi_backend_step_seconds", "How long the last step took.", lambda: engine.tally.step_seconds),
        (
            "comeapi_backend_heartbeat_age_seconds",
            "Since the engine's last sign of life.",
            lambda: time.monotonic() - engine.heartbeat,
        ),
        ("llamacpp:requests_processing", "Requests that are running.", engine.busy),
        ("llamacpp:requests_deferred", "Requests that wait for a slot.", engine.queued),
    ]
    return [(metrics.gauge(name, help), read) for name, help, read in told]


class _Theirs:
    """llama-server's other metrics. Its rates are those since they were last read."""

    def __init__(self, metrics: Metrics, engine: "Engine"):
        def counter(name: str, help: str) -> Any:
            return metrics.counter("llamacpp:" + name, help)

        def gauge(name: str, help: str) -> Any:
            return metrics.gauge("llamacpp:" + name, help)

        self._tally = engine.tally
        self._longest = counter("n_tokens_max", "Most tokens of one request, its prompt's included.")
        self._seconds = {
            "prompt": counter("prompt_seconds_total", "Seconds that requests took to evaluate their prompts."),
            "predicted": counter("tokens_predicted_seconds_total", "Seconds that requests took to generate."),
        }
        self._rates = {
            "prompt": gauge("prompt_tokens_seconds", "Prompt tokens a second of a request, since the last look."),
            "predicted": gauge("predicted_tokens_seconds", "Tokens generated a second, since the last look."),
        }
        self._busy = gauge("n_busy_slots_per_decode", "Requests in a batch, on average since the last look.")
        self._seen = {"prompt": (0.0, 0.0), "predicted": (0.0, 0.0), "busy": (0.0, 0.0)}

    def collect(self) -> None:
        """Set them all."""
        counts, seconds = self._tally.counts, self._tally.served_seconds
        self._longest.set(self._tally.most_tokens)
        for part, tokens in (("prompt", "prompt_tokens"), ("predicted", "generated_tokens")):
            self._seconds[part].set(seconds[part])
            self._rates[part].set(self._since(part, counts[tokens], seconds[part]))
        self._busy.set(self._since("busy", counts["step_generations"], counts["steps"]))

    def _since(self, name: str, part: float, whole: float) -> float:
        """Return the ratio of what two counts have grown by since the last look."""
        before, self._seen[name] = self._seen[name], (part, whole)
        grown = whole - before[1]
        return (part - before[0]) / grown if grown > 0 else 0.0
