"""The OpenAI API's shapes (its API reference): from bodies to what is asked, from answers to bodies.

    read_completion, read_chat      a request's body, checked; APIError 400 names a wrong field
    Completions, Chats              the objects of an answer, whole and in chunks
    model_list, model_card          the others

Pure functions between dicts and dataclasses. llama.cpp's fields are known, too; extras.py has those of both that are
not for here.
"""

from dataclasses import dataclass, replace
from typing import Any, Dict, List, Optional, Tuple
from typing import Sequence as Many

from core import fields
from core.apis.prompts import read_prompts
from core.ask import UNLIMITED, Prompt
from core.bounds import ALL_ANSWERS, ANSWERS, BUDGET_MESSAGE
from core.chat.conversation import ChatAsk, Message
from core.chat.messages import read_messages
from core.chat.parser import Delta
from core.chat.tools import read_tools
from core.engine.defaults import Defaults
from core.engine.outcome import Finished
from core.errors import APIError
from core.grammar.schema import JSON_OBJECT
from core.models import ModelFile
from core.sampling import Sampling, read_sampling

Body = Dict[str, Any]

# What llama.cpp's server samples with where a request does not say. OpenAI's own top_k and min_p are not known.
DEFAULTS = Sampling(top_p=0.95, min_p=0.05)


@dataclass(frozen=True)
class Streaming:
    """Whether an answer is wanted in chunks, and with its usage at the end."""

    on: bool = False
    usage: bool = False


@dataclass(frozen=True)
class CompletionAsk:
    """What POST /v1/completions asks for: `count` answers to each of `prompts`."""

    prompts: Tuple[Prompt, ...]
    model: Optional[str]
    count: int
    max_tokens: int
    stop: Tuple[str, ...]
    sampling: Sampling
    cache_prompt: bool
    suffix: Optional[str]
    echo: bool
    logprobs: Optional[int]
    stream: Streaming


# ----------------------------------------------------------------------------------------------- requests


def read_completion(body: Body, defaults: Defaults = Defaults()) -> CompletionAsk:
    """Return what a body of POST /v1/completions asks for. Raises APIError 400."""
    logprobs = fields.integer(body, "logprobs", None, 0, 20)
    count = fields.integer(body, "n", 1, 1, ANSWERS.most)
    if fields.integer(body, "best_of", count, 1, ANSWERS.most) != count:
        raise APIError(400, "'best_of' must be as large as 'n': answers are not ranked here.", "unsupported", "best_of")
    echo = fields.flag(body, "echo", False)
    if echo and logprobs is not None:
        raise APIError(
            400, "'echo' with 'logprobs' is not supported: the prompt's are not kept.", "unsupported", "echo"
        )
    prompts = read_prompts(body, "prompt").each
    ALL_ANSWERS.check(len(prompts) * count, "n")
    return CompletionAsk(
        prompts=prompts,
        model=fields.text(body, "model", None),
        count=count,
        max_tokens=read_limit(body, defaults.limit(16)),
        stop=tuple(fields.texts(body, "stop")),
        sampling=_sampling(body, defaults, logprobs),
        cache_prompt=fields.flag(body, "cache_prompt", defaults.cache_prompt),
        suffix=fields.text(body, "suffix", None) if body.get("suffix") != "" else None,
        echo=echo,
        logprobs=logprobs,
        stream=read_streaming(body),
    )


