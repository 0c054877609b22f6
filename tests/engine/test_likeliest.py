"""The likeliest tokens, found without sorting."""

import numpy
import pytest

from core.engine.likeliest import ROWS, likeliest


@pytest.mark.parametrize("size", [1, 5, ROWS, 1000, 32 * ROWS, 32 * ROWS + 1, 33 * ROWS - 1, 151936])
@pytest.mark.parametrize("count", [1, 5, 15, 16, 40, 1024])
def test_they_are_those_that_sorting_finds(size, count):
    logits = numpy.random.default_rng(size * count).standard_normal(size).astype(numpy.float32)
    assert set(likeliest(logits, count)) == set(numpy.argsort(-logits)[:count])


def test_they_are_found_wherever_they_stand():
    for place in (0, 63, 64, 5000, 9998, 9999):
        logits = numpy.full(10000, -numpy.inf, numpy.float32)
        logits[place] = -1e9
        assert list(likeliest(logits, 1)) == [place]


def test_of_equals_as_many_come_as_were_asked_for():
    assert len(set(likeliest(numpy.zeros(10000, numpy.float32), 40))) == 40
