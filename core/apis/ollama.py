"""Ollama's API (docs/api.md there), translated to the same conversations. Streams are lines of JSON, and the default.

    GET  /api/tags, /api/ps              the models, and which is loaded
    GET  /api/version                    a version that its clients know
    POST /api/show                       what a model is
    POST /api/generate, /api/chat        a prompt, or messages, in; text out

Embeddings are in ollama_embeddings.py.

A model's name may end in ":latest". `keep_alive` and `num_ctx` are the server's own affair here, and ignored.
"""

import hashlib
import json
import time
from dataclasses import replace
from typing import Any, Iterable, List

from core import fields
from core.apis.dialect import Body, Call, ChatDialect
from core.apis.endpoint import Endpoint
from core.apis.host import Host
from core.apis.openai_shapes import DEFAULTS
from core.ask import EMBEDDINGS, TEXT, UNLIMITED, Gap
from core.chat.conversation import ChatAsk, Message, arguments_of
from core.chat.messages import read_messages
from core.chat.parser import Delta
from core.chat.tools import read_tools
from core.engine.defaults import Defaults
from core.engine.outcome import Finished, Result
from core.errors import APIError
from core.grammar.schema import JSON_OBJECT
from core.http.messages import Request, json_reply
from core.http.routing import Route
from core.http.sse import Form
from core.jsonbody import read_json
from core.models import ModelFile
from core.sampling import read_sampling

VERSION = "0.9.0"  # of Ollama's API, whose shapes these are: clients look at it before they use newer fields


# ----------------------------------------------------------------------------------------------- requests


def read_chat(body: Body, defaults: Defaults = Defaults()) -> ChatAsk:
    """Return what a body of POST /api/chat asks for. Raises APIError 400."""
    translated = dict(body, messages=_messages(body))
    with fields.named(_own_path):
        return replace(_common(body, defaults), messages=read_messages(translated), tools=read_tools(translated))


def read_generate(body: Body, defaults: Defaults = Defaults()) -> ChatAsk:
    """Return what a body of POST /api/generate asks for, as a conversation. Raises APIError 400."""
    prompt = fields.any_text(body, "prompt")
    if body.get("images") not in (None, []):
        raise APIError(400, "Images can't be used: this server takes text only.", "unsupported", "images")
    system = fields.text(body, "system", None)
    messages = [{"role": "system", "content": system}] if system else []
    return replace(_common(body, defaults), messages=messages + [{"role": "user", "content": prompt}])


def _own_path(path: str) -> str:
    """Return a translated field's path as Ollama has it."""
    return "format" if path == "response_format" else path.replace(".reasoning_content", ".thinking")


def _common(body: Body, defaults: Defaults) -> ChatAsk:
    """Return what both have: the model, the format and the options."""
    options = fields.mapping(body, "options") or {}
    with fields.named("options.{}".format):
        limit = fields.integer(options, "num_predict", defaults.limit(UNLIMITED), -2, UNLIMITED)
        sampling = read_sampling(options, defaults.over(DEFAULTS))
        stop = tuple(fields.texts(options, "stop"))
    think = body.get("think")
    return ChatAsk(
        messages=[],
        model=model_name(body),
        schema=_schema(body),
        sampling=sampling,
        max_tokens=UNLIMITED if limit < 0 else limit,
        stop=stop,
        template_options={} if think is None else {"enable_thinking": bool(think)},
        own=_own_path,
    )


def model_name(body: Body) -> str:
    """Return the name of a file in the models folder. Raises APIError 400."""
    return fields.text(body, "model", None) or fields.text(body, "name", None) or fields.text(body, "model")


def _schema(body: Body) -> Any:
    given = body.get("format")
    if given in (None, ""):
        return None
    if given == "json":
        return JSON_OBJECT
    if isinstance(given, dict):
        return given
    raise APIError(400, "'format' must be \"json\" or a JSON schema.", "invalid_value", "format")


def _messages(body: Body) -> Any:
    """Return the messages as the OpenAI API has them: with texts of arguments, and ids that tie results to calls."""
    given = body.get("messages")
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        return given
    messages, called = [], 0
    for index, each in enumerate(given):
        if each.get("images") not in (None, []):
            where = "messages[%d].images" % index
            raise APIError(400, "Images can't be used: this server takes text only.", "unsupported", where)
        message = dict(each)
        if each.get("thinking"):
            message["reasoning_content"] = each["thinking"]
        if isinstance(each.get("tool_calls"), list):
            message["tool_calls"] = [_call(call, called + number) for number, call in enumerate(each["tool_calls"])]
            called += len(each["tool_calls"])
        if each.get("role") == "tool":
            message.setdefault("tool_call_id", "call_%d" % max(0, called - 1))
        messages.append(message)
    return messages


def _call(call: Any, number: int) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    arguments = function.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    id = call.get("id") or "call_%d" % number
    return {"id": id, "type": "function", "function": dict(function, arguments=text)}


# ------------------------------------------------------------------------------------------------ answers


def model_body(model: ModelFile) -> Body:
    """Return what GET /api/tags says of one model. The digest names the file; it is not made of its content."""
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": _date(model.modified),
        "size": model.size,
        "digest": hashlib.sha256(("%s %d" % (model.path, model.size)).encode("utf-8", "replace")).hexdigest(),
        "details": details(model),
    }


def details(model: ModelFile) -> Body:
    """Return what a model is, in Ollama's words."""
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.architecture,
        "families": [model.architecture],
        "parameter_size": "%.1fB" % (model.parameters / 1e9)
        if model.parameters > 1e8
        else "%dM" % (model.parameters // 10**6),
        "quantization_level": model.quantization,
    }


