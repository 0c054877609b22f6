"""llama.cpp's own endpoints, in the shapes of its server (tools/server/README.md there), so that its clients go on.

    POST /completion, /completions    text in, text out, with every sampler by its name
    POST /tokenize, /detokenize, /apply-template
    GET  /props, /slots               what it would sample with, and what each slot is doing

The model is the one that is loaded, or the one that `model` names.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Iterable, List, Optional, Tuple
from typing import Sequence as Many

from core import fields
from core.apis.dialect import Body, Call, Dialect, Start
from core.apis.endpoint import Endpoint
from core.apis.extras import Extras, refuse_native
from core.apis.host import Host
from core.apis.openai_shapes import DEFAULTS, read_limit, read_schema, read_template
from core.apis.prompts import read_prompts
from core.ask import UNLIMITED, Ask, Prompt
from core.bounds import ALL_ANSWERS, ANSWERS
from core.chat.conversation import ChatAsk, seed_of, template_of
from core.chat.markers import text_of
from core.chat.messages import read_messages
from core.chat.tools import read_tools
from core.engine.defaults import Defaults
from core.engine.generation import Generation
from core.engine.outcome import Finished, Piece, Progress, Result
from core.errors import APIError
from core.grammar.schema import json_grammar
from core.http.messages import Request, json_reply
from core.http.routing import Route
from core.http.sse import Form
from core.jsonbody import read_json
from core.sampling import RANDOM_SEED, Bias, Sampling, read_sampling


@dataclass(frozen=True)
class NativeAsk:
    """What POST /completion asks for. `several`: the prompt was an array of prompts, and so is the answer."""

    prompts: Tuple[Prompt, ...]
    several: bool
    model: Optional[str]
    count: int
    max_tokens: int
    stop: Tuple[str, ...]
    sampling: Sampling
    cache_prompt: bool
    stream: bool
    return_tokens: bool


def read_completion(body: Body, defaults: Defaults = Defaults()) -> NativeAsk:
    """Return what a body of POST /completion asks for. Raises APIError 400."""
    prompts, several = read_prompts(body, "prompt")
    count = fields.integer(body, "n_cmpl", fields.integer(body, "n", 1, 1, ANSWERS.most), 1, ANSWERS.most)
    ALL_ANSWERS.check(len(prompts) * count, "n")
    return NativeAsk(
        prompts,
        several or count > 1,
        model=fields.text(body, "model", None),
        count=count,
        max_tokens=read_limit(body, defaults.limit(UNLIMITED)),
        stop=tuple(fields.texts(body, "stop")),
        sampling=_sampling(body, defaults),
        cache_prompt=fields.flag(body, "cache_prompt", defaults.cache_prompt),
        stream=fields.flag(body, "stream", False),
        return_tokens=fields.flag(body, "return_tokens", False),
    )


def _sampling(body: Body, defaults: Defaults) -> Sampling:
    sampling = read_sampling(body, defaults.over(DEFAULTS))
    if body.get("n_probs") is None:
        sampling = replace(sampling, n_probs=fields.integer(body, "logprobs", 0, 0, 100))
    schema = read_schema(body)
    if schema is None:
        return sampling
    if sampling.grammar:
        raise APIError(400, "'grammar' and 'json_schema' can't be honoured together.", "contradiction", "grammar")
    return replace(sampling, grammar=json_grammar(schema, "json_schema"))


def settings_body(sampling: Sampling, max_tokens: int, stop: Many[str], stream: bool, **more: Any) -> Body:
    """Return the settings of a request by llama.cpp's names, as `generation_settings` has them."""
    limit = -1 if max_tokens >= UNLIMITED else max_tokens
    body = asdict(sampling)
    body["seed"] = RANDOM_SEED if sampling.seed < 0 else sampling.seed
    body["logit_bias"] = bias_body(sampling.logit_bias)
    never = {"adaptive_target": -1.0, "adaptive_decay": 0.9, "n_keep": 0, "n_discard": 0}
    return dict(body, n_predict=limit, max_tokens=limit, stop=list(stop), stream=stream, **dict(never, **more))


def bias_body(biases: Iterable[Bias]) -> List[Body]:
    """Return biases as llama-server tells them: null stands for minus infinity."""
    return [{"token": token, "bias": None if bias == -math.inf else bias} for token, bias in biases]


def completion_body(
    index: int, answer: Result, ask: Ask, host: Host, stream: bool = False, tokens: bool = False
) -> Body:
    """Return the whole answer to one prompt; of a stream, the last event. `tokens`: they are told, too."""
    end = answer.end
    settings = settings_body(
        ask.sampling, ask.max_tokens, ask.stop, stream, logit_bias=bias_body(host.biases(ask)), seed=answer.seed,
        timings_per_token=ask.timings, n_keep=host.keeps(ask), n_discard=ask.discard,
    )  # fmt: skip
    body = {
        "index": index,
        "content": "" if stream else answer.text,
        "tokens": answer.tokens if tokens else [],
        "stop": True,
        "model": host.name_of(ask.model),
        "tokens_predicted": end.completion_tokens,
        "tokens_evaluated": end.prompt_tokens,
        "tokens_cached": end.cached_tokens,
        "generation_settings": settings,
        "prompt": host.whole_prompt(ask),
        "has_new_line": "\n" in answer.text,
        "truncated": end.truncated,
        "stop_type": "limit" if end.reason == "length" else "word" if end.stop_word else "eos",
        "stopping_word": end.stop_word,
        "timings": end.timings,
    }
    if answer.probabilities and not stream:
        body["completion_probabilities"] = answer.probabilities
    return body


