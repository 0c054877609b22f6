"""The models folder: which GGUF files are in it, what their headers say, and whether they are whole.

Only headers are read (GGUF specification, versions 2 and 3), without llama_cpp. So a file that is no model, or is cut
short, is refused with a clear error before native code sees it, and memory can be planned before a model is loaded.
"""

import collections
import functools
import itertools
import mmap
import os
import re
import struct
from dataclasses import dataclass, replace
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from core.errors import APIError
from core.names import plain_name

# ggml's tensor types: number -> (name, elements in a block, bytes in a block)
_TYPES: Dict[int, Tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# Architectures that only give embeddings: each token sees all others. And llama.cpp's pooling types, by their numbers,
# which make any model give one; a model that ranks says how well two texts match.
_EMBEDDERS = {"bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert",
              "eurobert", "gemma-embedding"}  # fmt: skip
_POOLING = {1: "mean", 2: "cls", 3: "last", 4: "rank"}
# Header fields, after the architecture, of models some of whose layers keep a state, or share what another layer keeps
_MIXED = (".ssm.", ".wkv", ".time_", ".shortconv", ".full_attention_interval", ".kda", ".attention.shared_kv",
          ".attention.layer_indices", ".attention.kv_lora_rank", ".attention.recurrent_layers",
          ".attention.key_length_swa")  # fmt: skip
_UINT32, _INT32, _STRING, _ARRAY = 4, 5, 8, 9
_KEPT_ARRAY = 4096  # elements; longer arrays (vocabularies) are skipped
_MAX_NAME = 1 << 20
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)


class BadModel(Exception):
    """A file is no usable GGUF model; the message says why."""


class BrokenModel(BadModel):
    """There is a file, but it can't be used as it is now; it may be incomplete."""


@dataclass(frozen=True)
class ModelFile:
    """One model in the folder. `size` is in bytes, of all its parts; `kv_bytes` is the f16 cache of one token."""

    name: str
    path: str
    size: int
    architecture: str = ""
    parameters: int = 0
    quantization: str = ""
    context_length: int = 0
    vocabulary: int = 0
    kv_bytes: int = 0
    heads: int = 0  # of attention, in a layer
    mixed: bool = False  # not every layer keeps each token: `kv_bytes` may be far too much
    sparse: bool = False  # a mixture of experts: a token is computed with some of the weights
    pooling: str = ""  # how it makes embeddings: none (one for each token), mean, cls, last or rank; "": it gives text
    causal: bool = True  # each token sees only those before it
    pair_template: str = ""  # how a query and a document stand in a prompt, with {query} and {document}
    chat_template: str = ""  # Jinja
    bos: str = ""  # the text of the token that begins a text, and of the one that ends it
    eos: str = ""
    controls: Tuple[str, ...] = ()  # texts of special tokens that llama.cpp finds in a prompt with parse_special on
    stubborn: Tuple[str, ...] = ()  # texts of tokens that look like a role's and are found with parse_special off, too
    adapters: Tuple[float, ...] = ()  # how much of each LoRA adapter is wanted with it; () for none
    modified: float = 0.0  # when the file was written, in seconds since 1970
    problem: str = ""  # why it can't be used, if it can't

    def describe(self) -> Dict[str, Any]:
        """Return what GET /models says of it."""
        facts: Dict[str, Any] = {
            "name": self.name,
            "path": self.path,
            "size_mb": round(self.size / 1e6, 1),
            "architecture": self.architecture,
            "parameters": self.parameters,
            "quantization": self.quantization,
            "context_length": self.context_length,
            "embeds": self.embeds,
        }
        if self.problem:
            facts["problem"] = self.problem
        return facts

    def bare(self) -> "ModelFile":
        """Return the model without adapters, and without their name in its own."""
        return replace(self, name=os.path.basename(self.path), adapters=())

    @property
    def embeds(self) -> bool:
        """Whether it gives embeddings or ranks, not text."""
        return bool(self.pooling)

    @property
    def quantized(self) -> bool:
        """Whether llama.cpp would repack its weights into memory of each process's own."""
        return bool(self.quantization) and self.quantization not in ("F32", "F16", "BF16")


