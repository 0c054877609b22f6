"""Small GGUF files for tests: the demo model as one that embeds or fills gaps, and random models of other kinds.

A random model talks nonsense, but depends on every token before, and has the demo model's vocabulary. The names and
shapes of its tensors are llama.cpp's (src/models/mamba.cpp, jamba.cpp, gemma2.cpp).
"""

import collections
import os
import struct

import numpy

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_HEAD = struct.calcsize("<4sIQQ")
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of the other types' values, in bytes
_F32 = 0  # as a tensor's type
_ALIGNMENT = 32


def write_embedder(path, pooling=1, **values):
    """Write the demo model as one that gives embeddings: with 1 the mean of all rows, 2 the first, 3 the last.

    With 4 it ranks: it has no head for that, so the score is the last row's first number. `values` are further ones of
    the header's, with _ for the dots of their names.
    """
    values = {name.replace("_", "."): value for name, value in values.items()}
    return _write_demo(path, dict(values, **{"llama.pooling_type": pooling}))


def write_filler(path, project=False):
    """Write the demo model as one that fills gaps: bytes that no text has are its marks; `project`: for files, too."""
    names = ["pre", "suf", "mid"] + (["rep", "sep"] if project else [])
    marks = {"tokenizer.ggml.fim_%s_token_id" % name: FIRST_MARK + index for index, name in enumerate(names)}
    return _write_demo(path, marks)


FIRST_MARK = 4  # of write_filler's tokens: a byte's


def _write_demo(path, added):
    """Write the demo model with more values in its header."""
    data = _demo()
    magic, version, tensors, values = struct.unpack_from("<4sIQQ", data)
    head = b"".join(_value(*each) for each in added.items())
    head += _padding(-(len(head)) % _ALIGNMENT)
    with open(path, "wb") as file:
        file.write(struct.pack("<4sIQQ", magic, version, tensors, values + len(added) + 1) + head + data[_HEAD:])
    return path


def write_adapter(path, seed, strength=1.0):
    """Write a LoRA adapter for the demo model, of random numbers: it says other things, the more so the stronger."""
    rng = numpy.random.default_rng(seed)
    tensors = {}
    for layer in range(2):
        for name, columns, rows in (("attn_output", 192, 192), ("ffn_down", 512, 192)):
            pair = {"lora_a": (columns, 4, strength), "lora_b": (4, rows, 1.0)}
            for end, (inner, outer, scale) in pair.items():
                made = rng.standard_normal((outer, inner)) * scale / inner**0.5
                tensors["blk.%d.%s.weight.%s" % (layer, name, end)] = lambda _, made=made: made
    values = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 4.0}
    values["adapter.lora.task_name"] = "task %d" % seed
    return _write(path, "llama", {}, tensors, [_value(*each) for each in values.items()])


