"""Files of a slot's tokens and cells, as llama.cpp's server writes them, so that each can read the other's.

    3 words      magic, version, number of the next words        (llama_state_seq_save_file)
    words        -1, version, number of tokens, tokens, 0        (older servers: the tokens alone)
    bytes        the cells, as llama_state_seq_get_data writes them, without its first two words
    bytes        ours: JSON that says which model, and the cells' SHA-256; its length; a mark

llama.cpp reads no further than the cells. A file with our ending is believed if the checksum is right and the model the
same. Another one is believed if its cells are in the form that is known, which is looked at before llama.cpp sees them.
"""

import array
import hashlib
import json
import struct
import sys
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from core.engine.cells import BadCells, SavedCells

MAGIC, VERSION = 0x67677371, 3  # llama.h: LLAMA_STATE_SEQ_MAGIC, LLAMA_STATE_SEQ_VERSION
_PACKED, _PACKED_VERSION = -1, 1  # what begins the words of newer servers
_MARK = b"COMEAPI1"
_ENDING = struct.Struct("<I8s")
_MOST_FACTS = 1 << 16  # bytes


class BadStateFile(ValueError):
    """What was read is no such file, or a broken one; the message says why."""


class StateFile(NamedTuple):
    """What such a file holds. `facts` say which model has written it; None where another server has."""

    tokens: List[int]
    cells: SavedCells
    facts: Optional[Dict[str, Any]]


def written(tokens: Sequence[int], cells: SavedCells, facts: Dict[str, Any]) -> List[Any]:
    """Return a file's bytes, in pieces."""
    words = array.array("i", [_PACKED, _PACKED_VERSION, len(tokens), *tokens, 0])
    if sys.byteorder == "big":
        words.byteswap()
    body = memoryview(cells.body())
    ending = json.dumps(dict(facts, sha256=hashlib.sha256(body).hexdigest())).encode("ascii")
    head = struct.pack("<III", MAGIC, VERSION, len(words)) + words.tobytes()
    return [head, body, ending, _ENDING.pack(len(ending), _MARK)]


def read(data: bytes) -> StateFile:
    """Return what a file holds. Raises BadStateFile."""
    try:
        magic, version, count = struct.unpack_from("<III", data)
    except struct.error:
        raise BadStateFile("it is too short")
    if (magic, version) != (MAGIC, VERSION):
        raise BadStateFile("it is no file of a slot, or one of another version of llama.cpp")
    start = 12 + 4 * count
    if start > len(data):
        raise BadStateFile("it is cut short")
    tokens = _tokens(struct.unpack_from("<%di" % count, data, 12))
    facts, end = _facts(data, start)
    body = memoryview(data)[start:end]
    if facts is not None and facts.get("sha256") != hashlib.sha256(body).hexdigest():
        raise BadStateFile("its checksum is wrong")
    try:
        cells = SavedCells.of(body)
        if facts is None:
            cells.check(len(tokens))
    except BadCells as problem:
        raise BadStateFile(str(problem))
    return StateFile(tokens, cells, facts)


def _tokens(words: Sequence[int]) -> List[int]:
    if words[:1] != (_PACKED,):
        return list(words)
    if words[1:2] != (_PACKED_VERSION,) or len(words) < 4 or not 0 <= words[2] <= len(words) - 4:
        raise BadStateFile("its tokens are in a form that is not known")
    if len(words) != words[2] + 4 or words[-1]:
        raise BadStateFile("it holds images or sound")
    return list(words[3:-1])


def _facts(data: bytes, start: int) -> Any:
    """Return what our ending says, None where there is none, and where the cells end."""
    at = len(data) - _ENDING.size
    if at < start or data[at + 4 :] != _MARK:
        return None, len(data)
    size, _ = _ENDING.unpack_from(data, at)
    if size > min(_MOST_FACTS, at - start):
        raise BadStateFile("its end is broken")
    try:
        facts = json.loads(data[at - size : at].decode("ascii"))
    except (ValueError, RecursionError):
        raise BadStateFile("its end is broken")
    if not isinstance(facts, dict):
        raise BadStateFile("its end is broken")
    return facts, at - size