class ModelFolder:
    """A folder of GGUF files. Names are file names; nothing outside the folder can be named."""

    def __init__(self, path: str):
        self.path = path

    def list(self) -> List[ModelFile]:
        """Return the models in the folder by name. Raises OSError where the folder can't be read."""
        names = sorted(name for name in os.listdir(self.path) if name.lower().endswith(".gguf"))
        return [self._inspect(name) for name in names if self._is_first_part(name)]

    def find(self, name: str, param: str = "model_name") -> ModelFile:
        """Return the model with this name, in any spelling (core/names.py). Raises APIError 404, 500 for a broken file.

        `param` is the request's field that names it. Where a name fits two files, the one spelled exactly so wins.
        """
        every, wanted = self.list(), plain_name(name)
        spelt = [each for each in every if plain_name(each.name) == wanted]
        exact = [each for each in spelt if name in (each.name, each.name[: -len(".gguf")])]
        model = next(iter(exact + spelt), None)
        if model is None:
            known = ", ".join(each.name for each in every) or "none"
            message = "There is no model %r here. Models: %s." % (name[:200], known)
            raise APIError(404, message, "model_not_found", param)
        if model.problem:
            raise APIError(500, "%s can't be loaded: %s" % (model.name, model.problem), "model_broken", param)
        return model

    def default(self) -> Optional[ModelFile]:
        """Return the model to load where none is asked for: the first usable one, demo.gguf only if alone."""
        usable = [each for each in self.list() if not each.problem]
        return next((each for each in usable if each.name != "demo.gguf"), usable[0] if usable else None)

    def _is_first_part(self, name: str) -> bool:
        part = _PART.search(name)
        return os.path.isfile(os.path.join(self.path, name)) and (not part or int(part.group(1)) == 1)

    def _inspect(self, name: str) -> ModelFile:
        path = os.path.join(self.path, name)
        try:
            status = os.stat(path)
        except OSError as error:
            return ModelFile(name, path, 0, problem=str(error))
        return _inspected(path, status.st_size, status.st_mtime_ns)


def locate(models: str, model: str) -> Tuple[str, str]:
    """Return the models folder's absolute path and the name of the model in it, "" for the default one.

    `models` is a folder, "" for the one beside the programs; `model` a name in it, or a path to a file in any folder.
    Raises BadModel where there is no such folder or file.
    """
    if os.path.dirname(model):
        if not os.path.isfile(model):
            raise BadModel("there is no file %s" % model)
        models, model = os.path.split(os.path.abspath(model))
    folder = os.path.abspath(
        models or os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "models")
    )
    if not os.path.isdir(folder):
        raise BadModel("the models folder %s does not exist" % folder)
    return folder, model


def choose(path: str, name: str) -> ModelFile:
    """Return the model to load at start from a folder: the one called `name`, or the default.

    Raises BadModel where there is none, BrokenModel where there is a file that can't be used.
    """
    folder = ModelFolder(path)
    try:
        every = folder.list()
        chosen = folder.find(name) if name else folder.default()
    except (APIError, OSError) as error:
        broken = isinstance(error, APIError) and error.code == "model_broken"
        raise (BrokenModel if broken else BadModel)(str(error).rstrip("."))
    if not every:
        raise BadModel("the models folder %s holds no .gguf file" % path)
    if chosen is None:
        problems = "; ".join("%s: %s" % (each.name, each.problem) for each in every)
        raise BrokenModel("the models folder %s holds no usable model: %s" % (path, problems))
    return chosen


@functools.lru_cache(maxsize=4096)
def _inspected(path: str, size: int, mtime: int) -> ModelFile:
    """Return what the header of a file says that has this size and age: it is read once."""
    return inspect(path)


