"""Chat templates: from a conversation to the prompt that the model was trained on.

    a request's body ── read_messages ──> messages ──┐
    a GGUF file's template ── ChatTemplate ──────────┴─ render ──> the prompt's text

A template is a program in the Jinja language, and part of the model's file. It runs in jinja2's immutable sandbox,
where it reaches only what it is given. There are limits on how far its ranges may count, how large its sums and
products may grow and how much it may write. This stops mistakes and simple attacks; a file from someone you don't trust
can still waste time and memory.

Templates differ in how they want a conversation that has tool calls: arguments as objects or as JSON text, an empty
content as "" or as null, ids of nine characters only. Each template is tried once, with a small conversation that has a
call in it (see _Manner). If a template knows nothing of tools, the system prompt describes them, with Hermes' syntax
for calls, and earlier calls and their results are shown as text in the same syntax.

Sources: the OpenAI API reference for the messages; for what templates are given, `apply_chat_template` of Hugging
Face's transformers, against which their makers test them.
"""

import datetime
import hashlib
import itertools
import json
import re
from typing import Any, Dict, List, NamedTuple, NoReturn, Optional, Sequence, Tuple

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from core import fields
from core.bounds import CALLS, MESSAGES
from core.chat.markers import Change, change_all
from core.chat.syntaxes import END_THINK, HERMES, THINK
from core.errors import APIError, json_type
from core.jsonbody import read_json

Message = Dict[str, Any]

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# ---------------------------------------------------------------------------------------------- messages

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_OTHER_MEDIA = ("image_url", "input_audio", "file")
_LEGACY_ID = "function0"  # of the one call that a message of OpenAI's older API may hold


def read_messages(body: Dict[str, Any]) -> List[Message]:
    """Return a request's `messages`, checked, in the one form that templates are given.

    A message has `role` ("system", "user", "assistant" or "tool"), `content` (a string) and what it came with of
    `name`, `reasoning_content`, `tool_call_id` and `tool_calls`, each {"id", "type": "function", "function": {"name",
    "arguments"}} with the arguments as JSON text. The role "developer" is a system's, "function" and `function_call`
    are the older API's tool and tool_calls; unknown fields are left out. Raises APIError 400 that names the place.
    """
    messages = body.get("messages")
    if messages is None:
        raise APIError(400, "The field 'messages' is missing.", "missing_field", "messages")
    if not isinstance(messages, list):
        raise _wrong("messages", "must be an array, not %s" % json_type(messages))
    if not messages:
        raise _wrong("messages", "must hold at least one message")
    MESSAGES.check(len(messages), "messages")
    return [_read_message(message, "messages[%d]" % index) for index, message in enumerate(messages)]


def _read_message(given: Any, place: str) -> Message:
    if not isinstance(given, dict):
        raise _wrong(place, "must be an object, not %s" % json_type(given))
    role = _text(given, "role", place)
    if role not in _ROLES:
        raise _wrong(place + ".role", "must be one of %s" % ", ".join("'%s'" % each for each in _ROLES))
    message: Message = {"role": {"developer": "system", "function": "tool"}.get(role, role)}
    if role == "assistant":
        message.update(_read_answer(given, place))
    else:
        message["content"] = _read_content(given.get("content"), place + ".content")
    if role in ("tool", "function"):
        message["tool_call_id"] = _text(given, "tool_call_id", place) if role == "tool" else _LEGACY_ID
    if given.get("name") is not None:
        message["name"] = _text(given, "name", place)
    return message


def _read_answer(given: Message, place: str) -> Message:
    """Return what an assistant's message holds; its content may be missing where there is something else."""
    answer: Message = {}
    calls = _read_calls(given, place)
    reasoning = given.get("reasoning_content")
    if not isinstance(reasoning, (str, type(None))):
        raise _wrong(place + ".reasoning_content", "must be a string, not %s" % json_type(reasoning))
    content = given.get("content")
    if content is None:
        content = given.get("refusal")
    answer["content"] = "" if content is None and (calls or reasoning) else _read_content(content, place + ".content")
    if reasoning:
        answer["reasoning_content"] = reasoning
    if calls:
        answer["tool_calls"] = calls
    return answer


def _read_content(content: Any, place: str) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        raise APIError(400, "The field '%s' is missing." % place, "missing_field", place)
    if not isinstance(content, list):
        raise _wrong(place, "must be a string or an array of parts, not %s" % json_type(content))
    if not content:
        raise _wrong(place, "must hold at least one part")
    return "\n".join(_read_part(part, "%s[%d]" % (place, index)) for index, part in enumerate(content))


