"""Where an answer begins: at its first token, or where another backend has left it.

A balancer that proves that it knows the secret gets the answer in frames (core/carriage.py). It may also hand in what
another backend has told of it: then the generations begin in the middle, and only what follows is sent.
"""

import contextlib
import secrets
import time
from dataclasses import asdict, fields, replace
from hmac import compare_digest
from typing import Generator, List, Optional

from core import carriage
from core.apis.dialect import Dialect
from core.apis.host import Host
from core.apis.telling import Gathering, Steps, Telling, Told
from core.ask import Ask
from core.carriage import CARRY, FORMAT, RESUME, BadFrame, Note, Notes, frame
from core.engine.generation import Generation
from core.engine.outcome import Channel, Finished, Piece
from core.errors import APIError
from core.http.messages import Request, Stream

_OF_AN_END = frozenset(each.name for each in fields(Finished))  # a later version may tell more
_PASSED_ON = frozenset(["engine_down"])  # errors of the backend, not of the request: another backend may go on


class Beginning:
    """A request's beginning. `carried`: its answer goes in frames."""

    def __init__(self, carried: bool = False, notes: Optional[Notes] = None):
        self.carried = carried
        self._notes = notes or Notes()
        head = self._notes.head
        try:
            self.nonce = str(head.get("nonce") or secrets.token_hex(16))
            self.created = int(head.get("created") or time.time())
            self._seeds = [int(seed) for seed in head.get("seeds", [])]
        except (TypeError, ValueError, OverflowError):
            raise _bad_notes("a head that is none")
        self._first: Note = {}  # the first frame's note

    @classmethod
    def of(cls, request: Request, secret: str) -> "Beginning":
        """Return where the answer to a request begins; takes the notes out of its body.

        Raises APIError 400 for bad notes, 403 where there is no proof.
        """
        given = request.headers.get(CARRY)
        size = request.headers.get(RESUME)
        if given is None and size is None:
            return cls()
        expected = carriage.proof(secret, request.target, request.id, request.body)
        if not secret or not compare_digest(expected.encode(), (given or "").encode("utf-8", "replace")):
            if size is None:
                return cls()  # it is answered like any other
            raise APIError(403, "An answer can be carried on for this server's balancer only.", "not_the_balancer")
        if size is None:
            return cls(carried=True)
        try:
            notes, request.body = carriage.parted(request.body, size)
        except BadFrame as error:
            raise _bad_notes(str(error))
        return cls(carried=True, notes=notes)

    def generations(self, dialect: Dialect, host: Host, channel: Channel) -> List[Generation]:
        """Return a generation for each Ask. Raises APIError 400 for bad notes, 409 for another model's or format's."""
        asks = dialect.asks
        if (dialect.repeats or not dialect.streams) and any(ask.sampling.n_probs for ask in asks):
            self.carried = False  # the probabilities of tokens that another backend has chosen are not known here
        if not self.carried:
            return [Generation(ask, channel, index) for index, ask in enumerate(asks)]
        if self._notes.head.get("format", FORMAT) != FORMAT:
            raise APIError(409, "Another version of this program has begun this answer.", "other_format")
        fingerprint = host.fingerprint_of(asks[0].model) if asks else ""
        if self._notes.head and self._notes.head.get("fingerprint") != fingerprint:
            raise APIError(409, "Another model, or another version of it, has begun this answer.", "other_model")
        if self._seeds and len(self._seeds) != len(asks):
            raise _bad_notes("another number of answers")
        made = [self._generation(ask, index, channel) for index, ask in enumerate(asks)]
        head = {"format": FORMAT, "fingerprint": fingerprint, "nonce": self.nonce, "created": self.created}
        head["seeds"] = [generation.seed for generation in made]
        self._first = {"head": head, "begun": [len(generation.begun) for generation in made]}
        return made

    def _generation(self, ask: Ask, index: int, channel: Channel) -> Generation:
        if self._seeds:
            ask = replace(ask, sampling=replace(ask.sampling, seed=self._seeds[index]))
        end = self._notes.ends.get(index)
        try:
            ended = Finished(**{name: end[name] for name in _OF_AN_END & end.keys()}) if end else None
        except TypeError:
            raise _bad_notes("an end that is none")
        return Generation(ask, channel, index, self._notes.tokens.get(index, ()), ended)

    # ---- frames

    def stream(self, pieces: Steps, telling: Telling) -> Stream:
        """Return an answer in frames."""

        def error_chunk(error: APIError) -> bytes:
            if error.code in _PASSED_ON:
                return b""
            return frame({"status": error.status}, telling.error(error))

        broke = APIError(502, "The backend broke off, and no other one could go on with its answer.", "backend_broke")
        self._first["head"]["failure"] = telling.error(broke).decode("utf-8", "replace")
        kind = ((CARRY, "whole" if isinstance(telling, Gathering) else "stream"),)
        return Stream(self._frames(pieces, telling), 200, telling.content_type, kind, frame({}), error_chunk)

    def _frames(self, pieces: Steps, telling: Telling) -> Generator[bytes, None, None]:
        note = self._first
        before = b""
        with contextlib.closing(pieces):
            for told, data in pieces:
                if _is_rest(told):
                    before += data
                    continue
                yield frame(dict(note, **_note(told)), before + data)
                note, before = {}, b""
        yield frame(dict(note, status=200), before + telling.last())


def _is_rest(told: Told) -> bool:
    """Whether this is text of tokens that were told before: it goes with what follows, or it might be told twice."""
    return told is not None and isinstance(told[1], Piece) and not told[1].tokens


def _note(told: Told) -> Note:
    """Return the note of an event."""
    if told is None:
        return {}
    index, event = told
    if isinstance(event, Piece):
        return {"i": index, "t": event.tokens}
    return {"i": index, "end": asdict(event)} if isinstance(event, Finished) else {}


def _bad_notes(why: str) -> APIError:
    return APIError(400, "These are no notes of an answer: %s." % why, "bad_notes")
