"""Small GGUF files for tests, made from the demo model's."""

import os
import struct

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_HEAD = struct.calcsize("<4sIQQ")
_UINT32, _STRING = 4, 8
_ALIGNMENT = 32


def write_embedder(path, pooling=1):
    """Write the demo model as one that gives embeddings: with 1 the mean of all rows, 2 the first, 3 the last."""
    with open(os.path.join(ROOT, "models", "demo.gguf"), "rb") as file:
        data = file.read()
    magic, version, tensors, values = struct.unpack_from("<4sIQQ", data)
    added = _key("llama.pooling_type") + struct.pack("<II", _UINT32, pooling)
    added += _padding(-(len(added)) % _ALIGNMENT)
    with open(path, "wb") as file:
        file.write(struct.pack("<4sIQQ", magic, version, tensors, values + 2) + added + data[_HEAD:])
    return path


def _key(name):
    return struct.pack("<Q", len(name)) + name.encode("ascii")


def _padding(size):
    """Return a value that nobody reads, so long that the tensors stay where alignment wants them."""
    head = _key("test.padding") + struct.pack("<I", _STRING) + struct.pack("<Q", 0)
    size += _ALIGNMENT * 2
    text = b" " * (size - len(head))
    return _key("test.padding") + struct.pack("<IQ", _STRING, len(text)) + text
