"""ComeAPI's own endpoint: a prompt in, its answer out, whole or as server-sent events.

POST /generate      {"prompt", "model_name", "max_tokens", "stream", …} to {"response", "usage", …}
"""

from typing import Iterable, List

from core import fields
from core.apis.dialect import Body, Call, Dialect, Start
from core.apis.endpoint import Endpoint
from core.apis.host import Host
from core.ask import UNLIMITED, Ask
from core.engine.outcome import Finished, Piece, Result
from core.http.routing import Route
from core.sampling import Sampling, read_sampling


class Generate(Dialect):
    """A request of POST /generate. Raises APIError 400, 404, 500 for a body that asks for what can't be done."""

    def __init__(self, call: Call, host: Host):
        body = call.body
        prompt = fields.text(body, "prompt")
        ask = Ask(
            model=host.model(fields.text(body, "model_name"), param="model_name"),
            prompt=prompt,
            max_tokens=fields.integer(body, "max_tokens", host.defaults.limit(100), 1, UNLIMITED),
            stop=tuple(fields.texts(body, "stop")),
            sampling=read_sampling(body, host.defaults.over(Sampling())),
            cache_prompt=fields.flag(body, "cache_prompt", host.defaults.cache_prompt),
        )
        super().__init__([ask], fields.flag(body, "stream", False))
        self._new = Result()  # what is not told yet

    def whole(self, results: List[Result]) -> Body:
        """Return the body of the whole answer."""
        return self._last(results[0], {"response": results[0].text})

    def begin(self, index: int, start: Start) -> Iterable[Body]:
        """Note the seed."""
        self._new.seed = start.seed
        return ()

    def delta(self, index: int, piece: Piece) -> Iterable[Body]:
        """Return an event with new text and its tokens; tokens without text wait for it."""
        new = self._new
        new.take(piece)
        if not new.text:
            return ()
        self._new = Result(new.seed)
        return [dict({"response": new.text, "tokens": new.tokens, "done": False}, **_probabilities(new))]

    def end(self, index: int, end: Finished) -> Iterable[Body]:
        """Return the last event: what was left, and the summary."""
        self._new.take(end)
        return [self._last(self._new, {"response": "", "tokens": self._new.tokens, "done": True})]

    def _last(self, result: Result, body: Body) -> Body:
        """Return a body with the summary of an answer."""
        summary = {
            "model": self.asks[0].model.name,
            "finish_reason": result.end.reason,
            "seed": result.seed,
            "usage": result.end.usage(),
            "timings": result.end.timings,
        }
        return dict(body, **summary, **_probabilities(result))


def _probabilities(result: Result) -> Body:
    return {"completion_probabilities": result.probabilities} if result.probabilities else {}


def routes(endpoint: Endpoint) -> List[Route]:
    """Return the routes."""
    return [endpoint.route("/generate", Generate)]
