"""What clients may ask for beside the answer, by llama-server's names; and its and OpenAI's fields that are not served.

    Extras.read          the fields that every API with llama-server's fields serves
    refuse_chat, …       400 for the fields that would change the answer, and can't be honoured
    IGNORED              the fields that change nothing here, and why

No field that llama-server or OpenAI documents is ignored without standing in IGNORED: tests/apis/test_extras.py.
Sources: server-schema.cpp of llama.cpp; the OpenAI API reference.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Optional, Tuple
from typing import Sequence as Many

from core import fields
from core.apis.host import Host
from core.ask import Ask
from core.bounds import FIELDS
from core.errors import APIError

Body = Dict[str, Any]
_MOST_TOKENS = (1 << 31) - 1

# What a field would have to be to change nothing, and why anything else can't be honoured.
_REFUSED: Dict[str, Tuple[Tuple[Any, ...], str]] = {
    "n_indent": ((0,), "lines may begin anywhere"),
    "grammar_lazy": ((False,), "a grammar holds from the answer's beginning"),
    "grammar_triggers": (([],), "a grammar holds from the answer's beginning"),
    "reasoning_control": ((False,), "thoughts can't be ended from outside"),
    "parse_tool_calls": ((True,), "tool calls are always taken out of the text"),
    "modalities": ((["text"],), "answers are text"),
    "audio": ((), "answers are text"),
    "web_search_options": ((), "the server runs no tools"),
    "functions": (([],), "say it with 'tools'"),
    "function_call": (("none", "auto"), "say it with 'tool_choice'"),
    "image_data": (([],), "this server takes text only"),
}
_REFUSED_IN_OPENAI = {
    "response_fields": (([],), "only /completion cuts its answers down"),
    "post_sampling_probs": ((False,), "'logprobs' are those of the model; /completion has the others"),
}
_NO_CHAT = "only chats tell thoughts from the rest of an answer"
_REFUSED_OUT_OF_CHATS: Dict[str, Tuple[Tuple[Any, ...], str]] = {
    "reasoning_budget_tokens": ((-1,), _NO_CHAT),
    "thinking_budget_tokens": ((-1,), _NO_CHAT),
    "reasoning_budget_message": (("",), _NO_CHAT),
}
_REFUSED_IN_NATIVE = {"echo": ((False,), "/v1/completions has it")}

IGNORED = {
    "n_cache_reuse": "a prompt's beginning is reused, whatever its length",
    "backend_sampling": "where tokens are chosen changes no answer",
    "sse_ping_interval": "the server's option --ping-interval holds for all",
    "speculative.n_max": "how far guesses go changes no answer",
    "speculative.n_min": "how far guesses go changes no answer",
    "speculative.p_min": "how far guesses go changes no answer",
    "speculative.type": "how guesses are made changes no answer",
    "speculative.ngram_size_n": "how guesses are made changes no answer",
    "speculative.ngram_size_m": "how guesses are made changes no answer",
    "speculative.ngram_min_hits": "how guesses are made changes no answer",
    "adaptive_decay": "it means nothing without adaptive_target, which is refused",
    "chat_format": "llama-server tells itself what it has found out of the chat template",
    "chat_parser": "llama-server tells itself what it has found out of the chat template",
    "generation_prompt": "llama-server tells itself what it has found out of the chat template",
    "preserved_tokens": "llama-server tells itself what it has found out of the chat template",
    "grammar_type": "llama-server tells itself where a grammar comes from",
    "reasoning_budget_start_tag": "the chat template tells where thoughts begin",
    "reasoning_budget_end_tag": "the chat template tells where thoughts end",
    "reasoning_budget_end_tags": "the chat template tells where thoughts end",
    "user": "clients are told apart by their keys",
    "safety_identifier": "clients are told apart by their keys",
    "prompt_cache_key": "what is cached is found by the prompt itself",
    "prompt_cache_retention": "what is cached is found by the prompt itself",
    "metadata": "answers are not stored",
    "store": "answers are not stored",
    "service_tier": "there is one tier",
    "prediction": "a guess at the answer changes its speed only",
    "verbosity": "a hint to OpenAI's own models",
}


@dataclass(frozen=True)
class Extras:
    """What is asked for beside the answer: which slot, what is told meanwhile, and what of the answer is shown."""

    slot: Optional[int] = None
    time_limit: float = math.inf  # seconds
    progress: bool = False
    timings: bool = False
    verbose: bool = False
    keep: Optional[int] = None  # tokens, where contexts are shifted
    discard: int = 0
    fields: Tuple[str, ...] = ()  # of the answer, which are shown; none means all

    @classmethod
    def read(cls, body: Body, host: Host) -> "Extras":
        """Return what a body asks for. Raises APIError 400."""
        slot = fields.integer(body, "id_slot", -1, -1, host.engine.settings.slots - 1)
        limit = fields.number(body, "t_max_predict_ms", -1.0, -1.0, 1e12) or -1.0
        return cls(
            slot=None if slot < 0 else slot,
            time_limit=limit / 1e3 if limit > 0 else math.inf,
            progress=fields.flag(body, "return_progress", False),
            timings=fields.flag(body, "timings_per_token", False),
            verbose=fields.flag(body, "verbose", host.defaults.verbose),
            keep=fields.integer(body, "n_keep", None, -1, _MOST_TOKENS),
            discard=fields.integer(body, "n_discard", 0, 0, _MOST_TOKENS),
            fields=tuple(fields.texts(body, "response_fields", FIELDS)),
        )

    def asked(self, asks: Many[Ask]) -> List[Ask]:
        """Return what the engine is asked, with these wishes."""
        return [
            replace(
                ask, slot=self.slot, time_limit=self.time_limit, progress=self.progress, timings=self.timings,
                keep=self.keep, discard=self.discard,
            )
            for ask in asks
        ]  # fmt: skip

    def shown(self, body: Body) -> Body:
        """Return what is to be shown of an answer's body; "a/b" names the field b in a."""
        return {path: _found(body, path) for path in self.fields if _has(body, path)} if self.fields else body


def refuse_chat(body: Body) -> None:
    """Raise APIError 400 for a field of OpenAI's chats that can't be honoured."""
    _refuse(body, dict(_REFUSED, **_REFUSED_IN_OPENAI))


def refuse_completion(body: Body) -> None:
    """Raise APIError 400 for a field of OpenAI's completions that can't be honoured."""
    _refuse(body, dict(_REFUSED, **_REFUSED_IN_OPENAI, **_REFUSED_OUT_OF_CHATS))


def refuse_native(body: Body) -> None:
    """Raise APIError 400 for a field of POST /completion that can't be honoured."""
    _refuse(body, dict(_REFUSED, **_REFUSED_IN_NATIVE, **_REFUSED_OUT_OF_CHATS))


def _refuse(body: Body, table: Dict[str, Tuple[Tuple[Any, ...], str]]) -> None:
    for name, (neutral, why) in table.items():
        value = body.get(name)
        if value is not None and value not in neutral:
            raise APIError(400, "'%s' can't be honoured: %s." % (name, why), "unsupported", name)


def _has(body: Any, path: str) -> bool:
    name, _, rest = path.partition("/")
    if not isinstance(body, dict) or name not in body:
        return False
    return _has(body[name], rest) if rest else True


def _found(body: Any, path: str) -> Any:
    for name in path.split("/"):
        body = body[name]
    return body
