"""What a dialect may ask of the server that it speaks for: the models, and how a chat becomes a prompt."""

import copy
import functools
import hashlib
import itertools
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Optional, Tuple

from core import fields
from core.apis.response_store import ResponseStore
from core.apis.scales import read_scales
from core.chat.conversation import ChatAsk, Conversation
from core.chat.defaults import ChatDefaults
from core.chat.markers import text_of
from core.engine.ask import RANKS, TEXT, UNLIMITED, Prompt, kind_of
from core.errors import APIError
from core.models import ModelFile, ModelFolder, adapter_facts
from core.names import plain_name
from core.settings import Adapter

if TYPE_CHECKING:  # it needs llama_cpp
    from core.engine.engine import Engine


_HEAD = 65536  # bytes
_CHANGING = ("rope_scaling", "rope_freq_base", "rope_freq_scale", "yarn_orig_ctx", "yarn_ext_factor", "pooling",
             "embedding", "reranking")  # fmt: skip


@functools.lru_cache(maxsize=8)
def _fingerprint(known: str, path: str, modified: float) -> str:
    """Return what tells a file with what is `known` of it from others; it is read once for each date of its change."""
    with open(path, "rb") as file:
        beginning = file.read(_HEAD)
    return hashlib.sha256(known.encode("utf-8", "replace") + beginning).hexdigest()[:32]


def _of_file(path: str) -> str:
    """Return what tells a file from others."""
    try:
        status = os.stat(path)
        return _fingerprint(str(status.st_size), path, status.st_mtime)
    except OSError:  # it has been loaded, and is gone
        return path


def _set(scales: Tuple[float, ...]) -> Tuple[float, ...]:
    """Return a set of adapters as the engine takes it: () where it is none of them."""
    return scales if any(scales) else ()


def _fits(adapter: Adapter, model: ModelFile) -> bool:
    return not model.problem and _architecture(adapter.path) == model.architecture


@functools.lru_cache(maxsize=64)
def _architecture(path: str) -> str:
    return adapter_facts(path)["architecture"]


class Host:
    """A server's engine and models. `chat` is what its options say of chats; `fingerprint` says what computes.

    `store` keeps answers of POST /v1/responses; without one, none are kept.
    """

    def __init__(
        self,
        engine: "Engine",
        folder: ModelFolder,
        chat: ChatDefaults = ChatDefaults(),
        fingerprint: str = "",
        store: Optional[ResponseStore] = None,
    ):
        self.engine = engine
        self.folder = folder
        self.chat = chat
        self.fingerprint = fingerprint
        self.store = store or ResponseStore(most=0)
        self._lora: Optional[Tuple[float, ...]] = None  # the adapters that a request's field `lora` asks for

    def asked(self, body: Dict[str, Any]) -> "Host":
        """Return the same for one request: its models come with the LoRA adapters that the body's `lora` names.

        Raises APIError 400.
        """
        if body.get("lora") is None:
            return self
        host = copy.copy(self)
        host._lora = read_scales(body["lora"], len(self.engine.lora_scales))
        return host

    def listed(self) -> List[ModelFile]:
        """Return the models in the folder, broken ones too, and each with each LoRA adapter of its kind."""
        every = []
        for model in self.folder.list():
            fitting = [each for each in self.engine.settings.adapters if _fits(each, model)]
            every += [model, *(replace(model, name="%s:%s" % (model.name, each.name)) for each in fitting)]
        return every

    def find(self, name: str, param: str = "model") -> ModelFile:
        """Return the model called `name`, MODEL or MODEL:ADAPTER, with the LoRA adapters that a request wants with it.

        Raises APIError 400 where it wants two things, 404 where there is no such model, 500 for a broken file.
        """
        adapters = self.engine.settings.adapters
        for number, adapter in enumerate(adapters):
            end = ":" + plain_name(adapter.name)
            if plain_name(name).endswith(end):
                if self._lora is not None:
                    raise APIError(400, "'lora' and the model's name both name adapters.", "contradiction", "lora")
                model = self.folder.find(plain_name(name)[: -len(end)], param)
                scales = tuple(adapter.scale if index == number else 0.0 for index in range(len(adapters)))
                return replace(model, name="%s:%s" % (model.name, adapter.name), adapters=_set(scales))
        scales = self.engine.lora_scales if self._lora is None else self._lora
        return replace(self.folder.find(name, param), adapters=_set(scales))

    def model(self, name: Optional[str], gives: str = TEXT, param: str = "model") -> ModelFile:
        """Return the model called `name`; without one, the model that is loaded, else the folder's default.

        `gives` is what it shall give. Raises APIError 404 where there is none, 400 where it gives something else, 501
        where it can't rank.
        """
        name = name or self.engine.model_name()
        if not name:
            default = self.folder.default()
            if default is None:
                raise APIError(404, "There is no model here.", "model_not_found", param)
            name = default.name
        model = self.find(name, param)
        given = self.gives(model)
        if given == gives:
            return model
        if gives == RANKS:
            message = "%s can't rank documents: it gives %s. (A model that can says so; else, start with --reranking.)"
            raise APIError(501, message % (model.name, given), "not_supported", param)
        raise APIError(400, "%s gives %s, not %s." % (model.name, given, gives), "model_unsuitable", param)

    def pooling_of(self, model: ModelFile) -> str:
        """Return how a model makes embeddings here, one of core/settings.py's POOLING; "" where it gives text."""
        return self.engine.settings.pooling_of(model)

    def gives(self, model: ModelFile) -> str:
        """Return what a model gives here: one of core/engine/ask.py's."""
        return kind_of(self.pooling_of(model))

    def fingerprint_of(self, model: ModelFile) -> str:
        """Return what tells one model, as this server computes it, from others: an answer goes on with an equal one.

        It is made of the file's size and beginning, llama.cpp's version, the settings that change what it says, and the
        same of its LoRA adapters.
        """
        settings = self.engine.settings
        known = [self.engine.fingerprint, repr(self.chat), str(model.size)]
        adapters = zip(settings.adapters, model.adapters)
        known += ["%g %s" % (scale, _of_file(each.path)) for each, scale in adapters if scale]
        known += ["%s %r" % (name, getattr(settings, name)) for name in _CHANGING]
        return _fingerprint("\0".join(known), model.path, model.modified)

    def conversation(self, ask: ChatAsk) -> Conversation:
        """Return what a chat asks of its model. Raises APIError 400, 404."""
        with fields.named(ask.own):
            return Conversation(ask, self.model(ask.model), self.chat)

    def count(self, conversation: Conversation) -> int:
        """Return how many tokens the loaded model would read of a conversation. Raises APIError 503."""
        return len(self.engine.vocabulary().prompt_tokens(conversation.prompt, UNLIMITED) or [])

    def text(self, prompt: Prompt, field: str = "prompt") -> str:
        """Return a prompt as text, its tokens being the loaded model's. `field` is the request's.

        Raises APIError 400, 503.
        """
        if isinstance(prompt, str):
            return prompt
        texts = []
        for is_text, parts in itertools.groupby(prompt, lambda part: not isinstance(part, int)):
            texts.append(text_of(tuple(parts)) if is_text else self._detokenized(parts, field))
        return "".join(texts)

    def _detokenized(self, tokens: Iterable[Any], field: str) -> str:
        return self.engine.vocabulary().detokenize(list(tokens), field).decode("utf-8", "replace")
