"""The OpenAI API: a dialect for each of its endpoints, in openai_shapes.py's shapes.

GET  /v1/models, /v1/models/{id}
POST /v1/completions            text in, text out
POST /v1/chat/completions       messages in, a message out
"""

import time
from typing import Any, Iterable, List

from core.apis import openai_shapes
from core.apis.dialect import Body, Call, ChatDialect, Dialect, Start
from core.apis.endpoint import Endpoint
from core.apis.extras import Extras, refuse_chat, refuse_completion
from core.apis.host import Host
from core.apis.llamacpp import completion_body, progress_body, timings_body
from core.apis.openai_shapes import Chats, Completions, Origin
from core.ask import Ask, Gap
from core.chat.conversation import Message, seed_of
from core.chat.parser import Delta
from core.engine.outcome import Finished, Piece, Progress, Result
from core.http.messages import Request, json_reply
from core.http.routing import Route


def _origin(prefix: str, call: Call, model: str, host: Host) -> Origin:
    return Origin(prefix + call.nonce, call.created, model, host.fingerprint)


def _verbose(extras: Extras, host: Host, ask: Ask, result: Result, streams: bool, index: int = 0) -> Body:
    """Return what llama-server tells beside the answer, where it is wanted: the answer of POST /completion."""
    return {"__verbose": completion_body(index, result, ask, host, streams)} if extras.verbose else {}


class Chat(ChatDialect):
    """A request of POST /v1/chat/completions. Raises APIError 400, 404."""

    def __init__(self, call: Call, host: Host):
        refuse_chat(call.body)
        ask, self._streaming, logprobs = openai_shapes.read_chat(call.body, host.defaults)
        openai_shapes.check_end(ask.messages)
        self._extras = Extras.read(call.body, host)
        conversation = host.conversation(ask)
        super().__init__(conversation, call, self._streaming.on)
        self.asks = self._extras.asked(self.asks)
        self._host = host
        self._chats = Chats(_origin("chatcmpl-", call, host.name_of(conversation.model), host), logprobs)
        self._told = [Result() for _ in self.asks]  # of a stream

    def message(self, messages: List[Message], reasons: List[str], results: List[Result]) -> Body:
        """Return a chat.completion."""
        choices = [
            self._chats.choice(index, message, reason, result.probabilities)
            for index, (message, reason, result) in enumerate(zip(messages, reasons, results))
        ]
        ends = [result.end for result in results]
        more = dict(_verbose(self._extras, self._host, self.asks[0], results[0], False), timings=ends[0].timings)
        return self._chats.whole(choices, openai_shapes.total_usage(ends, len(ends)), **more)

    def begin(self, index: int, start: Start) -> Iterable[Body]:
        """Return the chunk with the role."""
        self._told[index].seed = start.seed
        return [self._chats.begin(index)]

    def progress(self, index: int, progress: Progress) -> Iterable[Body]:
        """Return a chunk that says how much of the prompt is evaluated."""
        return [dict(self._chats.nothing(index), **progress_body(progress))]

    def delta(self, index: int, piece: Piece) -> Iterable[Body]:
        """Return the chunks of a new piece, with the timings so far where they are wanted."""
        if self._extras.verbose:
            self._told[index].take(piece)
        return [dict(chunk, **timings_body(piece)) for chunk in super().delta(index, piece)]

    def changes(self, index: int, deltas: List[Delta], probabilities: List[Body]) -> Iterable[Body]:
        """Return a chunk for each delta."""
        return self._chats.chunks(index, deltas, probabilities)

    def close(self, index: int, reason: str, end: Finished) -> Iterable[Body]:
        """Return the chunk with the reason."""
        told = self._told[index]
        told.end = end
        more = _verbose(self._extras, self._host, self.asks[index], told, True, index)
        return [self._chats.end(index, reason, timings=end.timings, **more)]

    def last(self) -> Iterable[Body]:
        """Return the chunk with the usage, where it is wanted."""
        ends = [told.end for told in self._told]
        usage = openai_shapes.total_usage(ends, len(ends))
        return [self._chats.usage(usage, timings=ends[0].timings)] if self._streaming.usage else []


