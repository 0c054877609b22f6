"""What a request asks for, as far as routing must know it: which client, which model, how the prompt begins.

    body ──┬── only_name    the model's name, found without parsing, where it is the only one in sight
           └── read_body ──> fields ──┬── model_of      the model's name
                                      ├── beginnings    a fingerprint of each longer beginning of the prompt
                                      └── head_of       a fingerprint of what all turns of a conversation begin with

A body that is not a JSON object names no model: it goes to any backend, which says what is wrong. The prompt may be
that of /generate, /completion and /v1/completions, the messages of /v1/chat/completions, Anthropic's /v1/messages (its
system prompt is a field of its own) or Ollama's /api/chat and /api/generate.
"""

import hashlib
import itertools
import json
import re
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Optional, Tuple

from core.errors import APIError
from core.jsonbody import read_json
from core.names import plain_name

CHUNK = 64  # characters; each fingerprint covers so many more than the one before: about 16 tokens
MOST_CHUNKS = 1024  # of a longer prompt, only the beginning counts
DEEPEST = 8  # levels of lists in which texts are looked for


@dataclass(frozen=True)
class Wish:
    """What a request asks for. `beginnings` are fingerprints of the prompt's beginnings, the shortest first."""

    who: str = ""  # the client, by its key or address: clients take turns in the queue
    model: str = ""  # "" for any
    works: bool = True  # it needs a slot; a look-up does not
    beginnings: Tuple[int, ...] = ()
    head: int = 0  # the fingerprint of what all turns of its conversation begin with; 0 where that does not matter


def read_body(body: bytes) -> Dict[str, Any]:
    """Return a body's JSON object; an empty one for anything else, and for what core/jsonbody.py refuses."""
    if not body.lstrip()[:1] == b"{":
        return {}
    try:
        return read_json(body)
    except (APIError, MemoryError):
        return {}


def only_name(body: bytes) -> Optional[str]:
    """Return the one model that a body can name, or "" where it can name none; None where only parsing can tell.

    It searches the bytes for the fields' names, which takes a small part of the time of parsing. The name may also
    belong to a value inside of the object, such as a tool's schema, or to what is no JSON at all: there, read_body()
    finds no model. So this helps where that name and no name lead to the same.
    """
    if body.lstrip()[:1] != b"{":
        return ""
    if b"\\" in body and any(body.rfind(letter) >= 0 for letter in _ESCAPED_LETTERS):  # find takes three times as long
        return None
    names = set()
    for count, match in enumerate(_NAMED.finditer(body)):
        names.add(match.group(1))
        if len(names) > 1 or match.group(2) or count == _MOST_FIELDS:
            return None
    try:
        return names.pop().decode("utf-8") if names else ""
    except UnicodeDecodeError:
        return None


def model_of(fields: Dict[str, Any]) -> str:
    """Return the name of the model that is asked for, or an empty text."""
    for field in MODEL_FIELDS:
        name = fields.get(field)
        if name and isinstance(name, str):
            return name
    return ""


MODEL_FIELDS = ("model", "model_name")
# A field of MODEL_FIELDS that holds a text that is not empty, in JSON: the text, up to a backslash if there is one.
_NAMED = re.compile(rb'"model(?:_name)?"\s*:\s*"(?!")([^"\\]*)(\\?)')
_MOST_FIELDS = 100  # that are looked at, so that a body full of them takes no longer
_ESCAPED_LETTERS = (b"\\u006", b"\\u005")  # in a field's name, each of its letters may be written so; hardly ever is


def beginnings(fields: Dict[str, Any]) -> Tuple[int, ...]:
    """Return fingerprints of the prompt's first 64 characters, first 128, and so on; equal ones mean equal beginnings.

    Last characters that fill no chunk are left out. Fingerprints are Python's hashes: valid in this process only.
    """
    before = hash(plain_name(model_of(fields)))
    marks = []
    for chunk in _chunks(_texts(fields)):
        before = hash((before, chunk))
        marks.append(before)
        if len(marks) == MOST_CHUNKS:
            break
    return tuple(marks)


def head_of(fields: Dict[str, Any]) -> int:
    """Return a fingerprint of what all turns of a conversation have in common; the same in every process.

    That is the model, the tools, the system prompt and the messages up to the user's first one; of a plain prompt, its
    first 128 characters. Returns 0 where there is nothing of all this.
    """
    texts = list(itertools.islice(_common(fields), _MOST_IN_HEAD))
    if not texts:
        return 0
    text = "\0".join([plain_name(model_of(fields))] + [text[:_LONGEST_IN_HEAD] for text in texts])
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big") or 1


def _common(fields: Dict[str, Any]) -> Iterator[str]:
    """Yield the texts that each turn of a conversation repeats."""
    for name in ("tools", "system", "instructions"):
        if fields.get(name):
            yield _text(fields[name])
    for name in ("messages", "prompt", "input"):
        value = fields.get(name)
        if isinstance(value, list) and any(isinstance(each, dict) for each in value):
            yield from _to_the_users_first(value)
        elif value:
            yield _text(value)[: 2 * CHUNK]


def _to_the_users_first(messages: List[Any]) -> Iterator[str]:
    for message in messages:
        if isinstance(message, dict):
            yield _text(message.get("content"))
            if message.get("role") == "user":
                return


_LONGEST_IN_HEAD = 1 << 16  # characters of one text
_MOST_IN_HEAD = 64  # texts


def _chunks(texts: Iterator[str]) -> Iterator[str]:
    """Cut the texts, taken as one, into chunks."""
    left = ""
    for text in texts:
        left += text[: CHUNK * MOST_CHUNKS]
        start = 0
        while start + CHUNK <= len(left):
            yield left[start : start + CHUNK]
            start += CHUNK
        left = left[start:]


def _texts(fields: Dict[str, Any]) -> Iterator[str]:
    """Yield what a model is shown, in the order of most chat templates: tools, system prompt, messages, prompt."""
    for name in ("tools", "system", "instructions"):
        if fields.get(name):
            yield _text(fields[name])
    messages = fields.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            yield "\0%s\0%s" % (_text(message.get("role")), _text(message.get("content")))
    for name in ("prompt", "input"):
        if fields.get(name):
            yield _text(fields[name])


def _text(value: Any, depth: int = 0) -> str:
    """Return a text as it is, a list of texts' parts by their text, anything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and depth < DEEPEST:
        return "\0".join(
            _text(each.get("text") if isinstance(each, dict) and "text" in each else each, depth + 1) for each in value
        )
    try:
        return json.dumps(value, sort_keys=True)
    except (ValueError, RecursionError):  # a backend will refuse it
        return ""
