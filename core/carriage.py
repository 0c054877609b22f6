"""How a backend tells a balancer of an answer on its way, so that another backend can carry it on. Pure functions.

    balancer ── X-ComeAPI-Carry: proof ──────────────────────────────> backend
    balancer <── X-ComeAPI-Carry: stream | whole; the answer in frames  backend
    balancer ── X-ComeAPI-Resume: size; the notes before the body ───> another backend, where the first one has died

A frame is a note, one line of JSON that is a comment in server-sent events, and `n` bytes that are the client's:

    : comeapi {"i": 0, "t": [31, 7], "n": 42}\\n…42 bytes…

    i, t       the answer's number in its request, and the tokens that it has grown by
    i, end     it has ended, and how
    head       once, in the first frame: format, fingerprint, nonce, created, seeds, and `failure`, the bytes that tell
               the client of an answer that nobody can carry on
    begun      with it: how many tokens of each answer were known before; those after them come again
    status     the bytes are the last ones: 200 for a good end, else the status of an error

Notes are the sum of the notes: what the next backend must know. The client never sees any of this. The proof shows that
who asks knows the secret that the balancer shares with its backends, without telling it (HMAC, RFC 2104).

Versions can be mixed. What is not known in a note is ignored, and a balancer hands the head on as it has come. Where a
change means that an older program would go on wrongly, FORMAT rises: a backend refuses notes of another format, as it
refuses those of another model. A balancer that can read other frames than these must say so when it asks for them.
"""

import hashlib
import hmac
import json
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Tuple

CARRY = "x-comeapi-carry"
RESUME = "x-comeapi-resume"
FORMAT = 1  # of the notes; of those without one, too
MOST_TOKENS = 1 << 18  # of all answers to one request that are remembered; a longer one can't be carried on
_MARK = b": comeapi "
_LONGEST_NOTE = 1 << 20  # bytes
_LONGEST_FRAME = 1 << 28

Note = Dict[str, Any]


class BadFrame(ValueError):
    """What has come is no frame."""


def proof(secret: str, target: str, id: str, body: bytes) -> str:
    """Return what shows that a request comes from one who knows the secret."""
    text = "\n".join([target, id, hashlib.sha256(body).hexdigest()])
    return hmac.digest(secret.encode("utf-8", "replace"), text.encode("utf-8", "replace"), "sha256").hex()


def frame(note: Note, payload: bytes = b"") -> bytes:
    """Return a frame."""
    return b"%s%s\n%s" % (_MARK, json.dumps(dict(note, n=len(payload)), separators=(",", ":")).encode(), payload)


class Frames:
    """Takes an answer's bytes apart into frames, as they come. `line` is the note of the one that came last."""

    def __init__(self) -> None:
        self.line = b""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Tuple[Note, bytes]]:
        """Yield the notes that are complete now, each with its bytes. Raises BadFrame."""
        self._buffer += data
        while True:
            end = self._buffer.find(b"\n", 0, _LONGEST_NOTE)
            if not _MARK.startswith(self._buffer[: len(_MARK)]) or (end < 0 and len(self._buffer) >= _LONGEST_NOTE):
                raise BadFrame("no note: %r" % bytes(self._buffer[:40]))
            if end < 0:
                return
            line = bytes(self._buffer[len(_MARK) : end])
            note = read_note(line)
            stop = end + 1 + note["n"]
            if len(self._buffer) < stop:
                return
            payload = bytes(self._buffer[end + 1 : stop])
            del self._buffer[:stop]
            self.line = line
            yield note, payload


def read_note(line: bytes) -> Note:
    """Return the note that a line tells. Raises BadFrame."""
    try:
        note = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        raise BadFrame("a note that is no JSON: %r" % line[:40])
    if not isinstance(note, dict) or not _is_count(note.get("n")) or note["n"] > _LONGEST_FRAME:
        raise BadFrame("a note that does not tell its size: %r" % line[:40])
    return note


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40


@dataclass
class Notes:
    """What is known of all answers to one request: by their numbers, the tokens, and how those ended that have."""

    head: Note = field(default_factory=dict)
    tokens: Dict[int, List[int]] = field(default_factory=dict)
    ends: Dict[int, Note] = field(default_factory=dict)
    count: int = 0  # of tokens

    def take(self, note: Note) -> None:
        """Add what a note tells. Raises BadFrame for one that tells nonsense."""
        if "head" in note:
            self._begin(_mapping(note["head"]), note.get("begun", []))
        if "i" not in note:
            return
        index = note["i"]
        new = note.get("t", [])
        if not _is_count(index) or not isinstance(new, list) or not all(map(_is_count, new)):
            raise BadFrame("a note of tokens that are none")
        self.count += len(new)
        if self.whole:
            self.tokens.setdefault(index, []).extend(new)
        if "end" in note:
            self.ends[index] = _mapping(note["end"])

    def _begin(self, head: Note, begun: Any) -> None:
        """Take the first note of a backend: what it does not go on from, it tells again."""
        if not isinstance(begun, list) or not all(map(_is_count, begun)):
            raise BadFrame("a beginning that is none")
        self.head = self.head or head
        for index, tokens in list(self.tokens.items()):
            known = begun[index] if index < len(begun) else 0
            if known < len(tokens):
                self.count -= len(tokens) - known
                self.tokens[index] = tokens[:known]
                self.ends.pop(index, None)

    @property
    def failure(self) -> bytes:
        """The bytes that tell the client, in the form of its API, that its answer broke off; none where unknown."""
        failure = self.head.get("failure")
        return failure.encode("utf-8", "replace") if isinstance(failure, str) else b""

    @property
    def whole(self) -> bool:
        """Whether all tokens are remembered."""
        return self.count <= MOST_TOKENS

    def before(self, body: bytes) -> Tuple[bytes, Dict[str, str]]:
        """Return the body of a request that shall be carried on, with these notes before it, and the header for it."""
        known = {
            "head": self.head,
            "tokens": {str(index): tokens for index, tokens in self.tokens.items()},
            "ends": {str(index): end for index, end in self.ends.items()},
        }
        notes = json.dumps(known, separators=(",", ":")).encode()
        return notes + body, {RESUME: str(len(notes))}


def parted(body: bytes, size: str) -> Tuple[Notes, bytes]:
    """Return the notes that stand before a body, and the body. Raises BadFrame."""
    if not size.isascii() or not size.isdigit() or int(size[:18]) > len(body):
        raise BadFrame("notes of no known size")
    try:
        known = json.loads(body[: int(size)].decode("utf-8"))
        notes = Notes(_mapping(known["head"]))
        for index, tokens in _mapping(known["tokens"]).items():
            notes.take({"i": int(index), "t": tokens})
        notes.ends = {int(index): _mapping(end) for index, end in _mapping(known["ends"]).items()}
    except (ValueError, RecursionError, KeyError, TypeError):
        raise BadFrame("notes that are none")
    return notes, body[int(size) :]


def _mapping(value: Any) -> Note:
    if not isinstance(value, dict):
        raise BadFrame("%.40r is no object" % (value,))
    return value
