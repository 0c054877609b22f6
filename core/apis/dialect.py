"""What an API's way of asking and answering is made of. endpoint.py drives it.

    Dialect      one request: what it asks of the engine, and the bodies that answer it
    ChatDialect  the same for APIs that speak in messages

A dialect is pure: no sockets, no queues, no engine. Each API is a file of its own with its dialects and its routes.
"""

from typing import Any, Dict, Iterable, List, NamedTuple
from typing import Sequence as Many

from core.ask import Ask
from core.chat.conversation import Conversation, Message
from core.chat.parser import Delta
from core.engine.outcome import Finished, Piece, Progress, Result
from core.http.sse import EVENTS, Form
from core.owners import NOBODY

Body = Dict[str, Any]


class Call(NamedTuple):
    """A request's body, and what the ids and the time in its answer are made of.

    An answer that is carried on has the same `nonce` (32 hexadecimal digits) and `created` (seconds since 1970) as
    before, and so the same ids. `owner` says whose it is (core/owners.py).
    """

    body: Body
    nonce: str
    created: int
    owner: str = NOBODY


class Start(NamedTuple):
    """What is known of an answer when its first piece has come."""

    seed: int
    prompt_tokens: int
    cached_tokens: int


class Dialect:
    """One request to one endpoint. `asks` are all answered together; `streams`: the client wants pieces, in `form`.

    `repeats`: the end of a stream tells again what its pieces told, with the tokens' probabilities.

    An answer in pieces is: for each Ask, by its index, begin(), delta() again and again, and end(); then last().
    """

    form: Form = EVENTS
    repeats = False

    def __init__(self, asks: Many[Ask], streams: bool = False):
        self.asks = asks
        self.streams = streams

    def whole(self, results: List[Result]) -> Any:
        """Return the body of the whole answer."""
        raise NotImplementedError

    def begin(self, index: int, start: Start) -> Iterable[Body]:
        """Return the bodies that stand before an answer's first piece."""
        return ()

    def progress(self, index: int, progress: Progress) -> Iterable[Body]:
        """Return the bodies that tell how much of the prompt is evaluated."""
        return ()

    def delta(self, index: int, piece: Piece) -> Iterable[Body]:
        """Return the bodies that tell a new piece."""
        raise NotImplementedError

    def end(self, index: int, end: Finished) -> Iterable[Body]:
        """Return the bodies that tell an answer's end."""
        raise NotImplementedError

    def last(self) -> Iterable[Body]:
        """Return the bodies that stand after all answers."""
        return ()


class ChatDialect(Dialect):
    """A request that asks for messages. An API says how it writes messages and deltas of them."""

    def __init__(self, conversation: Conversation, call: Call, streams: bool):
        super().__init__(conversation.asks(), streams)
        self.model = conversation.model.name
        self._turns = [conversation.turn("%s %d" % (call.nonce, index)) for index in range(len(self.asks))]

    def whole(self, results: List[Result]) -> Body:
        """Return the body of the whole answer."""
        messages = [turn.read(each.text, each.end.reason) for turn, each in zip(self._turns, results)]
        return self.message(messages, [turn.reason for turn in self._turns], results)

    def delta(self, index: int, piece: Piece) -> Iterable[Body]:
        """Return the bodies that tell a new piece."""
        return self.changes(index, self._turns[index].push(piece.text), piece.probabilities)

    def end(self, index: int, end: Finished) -> Iterable[Body]:
        """Return the bodies that tell an answer's end."""
        yield from self.changes(index, self._turns[index].finish(end.reason), [])
        yield from self.close(index, self._turns[index].reason, end)

    # ---- what an API says

    def message(self, messages: List[Message], reasons: List[str], results: List[Result]) -> Body:
        """Return the body of the whole answer; `reasons` say why each message ended: stop, length or tool_calls."""
        raise NotImplementedError

    def changes(self, index: int, deltas: List[Delta], probabilities: List[Body]) -> Iterable[Body]:
        """Return the bodies that tell deltas, with the tokens' probabilities where they are asked for."""
        raise NotImplementedError

    def close(self, index: int, reason: str, end: Finished) -> Iterable[Body]:
        """Return the bodies that tell a message's end."""
        raise NotImplementedError