def end_body(end: Finished, reason: str) -> Body:
    """Return the counts and durations (in nanoseconds) of an answer's last line."""
    timings = end.timings
    prompt, predicted, waited = (timings[name] for name in ("prompt_ms", "predicted_ms", "queue_ms"))
    return {
        "done": True,
        "done_reason": "length" if reason == "length" else "stop",
        "total_duration": int((prompt + predicted + waited) * 1e6),
        "load_duration": int(waited * 1e6),
        "prompt_eval_count": end.prompt_tokens,
        "prompt_eval_duration": int(prompt * 1e6),
        "eval_count": end.completion_tokens,
        "eval_duration": int(predicted * 1e6),
    }


def message_body(message: Message) -> Body:
    """Return a message; arguments are objects here, and calls come whole."""
    body: Body = {"role": "assistant", "content": message.content}
    if message.reasoning:
        body["thinking"] = message.reasoning
    if message.calls:
        body["tool_calls"] = [
            {"function": {"name": call["name"], "arguments": arguments_of(call)}} for call in message.calls
        ]
    return body


def running_body(host: Host) -> Body:
    """Return the body of GET /api/ps. `size` is the file's, and its cells'; a model stays until another one comes."""
    engine = host.engine
    name = engine.model_name()
    if not name:
        return {"models": []}
    model, cells = host.find(name), engine.context_size()
    size = model.size + model.kv_bytes * cells * engine.settings.slots
    known = {"size": size, "size_vram": size if engine.on_gpu else 0, "context_length": cells}
    return {"models": [dict(model_body(model), expires_at=_NEVER, **known)]}


_NEVER = "9999-12-31T23:59:59Z"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


# ----------------------------------------------------------------------------------------------- dialects


def _line(body: Body) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _error_line(error: APIError) -> bytes:
    return _line({"error": error.message})


class Chat(ChatDialect):
    """A request of POST /api/chat. Raises APIError 400, 404."""

    form = Form("application/x-ndjson", _line, _error_line, done=b"", ping=b"")

    read = staticmethod(read_chat)

    def __init__(self, call: Call, host: Host):
        conversation = host.conversation(self.read(call.body, host.defaults))
        super().__init__(conversation, call, fields.flag(call.body, "stream", True))
        self._calls = Message()  # told whole, when the answer ends

    def message(self, messages: List[Message], reasons: List[str], results: List[Result]) -> Body:
        """Return the whole answer."""
        return self._body(messages[0], end_body(results[0].end, reasons[0]))

    def changes(self, index: int, deltas: List[Delta], probabilities: List[Body]) -> Iterable[Body]:
        """Return a line with new text."""
        new = Message()
        for delta in deltas:
            (self._calls if delta.call else new).add([delta])
        return [self._body(new, {"done": False})] if new.content or new.reasoning else []

    def close(self, index: int, reason: str, end: Finished) -> Iterable[Body]:
        """Return a line with the calls, and the last one."""
        if self._calls.calls:
            yield self._body(self._calls, {"done": False})
        yield self._body(Message(), end_body(end, reason))

    def _body(self, message: Message, rest: Body) -> Body:
        """Return a line, or a whole answer."""
        head = {"model": self.model, "created_at": _date(time.time())}
        return dict(head, **self.shape(message_body(message)), **rest)

    def shape(self, message: Body) -> Body:
        """Return how a message stands in a body."""
        return {"message": message}


class Generate(Chat):
    """A request of POST /api/generate: by way of the chat template; with `raw`, or a gap to fill, as it is."""

    read = staticmethod(read_generate)

    def __init__(self, call: Call, host: Host):
        super().__init__(call, host)
        body = call.body
        suffix = fields.text(body, "suffix", None) if body.get("suffix") != "" else None
        if fields.flag(body, "raw", False) or suffix is not None:
            prompt = fields.any_text(body, "prompt")
            self.asks = [replace(ask, prompt=prompt if suffix is None else Gap(prompt, suffix)) for ask in self.asks]

    def shape(self, message: Body) -> Body:
        """Return how a message stands in a body."""
        body = {"response": message["content"]}
        if "thinking" in message:
            body["thinking"] = message["thinking"]
        return body


def routes(endpoint: Endpoint) -> List[Route]:
    """Return the routes."""
    host = endpoint.host

    def tags(request: Request) -> Any:
        """GET /api/tags: the models in the folder."""
        return json_reply({"models": [model_body(each) for each in host.listed() if not each.problem]})

    def running(request: Request) -> Any:
        """GET /api/ps: what is loaded."""
        return json_reply(running_body(host))

    def show(request: Request) -> Any:
        """POST /api/show: what a model is."""
        model = host.named(model_name(read_json(request.body)))
        facts = {
            "general.architecture": model.architecture,
            "general.parameter_count": model.parameters,
            model.architecture + ".context_length": model.context_length,
        }
        able = {TEXT: ["completion", "tools"], EMBEDDINGS: ["embedding"]}.get(host.gives(model), [])
        body = {"details": details(model), "model_info": facts, "template": model.chat_template, "capabilities": able}
        return json_reply(dict(body, modelfile="", parameters="", modified_at=_date(model.modified)))

    return [
        Route("GET", "/api/tags", tags),
        Route("GET", "/api/ps", running),
        Route("GET", "/api/version", lambda request: json_reply({"version": VERSION})),
        Route("POST", "/api/show", show),
        endpoint.route("/api/generate", Generate),
        endpoint.route("/api/chat", Chat),
    ]
