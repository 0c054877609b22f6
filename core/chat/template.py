"""Chat templates: from a conversation to the prompt that the model was trained on.

    messages (messages.py) ──┐
    a GGUF file's template ──┴─ ChatTemplate.render ──> the prompt's text

A template is a program in the Jinja language, and part of the model's file: sandbox.py runs it.

Templates differ in how they want a conversation that has tool calls: arguments as objects or as JSON text, an empty
content as "" or as null, ids of nine characters only. Each template is tried once, with a small conversation that has a
call in it (see _Manner). If a template does not list the tools, the system prompt describes them, and if it does not
show calls, they are shown as text, in the syntax that the template speaks of, else in Hermes'.

Sources: for what templates are given, `apply_chat_template` of Hugging Face's transformers, against which their makers
test them, and llama.cpp's common/chat.cpp.
"""

import datetime
import hashlib
import itertools
import re
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from core.chat.families import style_of
from core.chat.markers import Change, change_all
from core.chat.messages import Message
from core.chat.sandbox import Program, to_json
from core.chat.syntaxes import Syntax
from core.errors import APIError
from core.jsonbody import read_json

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_RESERVED = (
    "messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "range", "raise_exception", "strftime_now",
    "functions", "datetime",
)  # fmt: skip


# Templates' names for showing the model all thoughts that a client sends back. So the prompt's beginning stays as it
# was and need not be evaluated again. llama-server has it so, too.
_KEEPING_THOUGHTS = {
    "preserve_thinking": True, "clear_thinking": False, "truncate_history_thinking": False, "drop_thinking": False,
}  # fmt: skip


class ChatTemplate:
    """A model's chat template; it may be rendered by many threads at once.

    `source` is its text, ChatML's where the model has none. `bos` and `eos` are the texts of the tokens that begin and
    end a sequence. Raises APIError 500 where the source is no template.
    """

    def __init__(self, source: str, bos: str = "", eos: str = ""):
        self.source = source or CHATML
        self._bos, self._eos = bos, eos
        try:
            self._program = Program(self.source)
        except Exception as error:  # besides TemplateSyntaxError what its constants, worked out here, may raise
            raise APIError(
                500, "The model's chat template is broken: %s" % error, "template_broken", type="template_broken"
            )
        self._knows_tools = bool({"tools", "functions"} & self._program.variables) or _TOOLS.search(self.source)
        self._no_tools: Dict[str, Any] = {"tools": None}
        if not self._probe([_PROBE_USER]):  # some count on None where there are no tools, as in transformers,
            self._no_tools = {}  # and some, which loop over them, on an undefined variable
        self._takes_system = "probe-system" in self._probe([_PROBE_SYSTEM, _PROBE_USER])
        self._manner, example = self._find_manner()
        self.style = style_of(self.source + "\n" + example)

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
            messages = [_with_thinking(self._manner.apply(message)) for message in messages]
        else:
            messages = [_with_call_as_text(message, self.style.syntax) for message in messages]
            if not self._knows_tools:  # 2. it shows neither tools nor calls, else: 3. it shows tools, but no calls
                messages = _with_results_as_text(messages)
        if not self._takes_system:
            messages = _with_system_in_first(messages)
        return self._describe(tools, messages) if tools and not self._knows_tools else messages

    def _run(
        self, messages: List[Message], tools: Any, options: Dict[str, Any], now: datetime.datetime, begins: bool = True
    ) -> str:
        given = {
            "messages": messages,
            "add_generation_prompt": begins,
            "bos_token": self._bos,
            "eos_token": self._eos,
            "date_string": now.strftime("%d %b %Y"),
            "datetime": now.strftime("%b %d %Y"),  # firefunction-v2's, as `functions` are
            "functions": to_json(tools, indent=2) if tools else "",
            "strftime_now": now.strftime,
        }
        given.update(_KEEPING_THOUGHTS)
        given.update({"tools": tools} if tools else self._no_tools)
        return self._program.run(dict(given, **options))

    def _probe(self, messages: List[Message], tools: Any = None) -> str:
        """Return what the template makes of test messages; empty if it can't render them."""
        try:
            messages, tools = change_all(messages, str), change_all(tools, str)
            return self._run(messages, tools, {}, datetime.datetime(2000, 1, 1))
        except Exception:  # the probe is there to find this out
            return ""

    def _find_manner(self) -> Tuple[Optional["_Manner"], str]:
        """Return the first manner in which the template shows a call and its arguments well, and what it shows.

        None if it shows none; of a template that knows tools, but fails with all of this, the usual one.
        """
        if not self._knows_tools and "tool_calls" not in self.source:
            return None, ""
        manners = [_Manner(*flags) for flags in itertools.product((False, True), repeat=len(_Manner._fields))]
        texts = [self._probe([manner.apply(message) for message in _PROBE_CALL], [_PROBE_TOOL]) for manner in manners]
        for manner, text in zip(manners, texts):
            if "probe-value" in text and not re.search(r"""\{'probe-key'|\\\\"probe-key""", text):
                return manner, text
        return None if any(texts) or not self._knows_tools else manners[0], ""

    def _describe(self, tools: Sequence[Dict[str, Any]], messages: List[Message]) -> List[Message]:
        """Return the messages with a description of the tools, for a template that gives none.

        It joins the system's message, or becomes one, or goes with the first message where there can be none.
        """
        syntax = self.style.syntax
        takes_object = syntax.tags or syntax.notation or syntax.keywords
        form = syntax.write([("NAME", '{"PARAMETER": "VALUE"}' if takes_object else "ARGUMENTS")])
        text = _TOOLS_PROMPT % ("\n".join(to_json(tool) for tool in tools), form)
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
        opener, closer = self.style.thoughts.opener, self.style.thoughts.closer
        if end.endswith(opener.strip()) and (content or reasoning):
            return "%s\n%s\n\n%s" % (reasoning, closer, content)
        if reasoning and opener in self.source and not end.endswith(closer):
            return "%s\n%s\n%s\n\n%s" % (opener.strip(), reasoning, closer, content)
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


def _with_thinking(message: Message) -> Message:
    """Return a message with its thoughts by gpt-oss's name, too; its template refuses them beside a call's content."""
    if not message.get("tool_calls") or message["content"] or "reasoning_content" not in message:
        return message
    return dict(message, thinking=message["reasoning_content"])


def _with_system_in_first(messages: List[Message]) -> List[Message]:
    """Return the messages with the system's text before the first one of the user, for a template that takes none."""
    systems = [message["content"] for message in messages if message["role"] == "system"]
    others = [message for message in messages if message["role"] != "system"]
    if not systems or not others:
        return messages
    first = next((index for index, message in enumerate(others) if message["role"] == "user"), 0)
    text = "\n".join(systems + [others[first]["content"] or ""])
    return others[:first] + [dict(others[first], content=text)] + others[first + 1 :]


_TOOLS = re.compile(r"\btools\b")


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


def _with_call_as_text(message: Message, syntax: Syntax) -> Message:
    if not message.get("tool_calls"):
        return message
    functions = [call["function"] for call in message["tool_calls"]]
    calls = syntax.write([(function["name"], function["arguments"] or "{}") for function in functions])
    content = message["content"] + "\n" + calls if message["content"] else calls
    return dict({key: value for key, value in message.items() if key != "tool_calls"}, content=content)
