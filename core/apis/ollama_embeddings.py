"""Ollama's embeddings.

    POST /api/embed          a text, or an array of them, in; vectors of length 1 out
    POST /api/embeddings     its older form: one prompt, and its vector as the model gives it

A text that does not fit in the context gets 400: Ollama would cut it, and embed something else than was asked for.
"""

from typing import Any, Dict, List
from typing import Sequence as Many

from core import fields
from core.apis.dialect import Call
from core.apis.embeddings import EUCLIDEAN, Embeddings, EmbeddingsAsk, vector_of
from core.apis.endpoint import Endpoint
from core.apis.host import Host
from core.apis.ollama import model_name
from core.bounds import PROMPTS
from core.engine.outcome import Result
from core.errors import APIError, json_type
from core.http.routing import Route

AS_IT_IS = -1


class Embed(Embeddings):
    """A request of POST /api/embed. Raises APIError 400, 404."""

    def read(self, call: Call, host: Host) -> EmbeddingsAsk:
        """Return what a body asks for."""
        fields.flag(call.body, "truncate", True)
        size = fields.integer(call.body, "dimensions", None, 0, 1 << 20) or None
        return EmbeddingsAsk(tuple(_texts(call.body)), model_name(call.body), size, False, EUCLIDEAN)

    def whole(self, results: List[Result]) -> Any:
        """Return all vectors, and how many tokens were read."""
        tokens = sum(each.end.prompt_tokens for each in results)
        vectors = [vector_of(self.ask, each.end.vectors[0]) for each in results]
        times = {"total_duration": 0, "load_duration": 0}  # the engine takes no times of embeddings
        return dict(times, model=self.name, embeddings=vectors, prompt_eval_count=tokens)


class OldEmbed(Embed):
    """A request of POST /api/embeddings. Raises APIError 400, 404."""

    def read(self, call: Call, host: Host) -> EmbeddingsAsk:
        """Return what a body asks for."""
        text = fields.any_text(call.body, "prompt") if call.body.get("prompt") else ""
        return EmbeddingsAsk((text,) if text else (), model_name(call.body), None, False, AS_IT_IS)

    def whole(self, results: List[Result]) -> Any:
        """Return the vector; an empty one without a prompt."""
        vectors = [vector_of(self.ask, each.end.vectors[0]) for each in results]
        return {"embedding": vectors[0] if vectors else []}


def _texts(body: Dict[str, Any]) -> Many[str]:
    given = body.get("input", [])
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        message = "'input' must be a string or an array of strings, not %s." % json_type(given)
        raise APIError(400, message, "invalid_value", "input")
    PROMPTS.check(len(texts), "input")
    return texts


def routes(endpoint: Endpoint) -> List[Route]:
    """Return the routes."""
    return [endpoint.route("/api/embed", Embed), endpoint.route("/api/embeddings", OldEmbed)]