def progress_body(progress: Progress) -> Body:
    """Return what a chunk tells of a prompt's evaluation."""
    told = {"total": progress.total, "cache": progress.cached, "processed": progress.processed}
    body: Body = {"prompt_progress": dict(told, time_ms=progress.ms)}
    return body if progress.timings is None else dict(body, timings=progress.timings)


def timings_body(piece: Piece) -> Body:
    """Return the timings so far that a piece brings, if it does."""
    return {} if piece.timings is None else {"timings": piece.timings}


class Completion(Dialect):
    """A request of POST /completion. Raises APIError 400, 404."""

    form = Form(done=b"")

    def __init__(self, call: Call, host: Host):
        refuse_native(call.body)
        self._ask = ask = read_completion(call.body, host.defaults)
        self._extras = Extras.read(call.body, host)
        self._host = host
        model = host.model(ask.model)
        asks = [
            Ask(model, prompt, ask.max_tokens, ask.stop, seed_of(ask.sampling, index), ask.cache_prompt)
            for prompt in ask.prompts
            for index in range(ask.count)
        ]
        super().__init__(self._extras.asked(asks), ask.stream)
        self._told = [Result() for _ in asks]  # of a stream

    def whole(self, results: List[Result]) -> Any:
        """Return the answer; of an array of prompts, an array."""
        bodies = [self._last(index, result) for index, result in enumerate(results)]
        return bodies if self._ask.several else bodies[0]

    def begin(self, index: int, start: Start) -> Iterable[Body]:
        """Note the seed."""
        self._told[index].seed = start.seed
        return ()

    def progress(self, index: int, progress: Progress) -> Iterable[Body]:
        """Return an event that says how much of the prompt is evaluated."""
        body = {"index": index, "content": "", "tokens": [], "stop": False}
        return [dict(body, **progress_body(progress))]

    def delta(self, index: int, piece: Piece) -> Iterable[Body]:
        """Return an event with new text."""
        self._told[index].text += piece.text
        if piece.text or piece.probabilities:
            body = {"index": index, "content": piece.text, "tokens": piece.tokens, "stop": False}
            probabilities = {"completion_probabilities": piece.probabilities} if piece.probabilities else {}
            yield dict(body, **probabilities, **timings_body(piece))

    def end(self, index: int, end: Finished) -> Iterable[Body]:
        """Return the last event."""
        told = self._told[index]
        told.end = end
        return [self._last(index, told)]

    def _last(self, index: int, result: Result) -> Body:
        streams = self._ask.stream
        tokens = self._ask.return_tokens and not streams
        return self._extras.shown(completion_body(index, result, self.asks[index], self._host, streams, tokens))


class NativeRoutes:
    """The routes."""

    def __init__(self, endpoint: Endpoint):
        self._host = endpoint.host
        self._endpoint = endpoint

    def routes(self) -> List[Route]:
        """Return the routes."""
        return [
            self._endpoint.route("/completion", Completion),
            self._endpoint.route("/completions", Completion),
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
        name = fields.text(body, "model", None)
        ask = ChatAsk(read_messages(body), name, tools=read_tools(body), **read_template(body))
        return json_reply({"prompt": text_of(self._host.conversation(ask).prompt)})

    def props(self, request: Request) -> Any:
        """GET /props: what the server would do."""
        engine, defaults = self._host.engine, self._host.defaults
        model = self._host.model(None)
        generation = {
            "id": 0,
            "id_task": -1,
            "n_ctx": engine.context_size(),
            "speculative": engine.settings.guesses_ahead,
            "is_processing": False,
            "params": settings_body(defaults.over(DEFAULTS), defaults.limit(UNLIMITED), (), False),
        }
        source = self._host.chat.template or model.chat_template
        return json_reply(
            {
                "default_generation_settings": generation,
                "total_slots": engine.settings.slots,
                "model_path": model.path,
                "model_alias": self._host.name_of(model),
                "chat_template": template_of(source, model.bos, model.eos).source,
                "bos_token": model.bos,
                "eos_token": model.eos,
                "modalities": {"vision": False, "audio": False},
                "build_info": self._host.fingerprint,
                "is_sleeping": False,
            }
        )

    def slots(self, request: Request) -> Any:
        """GET /slots: what each slot is doing. With ?fail_on_no_slot=1, 503 where none is free; 501 with --no-slots."""
        if not self._host.shows_slots:
            message = "This server does not show its slots: it was started with --no-slots."
            raise APIError(501, message, "not_supported", type="not_supported_error")
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
            "speculative": engine.settings.guesses_ahead,
            "is_processing": generation is not None,
        }
        if generation is not None:
            ask, count = generation.ask, generation.generated
            left = -1 if ask.max_tokens >= UNLIMITED else ask.max_tokens - count
            slot["params"] = settings_body(ask.sampling, ask.max_tokens, ask.stop, True)
            slot["next_token"] = [{"has_next_token": True, "n_remain": left, "n_decoded": count}]
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
