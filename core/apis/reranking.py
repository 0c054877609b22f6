"""Reranking: a query and documents in, and how well each document matches it.

POST /v1/rerank, /v2/rerank, /v1/reranking, /rerank, /reranking

    documents    Jina's and Cohere's shape: {"results": [{"index", "relevance_score", "document"}], "usage", …}
    texts        Hugging Face's (TEI): [{"index", "score", "text"}]

The best comes first. Scores are the model's own: most give numbers of any size, some from 0 to 1.
"""

from dataclasses import dataclass
from typing import Any, List, Optional, Tuple

from core import fields
from core.apis.dialect import Body, Call, Dialect
from core.apis.endpoint import Endpoint
from core.apis.host import Host
from core.ask import RANKS, Ask, Pair
from core.bounds import DOCUMENTS
from core.engine.outcome import Result
from core.errors import APIError, json_type
from core.http.routing import Route

_REFUSED = ("max_tokens_per_doc", "max_chunks_per_doc")  # Cohere's: a document is ranked whole
_PATHS = ("/v1/rerank", "/v2/rerank", "/v1/reranking", "/rerank", "/reranking")


@dataclass(frozen=True)
class RerankAsk:
    """What a request asks for. `bare`: in Hugging Face's shape."""

    query: str
    documents: Tuple[str, ...]
    model: Optional[str]
    top_n: int
    return_documents: bool
    bare: bool


def read_rerank(body: Body) -> RerankAsk:
    """Return what a body asks for. Raises APIError 400."""
    for name in _REFUSED:
        if body.get(name) is not None:
            raise APIError(400, "'%s' is not supported: documents are ranked whole." % name, "unsupported", name)
    if body.get("rank_fields") not in (None, ["text"]):
        raise APIError(400, "'rank_fields' may be ['text'] only.", "unsupported", "rank_fields")
    bare = "texts" in body and "documents" not in body
    name = "texts" if bare else "documents"
    documents = _documents(body.get(name), name)
    return RerankAsk(
        query=fields.text(body, "query"),
        documents=documents,
        model=fields.text(body, "model", None),
        top_n=fields.integer(body, "top_n", len(documents), 1, 1 << 31),
        return_documents=fields.flag(body, "return_text" if bare else "return_documents", False),
        bare=bare,
    )


def _documents(value: Any, name: str) -> Tuple[str, ...]:
    if not isinstance(value, list) or not value:
        message = "'%s' must be an array of texts that is not empty." % name
        raise APIError(400, message, "invalid_value" if value is not None else "missing_field", name)
    DOCUMENTS.check(len(value), name)
    return tuple(_document(each, "%s[%d]" % (name, index)) for index, each in enumerate(value))


def _document(value: Any, name: str) -> str:
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        message = "'%s' must be a string or {\"text\": string}, not %s." % (name, json_type(value))
        raise APIError(400, message, "invalid_value", name)
    return text


class Rerank(Dialect):
    """A request. Raises APIError 400, 404, and 501 where the model can't rank."""

    def __init__(self, call: Call, host: Host):
        self._ask = ask = read_rerank(call.body)
        model = host.model(ask.model, RANKS)
        self._name = host.name_of(model)
        self._id = "rerank-" + call.nonce
        super().__init__([Ask(model, Pair(ask.query, text), gives=RANKS) for text in ask.documents])

    def whole(self, results: List[Result]) -> Any:
        """Return the best documents' numbers and scores."""
        scores = [float(each.end.vectors[0][0]) for each in results]
        best = sorted(range(len(scores)), key=lambda index: -scores[index])[: self._ask.top_n]
        ranked = [self._result(index, scores[index]) for index in best]
        if self._ask.bare:
            return ranked
        tokens = sum(each.end.prompt_tokens for each in results)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"id": self._id, "object": "list", "model": self._name, "usage": usage, "results": ranked}

    def _result(self, index: int, score: float) -> Body:
        text = self._ask.documents[index]
        if self._ask.bare:
            return dict({"index": index, "score": score}, **({"text": text} if self._ask.return_documents else {}))
        document = {"document": {"text": text}} if self._ask.return_documents else {}
        return dict({"index": index, "relevance_score": score}, **document)


def routes(endpoint: Endpoint) -> List[Route]:
    """Return the routes."""
    return [endpoint.route(path, Rerank) for path in _PATHS]
