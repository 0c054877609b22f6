"""A request's samplers in a row, and the chance that they draw by."""

import ctypes
import math
from typing import Any, List, Optional, Tuple, Union
from typing import Sequence as Many

import llama_cpp
import numpy

from core.engine.draws import OwnDraws, TheirDraws, draw_seed
from core.engine.likeliest import likeliest
from core.engine.llama.context import Context
from core.engine.llama.model import Model
from core.engine.llama.samplers import make_samplers, make_xtc
from core.sampling import Sampling

FEW = 1024  # tokens; to find more takes longer than llama.cpp takes for all


class Chain:
    """A request's samplers in a row (llama_sampler_chain), in the request's order.

    The last one draws by chance, by a key that is set for each token (draws.py): so a choice depends on no choice
    before it. XTC draws, too, with a generator of its own: it is made anew for each token. Mirostat is the exception,
    since it learns as it draws.

    Where few of the likeliest tokens count, and nothing but penalties comes before (`narrow`), the chain is given those
    alone, and the tokens that penalties may know: for 151,936 tokens it takes a half to a third of the time.

    `left` are the ids and the probabilities of the tokens that choose() has left to choose from, where the request
    wants to know (post_sampling_probs).
    """

    def __init__(self, model: Model, sampling: Sampling, seed: int, longest: int):
        """`longest` is how many tokens the context holds: nothing looks back further."""
        self._sampling = sampling
        self._seed = seed
        self._draw: Optional[_Draw] = None
        self._number = -1  # of the token that the next choice is for
        self._xtc_at = -1  # where XTC stands in the chain; -1 where it does not
        self.left: Tuple[Any, Any] = (numpy.zeros(0), numpy.zeros(0))
        # For each token, whether penalties may know it
        self._known = numpy.zeros(model.vocabulary, bool) if sampling.penalizes else None
        self._pointer = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        made = make_samplers(model, sampling, seed, longest)
        self._most = _most(sampling, list(made))
        self._add(list(made.values()))
        if not sampling.greedy and not sampling.mirostat:
            self._xtc_at = list(made).index("xtc") if "xtc" in made else -1
            self._draw = _Draw(model.draws(seed))
            self._add([self._draw.sampler])

    @property
    def narrow(self) -> bool:
        """Whether choose() looks at few tokens, and so is faster than sample()."""
        return self._most > 0

    def turn_to(self, number: int) -> None:
        """Make ready for the choice of the generated token number `number`, counted from 0."""
        if self._draw and number != self._number:
            self._draw.turn_to(number)
            if self._xtc_at >= 0:
                self._renew_xtc(draw_seed(self._seed, 2 * number + 1))
            self._number = number

    def _renew_xtc(self, seed: int) -> None:
        """Put a new XTC sampler in the old one's place; those after it stay."""
        at = self._xtc_at
        llama_cpp.llama_sampler_free(llama_cpp.llama_sampler_chain_remove(self._pointer, at))
        after = []
        while llama_cpp.llama_sampler_chain_n(self._pointer) > at:
            after.append(llama_cpp.llama_sampler_chain_remove(self._pointer, at))
        self._add([make_xtc(self._sampling, seed)] + after)

    def _add(self, samplers: Many[Any]) -> None:
        for sampler in samplers:
            llama_cpp.llama_sampler_chain_add(self._pointer, sampler)

    def sample(self, context: Context, row: int) -> int:
        """Choose from a row's logits as they are, and accept the choice (llama_sampler_sample). For chains not narrow.

        llama.cpp ends the process where no token is left to choose; cuts alone always leave one.
        """
        return llama_cpp.llama_sampler_sample(self._pointer, context.pointer, row)

    def choose(self, logits: Any) -> Optional[int]:
        """Choose from logits, an array of float32; None where the chain leaves none. Accepts nothing."""
        ids = self._candidates(logits) if self.narrow else numpy.arange(len(logits))
        candidates = _Candidates(ids, logits[ids])
        token = candidates.choose(self._pointer)
        if self._sampling.post_sampling_probs:
            one = token is not None and self._sampling.greedy
            self.left = (numpy.array([token]), numpy.ones(1)) if one else candidates.left()
        return token

    def _candidates(self, logits: Any) -> Any:
        """Return the tokens that may be chosen: those that penalties may change, and the likeliest of the others."""
        if self._known is None:
            return likeliest(logits, self._most)
        others = numpy.where(self._known, numpy.float32(-math.inf), logits)
        may_come = self._known.copy()
        may_come[likeliest(others, self._most)] = True
        return numpy.flatnonzero(may_come)

    def accept(self, token: int) -> None:
        """Let penalties count a token (llama_sampler_accept)."""
        llama_cpp.llama_sampler_accept(self._pointer, token)
        if self._known is not None:
            self._known[token] = True

    def close(self) -> None:
        """Free the chain and its samplers."""
        llama_cpp.llama_sampler_free(self._pointer)


def _most(sampling: Sampling, order: List[str]) -> int:
    """Return how many of the likeliest tokens the first sampler after the penalties leaves; 0: perhaps many."""
    first = next((name for name in order if name not in ("penalties", "dry")), "")
    most = {"greedy": 1, "top_k": sampling.top_k}.get(first, 0)
    return most if most <= FEW else 0


class _Draw:
    """A sampler that chooses by chance, as draws.py has it, in place of llama.cpp's own (llama_sampler_init_dist)."""

    def __init__(self, draws: Union[OwnDraws, TheirDraws]):
        self.turn_to = draws.turn_to

        def apply(_sampler: Any, candidates: Any) -> None:  # a llama_token_data_array
            array = candidates.contents
            data = numpy.frombuffer(ctypes.string_at(array.data, array.size * _CANDIDATE.itemsize), _CANDIDATE)
            array.selected = draws.choose(data["id"], data["logit"])

        # C holds only the addresses of these:
        self._interface = llama_cpp.llama_sampler_i()
        self._interface.name = llama_cpp.llama_sampler_i_name(lambda _: b"draw")
        self._interface.apply = llama_cpp.llama_sampler_i_apply(apply)
        self.sampler = llama_cpp.llama_sampler_init(ctypes.byref(self._interface), None)


_CANDIDATE = numpy.dtype([("id", "i4"), ("logit", "f4"), ("p", "f4")])  # llama_token_data


class _Candidates:
    """A llama_token_data_array: tokens and their logits, for samplers to cut down and choose from."""

    def __init__(self, ids: Any, logits: Any):
        self._data = numpy.zeros(len(logits), dtype=_CANDIDATE)
        self._data["id"] = ids
        self._data["logit"] = logits
        array_type = llama_cpp.llama_token_data_array
        data = self._data.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
        self._array = array_type(data=data, size=len(logits), selected=-1, sorted=False)

    def choose(self, chain: Any) -> Optional[int]:
        """Apply a chain and return the token that it selects; None if it leaves none with a finite logit."""
        llama_cpp.llama_sampler_apply(chain, ctypes.byref(self._array))
        selected = self._array.selected
        if not 0 <= selected < self._array.size or not math.isfinite(self._array.data[selected].logit):
            return None
        return int(self._array.data[selected].id)

    def left(self) -> Tuple[Any, Any]:
        """Return the ids of the tokens that the chain has left, and their probabilities."""
        size = self._array.size * _CANDIDATE.itemsize
        data = numpy.frombuffer(ctypes.string_at(self._array.data, size), _CANDIDATE)
        weights = numpy.exp(data["logit"].astype(numpy.float64) - data["logit"].max())
        return data["id"], weights / weights.sum()