def read_chat(body: Body, defaults: Defaults = Defaults()) -> Tuple[ChatAsk, Streaming, Optional[int]]:
    """Return what a body of POST /v1/chat/completions asks for, how, and with how many of the likeliest tokens.

    Raises APIError 400.
    """
    wanted = fields.flag(body, "logprobs", False)
    top = fields.integer(body, "top_logprobs", 0, 0, 20)
    if top and not wanted:
        raise APIError(400, "'top_logprobs' needs 'logprobs': true.", "invalid_value", "top_logprobs")
    logprobs = top if wanted else None
    ask = ChatAsk(
        messages=read_messages(body),
        model=fields.text(body, "model", None),
        tools=read_tools(body),
        schema=read_schema(body),
        sampling=_sampling(body, defaults, logprobs),
        max_tokens=read_limit(body, defaults.limit(UNLIMITED)),
        stop=tuple(fields.texts(body, "stop")),
        count=fields.integer(body, "n", 1, 1, ANSWERS.most),
        cache_prompt=fields.flag(body, "cache_prompt", defaults.cache_prompt),
        **read_template(body),
        apart=read_reasoning_format(body),
        **read_budget(body),
    )
    return ask, read_streaming(body), logprobs


def read_template_options(body: Body) -> Dict[str, Any]:
    """Return the variables for the chat template; OpenAI's reasoning_effort is one. Raises APIError 400."""
    options = fields.mapping(body, "chat_template_kwargs") or {}
    return dict(effort_options(body.get("reasoning_effort"), "reasoning_effort"), **options)


# OpenAI's words for how much a model shall think, and the nearest one that templates know.
EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}


def effort_options(effort: Any, name: str) -> Dict[str, Any]:
    """Return what a template is told of an effort; `name` is the request's field. Raises APIError 400."""
    if effort is None:
        return {}
    if effort == "none":
        return {"enable_thinking": False}
    if not isinstance(effort, str) or effort not in EFFORTS:
        message = "'%s' must be one of none, %s." % (name, ", ".join(EFFORTS))
        raise APIError(400, message, "invalid_value", name)
    return {"enable_thinking": True, "reasoning_effort": EFFORTS[effort]}


def read_reasoning_format(body: Body) -> Optional[bool]:
    """Return whether thoughts are told apart from the content, None for the server's default. Raises APIError 400."""
    given = fields.text(body, "reasoning_format", None)
    if given not in (None, "auto", "deepseek", "none"):
        message = "'reasoning_format' must be auto, deepseek or none."
        raise APIError(400, message, "invalid_value", "reasoning_format")
    return None if given in (None, "auto") else given != "none"


BUDGETS = ("reasoning_budget_tokens", "thinking_budget_tokens", "thinking_budget")  # llama-server's two, and Qwen's


def read_budget(body: Body) -> Dict[str, Any]:
    """Return how many tokens an answer may think, as fields of a ChatAsk. Raises APIError 400.

    -1 means, as there, what the server's options say.
    """
    given = [fields.integer(body, name, -1, -1, UNLIMITED - 1) for name in BUDGETS if body.get(name) is not None]
    message = fields.text(body, "reasoning_budget_message", None) if body.get("reasoning_budget_message") else None
    BUDGET_MESSAGE.check(len(message or ""), "reasoning_budget_message")
    return {"budget": given[0] if given and given[0] >= 0 else None, "budget_message": message}


def read_streaming(body: Body) -> Streaming:
    """Return how the answer is wanted. Raises APIError 400."""
    options = fields.mapping(body, "stream_options") or {}
    return Streaming(fields.flag(body, "stream", False), fields.flag(options, "include_usage", False))


def check_end(messages: Many[Body]) -> None:
    """Raise APIError 400 where two messages of the assistant's stand at the end: which is to be continued? As there."""
    if [message["role"] for message in messages[-2:]] == ["assistant", "assistant"]:
        message = "'messages' may end with one message of the assistant's, which is continued, not with two."
        raise APIError(400, message, "invalid_value", "messages")


def read_template(body: Body) -> Dict[str, Any]:
    """Return what a body says of its chat template, as fields of a ChatAsk. Raises APIError 400."""
    begins = fields.flag(body, "add_generation_prompt", True)
    continues = fields.flag(body, "continue_final_message", True)
    both = None not in (body.get("add_generation_prompt"), body.get("continue_final_message"))
    if both and begins and continues:
        message = "'add_generation_prompt' and 'continue_final_message' can't both be true."
        raise APIError(400, message, "contradiction", "continue_final_message")
    return {"template_options": read_template_options(body), "begins_answer": begins, "continues": continues}


