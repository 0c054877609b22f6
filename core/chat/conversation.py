"""A conversation with a model, whatever API it came by: from messages to what the engine is asked, and from text back.

    ChatAsk          what a request asks for, in one form for all APIs
    Conversation     the same against one model: its prompt and grammar, as Asks for the engine
    Turn             reads one answer as it comes: content, reasoning and tool calls
    Message          the same, when all is there

Knows neither HTTP nor the engine's loop. Templates, tools, the parser of answers and grammars have files of their own:
see the map in core/chat/__init__.py.
"""

import functools
import hashlib
import itertools
import json
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, List, Optional, Tuple

from core.ask import UNLIMITED, Ask, Budget
from core.chat.arguments import texts_of
from core.chat.defaults import ChatDefaults
from core.chat.guided import Thinking, answer_grammar
from core.chat.markers import markers_of, text_of
from core.chat.parser import AnswerParser, Delta, Offer
from core.chat.syntaxes import Style
from core.chat.template import ChatTemplate
from core.chat.tools import Tools
from core.errors import APIError
from core.models import ModelFile
from core.sampling import Sampling


@dataclass(frozen=True)
class ChatAsk:
    """What a request asks for. `schema` is a JSON schema that the answer must follow; `count` answers are wanted.

    `begins_answer`: the prompt ends with the template's beginning of an answer. `continues`: a last message of the
    assistant's is continued. `budget` is how many tokens an answer may think (None: as the server's options say; below
    0: any number), and `budget_message` what is said where a thought is cut short.
    """

    messages: List[Dict[str, Any]]
    model: Optional[str] = None
    tools: Optional[Tools] = None
    schema: Any = None
    sampling: Sampling = Sampling()
    max_tokens: int = UNLIMITED
    stop: Tuple[str, ...] = ()
    count: int = 1
    cache_prompt: bool = True
    template_options: Dict[str, Any] = field(default_factory=dict)
    begins_answer: bool = True
    continues: bool = True
    budget: Optional[int] = None
    budget_message: Optional[str] = None
    apart: Optional[bool] = None  # thoughts are told apart from the content; None: as the server's options say
    own: Callable[[str], str] = str  # the client's path of a field, where this was translated (fields.named)


@functools.lru_cache(maxsize=8)
def template_of(source: str, bos: str, eos: str) -> ChatTemplate:
    """Return a compiled template. Raises APIError 500 for one that is no Jinja."""
    return ChatTemplate(source, bos, eos)


class Conversation:
    """A request against one model. Raises APIError 400 for what can't be honoured.

    `defaults` are what the server's options say. `prompt` is what the model continues; what a client wrote is plain in
    it where it holds special tokens (markers.py).
    """

    def __init__(self, ask: ChatAsk, model: ModelFile, defaults: ChatDefaults = ChatDefaults()):
        self.ask = ask
        self.model = model
        renderer = template_of(defaults.template or model.chat_template, model.bos, model.eos)
        wanted = ask.tools if ask.tools and ask.tools.choice != "none" else None
        self._style = renderer.style
        self._offer = offer_of(wanted) if wanted else None
        tools = wanted.tools if wanted else None
        limit = defaults.budget if ask.budget is None else ask.budget
        options = dict({"enable_thinking": self._style.thinks}, **defaults.options)
        options.update(dict(_of_budget(limit, ask.budget), **ask.template_options))
        self.prompt = markers_of(model.controls, model.stubborn).prompt(
            lambda change: renderer.render(
                ask.messages, tools, options, change=change, begins=ask.begins_answer,
                continues=ask.continues,
            )  # fmt: skip
        )
        thinking = _thinking(self._style, text_of(self.prompt), options)
        self.grammar = _grammar(ask, self._style, wanted, thinking, text_of(self.prompt))
        message = defaults.budget_message if ask.budget_message is None else ask.budget_message
        self._budget = None if ask.sampling.grammar else _budget(limit, message, self._style, thinking)
        self._apart = defaults.apart if ask.apart is None else ask.apart
        self._thinking = thinking is Thinking.OPEN and not ask.sampling.grammar

    def asks(self) -> List[Ask]:
        """Return an Ask for each answer that is wanted; the second and later ones have seeds of their own."""
        sampling = replace(self.ask.sampling, grammar=self.grammar)
        return [
            Ask(
                self.model,
                self.prompt,
                self.ask.max_tokens,
                self.ask.stop,
                seed_of(sampling, index),
                self.ask.cache_prompt,
                markers=self._style.markers,
                budget=self._budget,
            )
            for index in range(self.ask.count)
        ]

    def turn(self, nonce: str = "") -> "Turn":
        """Return what reads one of the answers. The ids of its calls are made of `nonce`: equal ones of equal ones."""
        numbers = itertools.count()

        def new_id() -> str:
            return call_id(nonce, next(numbers))

        return Turn(AnswerParser(self._style, self._offer, self._thinking, new_id, self._apart))


