"""An answer, taken apart as it comes: reasoning, content and tool calls.

    an answer's text ── AnswerParser ──> Deltas

A model that is free to call (tool_choice "auto") may write anything. What is not a complete call of a known function
is content: the client gets it as it would without tools.

Source: the OpenAI API reference for the deltas.
"""

from dataclasses import dataclass
from typing import Callable, Collection, List, Optional, Tuple

from core.chat.calls import CallReader, Envelope, Named
from core.chat.syntaxes import END_THINK, MISTRAL, THINK, Syntax


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

    `syntax` is None if there are no tools: then only the reasoning is split off. `names` are the known functions; a
    call of any other stays content. `thinking` says that the prompt ends in an open <think>. `new_id` makes the ids of
    calls.

    Only what is not certain yet is held back: what may be the beginning of a marker, white space before a marker that
    may follow, and a call up to where its arguments begin. The result is the same, however the text is cut into pieces.
    """

    def __init__(
        self, syntax: Optional[Syntax], names: Collection[str], thinking: bool, new_id: Callable[[], str]
    ) -> None:
        self.calls = 0  # complete ones and begun ones
        self._syntax = syntax
        self._closer = syntax.closer if syntax else ""
        self._may_be_named = syntax is not None and syntax.opener == MISTRAL.opener  # or stand in an array
        self._names = names
        self._thinking = thinking
        self._new_id = new_id
        self._held = ""  # the text that no state has taken yet
        self._final = False  # no more text will come
        self._out: List[Delta] = []
        self._state: Callable[[], bool] = self._start
        self._trim = False  # white space is dropped until something else comes
        self._said = False  # content has come, since the beginning or since the last call
        self._raw = ""  # a call's text, while it may still turn out to be content
        self._in_array = False  # Mistral's [{...}, {...}]
        self._reader: CallReader  # of the call that is being read; _read() sets it
        self._sent = False  # the call that is being read has been told of

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
        text = self._held.lstrip()
        if not self._final and len(text) < len(THINK) and THINK.startswith(text):
            return False
        if text.startswith(THINK):
            self._held, self._thinking = text[len(THINK) :], True
        self._trim = self._thinking
        self._state = self._think if self._thinking else self._content
        return True

    def _think(self) -> bool:
        if END_THINK not in self._held:
            self._release("reasoning", END_THINK)
            return False
        thought, _, self._held = self._held.partition(END_THINK)
        self._say("reasoning", thought.rstrip())
        self._trim = True
        self._state = self._content
        return True

    def _content(self) -> bool:
        if self._syntax is None:
            self._say("content", self._held)
            self._held = ""
            return False
        if self._syntax.bare and not self._said and self._held.lstrip().startswith("{"):
            self._raw, self._held = self._cut_space()
            return self._read(Envelope(self._names, strict=True))
        before, opener, after = self._held.partition(self._syntax.opener)
        if not opener:
            self._release("content", self._syntax.opener)
            return False
        sure = before.rstrip()
        self._say("content", sure)
        self._raw, self._held = before[len(sure) :] + opener, after
        self._state = self._opened
        return True

    def _release(self, kind: str, marker: str) -> None:
        """Say what is held, but for an end that may belong to the marker or be the white space before it."""
        sure = self._held if self._final else self._held[: len(self._held) - _begun(marker, self._held)].rstrip()
        self._say(kind, sure)
        self._held = self._held[len(sure) :]

    def _say(self, kind: str, text: str) -> None:
        text = text.lstrip() if self._trim else text
        if text:
            self._trim = False
            self._said = self._said or kind == "content"
            self._out.append(Delta(content=text) if kind == "content" else Delta(reasoning=text))

    def _cut_space(self) -> Tuple[str, str]:
        """Return what is held as the white space that it begins with, and the rest."""
        rest = self._held.lstrip()
        return self._held[: len(self._held) - len(rest)], rest

    # --- calls

    def _opened(self) -> bool:
        """After an opener, or a comma in Mistral's array."""
        space, self._held = self._cut_space()
        self._raw += space
        if not self._held:
            return self._final and self._give_back(0)
        if self._held[0] == "{":
            return self._read(Envelope(self._names, strict=False))
        if not self._may_be_named or self._in_array:
            return self._give_back(0)
        if self._held[0] != "[":
            return self._read(Named(self._names))
        self._raw, self._held, self._in_array = self._raw + "[", self._held[1:], True
        return True

    def _read(self, reader: CallReader) -> bool:
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
        closer = self._closer
        _, found, rest = self._held.partition(closer) if closer else ("", "", "")
        if found:
            self._held = rest
            return self._to_content()
        self._held = self._held[len(self._held) - _begun(closer, self._held) :]
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
        ends = (",", "]") if self._in_array else (self._closer or ";",)
        for end in ends:
            if self._held.startswith(end):
                self._held = self._held[len(end) :]
                return self._to_next_item() if end == "," else self._to_content()
            if not self._final and end.startswith(self._held):
                return False
        return self._to_content()

    def _to_next_item(self) -> bool:
        self._raw = ","
        self._state = self._opened
        return True

    def _to_content(self) -> bool:
        self._in_array, self._said, self._trim = False, False, True
        self._state = self._content
        return True


def _begun(marker: str, text: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a marker."""
    for size in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0
