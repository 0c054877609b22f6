"""OpenAI's Responses API (its API reference), translated to the same conversations.

POST   /v1/responses                      items in, items out: reasoning, message, function_call
POST   /v1/responses/input_tokens         how many tokens it would have; likewise /v1/chat/completions/input_tokens
GET    /v1/responses/{id}, DELETE         an answer that is stored
GET    /v1/responses/{id}/input_items     what the model was told for it
POST   /v1/responses/{id}/cancel          400: an answer that is stored has ended

response_items.py   items in          response_asks.py    a body to a ChatAsk
response_events.py  items out         response_store.py   answers on disk
"""

import re
from typing import Any, Iterable, List, Tuple

from core.apis.dialect import Body, Call, ChatDialect, Start
from core.apis.endpoint import Endpoint
from core.apis.host import Host
from core.apis.openai_shapes import read_chat
from core.apis.response_asks import WHY_NOT_FOUND, Caller, read_response
from core.apis.response_events import Answer, Head
from core.apis.response_store import Record
from core.chat.parser import Delta
from core.engine.outcome import Finished, Piece, Result
from core.errors import APIError
from core.http.messages import Request, json_reply
from core.http.routing import Handler, Route
from core.http.sse import Form, event
from core.jsonbody import read_json
from core.owners import asking

_PREFIXES = ("/v1", "")  # llama.cpp's server answers without /v1, too


def _event(body: Body) -> bytes:
    return event(body, body["type"])


class Responses(ChatDialect):
    """A request of POST /v1/responses. Raises APIError 400, 404."""

    repeats = True

    def __init__(self, call: Call, host: Host):
        self._ask = ask = read_response(call.body, Caller(call.nonce, call.owner), host.store, host.defaults)
        super().__init__(host.conversation(ask.chat), call, ask.stream)
        self._store, self._owner = host.store, call.owner
        self._answer = Answer(Head(call.nonce, call.created, self.model, ask.told), ask.logprobs)
        self._ended: Body = {}  # the answer's object, at its end
        self.form = Form(render=_event, error=lambda error: _event(self._answer.failed(error)), done=b"")

    def whole(self, results: List[Result]) -> Body:
        """Return a response: what a stream would have told, put together."""
        for piece in results[0].pieces():
            list(self.delta(0, piece))
        list(self.end(0, results[0].end))
        return dict(self._ended, timings=results[0].end.timings)

    def begin(self, index: int, start: Start) -> Iterable[Body]:
        """Return the events that begin a response."""
        return self._answer.begin()

    def delta(self, index: int, piece: Piece) -> Iterable[Body]:
        """Return the events that tell a new piece."""
        yield from super().delta(index, piece)
        self._answer.count(len(piece.tokens))

    def changes(self, index: int, deltas: List[Delta], probabilities: List[Body]) -> Iterable[Body]:
        """Return the events of items that begin, grow and are done."""
        return self._answer.push(deltas, probabilities)

    def close(self, index: int, reason: str, end: Finished) -> Iterable[Body]:
        """Store the response; return the events that end it."""
        yield from self._answer.finish(reason)
        self._ended = self._answer.response("incomplete" if reason == "length" else "completed", end)
        record = Record(self._ask.items, self._ended)
        if self._ask.store and not self._store.keep(self._ended["id"], self._owner, record):
            self._ended["store"] = False
        yield dict(self._answer.end(self._ended), timings=end.timings)


# ------------------------------------------------------------------------------------ answers that are stored


class _Stored:
    """The routes of answers that are stored."""

    def __init__(self, host: Host):
        self._store = host.store

    def retrieve(self, request: Request) -> Any:
        """GET /v1/responses/{id}: an answer's object."""
        if request.query.get("stream") == "true":
            message = "'stream' is not supported here: an answer's events are not kept, but the answer is."
            raise APIError(400, message, "unsupported", "stream")
        return json_reply(self._find(request).response)

    def delete(self, request: Request) -> Any:
        """DELETE /v1/responses/{id}: nobody can go on with it any more, but with later ones that went on with it."""
        id = request.params["id"]
        if not self._store.forget(id, _owner(request)):
            raise _not_found(id)
        return json_reply({"id": id, "object": "response", "deleted": True})

    def cancel(self, request: Request) -> Any:
        """POST /v1/responses/{id}/cancel: refused, since an answer is stored when it has ended."""
        self._find(request)
        message = "Only a response that was created with 'background': true can be cancelled, and this one has ended."
        raise APIError(400, message, "invalid_value", "id")

    def input_items(self, request: Request) -> Any:
        """GET /v1/responses/{id}/input_items: a page of what the model was told, the latest first."""
        items, after, size = self._page(request)
        start = 0
        if after is not None:
            start = 1 + next((index for index, item in enumerate(items) if item["id"] == after), len(items))
            if start > len(items):
                raise APIError(400, "'after' names no item of this response: '%s'." % after, "invalid_value", "after")
        page = items[start : start + size]
        ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
        return json_reply({"object": "list", "data": page, "has_more": start + size < len(items), **ends})

    def _page(self, request: Request) -> Tuple[List[Body], Any, int]:
        """Return the items in the order that is wanted, the id after which they are, and how many. Raises APIError."""
        query = request.query
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise APIError(400, "'order' must be 'asc' or 'desc'.", "invalid_value", "order")
        limit = query.get("limit", "20")
        if not re.fullmatch("[0-9]{1,3}", limit, re.ASCII) or not 1 <= int(limit) <= 100:
            raise APIError(400, "'limit' must be a whole number from 1 to 100.", "invalid_value", "limit")
        items = self._find(request).items
        return items if order == "asc" else items[::-1], query.get("after"), int(limit)

    def _find(self, request: Request) -> Record:
        id = request.params["id"]
        record = self._store.find(id, _owner(request))
        if record is None:
            raise _not_found(id)
        return record


def _owner(request: Request) -> str:
    return asking(request.headers, request.key)


def _not_found(id: str) -> APIError:
    return APIError(404, "Response with id '%s' not found: %s" % (id, WHY_NOT_FOUND), "response_not_found", "id")


# ------------------------------------------------------------------------------------------------- the routes


def routes(endpoint: Endpoint) -> List[Route]:
    """Return the routes."""
    host, stored = endpoint.host, _Stored(endpoint.host)

    def count_response(request: Request) -> Any:
        """POST /v1/responses/input_tokens: how many tokens the model would read."""
        ask = read_response(read_json(request.body), Caller("", _owner(request)), host.store)
        return json_reply({"object": "response.input_tokens", "input_tokens": host.count(host.conversation(ask.chat))})

    def count_chat(request: Request) -> Any:
        """POST /v1/chat/completions/input_tokens: the same for a chat."""
        ask = read_chat(read_json(request.body))[0]
        return json_reply({"object": "response.input_tokens", "input_tokens": host.count(host.conversation(ask))})

    handlers: List[Tuple[str, str, Handler]] = [
        ("POST", "/responses/input_tokens", count_response),
        ("POST", "/chat/completions/input_tokens", count_chat),
        ("GET", "/responses/{id}", stored.retrieve),
        ("DELETE", "/responses/{id}", stored.delete),
        ("POST", "/responses/{id}/cancel", stored.cancel),
        ("GET", "/responses/{id}/input_items", stored.input_items),
    ]
    made = [Route(method, prefix + path, handler) for method, path, handler in handlers for prefix in _PREFIXES]
    return made + [endpoint.route(prefix + "/responses", Responses) for prefix in _PREFIXES]
