"""What a dialect may ask of the server that it speaks for: the models, and how a chat becomes a prompt."""

import functools
import hashlib
import itertools
from typing import TYPE_CHECKING, Any, Iterable, Optional

from core import fields
from core.chat.conversation import ChatAsk, Conversation
from core.chat.markers import text_of
from core.engine.ask import RANKS, TEXT, Prompt, kind_of
from core.errors import APIError
from core.models import ModelFile, ModelFolder

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


class Host:
    """A server's engine and models. `template` takes the place of the models' own; `fingerprint` says what computes."""

    def __init__(self, engine: "Engine", folder: ModelFolder, template: str = "", fingerprint: str = ""):
        self.engine = engine
        self.folder = folder
        self.template = template
        self.fingerprint = fingerprint

    def model(self, name: Optional[str], gives: str = TEXT) -> ModelFile:
        """Return the model called `name`; without one, the model that is loaded, else the folder's default.

        `gives` is what it shall give. Raises APIError 404 where there is none, 400 where it gives something else, 501
        where it can't rank.
        """
        name = name or self.engine.model_name()
        model = self.folder.find(name, "model") if name else self.folder.default()
        if model is None:
            raise APIError(404, "There is no model here.", "model_not_found", "model")
        given = self.gives(model)
        if given == gives:
            return model
        if gives == RANKS:
            message = "%s can't rank documents: it gives %s. (A model that can says so; else, start with --reranking.)"
            raise APIError(501, message % (model.name, given), "not_supported", "model")
        raise APIError(400, "%s gives %s, not %s." % (model.name, given, gives), "model_unsuitable", "model")

    def pooling_of(self, model: ModelFile) -> str:
        """Return how a model makes embeddings here, one of core/settings.py's POOLING; "" where it gives text."""
        return self.engine.settings.pooling_of(model)

    def gives(self, model: ModelFile) -> str:
        """Return what a model gives here: one of core/engine/ask.py's."""
        return kind_of(self.pooling_of(model))

    def fingerprint_of(self, model: ModelFile) -> str:
        """Return what tells one model, as this server computes it, from others: an answer goes on with an equal one.

        It is made of the file's size and beginning, llama.cpp's version, and the settings that change what it says.
        """
        settings = self.engine.settings
        known = [self.engine.fingerprint, self.template, str(model.size), str(settings.lora)]
        known += ["%s %r" % (name, getattr(settings, name)) for name in _CHANGING]
        return _fingerprint("\0".join(known), model.path, model.modified)

    def conversation(self, ask: ChatAsk) -> Conversation:
        """Return what a chat asks of its model. Raises APIError 400, 404."""
        with fields.named(ask.own):
            return Conversation(ask, self.model(ask.model), self.template)

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
