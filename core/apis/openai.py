"""The OpenAI API: a dialect for each of its endpoints, in openai_shapes.py's shapes.

GET  /v1/models, /v1/models/{id}
POST /v1/completions            text in, text out
POST /v1/chat/completions       messages in, a message out
"""

import time
from typing import Any, Dict, Iterable, List

from core.apis import openai_shapes
from core.apis.dialect import Body, Call, ChatDialect, Dialect, Start
from core.apis.endpoint import Endpoint
from core.apis.host import Host
from core.apis.openai_shapes import Chats, Completions, Origin
from core.chat.conversation import Message, seed_of
from core.chat.parser import Delta
from core.engine.ask import Ask, Gap
from core.engine.outcome import Finished, Piece, Result
from core.http.messages import Request, json_reply
from core.http.routing import Route


def _origin(prefix: str, call: Call, model: str, host: Host) -> Origin:
    return Origin(prefix + call.nonce, call.created, model, host.fingerprint)


def _in_order(ends: Dict[int, Finished]) -> List[Finished]:
    return [ends[index] for index in sorted(ends)]


class Chat(ChatDialect):
    """A request of POST /v1/chat/completions. Raises APIError 400, 404."""

    def __init__(self, call: Call, host: Host):
        ask, self._streaming, logprobs = openai_shapes.read_chat(call.body)
        super().__init__(host.conversation(ask), call, self._streaming.on)
        self._chats = Chats(_origin("chatcmpl-", call, self.model, host), logprobs)
        self._ends: Dict[int, Finished] = {}

    def message(self, messages: List[Message], reasons: List[str], results: List[Result]) -> Body:
        """Return a chat.completion."""
        choices = [
            self._chats.choice(index, message, reason, result.probabilities)
            for index, (message, reason, result) in enumerate(zip(messages, reasons, results))
        ]
        ends = [result.end for result in results]
        return self._chats.whole(choices, openai_shapes.total_usage(ends, len(ends)), timings=ends[0].timings)

    def begin(self, index: int, start: Start) -> Iterable[Body]:
        """Return the chunk with the role."""
        return [self._chats.begin(index)]

    def changes(self, index: int, deltas: List[Delta], probabilities: List[Body]) -> Iterable[Body]:
        """Return a chunk for each delta."""
        return self._chats.chunks(index, deltas, probabilities)

    def close(self, index: int, reason: str, end: Finished) -> Iterable[Body]:
        """Return the chunk with the reason."""
        self._ends[index] = end
        return [self._chats.end(index, reason, timings=end.timings)]

    def last(self) -> Iterable[Body]:
        """Return the chunk with the usage, where it is wanted."""
        ends = _in_order(self._ends)
        return [self._chats.usage(openai_shapes.total_usage(ends, len(ends)))] if self._streaming.usage else []


class Completion(Dialect):
    """A request of POST /v1/completions. Raises APIError 400, 404, 503."""

    def __init__(self, call: Call, host: Host):
        ask = openai_shapes.read_completion(call.body)
        model = host.model(ask.model)
        asks = [
            Ask(
                model,
                prompt if ask.suffix is None else Gap(prompt, ask.suffix),
                ask.max_tokens,
                ask.stop,
                seed_of(ask.sampling, index),
                ask.cache_prompt,
            )
            for prompt in ask.prompts
            for index in range(ask.count)
        ]
        super().__init__(asks, ask.stream.on)
        self._count = ask.count
        self._usage = ask.stream.usage
        self._completions = Completions(_origin("cmpl-", call, model.name, host), ask.logprobs)
        self._echoes = [host.text(prompt) if ask.echo else "" for prompt in ask.prompts for _ in range(ask.count)]
        self._ends: Dict[int, Finished] = {}

    def whole(self, results: List[Result]) -> Body:
        """Return a text_completion."""
        choices = [
            self._completions.choice(index, echo + result.text, result.probabilities, result.end.reason)
            for index, (echo, result) in enumerate(zip(self._echoes, results))
        ]
        ends = [result.end for result in results]
        usage = openai_shapes.total_usage(ends, self._count)
        return self._completions.whole(choices, usage, timings=ends[0].timings)

    def begin(self, index: int, start: Start) -> Iterable[Body]:
        """Return a chunk with the prompt, where it is to be told, too."""
        return [self._completions.chunk(index, self._echoes[index], [])] if self._echoes[index] else []

    def delta(self, index: int, piece: Piece) -> Iterable[Body]:
        """Return a chunk with new text."""
        if piece.text or piece.probabilities:
            yield self._completions.chunk(index, piece.text, piece.probabilities)

    def end(self, index: int, end: Finished) -> Iterable[Body]:
        """Return the chunk with the reason."""
        self._ends[index] = end
        return [dict(self._completions.chunk(index, "", [], end.reason), timings=end.timings)]

    def last(self) -> Iterable[Body]:
        """Return the chunk with the usage, where it is wanted."""
        usage = openai_shapes.total_usage(_in_order(self._ends), self._count)
        return [self._completions.usage(usage)] if self._usage else []


def routes(endpoint: Endpoint) -> List[Route]:
    """Return the routes."""
    host = endpoint.host
    started = int(time.time())

    def models(request: Request) -> Any:
        """GET /v1/models: the models in the folder."""
        usable = [each for each in host.listed() if not each.problem]
        return json_reply(openai_shapes.model_list([openai_shapes.model_card(each, started) for each in usable]))

    def model(request: Request) -> Any:
        """GET /v1/models/{id}: one of them. Raises APIError 404."""
        return json_reply(openai_shapes.model_card(host.find(request.params["id"]), started))

    return [
        Route("GET", "/v1/models", models),
        Route("GET", "/v1/models/{id}", model),
        endpoint.route("/v1/completions", Completion),
        endpoint.route("/v1/chat/completions", Chat),
    ]
