"""How tokens are drawn: our own way, and llama.cpp's."""

import ctypes

import llama_cpp
import numpy
import pytest

from core.engine.draws import OwnDraws, TheirDraws

CANDIDATE = numpy.dtype([("id", "i4"), ("logit", "f4"), ("p", "f4")])  # llama_token_data
LOGITS = numpy.random.default_rng(1).standard_normal((40, 30)).astype(numpy.float32)
IDS = numpy.arange(30, dtype=numpy.int32)


def native(seed):
    """Return what llama.cpp draws, one after another."""
    sampler = llama_cpp.llama_sampler_init_dist(seed)
    chosen = []
    for logits in LOGITS:
        data = numpy.zeros(len(logits), CANDIDATE)
        data["id"], data["logit"] = IDS, logits
        pointer = data.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
        array = llama_cpp.llama_token_data_array(data=pointer, size=len(logits), selected=-1, sorted=False)
        llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
        chosen.append(array.selected)
    llama_cpp.llama_sampler_free(sampler)
    return chosen


@pytest.mark.parametrize("seed", [0, 42, 0xFFFFFFFE])
def test_their_draws_are_llama_cpps(seed):
    draws, chosen = TheirDraws(seed), []
    for number, logits in enumerate(LOGITS):
        draws.turn_to(number)
        chosen.append(draws.choose(IDS, logits))
    assert chosen == native(seed)


@pytest.mark.parametrize("kind", [OwnDraws, TheirDraws])
def test_a_draw_goes_by_its_number_whatever_was_drawn_before(kind):
    draws = kind(7)

    def draw(number):
        draws.turn_to(number)
        return draws.choose(IDS, LOGITS[number])

    forward = [draw(number) for number in range(40)]
    assert [draw(number) for number in reversed(range(40))] == forward[::-1]
    fresh = kind(7)
    fresh.turn_to(30)
    assert fresh.choose(IDS, LOGITS[30]) == forward[30]
