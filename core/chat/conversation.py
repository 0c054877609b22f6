"""A conversation with a model, for all APIs: from messages to a job, and from its pieces to deltas.

    ChatAsk          what a request asks for, in one form for all APIs
    Conversation     the same against one model: its prompt and grammar
    steps            what comes of it, as it comes: content, reasoning and tool calls
    read             the same, when all is there

Knows neither HTTP nor the engine's loop. Templates, tools, the parser of answers and grammars have files of their own:
see the map in core/chat/__init__.py.
"""

import collections
import contextlib
import functools
import json
import secrets
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, Generator, List, Optional, Tuple
from typing import Sequence as Many

from core.chat.forced import forced_grammar
from core.chat.markers import markers_of, text_of
from core.chat.parser import AnswerParser, Delta
from core.chat.syntaxes import Syntax, syntax_of
from core.chat.template import ChatTemplate
from core.chat.tools import Tools
from core.engine.jobs import UNLIMITED, Finished, Job, Piece, Result
from core.engine.sampling import Sampling
from core.errors import APIError
from core.grammar.schema import json_grammar
from core.models import ModelFile

THINKING = "<think>"
Events = Generator[Any, None, None]  # what comes of a request, as it comes; closed early, it cancels the request


@dataclass(frozen=True)
class ChatAsk:
    """What a request asks for. `schema` is a JSON schema that the answer must follow; `count` answers are wanted."""

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
    own: Callable[[str], str] = str  # the client's path of a field, where this was translated (fields.named)


@functools.lru_cache(maxsize=8)
def template_of(source: str, bos: str, eos: str) -> ChatTemplate:
    """Return a compiled template. Raises APIError 500 for one that is no Jinja."""
    return ChatTemplate(source, bos, eos)


class Conversation:
    """A request against one model. Raises APIError 400 for what can't be honoured.

    `template` takes the place of the model's own. `prompt` is what the model continues; what a client wrote is plain in
    it where it holds special tokens (markers.py).
    """

    def __init__(self, ask: ChatAsk, model: ModelFile, template: str = ""):
        self.ask = ask
        self.model = model
        renderer = template_of(template or model.chat_template, model.bos, model.eos)
        wanted = ask.tools if ask.tools and ask.tools.choice != "none" else None
        self._names = [tool["function"]["name"] for tool in wanted.tools] if wanted else []
        self._syntax = syntax_of(renderer.source)
        self._calls: Optional[Syntax] = self._syntax if wanted else None
        tools = wanted.tools if wanted else None
        self.prompt = markers_of(model.controls, model.stubborn).prompt(
            lambda change: renderer.render(ask.messages, tools, ask.template_options, change=change)
        )
        thinking = text_of(self.prompt).rstrip().endswith(THINKING)
        self.grammar = _grammar(ask, self._syntax, wanted, thinking)
        self._thinking = thinking and (wanted is not None or not self.grammar)

    def jobs(self) -> List[Job]:
        """Return a job for each answer that is wanted; the second and later ones have seeds of their own."""
        sampling = replace(self.ask.sampling, grammar=self.grammar)
        return [
            Job(
                self.model,
                self.prompt,
                self.ask.max_tokens,
                self.ask.stop,
                seed_of(sampling, index),
                self.ask.cache_prompt,
                markers=self._syntax.markers,
            )
            for index in range(self.ask.count)
        ]

    def turn(self) -> "_Turn":
        """Return what reads one of the answers."""
        return _Turn(AnswerParser(self._calls, self._names, self._thinking, new_call_id))


def seed_of(sampling: Sampling, index: int) -> Sampling:
    """Return the sampling of the answer number `index` of one request: with a seed given, of the seeds that follow."""
    return replace(sampling, seed=(sampling.seed + index) % (1 << 32)) if sampling.seed >= 0 and index else sampling


def new_call_id() -> str:
    """Return an id for a tool call. Nine letters and digits: Mistral's templates take no other."""
    return "".join(secrets.choice("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") for _ in range(9))


def _grammar(ask: ChatAsk, syntax: Syntax, tools: Optional[Tools], thinking: bool) -> str:
    """Return the grammar that the answer must follow, "" for none. Raises APIError 400 where two contradict.

    A model that begins with a thought may end it before a forced call; other grammars leave no room for thoughts.
    """
    forced = tools is not None and tools.choice != "auto"
    wishes = [
        name
        for name, wished in (
            ("grammar", ask.sampling.grammar),
            ("response_format", ask.schema is not None),
            ("tools", tools),
        )
        if wished
    ]
    if len(wishes) > 1:
        message = "'%s' and '%s' can't be honoured together: each says what the answer must look like." % (
            wishes[0], wishes[1],
        )  # fmt: skip
        raise APIError(400, message, "contradiction", wishes[0])
    if ask.schema is not None:
        return json_grammar(ask.schema)
    return forced_grammar(syntax, tools, thinking) if tools and forced else ask.sampling.grammar


@dataclass(frozen=True)
class Step:
    """What has become certain of the answer number `index`; with its end, why it ended: stop, length or tool_calls."""

    index: int
    deltas: List[Delta]
    probabilities: List[Dict[str, Any]]
    end: Optional[Finished] = None
    reason: str = ""


def steps(events: Events, conversation: Conversation) -> Events:
    """Yield the Steps of jobs' events, each (a job's index, its event); anything else passes through."""
    turns: Dict[int, _Turn] = collections.defaultdict(conversation.turn)
    with contextlib.closing(events):
        for each in events:
            yield turns[each[0]].step(*each) if isinstance(each, tuple) else each


def read(answers: Many[Result], conversation: Conversation) -> List[Tuple["Message", str]]:
    """Return each answer's message and why it ended."""
    results = []
    for answer in answers:
        turn, message = conversation.turn(), Message()
        for event in (Piece(answer.text, []), answer.end):
            message.add(turn.step(0, event).deltas)
        results.append((message, turn.reason))
    return results


class _Turn:
    """One answer on its way."""

    def __init__(self, parser: AnswerParser):
        self._parser = parser
        self.reason = ""

    def step(self, index: int, event: Any) -> Step:
        """Return what a Piece or the end makes certain."""
        if isinstance(event, Piece):
            return Step(index, self._parser.push(event.text) if event.text else [], event.probabilities)
        rest = self._parser.finish()
        self.reason = "tool_calls" if self._parser.calls and event.reason == "stop" else event.reason
        return Step(index, rest, [], event, self.reason)


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
