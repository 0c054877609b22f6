"""llama.cpp's own endpoints, in the shapes of its server (tools/server/README.md there), so that its clients go on.

    POST /completion          text in, text out, with every sampler by its name
    POST /tokenize, /detokenize, /apply-template
    GET  /props, /slots       what it would sample with, and what each slot is doing

The model is the one that is loaded, or the one that `model` names.
"""

from dataclasses import asdict, dataclass
from typing import Any, Iterable, List, Optional, Tuple

from core import fields
from core.apis.dialect import Body, Call, Dialect, Start
from core.apis.endpoint import Endpoint
from core.apis.host import Host
from core.apis.openai_shapes import DEFAULTS, read_schema
from core.bounds import PROMPTS
from core.chat.conversation import ChatAsk, template_of
from core.chat.markers import text_of
from core.chat.messages import read_messages
from core.chat.tools import read_tools
from core.engine.ask import UNLIMITED, Ask, Prompt
from core.engine.generation import Generation
from core.engine.outcome import Finished, Piece, Result
from core.engine.sampling import RANDOM_SEED, Sampling, read_sampling
from core.errors import APIError
from core.grammar.schema import json_grammar
from core.http.messages import Request, json_reply
from core.http.routing import Route
from core.http.sse import Form
from core.jsonbody import read_json


@dataclass(frozen=True)
class NativeAsk:
    """What POST /completion asks for. `several`: the prompt was an array of prompts, and so is the answer."""

    prompts: Tuple[Prompt, ...]
    several: bool
    model: Optional[str]
    max_tokens: int
    stop: Tuple[str, ...]
    sampling: Sampling
    cache_prompt: bool
    stream: bool
    return_tokens: bool


def read_completion(body: Body) -> NativeAsk:
    """Return what a body of POST /completion asks for. Raises APIError 400."""
    prompts, several = _prompts(body)
    stream = fields.flag(body, "stream", False)
    limit = fields.integer(body, "n_predict", fields.integer(body, "max_tokens", -1, -1, UNLIMITED), -1, UNLIMITED)
    return NativeAsk(
        prompts,
        several,
        model=fields.text(body, "model", None),
        max_tokens=UNLIMITED if limit < 0 else limit,
        stop=tuple(fields.texts(body, "stop")),
        sampling=_sampling(body),
        cache_prompt=fields.flag(body, "cache_prompt", True),
        stream=stream,
        return_tokens=stream or fields.flag(body, "return_tokens", False),
    )


def _sampling(body: Body) -> Sampling:
    schema = read_schema(body)
    if schema is None:
        return read_sampling(body, DEFAULTS)
    if body.get("grammar"):
        raise APIError(400, "'grammar' and 'json_schema' can't be honoured together.", "contradiction", "grammar")
    return read_sampling(dict(body, grammar=json_grammar(schema, "json_schema")), DEFAULTS)


def _prompts(body: Body) -> Tuple[Tuple[Prompt, ...], bool]:
    """Return the prompts: a text; texts and token ids in turns; or an array of those. Raises APIError 400."""
    value = body.get("prompt")
    if value is None:
        raise APIError(400, "The field 'prompt' is missing.", "missing_field", "prompt")
    if isinstance(value, list) and any(isinstance(each, list) for each in value) or _all_texts(value):
        PROMPTS.check(len(value), "prompt")
        return tuple(_prompt(each) for each in value), True
    return (_prompt(value),), False


def _all_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def _prompt(value: Any) -> Prompt:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(_is_part(each) for each in value):
        return tuple(value)
    message = "'prompt' must be a string, an array of token ids and strings, or an array of such prompts."
    raise APIError(400, message, "invalid_value", "prompt")