def _read_part(part: Any, place: str) -> str:
    if not isinstance(part, dict):
        raise _wrong(place, "must be an object, not %s" % json_type(part))
    kind = _text(part, "type", place)
    if kind in _OTHER_MEDIA:
        raise _wrong(place, "is of type '%s', but this server takes text only" % kind)
    if kind not in ("text", "refusal"):
        raise _wrong(place + ".type", "must be 'text': this server takes text only")
    text = part.get(kind)
    if not isinstance(text, str):
        raise _wrong("%s.%s" % (place, kind), "must be a string, not %s" % json_type(text))
    return text


def _read_calls(given: Message, place: str) -> List[Dict[str, Any]]:
    calls = given.get("tool_calls")
    if calls is None:
        legacy = given.get("function_call")
        return [] if legacy is None else [_call(_LEGACY_ID, legacy, place + ".function_call")]
    if not isinstance(calls, list):
        raise _wrong(place + ".tool_calls", "must be an array, not %s" % json_type(calls))
    CALLS.check(len(calls), place + ".tool_calls")
    return [_read_call(call, "%s.tool_calls[%d]" % (place, index)) for index, call in enumerate(calls)]


def _read_call(call: Any, place: str) -> Dict[str, Any]:
    if not isinstance(call, dict):
        raise _wrong(place, "must be an object, not %s" % json_type(call))
    if call.get("type", "function") != "function":
        raise _wrong(place + ".type", "must be 'function'")
    return _call(_text(call, "id", place), call.get("function"), place + ".function")


def _call(id: str, function: Any, place: str) -> Dict[str, Any]:
    if not isinstance(function, dict):
        raise _wrong(place, "must be an object, not %s" % json_type(function))
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        raise _wrong(place + ".arguments", "must be a string of JSON, not %s" % json_type(arguments))
    name = _text(function, "name", place)
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _text(holder: Dict[str, Any], name: str, place: str) -> str:
    name, value = "%s.%s" % (place, name), holder.get(name)
    return fields.text({name: value}, name)


def _wrong(place: str, what: str) -> APIError:
    return APIError(400, "'%s' %s." % (place, what), "invalid_value", place)


# --------------------------------------------------------------------------------------------- templates

_LARGEST = 2**24  # characters of a prompt, or of any value in a template; a context of a million tokens has a quarter
_MOST_ROUNDS = 100000  # that all ranges of one rendering have together
_RESERVED = (
    "messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "range", "raise_exception", "strftime_now",
)  # fmt: skip