def inspect(path: str) -> ModelFile:
    """Return what a GGUF file's header says; what is wrong with the file stands in `problem`."""
    name = os.path.basename(path)
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            size = status.st_size
            header = _read_header(file, size)
        parts = [size] + [os.path.getsize(part) for part in other_parts(path)]
        return replace(_model_file(name, path, sum(parts), header), modified=status.st_mtime)
    except BadModel as problem:
        return ModelFile(name, path, size, problem=str(problem))
    except OSError as error:
        return ModelFile(name, path, 0, problem="it can't be read: %s" % error)


def adapter_facts(path: str) -> Dict[str, str]:
    """Return what a LoRA adapter's header says: architecture, task_name and prompt_prefix, "" where it does not."""
    try:
        with open(path, "rb") as file:
            values = _read_header(file, os.fstat(file.fileno()).st_size).values
    except (BadModel, OSError, ValueError):
        values = {}
    keys = {"architecture": "general.architecture"}
    keys.update({name: "adapter.lora." + name for name in ("task_name", "prompt_prefix")})
    return {name: str(values.get(key, "")) for name, key in keys.items()}


def other_parts(path: str) -> List[str]:
    """Return the paths of the other parts of a model in several files; none for one in a single file."""
    part = _PART.search(path)
    if not part:
        return []
    pattern = path[: part.start()] + "-%05d-of-" + part.group(2) + path[part.end() - len(".gguf") :]
    return [pattern % number for number in range(2, int(part.group(2)) + 1)]


@dataclass(frozen=True)
class _Header:
    values: Dict[str, Any]
    tensors: List[Tuple[int, int]]  # (type, elements)
    vocabulary: "_Vocabulary"


def _read_header(file: Any, size: int) -> _Header:
    """Return a GGUF header. Raises BadModel."""
    magic = file.read(4)
    if magic != b"GGUF":
        raise BadModel("it is no GGUF file (it begins with %r)" % magic)
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _parse(_Cursor(data), size)
        except (struct.error, IndexError, OverflowError):
            raise BadModel("it is cut short: its header does not end within its %d bytes" % size)


