"""What a dialect may ask of the server that it speaks for: the models, and how a chat becomes a prompt."""

import functools
import hashlib
import itertools
from typing import TYPE_CHECKING, Any, Iterable, Optional
from typing import Sequence as Many

from core import fields
from core.apis.response_store import ResponseStore
from core.chat.conversation import ChatAsk, Conversation
from core.chat.defaults import ChatDefaults
from core.chat.markers import text_of
from core.engine.ask import UNLIMITED, Ask, Prompt
from core.engine.defaults import Defaults
from core.engine.sampling import Bias
from core.errors import APIError
from core.models import ModelFile, ModelFolder
from core.names import Names

if TYPE_CHECKING:  # it needs llama_cpp
    from core.engine.engine import Engine


_HEAD = 65536  # bytes
_CHANGING = ("draw", "rope_scaling", "rope_freq_base", "rope_freq_scale", "yarn_orig_ctx", "yarn_ext_factor")


@functools.lru_cache(maxsize=8)
def _fingerprint(known: str, path: str, modified: float) -> str:
    """Return what tells a file with what is `known` of it from others; it is read once for each date of its change."""
    with open(path, "rb") as file:
        beginning = file.read(_HEAD)
    return hashlib.sha256(known.encode("utf-8", "replace") + beginning).hexdigest()[:32]


class Host:
    """A server's engine and models. `chat` is what its options say of chats; `fingerprint` says what computes.

    `store` keeps answers of POST /v1/responses; without one, none are kept.
    `defaults` are what requests begin with; `names` are further names of its models; `tags` are told of the one that
    has names of its own; `shows_slots`: GET /slots is there.
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

    def model(self, name: Optional[str], embeds: bool = False) -> ModelFile:
        """Return the model called `name`; without one, the model that is loaded, else the folder's default.

        Raises APIError 404 where there is none, 400 where it is not for this.
        """
        name = name or self.engine.model_name()
        model = self.find(name) if name else self.folder.default()
        if model is None:
            raise APIError(404, "There is no model here.", "model_not_found", "model")
        if model.embeds != embeds:
            what = "gives embeddings, not text" if model.embeds else "gives text, not embeddings"
            raise APIError(400, "%s %s." % (model.name, what), "model_unsuitable", "model")
        return model

    def find(self, name: str, param: str = "model") -> ModelFile:
        """Return the model called `name`, by any of its names. Where there is one model only, any name means it.

        Raises APIError 404 where there is none, 500 for a broken file. `param` is the request's field.
        """
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

        It is made of the file's size and beginning, llama.cpp's version, and the settings that change what it says.
        """
        settings = self.engine.settings
        known = [self.engine.fingerprint, repr(self.chat), str(model.size), str(settings.lora)]
        known += ["%s %r" % (name, getattr(settings, name)) for name in _CHANGING]
        return _fingerprint("\0".join(known), model.path, model.modified)

    def conversation(self, ask: ChatAsk) -> Conversation:
        """Return what a chat asks of its model. Raises APIError 400, 404."""
        with fields.named(ask.own):
            return Conversation(ask, self.model(ask.model), self.chat)

    def count(self, conversation: Conversation) -> int:
        """Return how many tokens the loaded model would read of a conversation. Raises APIError 503."""
        return len(self.engine.vocabulary().prompt_tokens(conversation.prompt, None, UNLIMITED) or [])

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

    def whole_prompt(self, ask: Ask) -> str:
        """Return a prompt as the model sees it: with the tokens that belong at its beginning. Raises APIError 400, 503.

        Where another model has been loaded meanwhile, as it was given.
        """
        model = self.engine.vocabulary()
        if model.file.path != ask.model.path:
            return self.text(ask.prompt)
        tokens = model.prompt_tokens(ask.prompt, ask.suffix, UNLIMITED)
        return self.text(tuple(tokens)) if tokens else self.text(ask.prompt)

    def biases(self, ask: Ask) -> Iterable[Bias]:
        """Return the biases of an ask by their tokens."""
        return self.engine.biases(ask.model.path, ask.sampling).items()

    def _detokenized(self, tokens: Iterable[Any], field: str) -> str:
        return self.engine.vocabulary().detokenize(list(tokens), field).decode("utf-8", "replace")