class ChatTemplate:
    """A model's chat template; it may be rendered by many threads at once.

    `source` is its text, ChatML's where the model has none. `bos` and `eos` are the texts of the tokens that begin and
    end a sequence. Raises APIError 500 where the source is no template.
    """

    def __init__(self, source: str, bos: str = "", eos: str = ""):
        self.source = source or CHATML
        self._bos, self._eos = bos, eos
        try:
            self._template = _ENVIRONMENT.from_string(self.source)
        except Exception as error:  # besides TemplateSyntaxError what its constants, worked out here, may raise
            raise APIError(
                500, "The model's chat template is broken: %s" % error, "template_broken", type="template_broken"
            )
        self._knows_tools = re.search(r"\btools\b", self.source) is not None
        self._no_tools: Dict[str, Any] = {"tools": None}
        if not self._probe([_PROBE_USER]):  # some count on None where there are no tools, as in transformers,
            self._no_tools = {}  # and some, which loop over them, on an undefined variable
        self._takes_system = "probe-system" in self._probe([_PROBE_SYSTEM, _PROBE_USER])
        self._manner = self._find_manner() if self._knows_tools else None

    def render(
        self,
        messages: List[Message],
        tools: Optional[List[Dict[str, Any]]] = None,
        options: Optional[Dict[str, Any]] = None,
        now: Optional[datetime.datetime] = None,
        change: Change = str,
        begins: bool = True,
        continues: bool = True,
    ) -> str:
        """Return the prompt for the assistant's next answer to `messages`, as read_messages() has them.

        A last message of the assistant that calls no tool is continued, if `continues`: the prompt ends with it. With
        `begins`, it ends with what the template begins an answer with. `tools` are offered
        to the model; `options` are further variables for the template (chat_template_kwargs); `now` is for templates
        that tell the date. `change` is applied to every text of a client's, as the template is given it (see
        markers.py). Raises APIError 400 where the template refuses the messages or can't deal with them.
        """
        for name in options or ():
            if name in _RESERVED:
                place = "chat_template_kwargs.%s" % name
                raise APIError(400, "'%s' can't be set: the server sets it." % place, "invalid_value", place)
        messages, last = _split_continued(messages) if continues else (messages, None)
        messages = self._adapt(messages, tools)
        try:
            messages, tools, options = (change_all(value, change) for value in (messages, tools, options or {}))
            prompt = self._run(messages, tools, options, now or datetime.datetime.now(), begins or last is not None)
        except Exception as error:  # a template may fail in as many ways as any program, RecursionError included
            what = str(error) or type(error).__name__
            raise APIError(400, "The chat template can't take these messages: %s" % what, "template_error", "messages")
        return prompt + self._continuation(prompt, change_all(last, change)) if last else prompt

    def _adapt(self, messages: List[Message], tools: Optional[List[Dict[str, Any]]]) -> List[Message]:
        """Return the messages as the template wants them; there are three cases."""
        if self._manner is not None:  # 1. it shows calls
            return [self._manner.apply(message) for message in messages]
        if self._knows_tools:  # 2. it shows tools and their results, but no calls
            return [_with_call_as_text(message) for message in messages]
        messages = _with_results_as_text([_with_call_as_text(message) for message in messages])  # 3. neither
        return self._describe(tools, messages) if tools else messages

    def _run(
        self, messages: List[Message], tools: Any, options: Dict[str, Any], now: datetime.datetime, begins: bool = True
    ) -> str:
        given = {
            "messages": messages,
            "add_generation_prompt": begins,
            "bos_token": self._bos,
            "eos_token": self._eos,
            "date_string": now.strftime("%d %b %Y"),
            "strftime_now": now.strftime,
            "raise_exception": _raise_exception,
            "range": _limited_range(),
        }
        given.update({"tools": tools} if tools else self._no_tools)
        pieces, size = [], 0
        for piece in self._template.generate(dict(given, **options)):
            size += len(piece)
            _check_size(size)
            pieces.append(piece)
        return "".join(pieces)

    def _probe(self, messages: List[Message], tools: Any = None) -> str:
        """Return what the template makes of test messages; empty if it can't render them."""
        try:
            return self._run(messages, tools, {}, datetime.datetime(2000, 1, 1))
        except Exception:  # the probe is there to find this out
            return ""

    def _find_manner(self) -> Optional["_Manner"]:
        """Return the first manner in which the template shows a call and its arguments well; None if it shows none."""
        manners = [_Manner(*flags) for flags in itertools.product((False, True), repeat=len(_Manner._fields))]
        texts = [self._probe([manner.apply(message) for message in _PROBE_CALL], [_PROBE_TOOL]) for manner in manners]
        for manner, text in zip(manners, texts):
            if "probe-value" in text and not re.search(r"""\{'probe-key'|\\"probe-key""", text):
                return manner
        return None if any(texts) else manners[0]

    def _describe(self, tools: Sequence[Dict[str, Any]], messages: List[Message]) -> List[Message]:
        """Return the messages with a description of the tools, for a template that gives none.

        It joins the system's message, or becomes one, or goes with the first message where there can be none.
        """
        text = _TOOLS_PROMPT % ("\n".join(_to_json(tool) for tool in tools), HERMES.write([("NAME", "ARGUMENTS")]))
        first = messages[0] if messages else {"role": ""}
        if first["role"] == "system":
            return [dict(first, content=first["content"] + "\n\n" + text)] + messages[1:]
        if self._takes_system or not messages:
            return [{"role": "system", "content": text}] + messages
        return [dict(first, content=text + "\n\n" + first["content"])] + messages[1:]

    def _continuation(self, prompt: str, last: Message) -> str:
        """Return the beginning of the answer that is to be continued, with its thoughts where the model has such."""
        content, reasoning = last["content"], last.get("reasoning_content", "")
        end = prompt.rstrip()
        if end.endswith(THINK) and (content or reasoning):
            return "%s\n%s\n\n%s" % (reasoning, END_THINK, content)
        if reasoning and THINK in self.source and not end.endswith(END_THINK):
            return "%s\n%s\n%s\n\n%s" % (THINK, reasoning, END_THINK, content)
        return content


def _split_continued(messages: List[Message]) -> Tuple[List[Message], Optional[Message]]:
    """Return the messages without one at the end that is to be continued, and that one."""
    last = messages[-1] if messages else {"role": ""}
    if last["role"] != "assistant" or last.get("tool_calls"):
        return messages, None
    return messages[:-1], last


# ---------------------------------------------------------------------------------- tool calls in templates