def write_bert(path, ranks=False):
    """Write a BERT model of random weights, which has no cells: it gives embeddings, or with `ranks` a score."""
    values = _sizes("bert", layers=2)
    values.update({"bert.attention.layer_norm_epsilon": 1e-12, "bert.attention.causal": False})
    values["bert.pooling_type"] = 4 if ranks else 2
    tensors = {"token_embd.weight": _matrix(WIDTH, VOCABULARY), "position_embd.weight": _matrix(WIDTH, CONTEXT)}
    tensors["token_types.weight"] = _matrix(WIDTH, 2)
    tensors.update(_norm("token_embd_norm"))
    for layer in range(2):
        parts = {"attn_%s" % name: (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
        parts.update(ffn_up=(WIDTH, HIDDEN), ffn_down=(HIDDEN, WIDTH))
        for name, (columns, rows) in parts.items():
            tensors["blk.%d.%s.weight" % (layer, name)] = _matrix(columns, rows)
            tensors["blk.%d.%s.bias" % (layer, name)] = _matrix(1, rows, 0.1)
        tensors.update(_norm("blk.%d.attn_output_norm" % layer))
        tensors.update(_norm("blk.%d.layer_output_norm" % layer))
    if ranks:
        tensors.update({"cls.weight": _matrix(WIDTH, WIDTH), "cls.bias": _matrix(1, WIDTH, 0.1)})
        tensors.update({"cls.output.weight": _matrix(WIDTH, 1), "cls.output.bias": _matrix(1, 1)})
    return _write(path, "bert", dict(values, **{"tokenizer.ggml.token_type_count": 2}), tensors)


def write_last_ranker(path):
    """Write a Qwen 3 model that ranks: llama.cpp ranks by the last token's row, and makes probabilities of it."""
    values = _sizes("qwen3", layers=2)
    values.update({"qwen3.pooling_type": 4, "qwen3.classifier.output_labels": ["yes", "no"]})
    tensors = dict(_ends(), **{"cls.output.weight": _matrix(WIDTH, 2)})
    for layer in range(2):
        tensors.update(_attention(layer))
        tensors.update(_feed_forward(layer))
        for name in ("attn_q_norm", "attn_k_norm"):
            tensors["blk.%d.%s.weight" % (layer, name)] = _ones(WIDTH // HEADS)
        tensors["blk.%d.ffn_norm.weight" % layer] = _ones(WIDTH)
    return _write(path, "qwen3", values, tensors)


def _norm(name):
    return {name + ".weight": _ones(WIDTH), name + ".bias": lambda rng: numpy.zeros(WIDTH)}


def _demo():
    with open(os.path.join(ROOT, "models", "demo.gguf"), "rb") as file:
        return file.read()


def _padding(size):
    """Return a value that nobody reads, so long that the tensors stay where alignment wants them."""
    size += _ALIGNMENT * 2
    return _value("test.padding", " " * (size - len(_value("test.padding", ""))))


# ------------------------------------------------------------------------------------- models of random weights

VOCABULARY = 2560  # tokens of the demo model
CONTEXT = 1024
WIDTH, HEADS, HIDDEN = 32, 2, 64
INNER, STATE, CONVOLUTION, RANK = 2 * WIDTH, 8, 4, 4  # Mamba's sizes
WINDOW = 16  # tokens that a layer of a sliding-window model sees
SEED = 5  # with which two tokens are nowhere so nearly equal in test_memory_kinds.py that rounding could decide
_FAINT = 0.02  # embeddings so small that the layers, which see all tokens, decide what comes next, not the last token


def write_recurrent(path):
    """Write a Mamba model: a sequence's memory is one state, however long it is."""
    values = _sizes("mamba", layers=2)
    values.update(_mamba_sizes("mamba"))
    tensors = dict(_ends())
    for layer in range(2):
        tensors.update(_mamba(layer))
    return _write(path, "mamba", values, tensors)


def write_hybrid(path):
    """Write a Jamba model: a layer with a state, and one with attention."""
    values = _sizes("jamba", layers=2)
    values.update(_mamba_sizes("jamba"))
    values["jamba.attention.head_count_kv"] = [0, HEADS]  # 0: the layer is a Mamba layer
    tensors = dict(_ends())
    tensors.update(_mamba(0))
    tensors["blk.0.ssm_dt_norm.weight"] = _ones(RANK)
    tensors["blk.0.ssm_b_norm.weight"] = tensors["blk.0.ssm_c_norm.weight"] = _ones(STATE)
    tensors.update(_attention(1))
    for layer in range(2):
        tensors.update(_feed_forward(layer))
    return _write(path, "jamba", values, tensors)


def write_windowed(path):
    """Write a Gemma 2 model: of each two layers, the first sees the last WINDOW tokens only."""
    values = _sizes("gemma2", layers=4)
    values["gemma2.attention.sliding_window"] = WINDOW
    tensors = dict(_ends())
    for layer in range(4):
        tensors.update(_attention(layer))
        tensors.update(_feed_forward(layer))
        tensors["blk.%d.post_attention_norm.weight" % layer] = _ones(WIDTH)
        tensors["blk.%d.post_ffw_norm.weight" % layer] = _ones(WIDTH)
    return _write(path, "gemma2", values, tensors)


def write_byte_pairs(path, pre, text, merges=400, specials=("<|im_start|>", "<|im_end|>")):
    """Write a model with a byte-pair vocabulary, which has merged the pairs of bytes that are most frequent in a text.

    `pre` names the regular expression by which llama.cpp divides texts into words. Pairs are merged across words, too.
    """
    merged, tokens = _merges(text, merges), [_byte_letter(byte) for byte in range(256)]
    tokens += [left + right for left, right in merged] + list(specials)
    values = _sizes("llama", layers=1, vocabulary=len(tokens))
    values["llama.rope.dimension_count"] = WIDTH // HEADS
    tensors = dict(_ends(len(tokens)))
    tensors.update(_attention(0))
    tensors.update(_feed_forward(0))
    tensors["blk.0.ffn_norm.weight"] = _ones(WIDTH)
    tokenizer = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [_NORMAL] * (len(tokens) - len(specials)) + [_CONTROL] * len(specials),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merged],
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
        "tokenizer.ggml.bos_token_id": len(tokens) - 2,
    }
    return _write(path, "llama", values, tensors, [_value(*each) for each in tokenizer.items()])


_NORMAL, _CONTROL = 1, 3  # types of tokens


def _byte_letter(byte):
    """Return the letter by which GPT-2's vocabulary writes a byte."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return chr(byte if byte in printed else 0x100 + sum(each not in printed for each in range(byte)))


def _merges(text, count):
    """Return the pairs that a byte-pair vocabulary of a text merges, the first one first."""
    symbols, found = [_byte_letter(byte) for byte in text.encode("utf-8")], []
    while len(found) < count:
        pair, times = collections.Counter(zip(symbols, symbols[1:])).most_common(1)[0]
        if times < 2:
            break
        found.append(pair)
        symbols = _replaced(symbols, pair)
    return found


def _replaced(symbols, pair):
    out = []
    for symbol in symbols:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out


def _sizes(architecture, layers, vocabulary=VOCABULARY):
    names = {
        "context_length": CONTEXT,
        "embedding_length": WIDTH,
        "block_count": layers,
        "feed_forward_length": HIDDEN,
        "vocab_size": vocabulary,
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS,
        "attention.key_length": WIDTH // HEADS,
        "attention.value_length": WIDTH // HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    return {"%s.%s" % (architecture, name): value for name, value in names.items()}


def _mamba_sizes(architecture):
    names = {"conv_kernel": CONVOLUTION, "inner_size": INNER, "state_size": STATE, "time_step_rank": RANK}
    return {"%s.ssm.%s" % (architecture, name): value for name, value in names.items()}


# A tensor is a function of the random numbers' source. Shapes are as in the file: the innermost dimension first.


def _ones(size):
    return lambda rng: numpy.ones(size)


def _matrix(columns, rows, scale=1.0):
    """Return rows that give numbers of about the size `scale` from `columns` numbers of size 1."""
    return lambda rng: rng.standard_normal((rows, columns)) * scale / columns**0.5


def _ends(vocabulary=VOCABULARY):
    embeddings = _matrix(WIDTH, vocabulary, _FAINT * WIDTH**0.5)
    return {"token_embd.weight": embeddings, "output_norm.weight": _ones(WIDTH)}


def _mamba(layer):
    decay = numpy.geomspace(0.002, 0.5, STATE)  # from states that last for hundreds of tokens to such of a few
    tensors = {
        "attn_norm.weight": _ones(WIDTH),
        "ssm_in.weight": _matrix(WIDTH, 2 * INNER, 2.0),
        "ssm_conv1d.weight": _matrix(CONVOLUTION, INNER, 2.0),
        "ssm_conv1d.bias": _matrix(1, INNER, 0.1),
        "ssm_x.weight": _matrix(INNER, RANK + 2 * STATE, 2.0),
        "ssm_dt.weight": _matrix(RANK, INNER, 0.5),
        "ssm_dt.bias": _matrix(1, INNER, 0.5),
        "ssm_a": lambda rng: -numpy.tile(decay, (INNER, 1)),
        "ssm_d": _ones(INNER),
        "ssm_out.weight": _matrix(INNER, WIDTH),
    }
    return _of_layer(layer, tensors)


def _attention(layer):
    tensors = {"attn_%s.weight" % name: _matrix(WIDTH, WIDTH, 1.5) for name in ("q", "k", "v", "output")}
    return _of_layer(layer, dict(tensors, **{"attn_norm.weight": _ones(WIDTH)}))


def _feed_forward(layer):
    tensors = {"ffn_%s.weight" % name: _matrix(WIDTH, HIDDEN, 1.5) for name in ("gate", "up")}
    tensors["ffn_down.weight"] = _matrix(HIDDEN, WIDTH)
    return _of_layer(layer, dict(tensors, **{"ffn_norm.weight": _ones(WIDTH)}))


def _of_layer(layer, tensors):
    return {"blk.%d.%s" % (layer, name): tensor for name, tensor in tensors.items()}


# -------------------------------------------------------------------------------------------- the file format


def _write(path, architecture, values, tensors, tokenizer=None):
    """Write a GGUF file of F32 tensors, the same each time, with the demo model's tokenizer or the one given."""
    rng = numpy.random.default_rng(SEED)
    arrays = {name: numpy.asarray(make(rng), numpy.float32) for name, make in tensors.items()}
    arrays = {name: array[:, 0] if array.shape[1:] == (1,) else array for name, array in arrays.items()}
    values = [_value("general.architecture", architecture)] + [_value(*each) for each in values.items()]
    values += tokenizer or _tokenizer()
    described, offset = b"", 0
    for name, array in arrays.items():
        described += _text(name) + struct.pack("<I%dQ" % array.ndim, array.ndim, *reversed(array.shape))
        described += struct.pack("<IQ", _F32, offset)
        offset += len(_aligned(array.tobytes()))
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(arrays), len(values)) + b"".join(values) + described
    with open(path, "wb") as file:
        file.write(_aligned(head) + b"".join(_aligned(array.tobytes()) for array in arrays.values()))
    return path