def read_schema(body: Body) -> Any:
    """Return the JSON schema that the answer must follow, or None. Raises APIError 400 for an unknown format."""
    given = fields.mapping(body, "response_format")
    if given is None:
        return body.get("json_schema")  # llama.cpp's own name for it
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return given.get("schema") or JSON_OBJECT
    wrapped = given.get("json_schema")
    if kind == "json_schema" and isinstance(wrapped, dict) and "schema" in wrapped:
        return wrapped["schema"]
    message = "'response_format' must be of type text, json_object, or json_schema with a 'json_schema.schema'."
    raise APIError(400, message, "invalid_value", "response_format")


def _sampling(body: Body, defaults: Defaults, logprobs: Optional[int]) -> Sampling:
    sampling = read_sampling(body, defaults.over(DEFAULTS))
    return sampling if logprobs is None else replace(sampling, n_probs=max(1, logprobs))


def read_limit(body: Body, default: int) -> int:
    """Return the most tokens of an answer, by any of the names for it. Raises APIError 400."""
    for name in ("max_completion_tokens", "max_tokens", "n_predict"):
        if body.get(name) is not None:
            value = fields.integer(body, name, default, -1, UNLIMITED)
            return UNLIMITED if value < 0 else value
    return default


# ------------------------------------------------------------------------------------------------ answers


@dataclass(frozen=True)
class Origin:
    """What all objects of one answer say of where they come from. `created` is in seconds since 1970."""

    id: str
    created: int
    model: str
    fingerprint: str

    def object(self, kind: str, choices: List[Body], **more: Any) -> Body:
        """Return an object of the API."""
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return dict(head, system_fingerprint=self.fingerprint, choices=choices, **more)


def total_usage(ends: Many[Finished], count: int) -> Body:
    """Return the usage of all answers of one request: `count` to each prompt, which is counted once."""
    firsts = ends[::count]
    prompt, completion = sum(end.prompt_tokens for end in firsts), sum(end.completion_tokens for end in ends)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(end.cached_tokens for end in firsts)},
    }


class Chats:
    """The objects of one answer of POST /v1/chat/completions. `logprobs` is how many likely tokens are shown."""

    WHOLE, CHUNK = "chat.completion", "chat.completion.chunk"

    def __init__(self, origin: Origin, logprobs: Optional[int]):
        self._origin = origin
        self._logprobs = logprobs

    def begin(self, index: int) -> Body:
        """Return a choice's first chunk."""
        return self._chunk(index, {"role": "assistant", "content": ""})

    def chunks(self, index: int, deltas: List[Delta], probabilities: List[Body]) -> List[Body]:
        """Return the chunks that tell deltas, the first with the tokens' probabilities."""
        chunks = [self._chunk(index, _delta_body(delta)) for delta in deltas]
        if probabilities:
            chunks = chunks or [self._chunk(index, {})]
            chunks[0]["choices"][0]["logprobs"] = _chat_logprobs(probabilities, self._logprobs or 0)
        return chunks

    def end(self, index: int, reason: str, **more: Any) -> Body:
        """Return a choice's last chunk."""
        return dict(self._chunk(index, {}, finish_reason=reason), **more)

    def usage(self, usage: Body, **more: Any) -> Body:
        """Return the chunk that tells the usage, after all choices."""
        return self._origin.object(self.CHUNK, [], usage=usage, **more)

    def nothing(self, index: int) -> Body:
        """Return a chunk with no news of its choice, to tell something else by."""
        return self._chunk(index, {})

    def _chunk(self, index: int, delta: Body, **more: Any) -> Body:
        choice = dict({"index": index, "delta": delta, "logprobs": None, "finish_reason": None}, **more)
        return self._origin.object(self.CHUNK, [choice])

    def whole(self, choices: List[Body], usage: Body, **more: Any) -> Body:
        """Return the whole answer."""
        return self._origin.object(self.WHOLE, choices, usage=usage, **more)

    def choice(self, index: int, message: Message, reason: str, probabilities: List[Body]) -> Body:
        """Return one choice of a whole answer."""
        logprobs = None if self._logprobs is None else _chat_logprobs(probabilities, self._logprobs)
        return {"index": index, "message": message_body(message), "logprobs": logprobs, "finish_reason": reason}


