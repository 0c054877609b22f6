"""How tokens are chosen: every sampling parameter by its llama.cpp name, with its bounds, read from a JSON request.

The table below is the one place that knows them: their defaults switch a sampler off, except for temperature, top_k and
top_p, which are the project's own contract.
"""

import re
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from typing import Any, Dict, Optional, Tuple

from core import fields
from core.bounds import BREAKER_LENGTH, BREAKERS, LOGIT_BIAS
from core.errors import APIError

RANDOM_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: llama.cpp would choose one itself, and nobody would know which
COLDEST = 1e-5  # below this temperature logits become too large for float32; the likeliest token is chosen
_MOST = 1 << 31


@dataclass(frozen=True)
class Sampling:
    """The parameters of one request. Temperature 0 takes the likeliest token; seed -1 is a random one."""

    temperature: float = 0.8
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: Tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    min_keep: int = 0
    logit_bias: Tuple[Tuple[int, float], ...] = ()
    ignore_eos: bool = False
    grammar: str = ""
    n_probs: int = 0
    seed: int = -1

    @property
    def penalizes(self) -> bool:
        """Whether earlier tokens, the prompt's included, make a difference."""
        penalties = self.repeat_penalty != 1 or self.presence_penalty or self.frequency_penalty
        return bool(self.dry_multiplier or (self.repeat_last_n and penalties))

    @property
    def learns(self) -> bool:
        """Whether the choice of a token changes with what the model thought of the ones before it: mirostat's does."""
        return bool(self.mirostat) and self.temperature >= COLDEST


_NUMBERS = {
    "temperature": (0.0, 100.0),
    "dynatemp_range": (0.0, 100.0),
    "dynatemp_exponent": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "top_n_sigma": (-1.0, 1000.0),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 1.0),
    "repeat_penalty": (0.01, 100.0),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
    "dry_multiplier": (0.0, 100.0),
    "dry_base": (0.01, 100.0),
    "mirostat_tau": (0.0, 100.0),
    "mirostat_eta": (0.0, 10.0),
}
_INTEGERS = {
    "top_k": (0, _MOST - 1),
    "repeat_last_n": (-1, _MOST - 1),
    "dry_allowed_length": (0, _MOST - 1),
    "dry_penalty_last_n": (-1, _MOST - 1),
    "mirostat": (0, 2),
    "min_keep": (0, _MOST - 1),
    "n_probs": (0, 100),
    "seed": (-1, RANDOM_SEED),
}
_NAMES = {each.name for each in dataclass_fields(Sampling)}


def read_sampling(body: Dict[str, Any], defaults: Optional[Sampling] = None) -> Sampling:
    """Return the sampling parameters of a request's body. Raises APIError 400 that names a wrong one."""
    defaults = defaults or Sampling()
    values: Dict[str, Any] = {}
    for name in _NAMES & set(body):
        default = getattr(defaults, name)
        if name in _NUMBERS:
            values[name] = fields.number(body, name, default, *_NUMBERS[name])
        elif name in _INTEGERS:
            values[name] = fields.integer(body, name, default, *_INTEGERS[name])
    values["ignore_eos"] = fields.flag(body, "ignore_eos", defaults.ignore_eos)
    values["grammar"] = fields.text(body, "grammar", defaults.grammar) if body.get("grammar") != "" else ""
    values["logit_bias"] = _logit_bias(body)
    if body.get("dry_sequence_breakers") is not None:
        breakers = fields.texts(body, "dry_sequence_breakers", BREAKERS, BREAKER_LENGTH)
        values["dry_sequence_breakers"] = tuple(breakers)
    return Sampling(**dict({each: getattr(defaults, each) for each in _NAMES}, **values))


def _logit_bias(body: Dict[str, Any]) -> Tuple[Tuple[int, float], ...]:
    """Read {"token id": bias} as OpenAI has it, or llama.cpp's [[token id, bias], …], where false is minus infinity."""
    given = body.get("logit_bias") or {}
    pairs = list(given.items()) if isinstance(given, dict) else given
    if not isinstance(pairs, list):
        raise _wrong_bias()
    LOGIT_BIAS.check(len(pairs), "logit_bias")
    return tuple(_bias(pair) for pair in pairs)


def _bias(pair: Any) -> Tuple[int, float]:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise _wrong_bias()
    token, bias = pair
    if isinstance(token, str) and _TOKEN.fullmatch(token):
        token = int(token)
    if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < _MOST:
        raise _wrong_bias()
    if bias is False:
        return token, float("-inf")
    if not isinstance(bias, (int, float)) or bias is True or not abs(bias) <= _LARGEST_BIAS:
        raise _wrong_bias()
    return token, float(bias)


_TOKEN = re.compile(r"[0-9]{1,10}", re.ASCII)
_LARGEST_BIAS = 1e30  # it is added to a float of 32 bits


def _wrong_bias() -> APIError:
    message = "'logit_bias' must map token ids to numbers, or be an array of [token id, number or false]."
    return APIError(400, message, "invalid_value", "logit_bias")