def offer_of(tools: Tools) -> Offer:
    """Return the functions that an answer may call."""
    functions = [tool["function"] for tool in tools.tools]
    return Offer({function["name"]: texts_of(function["parameters"]) for function in functions})


def seed_of(sampling: Sampling, index: int) -> Sampling:
    """Return the sampling of the answer number `index` of one request: with a seed given, of the seeds that follow."""
    return replace(sampling, seed=(sampling.seed + index) % (1 << 32)) if sampling.seed >= 0 and index else sampling


def call_id(nonce: str, number: int) -> str:
    """Return the id of a tool call. Nine letters and digits: Mistral's templates take no other."""
    digest = hashlib.sha256(("%s %d" % (nonce, number)).encode("utf-8", "replace")).digest()
    return "".join(_LETTERS[byte % len(_LETTERS)] for byte in digest[:9])


_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def _grammar(ask: ChatAsk, style: Style, tools: Optional[Tools], thinking: Thinking, prompt: str) -> str:
    """Return the grammar that the answer must follow, "" for none.

    Raises APIError 400 where the request brings a grammar of its own and asks for more.
    """
    own, more = ask.sampling.grammar, "tools" if tools else "response_format"
    if own and (tools or ask.schema is not None):
        message = "'grammar' and '%s' can't be honoured together: each says what the answer must look like." % more
        raise APIError(400, message, "contradiction", "grammar")
    if own or (tools is None and ask.schema is None):
        return own
    if style.content and prompt.endswith(style.content):  # the prompt begins the content itself
        style = replace(style, content="")
    return answer_grammar(style, tools, ask.schema, thinking)


def _thinking(style: Style, prompt: str, options: Dict[str, Any]) -> Thinking:
    """Return whether an answer has thoughts: the prompt's end tells, and what the template is told."""
    end = prompt.rstrip()
    if end.endswith(style.thoughts.opener.strip()):
        return Thinking.OPEN
    closed = end.endswith(style.thoughts.closer.strip())
    possible = style.thinks and options.get("enable_thinking") is not False and not closed
    return Thinking.POSSIBLE if possible else Thinking.NONE


def _of_budget(limit: int, asked: Optional[int]) -> Dict[str, Any]:
    """Return what a template is told of how many tokens an answer may think, where that is limited."""
    told = {} if limit < 0 else {"thinking_budget": limit}  # Seed-OSS's
    return dict(told, enable_thinking=False) if asked == 0 else told


def _budget(limit: int, message: str, style: Style, thinking: Thinking) -> Optional[Budget]:
    """Return the budget of thoughts, None where there is none, or there are no thoughts."""
    thoughts = style.thoughts
    if limit < 0 or (thinking is Thinking.NONE and not thoughts.often):
        return None
    begun = thinking is Thinking.OPEN
    return Budget(limit, thoughts.opener, thoughts.closer.strip(), message, begun, thoughts.often)


class Turn:
    """One answer on its way."""

    def __init__(self, parser: AnswerParser):
        self._parser = parser
        self.reason = ""  # why it ended: stop, length or tool_calls

    def push(self, text: str) -> List[Delta]:
        """Return what new text makes certain."""
        return self._parser.push(text) if text else []

    def finish(self, reason: str) -> List[Delta]:
        """Return what the end makes certain, for which the engine gives a reason: stop or length."""
        rest = self._parser.finish()
        self.reason = "tool_calls" if self._parser.calls and reason == "stop" else reason
        return rest

    def read(self, text: str, reason: str) -> "Message":
        """Return the message of an answer that is here as a whole."""
        message = Message()
        message.add(self.push(text))
        message.add(self.finish(reason))
        return message


@dataclass
class Message:
    """A whole answer, put together from its deltas. Each call is {"id", "name", "arguments"}."""

    content: str = ""
    reasoning: str = ""
    calls: List[Dict[str, str]] = field(default_factory=list)

    def add(self, deltas: List[Delta]) -> None:
        """Add what has become certain."""
        for delta in deltas:
            self.content += delta.content
            self.reasoning += delta.reasoning
            if delta.call:
                if delta.call.index == len(self.calls):
                    self.calls.append({"id": delta.call.id, "name": delta.call.name, "arguments": ""})
                self.calls[delta.call.index]["arguments"] += delta.call.arguments


def arguments_of(call: Dict[str, str]) -> Dict[str, Any]:
    """Return the arguments of a message's call as an object; of a call that was cut short, an empty one."""
    try:
        value = json.loads(call["arguments"])
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