def _parse(cursor: "_Cursor", size: int) -> _Header:
    version = cursor.scalar("I")
    if version not in (2, 3):
        raise BadModel("its GGUF version is %d; versions 2 and 3 can be read" % version)
    tensor_count, value_count = cursor.scalar("Q"), cursor.scalar("Q")
    if tensor_count + value_count > size:
        raise BadModel("its header claims more entries than the file has bytes")
    values: Dict[str, Any] = {}
    places: Dict[str, int] = {}
    for _ in range(value_count):
        key = cursor.string()
        kind = cursor.scalar("I")
        places[key] = cursor.at
        values[key] = cursor.value(kind)
    tensors, end = [], 0
    for _ in range(tensor_count):
        kind, elements, offset = cursor.tensor()
        tensors.append((kind, elements))
        if kind in _TYPES:
            end = max(end, offset + elements // _TYPES[kind][1] * _TYPES[kind][2])
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise BadModel("its alignment is %r" % (alignment,))
    needed = -(-cursor.at // alignment) * alignment + end
    if size < needed:
        raise BadModel("it is cut short: %d of %d bytes are there" % (size, needed))
    return _Header(values, tensors, _Vocabulary(cursor, places, values))


class _Vocabulary:
    """The tokens' texts and types."""

    UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # types

    def __init__(self, cursor: "_Cursor", places: Dict[str, int], values: Dict[str, Any]):
        self._values = values
        self._texts = cursor.array(places.get("tokenizer.ggml.tokens"), _STRING)
        self._types = cursor.array(places.get("tokenizer.ggml.token_type"), _UINT32, _INT32)

    def token(self, name: str) -> str:
        """Return the text of a token that the header names by its number, "" where it names none."""
        number = self._values.get("tokenizer.ggml.%s_token_id" % name)
        if not isinstance(number, int) or not 0 <= number < len(self._texts):
            return ""
        return self._texts[number].decode("utf-8", "replace")

    def controls(self) -> Tuple[str, ...]:
        """Return the texts of control tokens, of unknown ones, and of those that llama.cpp knows by their names."""
        return _decoded(self._of(self.UNKNOWN, self.CONTROL) + sorted(_CONTROL_NAMES.intersection(self._texts)))

    def stubborn(self) -> Tuple[str, ...]:
        """Return the texts of tokens that look like a role's, and that llama.cpp finds in any text."""
        found = [text for text in self._of(self.USER_DEFINED) if _ROLE.fullmatch(text)]
        return _decoded(found + sorted(_USER_NAMES.intersection(self._texts)))

    def _of(self, *types: int) -> List[bytes]:
        return list(itertools.compress(self._texts, map(frozenset(types).__contains__, self._types)))


def _decoded(texts: List[bytes]) -> Tuple[str, ...]:
    return tuple(dict.fromkeys(text.decode("utf-8", "replace") for text in texts))


_ROLE = re.compile("(<\\|.+\\|>)|(<｜.+｜>)".encode("utf-8"))
# Tokens of any type that llama.cpp makes control tokens, or user-defined ones, when it finds their texts
# (llama-vocab.cpp, "auto-detect special tokens by text", "maintain a list of tokens that cause end-of-generation").
_CONTROL_NAMES = frozenset(
    (
        "<|eot_id|> <|im_end|> <|end|> <end_of_turn> <|endoftext|> <|end_of_text|> <EOT> _<EOT> [EOT] [EOS] <eos> "
        "<｜end▁of▁sentence｜> <end_of_utterance> <|eom_id|> <|return|> <|call|> <|flush|> <|calls|> </s> <turn|> "
        "<|tool_response> [e~[ <|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> "
        "<|prefix|> <|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|> "
        "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|> <|fim_pad|> "
        "<fim-pad> <fim_pad> <PAD> [PAD] <|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> <|file_sep|>"
    )
    .encode("utf-8")
    .split(b" ")
)
_USER_NAMES = frozenset(b"<|channel|> <|message|> <|start|> <|constrain|> <|end|>".split())


class _Cursor:
    """Reads little-endian values one after another."""

    def __init__(self, data: mmap.mmap):
        self._data = data
        self.at = 4

    def scalar(self, code: str) -> Any:
        value = struct.unpack_from("<" + code, self._data, self.at)[0]
        self.at += struct.calcsize(code)
        return value

    def string(self) -> str:
        return self._bytes(self.scalar("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(self.scalar("I"), self.scalar("Q"))
        raise BadModel("its header holds a value of the unknown type %d" % kind)

    def tensor(self) -> Tuple[int, int, int]:
        """Return a tensor's type, number of elements and offset."""
        self.string()
        elements = 1
        for _ in range(min(self.scalar("I"), 8)):
            elements *= self.scalar("Q")
        return self.scalar("I"), elements, self.scalar("Q")

    def array(self, at: Optional[int], *wanted: int) -> Sequence[Any]:
        """Return the array whose value begins at `at`, however long, texts as bytes; nothing if of another type."""
        if at is None:
            return ()
        self.at = at
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind not in wanted:
            return ()
        if kind == _STRING:
            return [self._data[start : min(end, start + _MAX_NAME)] for start, end in self._texts(count)]
        return struct.unpack_from("<%d%s" % (count, _SCALARS[kind]), self._data, self.at)

    def _array(self, kind: int, count: int) -> Any:
        """Return a short array; of a long one, or one of texts, skip the contents and return the length."""
        if kind in _SCALARS and count > _KEPT_ARRAY:
            self._bytes(count * struct.calcsize(_SCALARS[kind]), keep=False)
            return count
        if kind == _STRING:
            collections.deque(self._texts(count), maxlen=0)
            return count
        if kind == _ARRAY or count > len(self._data):
            raise BadModel("its header holds an array that no model has")
        return [self.value(kind) for _ in range(count)]

    def _texts(self, count: int) -> Iterator[Tuple[int, int]]:
        """Pass over an array of texts; yield where each begins and ends. A vocabulary has hundreds of thousands."""
        data, at, length = self._data, self.at, struct.Struct("<Q").unpack_from
        for _ in range(count):
            start = at + 8
            at = start + length(data, at)[0]
            yield start, at
        if at > len(data):
            raise IndexError("past the end")
        self.at = at

    def _bytes(self, count: int, keep: bool = True) -> bytes:
        start, self.at = self.at, self.at + count
        if self.at > len(self._data):
            raise IndexError("past the end")
        if keep and count > _MAX_NAME:
            raise BadModel("its header holds a text of %d bytes" % count)
        return self._data[start : self.at] if keep else b""


def _model_file(name: str, path: str, size: int, header: _Header) -> ModelFile:
    values = header.values
    architecture = str(values.get("general.architecture", ""))
    vocabulary = values.get("tokenizer.ggml.tokens", values.get(architecture + ".vocab_size", 0))
    embedder = architecture in _EMBEDDERS
    problem = "" if architecture else "its header names no architecture"
    if architecture == "clip":
        problem = "it is an image encoder (mmproj), not a language model"
    return ModelFile(
        name,
        path,
        size,
        architecture=architecture,
        parameters=sum(elements for _, elements in header.tensors),
        quantization=_main_type(header.tensors),
        context_length=_number(values.get(architecture + ".context_length")),
        vocabulary=_number(vocabulary),
        kv_bytes=_kv_bytes(values, architecture),
        heads=_number(values.get(architecture + ".attention.head_count")),
        mixed=any(key.startswith(tuple(architecture + part for part in _MIXED)) for key in values),
        sparse=_number(values.get(architecture + ".expert_used_count")) > 0,
        pooling=_POOLING.get(_number(values.get(architecture + ".pooling_type")), "none" if embedder else ""),
        causal=not embedder and values.get(architecture + ".attention.causal") is not False,
        pair_template=str(values.get("tokenizer.chat_template.rerank", "")),
        chat_template=str(values.get("tokenizer.chat_template", "")),
        bos=header.vocabulary.token("bos"),
        eos=header.vocabulary.token("eos"),
        controls=header.vocabulary.controls(),
        stubborn=header.vocabulary.stubborn(),
        problem=problem,
    )


def _main_type(tensors: List[Tuple[int, int]]) -> str:
    """Return the name of the type that most weights have."""
    weights: Dict[str, int] = {}
    for kind, elements in tensors:
        name = _TYPES.get(kind, ("type %d" % kind,))[0]
        weights[name] = weights.get(name, 0) + elements
    return max(weights, key=lambda name: weights[name]) if weights else ""


def _kv_bytes(values: Dict[str, Any], architecture: str) -> int:
    """Return the bytes that one token takes in a f16 key-value cache, an upper bound for sliding-window models."""

    def of(key: str) -> Any:
        return values.get("%s.%s" % (architecture, key))

    layers, heads = _number(of("block_count")), _number(of("attention.head_count"))
    head = _number(of("embedding_length")) // max(heads, 1)
    kv_heads = of("attention.head_count_kv") or heads
    total = sum(kv_heads) if isinstance(kv_heads, list) else _number(kv_heads) * layers
    return 2 * total * (_number(of("attention.key_length")) or head) + 2 * total * (
        _number(of("attention.value_length")) or head
    )


def _number(value: Any) -> int:
    """Return a header value as a whole number; of a per-layer array the largest; 0 for anything else."""
    if isinstance(value, list):
        return max((_number(each) for each in value), default=0)
    return value if isinstance(value, int) else 0
