"""How tokens are chosen: every sampling parameter by its llama.cpp name, with its bounds, read from a JSON request.

The table below is the one place that knows them: their defaults switch a sampler off, except for temperature, top_k and
top_p, which are the project's own contract.
"""

import re
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from typing import Any, Dict, Iterable, Optional, Tuple, Union

from core import fields
from core.bounds import BIAS_LENGTH, BREAKER_LENGTH, BREAKERS, LOGIT_BIAS
from core.errors import APIError

RANDOM_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: llama.cpp would choose one itself, and nobody would know which
COLDEST = 1e-5  # below this temperature logits become too large for float32; the likeliest token is chosen
_MOST = 1 << 31

# llama.cpp's samplers by their names and letters, in the order in which they run (common.h, common_params_sampling).
SAMPLER_LETTERS = {
    "e": "penalties", "d": "dry", "s": "top_n_sigma", "k": "top_k", "y": "typ_p", "p": "top_p", "m": "min_p",
    "x": "xtc", "t": "temperature",
}  # fmt: skip
SAMPLERS = tuple(SAMPLER_LETTERS.values())
_OTHER_NAMES = {"nucleus": "top_p", "temp": "temperature", "typ": "typ_p", "typical_p": "typ_p"}
Bias = Tuple[Union[int, str], float]  # of a token by its id, or of all tokens of a text


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
    samplers: Tuple[str, ...] = SAMPLERS
    logit_bias: Tuple[Bias, ...] = ()
    ignore_eos: bool = False
    grammar: str = ""
    n_probs: int = 0
    post_sampling_probs: bool = False
    seed: int = -1

    @property
    def penalizes(self) -> bool:
        """Whether earlier tokens, the prompt's included, make a difference."""
        penalties = self.repeat_penalty != 1 or self.presence_penalty or self.frequency_penalty
        dry = self.dry_multiplier and "dry" in self.samplers
        return bool(dry or (self.repeat_last_n and penalties and "penalties" in self.samplers))

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < COLDEST and "temperature" in self.samplers

    @property
    def learns(self) -> bool:
        """Whether the choice of a token changes with what the model thought of the ones before it: mirostat's does."""
        return bool(self.mirostat) and not self.greedy


NUMBERS = {
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
INTEGERS = {
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
        if name in NUMBERS:
            values[name] = fields.number(body, name, default, *NUMBERS[name])
        elif name in INTEGERS:
            values[name] = fields.integer(body, name, default, *INTEGERS[name])
    for name in ("ignore_eos", "post_sampling_probs"):
        values[name] = fields.flag(body, name, getattr(defaults, name))
    values["grammar"] = fields.text(body, "grammar", defaults.grammar) if body.get("grammar") != "" else ""
    values["logit_bias"] = _logit_bias(body)
    if body.get("dry_sequence_breakers") is not None:
        breakers = fields.texts(body, "dry_sequence_breakers", BREAKERS, BREAKER_LENGTH)
        values["dry_sequence_breakers"] = tuple(breakers)
    if body.get("samplers") is not None:
        values["samplers"] = _samplers(body["samplers"])
    if (fields.number(body, "adaptive_target", -1.0, -1e6, 1.0) or -1.0) >= 0:
        raise APIError(400, "'adaptive_target' is not supported.", "unsupported", "adaptive_target")
    return Sampling(**dict({each: getattr(defaults, each) for each in _NAMES}, **values))


def samplers_named(names: Iterable[str]) -> Tuple[str, ...]:
    """Return samplers by llama.cpp's names, in all spellings that it knows, or by their letters. Raises ValueError."""
    plain = {name.replace("_", ""): name for name in SAMPLERS + tuple(_OTHER_NAMES)}
    found = []
    for name in names:
        known = SAMPLER_LETTERS.get(name) or plain.get(name.strip().replace("-", "_").replace("_", ""))
        if known is None:
            raise ValueError("%r is no sampler; there are %s" % (name[:40], ", ".join(SAMPLERS)))
        found.append(_OTHER_NAMES.get(known, known))
    return tuple(dict.fromkeys(found))


def _samplers(given: Any) -> Tuple[str, ...]:
    """Read an array of names, or a text of letters."""
    names = given if isinstance(given, (str, list)) else None
    if names is None or not all(isinstance(each, str) for each in names):
        message = "'samplers' must be an array of names, or a string of letters."
        raise APIError(400, message, "invalid_value", "samplers")
    try:
        return samplers_named(names)
    except ValueError as error:
        raise APIError(400, "'samplers': %s." % error, "invalid_value", "samplers")


def _logit_bias(body: Dict[str, Any]) -> Tuple[Bias, ...]:
    """Read {"token id or text": bias}, or llama.cpp's [[token id or text, bias], …], where false is minus infinity.

    In an object, a text of digits is a token's id, as OpenAI has it.
    """
    given = body.get("logit_bias") or {}
    named = isinstance(given, dict)
    pairs = list(given.items()) if named else given
    if not isinstance(pairs, list):
        raise _wrong_bias()
    LOGIT_BIAS.check(len(pairs), "logit_bias")
    return tuple(_bias(pair, named) for pair in pairs)


def _bias(pair: Any, named: bool) -> Bias:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise _wrong_bias()
    token, bias = pair
    if named and _TOKEN.fullmatch(token):
        token = int(token)
    if isinstance(token, str) and token:
        BIAS_LENGTH.check(len(token), "logit_bias")
    elif not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < _MOST:
        raise _wrong_bias()
    if bias is False:
        return token, float("-inf")
    if not isinstance(bias, (int, float)) or bias is True or not abs(bias) <= _LARGEST_BIAS:
        raise _wrong_bias()
    return token, float(bias)


_TOKEN = re.compile(r"-?[0-9]{1,10}", re.ASCII)
_LARGEST_BIAS = 1e30  # it is added to a float of 32 bits


def _wrong_bias() -> APIError:
    message = "'logit_bias' must map token ids or texts to numbers, or be an array of [id or text, number or false]."
    return APIError(400, message, "invalid_value", "logit_bias")
