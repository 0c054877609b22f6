"""Ollama's API (docs/api.md there), translated to the same conversations. Streams are lines of JSON, and the default.

    GET  /api/tags, /api/version         the models, and a version that its clients know
    POST /api/show                       what a model is
    POST /api/generate, /api/chat        a prompt, or messages, in; text out

A model's name may end in ":latest". `keep_alive` and `num_ctx` are the server's own affair here, and ignored.
"""

import contextlib
import hashlib
import json
import time
from dataclasses import replace
from typing import Any, Callable, Dict, Iterator, List

from core import fields
from core.apis.endpoint import Endpoints
from core.apis.openai_shapes import DEFAULTS
from core.chat.conversation import ChatAsk, Conversation, Message, arguments_of, read, steps
from core.chat.template import read_messages
from core.chat.tools import read_tools
from core.engine.jobs import UNLIMITED, Finished, Job
from core.engine.sampling import read_sampling
from core.errors import APIError
from core.grammar.schema import JSON_OBJECT
from core.http.messages import IDLE, Request, Stream, json_reply
from core.http.routing import Route
from core.models import ModelFile

Body = Dict[str, Any]

VERSION = "0.9.0"  # of Ollama's API, whose shapes these are: clients look at it before they use newer fields


# ----------------------------------------------------------------------------------------------- requests


def read_chat(body: Body) -> ChatAsk:
    """Return what a body of POST /api/chat asks for. Raises APIError 400."""
    translated = dict(body, messages=_messages(body))
    with fields.named(_own_path):
        return replace(_common(body), messages=read_messages(translated), tools=read_tools(translated))


def read_generate(body: Body) -> ChatAsk:
    """Return what a body of POST /api/generate asks for, as a conversation. Raises APIError 400."""
    prompt = fields.any_text(body, "prompt")
    if body.get("images") not in (None, []):
        raise APIError(400, "Images can't be used: this server takes text only.", "unsupported", "images")
    system = fields.text(body, "system", None)
    messages = [{"role": "system", "content": system}] if system else []
    return replace(_common(body), messages=messages + [{"role": "user", "content": prompt}])


def _own_path(path: str) -> str:
    """Return a translated field's path as Ollama has it."""
    return "format" if path == "response_format" else path.replace(".reasoning_content", ".thinking")


def _common(body: Body) -> ChatAsk:
    """Return what both have: the model, the format and the options."""
    options = fields.mapping(body, "options") or {}
    with fields.named("options.{}".format):
        limit = fields.integer(options, "num_predict", -1, -2, UNLIMITED)
        sampling = read_sampling(options, DEFAULTS)
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


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


# ---------------------------------------------------------------------------------------------- endpoints


class OllamaEndpoints(Endpoints):
    """The routes."""

    def routes(self) -> List[Route]:
        """Return the routes."""
        return [
            Route("GET", "/api/tags", self.tags),
            Route("GET", "/api/version", lambda request: json_reply({"version": VERSION})),
            Route("POST", "/api/show", self.show),
            Route("POST", "/api/generate", self.generate),
            Route("POST", "/api/chat", self.chat),
        ]

    def tags(self, request: Request) -> Any:
        """GET /api/tags: the models in the folder."""
        return json_reply({"models": [model_body(each) for each in self._runner.folder.list() if not each.problem]})

    def show(self, request: Request) -> Any:
        """POST /api/show: what a model is."""
        model = self._runner.folder.find(model_name(request.json()), "model")
        facts = {
            "general.architecture": model.architecture,
            "general.parameter_count": model.parameters,
            model.architecture + ".context_length": model.context_length,
        }
        able = ["embedding"] if model.embeds else ["completion", "tools"]
        body = {"details": details(model), "model_info": facts, "template": model.chat_template, "capabilities": able}
        return json_reply(dict(body, modelfile="", parameters=""))

    def chat(self, request: Request) -> Any:
        """POST /api/chat: the message that follows others."""
        body = request.json()
        conversation = self._conversation(read_chat(body))
        return self._reply(request, body, conversation, conversation.jobs()[0], lambda message: {"message": message})

    def generate(self, request: Request) -> Any:
        """POST /api/generate: the answer to a prompt, by way of the chat template, or with `raw` as it is."""
        body = request.json()
        conversation = self._conversation(read_generate(body))
        job = conversation.jobs()[0]
        suffix = fields.text(body, "suffix", None) if body.get("suffix") != "" else None
        if fields.flag(body, "raw", False) or suffix is not None:
            job.prompt, job.suffix = fields.any_text(body, "prompt"), suffix
        return self._reply(request, body, conversation, job, _response)

    def _reply(
        self, request: Request, body: Body, conversation: Conversation, job: Job, shape: Callable[[Body], Body]
    ) -> Any:
        """Answer as lines, or whole; `shape` makes a line's part of a message."""
        if fields.flag(body, "stream", True):
            lines = self._lines(job, conversation, shape)
            return Stream(lines, 200, "application/x-ndjson", (("X-Accel-Buffering", "no"),), error_chunk=_error_line)
        answers = self._runner.results([job], request)
        message, reason = read(answers, conversation)[0]
        return json_reply(
            dict(self._head(conversation), **shape(message_body(message)), **end_body(answers[0].end, reason))
        )

    def _head(self, conversation: Conversation) -> Body:
        return {"model": conversation.model.name, "created_at": _date(time.time())}

    def _lines(self, job: Job, conversation: Conversation, shape: Callable[[Body], Body]) -> Iterator[Any]:
        calls = Message()
        with contextlib.closing(steps(self._runner.events([job]), conversation)) as results:
            for step in results:
                if step is IDLE:
                    yield IDLE
                    continue
                new = Message()
                for delta in step.deltas:
                    (calls if delta.call else new).add([delta])
                if new.content or new.reasoning:
                    yield _line(dict(self._head(conversation), **shape(message_body(new)), done=False))
                if step.end:
                    if calls.calls:
                        yield _line(dict(self._head(conversation), **shape(message_body(calls)), done=False))
                    last = shape(message_body(Message()))
                    yield _line(dict(self._head(conversation), **last, **end_body(step.end, step.reason)))


def _response(message: Body) -> Body:
    """Return what a line of POST /api/generate says of a message."""
    body = {"response": message["content"]}
    if "thinking" in message:
        body["thinking"] = message["thinking"]
    return body


def _line(body: Body) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _error_line(error: APIError) -> bytes:
    return _line({"error": error.message})