class _Manner(NamedTuple):
    """How a template wants messages with tool calls; the first of each is the usual one."""

    short_ids: bool = False  # calls' ids of nine letters and digits (Mistral), else as the client has them
    text: bool = False  # arguments as JSON text, else as objects
    null: bool = False  # null for the content of a message that only calls, else ""

    def apply(self, message: Message) -> Message:
        """Return a message in this manner."""
        message = dict(message)
        if message.get("tool_calls"):
            message["tool_calls"] = [self._call(call) for call in message["tool_calls"]]
            message["content"] = message["content"] or (None if self.null else "")
        if "tool_call_id" in message:
            message["tool_call_id"] = self._id(message["tool_call_id"])
        return message

    def _call(self, call: Dict[str, Any]) -> Dict[str, Any]:
        function = call["function"]
        arguments = function["arguments"] if self.text else _as_object(function["arguments"])
        return dict(call, id=self._id(call["id"]), function=dict(function, arguments=arguments))

    def _id(self, id: str) -> str:
        if not self.short_ids or re.fullmatch("[a-zA-Z0-9]{9}", id):
            return id
        return hashlib.sha256(id.encode("utf-8")).hexdigest()[:9]


def _as_object(text: str) -> Any:
    """Return arguments as an object; unchanged if they are no JSON object (a model may write anything)."""
    try:
        return read_json((text or "{}").encode("utf-8"))
    except (APIError, UnicodeEncodeError):
        return text


_PROBE_SYSTEM = {"role": "system", "content": "probe-system"}
_PROBE_USER = {"role": "user", "content": "probe-user"}
_PROBE_TOOL = {
    "type": "function",
    "function": {"name": "probe", "description": "", "parameters": {"type": "object", "properties": {}}},
}
_PROBE_CALL: List[Message] = [
    _PROBE_USER,
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "call_probe",
                "type": "function",
                "function": {"name": "probe", "arguments": '{"probe-key": "probe-value"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_probe", "content": "probe-result"},
]

_TOOLS_PROMPT = """You can call functions. These are the functions and the parameters that they take, a line each:
<tools>
%s
</tools>

To call one, write its name and its arguments, a JSON object, in this form:
%s
You will be given what it returns in <tool_response></tool_response>."""


def _with_results_as_text(messages: Sequence[Message]) -> List[Message]:
    """Return the messages with tools' results as the user's; results in a row are one message."""
    out: List[Message] = []
    for is_result, group in itertools.groupby(messages, key=lambda message: message["role"] == "tool"):
        if is_result:
            results = ["<tool_response>\n%s\n</tool_response>" % message["content"] for message in group]
            out.append({"role": "user", "content": "\n".join(results)})
        else:
            out += group
    return out


def _with_call_as_text(message: Message) -> Message:
    if not message.get("tool_calls"):
        return message
    functions = [call["function"] for call in message["tool_calls"]]
    calls = HERMES.write([(function["name"], function["arguments"] or "{}") for function in functions])
    content = message["content"] + "\n" + calls if message["content"] else calls
    return dict({key: value for key, value in message.items() if key != "tool_calls"}, content=content)


# ------------------------------------------------------------------------------------------- the sandbox


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """jinja2's sandbox, in which no sum, product or power may be larger than a prompt may be."""

    intercepted_binops = frozenset(("+", "*", "**"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Work out an intercepted operation, unless its result would be too large."""
        _check_size(_size_of(operator, left, right))
        return super().call_binop(context, operator, left, right)


def _size_of(operator: str, left: Any, right: Any) -> int:
    """Return about how large the result of an operation is, in what _size() counts."""
    if operator == "+":
        return _size(left) + _size(right)
    if operator == "**":
        return _size(left) * abs(right) if isinstance(right, int) else 0
    if isinstance(left, int) and isinstance(right, int):
        return _size(left) + _size(right)
    return max(
        _size(left) * right if isinstance(right, int) else 0, left * _size(right) if isinstance(left, int) else 0
    )


def _size(value: Any) -> int:
    """Return a text's characters or a list's items; a number's bits count as more, since products of long ones last."""
    if isinstance(value, int):
        return value.bit_length() << 12
    return len(value) if isinstance(value, (str, list, tuple)) else 0


def _check_size(size: int) -> None:
    if size > _LARGEST:
        raise OverflowError("the template makes more than %d characters" % _LARGEST)


def _limited_range() -> Any:
    """Return a `range` for one rendering: all that it gives together has no more numbers than the limit."""
    left = [_MOST_ROUNDS]

    def limited(*bounds: int) -> range:
        numbers = range(*bounds)
        left[0] -= len(numbers)
        if left[0] < 0:
            raise OverflowError("the template counts further than %d" % _MOST_ROUNDS)
        return numbers

    return limited


class _Generation(jinja2.ext.Extension):
    """{% generation %}...{% endgeneration %}, with which templates mark answers for training: here only its body."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> List[jinja2.nodes.Node]:
        """Return the body's nodes (jinja2 calls this at the tag)."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """The filter `tojson` as templates expect it: jinja2's own escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> _Sandbox:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = _to_json
    environment.filters["safe"] = str  # jinja2's gives Markup, which escapes the text that is added to it
    return environment


_ENVIRONMENT = _environment()
