"""What a dialect may ask of the server that it speaks for: the models, and how a chat becomes a prompt."""

import copy
import functools
import hashlib
import itertools
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Optional, Tuple
from typing import Sequence as Many

from core import fields
from core.adapters import Adapter
from core.apis.response_store import ResponseStore
from core.apis.scales import read_scales
from core.ask import RANKS, TEXT, UNLIMITED, Ask, Gap, Infill, Pair, Wanted, kind_of
from core.chat.conversation import ChatAsk, Conversation
from core.chat.defaults import ChatDefaults
from core.chat.markers import text_of
from core.engine.defaults import Defaults
from core.errors import APIError
from core.models import ModelFile, ModelFolder, adapter_facts
from core.names import Names, plain_name
from core.sampling import Bias

if TYPE_CHECKING:  # it needs llama_cpp
    from core.engine.engine import Engine


_HEAD = 65536  # bytes
_CHANGING = ("draw", "rope_scaling", "rope_freq_base", "rope_freq_scale", "yarn_orig_ctx", "yarn_ext_factor", "pooling",
             "embedding", "reranking", "context_shift")  # fmt: skip


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
    `defaults` are what requests begin with; `names` are further names of its models; `tags` are told of the one that
    has names of its own; `shows_slots`: GET /slots is there; `first` is the model that is loaded at start.
    """

    def __init__(
        self,
        engine: "Engine",
        folder: ModelFolder,
        chat: ChatDefaults = ChatDefaults(),
        fingerprint: str = "",
        store: Optional[ResponseStore] = None,
        defaults: Defaults = Defaults(),
        names: Names = Names(),
        tags: Many[str] = (),
        shows_slots: bool = True,
        first: str = "",
    ):
        self.engine = engine
        self.folder = folder
        self.chat = chat
        self.fingerprint = fingerprint
        self.store = store or ResponseStore(most=0)
        self.defaults = defaults
        self.names = names
        self.tags = sorted(set(tags))
        self.shows_slots = shows_slots
        self._first = first
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

    def model(self, name: Optional[str], gives: str = TEXT, param: str = "model") -> ModelFile:
        """Return the model called `name`; without one, the model that is loaded, or will be first.

        `gives` is what it shall give. Raises APIError 404 where there is none, 400 where it gives something else, 501
        where it can't rank.
        """
        name = name or self.engine.model_name() or self._first
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
        """Return what a model gives here: one of core/ask.py's."""
        return kind_of(self.pooling_of(model))

    def find(self, name: str, param: str = "model") -> ModelFile:
        """Return the model called `name`, MODEL or MODEL:ADAPTER, with the LoRA adapters that a request wants with it.

        By any of the model's names; where there is one model only, any name means it. Raises APIError 400 where the
        request wants two things, 404 where there is no such model or adapter, 500 for a broken file. `param` is the
        request's field.
        """
        adapters = self.engine.settings.adapters
        base, _, wanted = plain_name(name).rpartition(":") if adapters else ("", "", "")
        number = next((i for i, each in enumerate(adapters) if plain_name(each.name) == wanted), None)
        if not base or (number is None and not self._is_file(base)):
            scales = self.engine.lora_scales if self._lora is None else self._lora
            return replace(self._file(name, param), adapters=_set(scales))
        if number is None:
            known = ", ".join(each.name for each in adapters)
            raise APIError(404, "There is no adapter %r here, but %s." % (wanted, known), "model_not_found", param)
        if self._lora is not None:
            raise APIError(400, "'lora' and the model's name both name adapters.", "contradiction", "lora")
        model = self._file(base, param)
        scales = tuple(each.scale if index == number else 0.0 for index, each in enumerate(adapters))
        return replace(model, name="%s:%s" % (model.name, adapters[number].name), adapters=_set(scales))

    def named(self, name: str) -> ModelFile:
        """Return the model with this name in the lists, or one of its further names. Raises APIError 404."""
        real = self.names.real(name)
        found = [each for each in self.listed() if plain_name(each.name) == plain_name(real)]
        return found[0] if len(found) == 1 and not found[0].problem else self.folder.find(real, "model")

    def _is_file(self, name: str) -> bool:
        return any(plain_name(each.name) == plain_name(self.names.real(name)) for each in self.folder.list())

    def _file(self, name: str, param: str) -> ModelFile:
        """Return the file that a name means. Raises APIError 404, 500."""
        try:
            return self.folder.find(self.names.real(name), param)
        except APIError as error:
            every = [each for each in self.folder.list() if not each.problem]
            other = self.names.any_other or (every[0].name if len(every) == 1 else "")
            if error.status != 404 or not other:
                raise
            return self.folder.find(other, param)

    def name_of(self, model: ModelFile) -> str:
        """Return the name by which answers tell a model: the one that an option gives it, else its file's."""
        return self.names.shown(model.name)

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
        if settings.context_shift:  # it is shifted at the same tokens
            known += ["%d %d" % (settings.slot_ctx, settings.keep)]
        return _fingerprint("\0".join(known), model.path, model.modified)

    def keeps(self, ask: Ask) -> int:
        """Return how many tokens at the beginning stay where the context is shifted; -1 for the whole prompt."""
        return self.engine.settings.keep if ask.keep is None else ask.keep

    def conversation(self, ask: ChatAsk) -> Conversation:
        """Return what a chat asks of its model. Raises APIError 400, 404."""
        with fields.named(ask.own):
            return Conversation(ask, self.model(ask.model), self.chat)

    def count(self, conversation: Conversation) -> int:
        """Return how many tokens the loaded model would read of a conversation. Raises APIError 503."""
        return len(self.engine.vocabulary().prompt_tokens(conversation.prompt, UNLIMITED) or [])

    def text(self, prompt: Wanted, field: str = "prompt") -> str:
        """Return a prompt as text, its tokens being the loaded model's; of a gap, what stands before it.

        `field` is the request's. Raises APIError 400, 503.
        """
        if isinstance(prompt, (Gap, Infill)):
            return self.text(prompt.prefix, field)
        if isinstance(prompt, Pair):
            return prompt.query
        if isinstance(prompt, str):
            return prompt
        texts = []
        for is_text, parts in itertools.groupby(prompt, lambda part: not isinstance(part, int)):
            texts.append(text_of(tuple(parts)) if is_text else self._detokenized(parts, field))
        return "".join(texts)

    def whole_prompt(self, ask: Ask) -> str:
        """Return a prompt as the model sees it: with the tokens that belong at its beginning. Raises APIError 400, 503.

        Where another model has been loaded meanwhile, as it was given.
        """
        model = self.engine.vocabulary()
        if model.file.path != ask.model.path:
            return self.text(ask.prompt)
        room = self.engine.context_size() - 1 if isinstance(ask.prompt, Infill) else UNLIMITED
        tokens = model.prompt_tokens(ask.prompt, room)
        return self.text(tuple(tokens)) if tokens else self.text(ask.prompt)

    def biases(self, ask: Ask) -> Iterable[Bias]:
        """Return the biases of an ask by their tokens."""
        return self.engine.biases(ask.model.path, ask.sampling).items()

    def _detokenized(self, tokens: Iterable[Any], field: str) -> str:
        return self.engine.vocabulary().detokenize(list(tokens), field).decode("utf-8", "replace")