def message_body(message: Message) -> Body:
    """Return an assistant's message."""
    body: Body = {"role": "assistant", "content": message.content}
    if message.reasoning:
        body["reasoning_content"] = message.reasoning
    if message.calls:
        body["content"] = message.content or None
        body["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": call["arguments"]},
            }
            for call in message.calls
        ]
    return body


def _delta_body(delta: Delta) -> Body:
    call = delta.call
    if not call:
        return {"reasoning_content": delta.reasoning} if delta.reasoning else {"content": delta.content}
    if not call.name:
        return {"tool_calls": [{"index": call.index, "function": {"arguments": call.arguments}}]}
    function = {"name": call.name, "arguments": call.arguments}
    return {"tool_calls": [{"index": call.index, "id": call.id, "type": "function", "function": function}]}


def _chat_logprobs(probabilities: List[Body], top: int) -> Body:
    tokens = [
        dict(_token(each), top_logprobs=[_token(one) for one in each["top_logprobs"][:top]]) for each in probabilities
    ]
    return {"content": tokens, "refusal": None}


def _token(each: Body) -> Body:
    return {"token": each["token"], "logprob": each["logprob"], "bytes": each["bytes"]}


class Completions:
    """The objects of one answer of POST /v1/completions."""

    KIND = "text_completion"

    def __init__(self, origin: Origin, logprobs: Optional[int]):
        self._origin = origin
        self._logprobs = logprobs
        self._written: Dict[int, int] = {}  # characters of each choice so far

    def chunk(self, index: int, text: str, probabilities: List[Body], reason: Optional[str] = None) -> Body:
        """Return a chunk of a choice."""
        return self._origin.object(self.KIND, [self.choice(index, text, probabilities, reason)])

    def choice(self, index: int, text: str, probabilities: List[Body], reason: Optional[str]) -> Body:
        """Return a choice, or the next piece of one."""
        start = self._written.get(index, 0)
        self._written[index] = start + len(text)
        logprobs = None if self._logprobs is None else _text_logprobs(probabilities, self._logprobs, start)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def whole(self, choices: List[Body], usage: Body, **more: Any) -> Body:
        """Return the whole answer."""
        return self._origin.object(self.KIND, choices, usage=usage, **more)

    def usage(self, usage: Body, **more: Any) -> Body:
        """Return the chunk that tells the usage, after all choices."""
        return self._origin.object(self.KIND, [], usage=usage, **more)


def _text_logprobs(probabilities: List[Body], top: int, start: int) -> Body:
    offsets = []
    for each in probabilities:
        offsets.append(start)
        start += len(each["token"])
    return {
        "tokens": [each["token"] for each in probabilities],
        "token_logprobs": [each["logprob"] for each in probabilities],
        "top_logprobs": [
            {one["token"]: one["logprob"] for one in each["top_logprobs"][:top]} for each in probabilities
        ],
        "text_offset": offsets,
    }


def model_card(model: ModelFile, name: str, created: int) -> Body:
    """Return what GET /v1/models says of one model, told by this name; `meta` is llama.cpp's."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "comeapi",
        "meta": {
            "n_ctx_train": model.context_length,
            "n_params": model.parameters,
            "n_vocab": model.vocabulary,
            "size": model.size,
        },
    }


def model_list(cards: List[Body]) -> Body:
    """Return the body of GET /v1/models."""
    return {"object": "list", "data": cards}