def _is_part(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def settings_body(sampling: Sampling, max_tokens: int, stop: Tuple[str, ...], stream: bool) -> Body:
    """Return the settings of a request by llama.cpp's names, as `generation_settings` has them."""
    limit = -1 if max_tokens >= UNLIMITED else max_tokens
    body = asdict(sampling)
    body["seed"] = RANDOM_SEED if sampling.seed < 0 else sampling.seed
    body["logit_bias"] = [[token, bias if bias > float("-inf") else False] for token, bias in sampling.logit_bias]
    return dict(body, n_predict=limit, max_tokens=limit, stop=list(stop), stream=stream)


def completion_body(index: int, answer: Result, native: NativeAsk, ask: Ask, prompt: str) -> Body:
    """Return the whole answer to one prompt; of a stream, the last event."""
    end = answer.end
    body = {
        "index": index,
        "content": answer.text,
        "tokens": answer.tokens if native.return_tokens else [],
        "stop": True,
        "model": ask.model.name,
        "tokens_predicted": end.completion_tokens,
        "tokens_evaluated": end.prompt_tokens,
        "tokens_cached": end.cached_tokens,
        "generation_settings": settings_body(ask.sampling, ask.max_tokens, ask.stop, native.stream),
        "prompt": prompt,
        "has_new_line": "\n" in answer.text,
        "truncated": end.truncated,
        "stop_type": "limit" if end.reason == "length" else "word" if end.stop_word else "eos",
        "stopping_word": end.stop_word,
        "timings": end.timings,
    }
    body["generation_settings"]["seed"] = answer.seed
    if answer.probabilities:
        body["completion_probabilities"] = answer.probabilities
    return body


class Completion(Dialect):
    """A request of POST /completion. Raises APIError 400, 404."""

    form = Form(done=b"")

    def __init__(self, call: Call, host: Host):
        self._ask = ask = read_completion(call.body)
        self._host = host
        model = host.model(ask.model)
        asks = [Ask(model, prompt, ask.max_tokens, ask.stop, ask.sampling, ask.cache_prompt) for prompt in ask.prompts]
        super().__init__(asks, ask.stream)
        self._seeds = [0] * len(asks)

    def whole(self, results: List[Result]) -> Any:
        """Return the answer; of an array of prompts, an array."""
        bodies = [self._last(index, result) for index, result in enumerate(results)]
        return bodies if self._ask.several else bodies[0]

    def begin(self, index: int, start: Start) -> Iterable[Body]:
        """Note the seed."""
        self._seeds[index] = start.seed
        return ()

    def delta(self, index: int, piece: Piece) -> Iterable[Body]:
        """Return an event with new text."""
        if piece.text or piece.probabilities:
            body = {"index": index, "content": piece.text, "tokens": piece.tokens, "stop": False}
            probabilities = {"completion_probabilities": piece.probabilities} if piece.probabilities else {}
            yield dict(body, **probabilities)

    def end(self, index: int, end: Finished) -> Iterable[Body]:
        """Return the last event."""
        return [self._last(index, Result(self._seeds[index], end=end))]

    def _last(self, index: int, result: Result) -> Body:
        ask = self.asks[index]
        return completion_body(index, result, self._ask, ask, self._host.text(self._ask.prompts[index]))


class NativeRoutes:
    """The routes."""

    def __init__(self, endpoint: Endpoint):
        self._host = endpoint.host
        self._endpoint = endpoint

    def routes(self) -> List[Route]:
        """Return the routes."""
        return [
            self._endpoint.route("/completion", Completion),
            Route("POST", "/tokenize", self.tokenize),
            Route("POST", "/detokenize", self.detokenize),
            Route("POST", "/apply-template", self.apply_template),
            Route("GET", "/props", self.props),
            Route("GET", "/slots", self.slots),
        ]

    def tokenize(self, request: Request) -> Any:
        """POST /tokenize: a text's tokens, with their pieces where asked for."""
        body = read_json(request.body)
        content = body.get("content", "")
        if not isinstance(content, str):
            raise APIError(400, "'content' must be a string.", "invalid_value", "content")
        special = fields.flag(body, "add_special", False), fields.flag(body, "parse_special", True)
        model = self._host.engine.vocabulary()
        tokens = model.tokenize(content, *special)
        if not fields.flag(body, "with_pieces", False):
            return json_reply({"tokens": tokens})
        return json_reply({"tokens": [{"id": each, "piece": _piece(model.detokenize([each]))} for each in tokens]})

    def detokenize(self, request: Request) -> Any:
        """POST /detokenize: tokens' text."""
        tokens = read_json(request.body).get("tokens")
        if not isinstance(tokens, list) or not all(isinstance(each, int) and each is not True for each in tokens):
            raise APIError(400, "'tokens' must be an array of token ids.", "invalid_value", "tokens")
        return json_reply({"content": self._host.text(tuple(tokens), "tokens")})

    def apply_template(self, request: Request) -> Any:
        """POST /apply-template: the prompt that a conversation becomes."""
        body = read_json(request.body)
        options = fields.mapping(body, "chat_template_kwargs") or {}
        name = fields.text(body, "model", None)
        ask = ChatAsk(read_messages(body), name, tools=read_tools(body), template_options=options)
        return json_reply({"prompt": text_of(self._host.conversation(ask).prompt)})

    def props(self, request: Request) -> Any:
        """GET /props: what the server would do."""
        engine = self._host.engine
        model = self._host.model(None)
        generation = {
            "id": 0,
            "id_task": -1,
            "n_ctx": engine.context_size(),
            "speculative": engine.settings.draft_max > 0,
            "is_processing": False,
            "params": settings_body(DEFAULTS, UNLIMITED, (), False),
        }
        source = self._host.chat.template or model.chat_template
        return json_reply(
            {
                "default_generation_settings": generation,
                "total_slots": engine.settings.slots,
                "model_path": model.path,
                "model_alias": model.name,
                "chat_template": template_of(source, model.bos, model.eos).source,
                "bos_token": model.bos,
                "eos_token": model.eos,
                "modalities": {"vision": False, "audio": False},
                "build_info": self._host.fingerprint,
                "is_sleeping": False,
            }
        )

    def slots(self, request: Request) -> Any:
        """GET /slots: what each slot is doing. With ?fail_on_no_slot=1, 503 where none is free."""
        engine = self._host.engine
        busy = {generation.slot: generation for generation in engine.running()}
        if len(busy) >= engine.settings.slots and request.query.get("fail_on_no_slot") not in (None, "", "0"):
            raise APIError(503, "No slot is free.", "no_slot", headers=[("Retry-After", "1")])
        return json_reply([self._slot(index, busy.get(index)) for index in range(engine.settings.slots)])

    def _slot(self, index: int, generation: Optional[Generation]) -> Body:
        engine = self._host.engine
        slot: Body = {
            "id": index,
            "id_task": -1 if generation is None else generation.order,
            "n_ctx": engine.context_size(),
            "speculative": engine.settings.draft_max > 0,
            "is_processing": generation is not None,
        }
        if generation is not None:
            ask, count = generation.ask, generation.generated
            left = -1 if ask.max_tokens >= UNLIMITED else ask.max_tokens - count
            slot["params"] = settings_body(ask.sampling, ask.max_tokens, ask.stop, True)
            slot["next_token"] = {"has_next_token": True, "n_remain": left, "n_decoded": count}
        return slot


def _piece(data: bytes) -> Any:
    """Return a token's text, or its bytes where they are no whole characters."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return list(data)


def routes(endpoint: Endpoint) -> List[Route]:
    """Return the routes."""
    return NativeRoutes(endpoint).routes()
