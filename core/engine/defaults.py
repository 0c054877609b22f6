"""What a server does where a request does not say: the options that llama-server's command lines have for it.

    SamplingSettings     the options; None where each API keeps its own default
    Defaults.of          what they come to, for requests to begin with
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any, Dict, Optional, Tuple

from core.ask import UNLIMITED
from core.options import between, setting
from core.sampling import INTEGERS, NUMBERS, SAMPLER_LETTERS, SAMPLERS, Sampling, samplers_named


def _number(name: str, help: str, *flags: str, **how: Any) -> Any:
    """Return the setting of a sampler's number, with the bounds that it has in a request."""
    if name in INTEGERS:
        check = between(*INTEGERS[name])
    else:
        check = between(*NUMBERS[name], float)
    return setting(None, help, "sampling, where a request does not say", flags=flags, check=check, metavar="N", **how)


def _samplers(text: str) -> str:
    """Check --samplers: names with semicolons between. Raises ValueError."""
    samplers_named(text.split(";"))
    return text


def _letters(text: str) -> str:
    """Check --sampler-seq: a letter for each sampler. Raises ValueError."""
    samplers_named(text)
    return text


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are chosen, and how many, where a request does not say."""

    temperature: Optional[float] = _number(
        "temperature", "temperature; 0 takes the likeliest token", "--temp", variables=("LLAMA_ARG_TEMPERATURE",)
    )
    top_k: Optional[int] = _number(
        "top_k", "choose among so many of the likeliest; 0 for all", variables=("LLAMA_ARG_TOP_K",)
    )
    top_p: Optional[float] = _number(
        "top_p", "choose among the likeliest that together have this probability", variables=("LLAMA_ARG_TOP_P",)
    )
    min_p: Optional[float] = _number(
        "min_p", "least probability, relative to the likeliest token's", variables=("LLAMA_ARG_MIN_P",)
    )
    seed: Optional[int] = _number("seed", "the same seed gives the same answer; -1 for a random one", "-s")
    n_predict: Optional[int] = setting(
        None, "most tokens of an answer to a request that names no number; -1 for no limit",
        "sampling, where a request does not say", flags=("--predict", "-n"), check=between(-1, UNLIMITED), metavar="N",
        variables=("LLAMA_ARG_N_PREDICT",),
    )  # fmt: skip
    top_n_sigma: Optional[float] = _number("top_n_sigma", "keep logits so many deviations from the top", "--top-nsigma")
    typical_p: Optional[float] = _number("typical_p", "locally typical sampling; 1 for none", "--typical")
    xtc_probability: Optional[float] = _number("xtc_probability", "chance that the likeliest tokens are left out")
    xtc_threshold: Optional[float] = _number("xtc_threshold", "probability from which on XTC leaves out")
    repeat_last_n: Optional[int] = _number("repeat_last_n", "tokens that penalties look back at; -1 for all")
    repeat_penalty: Optional[float] = _number("repeat_penalty", "penalty for repeated tokens; 1 for none")
    presence_penalty: Optional[float] = _number("presence_penalty", "penalty for tokens that were there")
    frequency_penalty: Optional[float] = _number("frequency_penalty", "the same, times how often")
    dry_multiplier: Optional[float] = _number("dry_multiplier", "penalty for repeated sequences (DRY); 0 for none")
    dry_base: Optional[float] = _number("dry_base", "DRY's base")
    dry_allowed_length: Optional[int] = _number("dry_allowed_length", "longest sequence that DRY lets repeat")
    dry_penalty_last_n: Optional[int] = _number("dry_penalty_last_n", "tokens that DRY looks back at; -1 for all")
    dry_sequence_breaker: Tuple[str, ...] = setting(
        (), "a text that ends a sequence for DRY, in place of the usual ones; repeatable; none for no such text",
        "sampling, where a request does not say", many=True, metavar="TEXT",
    )  # fmt: skip
    dynatemp_range: Optional[float] = _number("dynatemp_range", "range of the temperature; 0 for a fixed one")
    dynatemp_exponent: Optional[float] = _number("dynatemp_exponent", "its exponent", "--dynatemp-exp")
    mirostat: Optional[int] = _number("mirostat", "Mirostat: 0 for none, 1, or 2 for 2.0")
    mirostat_tau: Optional[float] = _number("mirostat_tau", "its target", "--mirostat-ent")
    mirostat_eta: Optional[float] = _number("mirostat_eta", "its rate", "--mirostat-lr")
    ignore_eos: bool = setting(
        False, "do not let the model end its answers", "sampling, where a request does not say"
    )
    samplers: str = setting(
        "", "samplers in their order, of " + ";".join(SAMPLERS), "sampling, where a request does not say",
        check=_samplers, metavar="NAMES",
    )  # fmt: skip
    sampler_seq: str = setting(
        "", "the same by letters, of " + "".join(SAMPLER_LETTERS), "sampling, where a request does not say",
        flags=("--sampling-seq",), check=_letters, metavar="LETTERS",
    )  # fmt: skip
    cache_prompt: bool = setting(
        True, "reuse what was evaluated of a prompt's beginning", "engine", off=("--no-cache-prompt",),
        variables=("LLAMA_ARG_CACHE_PROMPT",),
    )  # fmt: skip


@dataclass(frozen=True)
class Defaults:
    """What requests begin with. `sampling` are the parameters that options name; `most_tokens` None where each API
    has its own number."""

    sampling: Dict[str, Any] = field(default_factory=dict)
    most_tokens: Optional[int] = None
    cache_prompt: bool = True
    verbose: bool = False

    @classmethod
    def of(cls, settings: Any, verbose: bool = False) -> "Defaults":
        """Return what SamplingSettings come to."""
        names = {each.name for each in fields(Sampling)} & {each.name for each in fields(SamplingSettings)}
        given = {name: getattr(settings, name) for name in names - {"samplers"}}
        given = {name: value for name, value in given.items() if value is not None}
        if settings.samplers or settings.sampler_seq:
            given["samplers"] = samplers_named(settings.sampler_seq or settings.samplers.split(";"))
        breakers = settings.dry_sequence_breaker
        if breakers:
            given["dry_sequence_breakers"] = () if breakers == ("none",) else breakers
        limit = settings.n_predict
        return cls(given, UNLIMITED if limit is not None and limit < 0 else limit, settings.cache_prompt, verbose)

    def over(self, own: Sampling) -> Sampling:
        """Return an API's own parameters, with those in their place that options name."""
        return replace(own, **self.sampling)

    def limit(self, own: int) -> int:
        """Return how many tokens an answer gets where the request names no number, and its API says `own`."""
        return own if self.most_tokens is None else self.most_tokens
