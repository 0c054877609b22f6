"""Small models in place of those that llama-server's tests would download.

    make(folder, vocabularies)      writes them, each into a folder of its own, and returns {name: path}

    stories     stories260K (Karpathy's tinyllamas, MIT) with room for 8,192 tokens; the tests count on more than 128
    infill      the same with tokens for filling gaps
    bert        BERT of bge-small's width with its vocabulary and random weights; ranker: the same with a rank head
"""

import os
import struct

import numpy

HERE = os.path.dirname(os.path.abspath(__file__))
LAYERS, WIDTH, HIDDEN, POSITIONS = 4, 384, 1536, 512  # of the BERTs
_UINT32, _STRING, _ARRAY = 4, 8, 9
_F32, _F16 = 0, 1
_CLS, _RANK = 2, 4  # llama.cpp's numbers of poolings
_HEAD, _ALIGNMENT = 24, 32
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of values by their types, in bytes


def make(folder, vocabularies):
    """Write the models that are not there yet. `vocabularies` is llama.cpp's folder models."""
    makers = {
        "stories": lambda: _stories({}),
        "infill": lambda: _stories({"fim_pre": 4, "fim_suf": 5, "fim_mid": 6}),
        "bert": lambda: _bert(vocabularies, ranks=False),
        "ranker": lambda: _bert(vocabularies, ranks=True),
    }
    return {name: _written(folder, name, maker) for name, maker in makers.items()}


def _written(folder, name, maker):
    path = os.path.join(folder, name, name + ".gguf")
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path + ".part", "wb") as file:
            file.write(maker())
        os.replace(path + ".part", path)
    return path


# ----------------------------------------------------------------------------------------- values in a header


def _text(text):
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _number(key, number):
    return _text(key) + struct.pack("<II", _UINT32, number)


def _set_number(data, key, number):
    """Return a file with another number for a key that its header has."""
    before = _text(key) + struct.pack("<I", _UINT32)
    at = data.index(before) + len(before)
    return data[:at] + struct.pack("<I", number) + data[at + 4 :]


def _end_of_values(data, count):
    at = _HEAD
    for _ in range(count):
        at += 8 + struct.unpack_from("<Q", data, at)[0]
        (kind,) = struct.unpack_from("<I", data, at)
        at = _after(data, at + 4, kind)
    return at


def _after(data, at, kind):
    if kind == _STRING:
        return at + 8 + struct.unpack_from("<Q", data, at)[0]
    if kind != _ARRAY:
        return at + _SIZES[kind]
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner in _SIZES:
        return at + count * _SIZES[inner]
    for _ in range(count):
        at = _after(data, at, inner)
    return at


# --------------------------------------------------------------------------------------------- the models


def _stories(marks):
    """Return the small story teller with these special tokens. What is added keeps the tensors' alignment."""
    with open(os.path.join(HERE, "stories260K.gguf"), "rb") as file:
        data = _set_number(file.read(), "llama.context_length", 8192)
    magic, version, tensors, values = struct.unpack_from("<4sIQQ", data)
    added = b"".join(_number("tokenizer.ggml.%s_token_id" % name, token) for name, token in sorted(marks.items()))
    bare = len(_text("test.padding") + struct.pack("<I", _STRING) + _text(""))
    space = " " * (-(len(added) + bare) % _ALIGNMENT)
    added += _text("test.padding") + struct.pack("<I", _STRING) + _text(space)
    return struct.pack("<4sIQQ", magic, version, tensors, values + len(marks) + 1) + added + data[_HEAD:]


def _bert(vocabularies, ranks):
    """Return a BERT: the header is that of llama.cpp's file of its vocabulary alone, the weights are random."""
    with open(os.path.join(vocabularies, "ggml-vocab-bert-bge.gguf"), "rb") as file:
        data = _set_number(file.read(), "bert.block_count", LAYERS)
    magic, version, _, values = struct.unpack_from("<4sIQQ", data)
    tensors = list(_bert_tensors(ranks))
    infos, offset = b"", 0
    for name, array in tensors:
        shape = array.shape[::-1]
        kind = _F16 if array.dtype == numpy.float16 else _F32
        infos += _text(name) + struct.pack("<I%dQIQ" % len(shape), len(shape), *shape, kind, offset)
        offset += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    head = struct.pack("<4sIQQ", magic, version, len(tensors), values + 1)
    head += _number("bert.pooling_type", _RANK if ranks else _CLS) + data[_HEAD : _end_of_values(data, values)]
    parts = [_aligned(head + infos)] + [_aligned(array.tobytes()) for _, array in tensors]
    return b"".join(parts)


def _aligned(data):
    return data + b"\0" * (-len(data) % _ALIGNMENT)


def _bert_tensors(ranks):
    """Yield names and weights (llama.cpp's src/models/bert.cpp)."""
    random = numpy.random.default_rng(1)

    def weight(*shape):
        kind = numpy.float16 if len(shape) > 1 else numpy.float32
        return (random.standard_normal(shape) * 0.05).astype(kind)

    def norm(name):
        yield name + ".weight", numpy.ones(WIDTH, numpy.float32)
        yield name + ".bias", numpy.zeros(WIDTH, numpy.float32)

    yield "token_embd.weight", weight(30522, WIDTH)
    yield "position_embd.weight", weight(POSITIONS, WIDTH).astype(numpy.float32)
    yield "token_types.weight", weight(2, WIDTH).astype(numpy.float32)
    yield from norm("token_embd_norm")
    for layer in range(LAYERS):
        shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH, WIDTH), "attn_v": (WIDTH, WIDTH)}
        shapes.update({"attn_output": (WIDTH, WIDTH), "ffn_up": (HIDDEN, WIDTH), "ffn_down": (WIDTH, HIDDEN)})
        for name, shape in shapes.items():
            yield "blk.%d.%s.weight" % (layer, name), weight(*shape)
            yield "blk.%d.%s.bias" % (layer, name), weight(shape[0])
        yield from norm("blk.%d.attn_output_norm" % layer)
        yield from norm("blk.%d.layer_output_norm" % layer)
    if ranks:
        yield "cls.weight", weight(WIDTH, WIDTH)
        yield "cls.bias", weight(WIDTH)
        yield "cls.output.weight", weight(1, WIDTH)
        yield "cls.output.bias", weight(1)