class Completion(Dialect):
    """A request of POST /v1/completions. Raises APIError 400, 404, 503."""

    def __init__(self, call: Call, host: Host):
        refuse_completion(call.body)
        ask = openai_shapes.read_completion(call.body, host.defaults)
        self._extras = Extras.read(call.body, host)
        self._host = host
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
        super().__init__(self._extras.asked(asks), ask.stream.on)
        self._count = ask.count
        self._usage = ask.stream.usage
        self._completions = Completions(_origin("cmpl-", call, host.name_of(model), host), ask.logprobs)
        self._echoes = [host.text(prompt) if ask.echo else "" for prompt in ask.prompts for _ in range(ask.count)]
        self._told = [Result() for _ in asks]  # of a stream

    def whole(self, results: List[Result]) -> Body:
        """Return a text_completion."""
        choices = [
            self._completions.choice(index, echo + result.text, result.probabilities, result.end.reason)
            for index, (echo, result) in enumerate(zip(self._echoes, results))
        ]
        ends = [result.end for result in results]
        usage = openai_shapes.total_usage(ends, self._count)
        more = dict(_verbose(self._extras, self._host, self.asks[0], results[0], False), timings=ends[0].timings)
        return self._completions.whole(choices, usage, **more)

    def begin(self, index: int, start: Start) -> Iterable[Body]:
        """Return a chunk with the prompt, where it is to be told, too."""
        self._told[index].seed = start.seed
        return [self._completions.chunk(index, self._echoes[index], [])] if self._echoes[index] else []

    def delta(self, index: int, piece: Piece) -> Iterable[Body]:
        """Return a chunk with new text."""
        if self._extras.verbose:
            self._told[index].take(piece)
        if piece.text or piece.probabilities:
            yield dict(self._completions.chunk(index, piece.text, piece.probabilities), **timings_body(piece))

    def progress(self, index: int, progress: Progress) -> Iterable[Body]:
        """Return a chunk that says how much of the prompt is evaluated."""
        return [dict(self._completions.chunk(index, "", []), **progress_body(progress))]

    def end(self, index: int, end: Finished) -> Iterable[Body]:
        """Return the chunk with the reason."""
        told = self._told[index]
        told.end = end
        more = dict(_verbose(self._extras, self._host, self.asks[index], told, True, index), timings=end.timings)
        return [dict(self._completions.chunk(index, "", [], end.reason), **more)]

    def last(self) -> Iterable[Body]:
        """Return the chunk with the usage, where it is wanted."""
        ends = [told.end for told in self._told]
        usage = openai_shapes.total_usage(ends, self._count)
        return [self._completions.usage(usage, timings=ends[0].timings)] if self._usage else []


def routes(endpoint: Endpoint) -> List[Route]:
    """Return the routes."""
    host = endpoint.host
    started = int(time.time())

    def models(request: Request) -> Any:
        """GET /v1/models: the models in the folder."""
        return json_reply(openai_shapes.model_list(model_cards(host, started)))

    def model(request: Request) -> Any:
        """GET /v1/models/{id}: one of them. Raises APIError 404."""
        found = host.named(request.params["id"])
        return json_reply(openai_shapes.model_card(found, host.name_of(found), started))

    chats = [endpoint.route(path, Chat) for path in ("/v1/chat/completions", "/chat/completions")]
    return chats + [
        Route("GET", "/v1/models", models),
        Route("GET", "/v1/models/{id}", model),
        endpoint.route("/v1/completions", Completion),
    ]


def model_cards(host: Host, started: int) -> List[Body]:
    """Return what GET /v1/models says of each model that can be used, since `started` (seconds since 1970)."""
    usable = [each for each in host.listed() if not each.problem]
    cards = [(each, openai_shapes.model_card(each, host.name_of(each), started)) for each in usable]
    own = {"aliases": host.names.own, "tags": host.tags}
    return [dict(card, **own) if each.name == host.names.model else card for each, card in cards]
