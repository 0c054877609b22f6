"""An answer, taken apart as it comes: reasoning, content and tool calls.

    an answer's text ── AnswerParser ──> Deltas

A model that is free to call (tool_choice "auto") may write anything. What is not a complete call of a known function
is content: the client gets it as it would without tools.

Source: the OpenAI API reference for the deltas.
"""

from dataclasses import dataclass, field
from typing import Callable, Collection, Dict, FrozenSet, List, Mapping, Optional, Sequence, Tuple, Union

from core.chat.calls import Envelope, Headed
from core.chat.keywords import Keyworded
from core.chat.syntaxes import Style, Syntax
from core.chat.tagged import Noted, Tagged, begun


@dataclass(frozen=True)
class Offer:
    """The functions that an answer may call, and which of their parameters are texts."""

    texts: Mapping[str, FrozenSet[str]] = field(default_factory=dict)

    @property
    def names(self) -> Tuple[str, ...]:
        """The functions' names."""
        return tuple(self.texts)


@dataclass(frozen=True)
class CallDelta:
    """A part of a tool call, as OpenAI streams them: the first has an id and a name, the others parts of the arguments.

    Put together, the arguments of a call that came to its end are the JSON text of an object.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class Delta:
    """What has become certain of an answer; exactly one of these is set."""

    content: str = ""
    reasoning: str = ""
    call: Optional[CallDelta] = None


class AnswerParser:
    """Splits an answer, as it comes, into reasoning, content and tool calls.

    `offer` are the known functions, None where there are no tools: a call of any other stays content. `thinking` says
    that the prompt ends within a thought. `new_id` makes the ids of calls.
    Without `apart`, thoughts are content like any other, with what they stand between.

    Only what is not certain yet is held back: what may be the beginning of a marker, white space before a marker that
    may follow, and a call up to where its arguments begin. The result is the same, however the text is cut into pieces.
    """

    def __init__(
        self, style: Style, offer: Optional[Offer], thinking: bool, new_id: Callable[[], str], apart: bool = True
    ) -> None:
        self.calls = 0  # complete ones and begun ones
        self._style = style
        self._offer = offer or Offer()
        self._syntax = style.syntax if offer else None
        self._thoughts = style.thoughts
        self._marks = self._content_marks()
        self._thinking = thinking
        self._new_id = new_id
        self._apart = apart
        self._held = ""  # the text that no state has taken yet
        self._final = False  # no more text will come
        self._out: List[Delta] = []
        self._state: Callable[[], bool] = self._start
        self._trim = False  # white space is dropped until something else comes
        self._said = False  # content has come, since the beginning or since the last call
        self._raw = ""  # a call's text, while it may still turn out to be content
        self._in_array = False  # of calls: [{...}, {...}]
        self._reader: "CallReader"  # of the call that is being read; _read() sets it
        self._sent = False  # the call that is being read has been told of

    def _content_marks(self) -> Dict[str, Callable[[], bool]]:
        """Return what may come in the content, and what to do then."""
        marks: Dict[str, Callable[[], bool]] = dict.fromkeys(self._style.frames, self._go_on)
        if self._thoughts.often:
            marks[self._thoughts.opener] = self._think_again
        if self._syntax:
            marks[self._syntax.opener] = self._open
        return marks

    def push(self, text: str) -> List[Delta]:
        """Take a piece of the answer and return what has become certain."""
        self._held += text
        return self._run()

    def finish(self) -> List[Delta]:
        """Return what was held back, now that nothing more comes.

        A call that is not complete becomes content, unless its beginning has been told of already.
        """
        self._final = True
        return self._run()

    def _run(self) -> List[Delta]:
        while self._state():  # a state returns whether there may be more to do with what is held
            pass
        out, self._out = self._out, []
        return out

    # --- reasoning and content

    def _start(self) -> bool:
        opener = self._thoughts.opener.strip()
        text = self._held.lstrip()
        if not self._final and len(text) < len(opener) and opener.startswith(text):
            return False
        if text.startswith(opener):
            self._say_mark(self._held[: len(self._held) - len(text)] + opener)
            self._held, self._thinking = text[len(opener) :], True
        self._trim = self._thinking and self._apart
        self._state = self._think if self._thinking else self._content
        return True

    def _think(self) -> bool:
        closer = self._thoughts.closer.strip()
        thought, found, rest = self._held.partition(closer)
        if not found:
            self._release("reasoning", [closer])
            return False
        self._held = rest
        self._say("reasoning", thought.rstrip() if self._apart else thought)
        self._say_mark(closer)
        self._said, self._trim = False, self._apart
        self._state = self._content
        return True

    def _content(self) -> bool:
        if self._syntax and self._syntax.bare and not self._said and self._held.lstrip().startswith("{"):
            self._raw, self._held = _cut_space(self._held)
            return self._read(Envelope(self._offer.names, strict=True))
        found = [(self._held.find(mark), -len(mark), mark) for mark in self._marks if mark in self._held]
        if not found or (not self._final and _may_be_longer(self._held[min(found)[0] :], self._marks)):
            self._release("content", list(self._marks))
            return False
        mark = min(found)[2]
        before, _, self._held = self._held.partition(mark)
        sure = before.rstrip() if self._marks[mark] == self._open else before
        self._say("content", sure)
        self._raw = before[len(sure) :] + mark
        return self._marks[mark]()

    def _go_on(self) -> bool:
        return True

    def _say_mark(self, text: str) -> None:
        """Say what a thought stands between, where it is content like any other."""
        if not self._apart:
            self._say("content", text)

    def _think_again(self) -> bool:
        self._say_mark(self._thoughts.opener)
        self._trim = self._apart
        self._state = self._think
        return True

    def _open(self) -> bool:
        self._state = self._opened
        return True

    def _release(self, kind: str, marks: Sequence[str]) -> None:
        """Say what is held, but for an end that may belong to a mark or be the white space before it."""
        kept = max([begun(mark, self._held) for mark in marks], default=0)
        sure = self._held if self._final or not marks else self._held[: len(self._held) - kept].rstrip()
        self._say(kind, sure)
        self._held = self._held[len(sure) :]

    def _say(self, kind: str, text: str) -> None:
        text = text.lstrip() if self._trim else text
        if text:
            self._trim = False
            self._said = self._said or kind == "content"
            is_content = kind == "content" or not self._apart
            self._out.append(Delta(content=text) if is_content else Delta(reasoning=text))

    # --- calls

    def _opened(self) -> bool:
        """After an opener, or a comma in an array."""
        space, self._held = _cut_space(self._held)
        self._raw += space
        if not self._held:
            return self._final and self._give_back(0)
        syntax = self._style.syntax
        if self._held[0] == "{" and (syntax.envelope or self._in_array):
            return self._read(Envelope(self._offer.names, strict=False))
        if self._held[0] == "[" and syntax.arrays and not self._in_array:
            self._raw, self._held, self._in_array = self._raw + "[", self._held[1:], True
            return True
        return self._give_back(0) if self._in_array else self._read(reader_of(syntax, self._offer))

    def _read(self, reader: "CallReader") -> bool:
        self._reader, self._sent = reader, False
        self._state = self._call
        return True

    def _call(self) -> bool:
        for index, char in enumerate(self._held):
            try:
                self._reader.push(char)
            except ValueError:
                return self._broken(index)
            if self._reader.done:
                self._tell()
                self._held = self._held[index + 1 :]
                self._state = self._after
                return True
        self._tell()
        if self._final and not self._sent:
            return self._give_back(len(self._held))
        self._raw, self._held = "" if self._sent else self._raw + self._held, ""
        return False

    def _tell(self) -> None:
        """Say what is new of the call."""
        if not self._reader.ready:
            return
        if not self._sent:
            self._sent = True
            self.calls += 1
            self._out.append(Delta(call=CallDelta(self.calls - 1, self._new_id(), self._reader.name)))
        arguments, self._reader.arguments = self._reader.arguments, ""
        if arguments:
            self._out.append(Delta(call=CallDelta(self.calls - 1, arguments=arguments)))

    def _broken(self, index: int) -> bool:
        """The call does not go on like this; `index` is the character that shows it."""
        self._tell()
        if not self._sent:
            return self._give_back(index)
        self._held = self._held[index:]
        self._state = self._rest_of_broken
        return True

    def _rest_of_broken(self) -> bool:
        """Drop what belongs to a call that was told of and broke: a half of it is no content."""
        closers = self._style.syntax.closers
        ends = [self._held.find(closer) + len(closer) for closer in closers if closer in self._held]
        if ends:
            self._held = self._held[min(ends) :]
            return self._to_content()
        kept = max([begun(closer, self._held) for closer in closers], default=0)
        self._held = self._held[len(self._held) - kept :]
        return False

    def _give_back(self, size: int) -> bool:
        """It was no call: say its text, and `size` characters of what is held, as content."""
        self._say("content", self._raw + self._held[:size])
        self._held = self._held[size:]
        self._in_array = False
        self._state = self._content
        return True

    def _after(self) -> bool:
        """After a call: what may close it, or part it from the next."""
        self._held = self._held.lstrip()
        syntax = self._style.syntax
        if self._in_array:
            marks = {",": self._open, "]": self._leave_array}
        else:
            marks = dict.fromkeys(syntax.closers, self._go_on)
            marks.update({syntax.again: self._to_next_call} if syntax.again else {})
        for mark in sorted(marks, key=len, reverse=True):
            if self._held.startswith(mark):
                self._raw, self._held = mark, self._held[len(mark) :]
                return marks[mark]()
            if mark.startswith(self._held):
                if self._final:  # the answer was cut short within it
                    self._held = ""
                return False
        return self._to_content()

    def _leave_array(self) -> bool:
        self._in_array = False
        return True

    def _to_next_call(self) -> bool:
        """A further call, which the reader reads from its beginning."""
        self._held, self._raw = self._raw + self._held, ""
        self._state = self._opened
        return True

    def _to_content(self) -> bool:
        self._in_array, self._said, self._trim = False, False, True
        self._state = self._content
        return True


def _cut_space(text: str) -> Tuple[str, str]:
    """Return a text as the white space that it begins with, and the rest."""
    rest = text.lstrip()
    return text[: len(text) - len(rest)], rest


def _may_be_longer(text: str, marks: Collection[str]) -> bool:
    """Whether a text that begins with a mark may be the beginning of a longer one."""
    return any(len(mark) > len(text) and mark.startswith(text) for mark in marks)


CallReader = Union[Envelope, Headed, Tagged, Noted, Keyworded]


def reader_of(syntax: Syntax, offer: Offer) -> CallReader:
    """Return what reads a call that does not begin with a brace."""
    if syntax.tags:
        return Tagged(offer.names, offer.texts, syntax, syntax.tags)
    if syntax.notation:
        return Noted(offer.names, syntax, syntax.notation)
    if syntax.keywords:
        return Keyworded(offer.names, syntax)
    if syntax.named:
        return Headed(offer.names, syntax.named, syntax.head_end)
    return Envelope(offer.names, strict=False)
