"""Chance without a memory: a draw depends on the request's seed, the token's number in the answer, and nothing else.

Each candidate gets a luck of its own, made of seed, number and its id; the one with the largest sum of logit and luck
is chosen. With luck from a Gumbel distribution that draws each by its probability (the Gumbel-max trick). So neither
earlier choices matter, nor the order of the candidates. Where rounding swaps two that are as likely, or changes a
logit's last digits, nearly always the same one is chosen: an answer that another process carries on goes on the same.

    OwnDraws      these
    TheirDraws    llama.cpp's own (llama_sampler_dist_apply): the same seed gives llama-server's text. A draw goes by
                  seed and number here, too, but the order and the rounding of all candidates matter
"""

from typing import Any

import numpy

from core.sampling import RANDOM_SEED

_64_BITS = (1 << 64) - 1
_MULTIPLIERS = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # splitmix64's
_STEP, _FIRST, _SECOND = (numpy.uint64(multiplier) for multiplier in _MULTIPLIERS)
_30, _27, _31, _11 = (numpy.uint64(bits) for bits in (30, 27, 31, 11))


def draw_key(seed: int, number: int) -> int:
    """Return what one draw goes by, a number of 64 bits: splitmix64 of a request's seed and a token's number."""
    step, first, second = _MULTIPLIERS
    mixed = ((seed << 32) + number) * step & _64_BITS
    mixed = (mixed ^ mixed >> 30) * first & _64_BITS
    mixed = (mixed ^ mixed >> 27) * second & _64_BITS
    return mixed ^ mixed >> 31


def draw_seed(seed: int, number: int) -> int:
    """Return a seed for a sampler of llama.cpp's that draws once, and is made for one token."""
    return draw_key(seed, number) % RANDOM_SEED


def lucky(key: int, ids: Any, logits: Any) -> int:
    """Return the index of the candidate that a draw chooses; `ids` and `logits` are arrays of the same size."""
    mixed = ids.astype(numpy.uint64) * _STEP + numpy.uint64(key)
    mixed = (mixed ^ (mixed >> _30)) * _FIRST
    mixed = (mixed ^ (mixed >> _27)) * _SECOND
    mixed ^= mixed >> _31
    share = ((mixed >> _11).astype(numpy.float64) + 0.5) * 2.0**-53  # above 0 and below 1
    return int((logits - numpy.log(-numpy.log(share))).argmax())


class OwnDraws:
    """The draws of one answer."""

    def __init__(self, seed: int):
        self._seed = seed
        self._key = 0

    def turn_to(self, number: int) -> None:
        """Make ready for the draw of the generated token number `number`, counted from 0."""
        self._key = draw_key(self._seed, 2 * number)

    def choose(self, ids: Any, logits: Any) -> int:
        """Return the index of the candidate that is drawn."""
        return lucky(self._key, ids, logits)


class TheirDraws:
    """The draws of one answer as llama.cpp makes them: a Mersenne Twister, two of its numbers for each draw."""

    def __init__(self, seed: int):
        self._seed = seed
        self._twister = numpy.random.RandomState(seed)
        self._next = 0  # the number of the draw that the twister is ready for
        self._share = 0.0

    def turn_to(self, number: int) -> None:
        """Make ready for the draw of the generated token number `number`, counted from 0."""
        if number < self._next:
            self._twister, self._next = numpy.random.RandomState(self._seed), 0
        if number > self._next:  # numpy takes a number even for no bytes
            self._twister.bytes(8 * (number - self._next))
        low, high = numpy.frombuffer(self._twister.bytes(8), "<u4").tolist()
        self._share = (low + high * 2.0**32) / 2.0**64  # as std::uniform_real_distribution<double> has it
        self._next = number + 1

    def choose(self, ids: Any, logits: Any) -> int:
        """Return the index of the candidate that is drawn."""
        sums = numpy.exp(logits - logits.max()).cumsum(dtype=numpy.float64)
        return min(int(numpy.searchsorted(sums, sums[-1] * self._share)), len(sums) - 1)