def _aligned(data):
    return data + bytes(-len(data) % _ALIGNMENT)


def _tokenizer():
    """Return the demo model's values that describe its tokenizer, as they stand in its file."""
    data, found, at = _demo(), [], _HEAD
    for _ in range(struct.unpack_from("<4sIQQ", data)[3]):
        start, at = at, _after(data, at, _STRING)
        key = data[start + 8 : at]
        at = _after(data, at + 4, *struct.unpack_from("<I", data, at))
        if key.startswith(b"tokenizer."):
            found.append(data[start:at])
    return found


def _after(data, at, kind):
    """Return where the value of a type ends that begins at `at`."""
    if kind == _STRING:
        return at + 8 + struct.unpack_from("<Q", data, at)[0]
    if kind != _ARRAY:
        return at + _SIZES[kind]
    kind, count = struct.unpack_from("<IQ", data, at)
    at += 12
    for _ in range(count):
        at = _after(data, at, kind)
    return at


def _value(key, value):
    """Return a key with its value: a text, a whole number, a fraction, or a list of texts or of whole numbers."""
    if isinstance(value, bool):
        return _text(key) + struct.pack("<IB", _BOOL, value)
    if isinstance(value, str):
        return _text(key) + struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, float):
        return _text(key) + struct.pack("<If", _FLOAT32, value)
    if isinstance(value, list) and isinstance(value[0], str):
        return _text(key) + struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_text, value))
    if isinstance(value, list):
        return _text(key) + struct.pack("<IIQ%di" % len(value), _ARRAY, _INT32, len(value), *value)
    return _text(key) + struct.pack("<II", _UINT32, value)


def _text(text):
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data
