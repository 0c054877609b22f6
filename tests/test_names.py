"""Which spellings mean the same model."""

import pytest

from core.names import plain_name


@pytest.mark.parametrize("name", ["demo", "demo.gguf", "demo:latest", "demo.gguf:latest", "DEMO", "Demo.GGUF:Latest"])
def test_what_may_be_left_out_of_a_models_name_makes_no_difference(name):
    assert plain_name(name) == "demo"


@pytest.mark.parametrize("name", ["", ":latest", ".gguf", "A" * 5000])
def test_a_name_that_no_model_can_have_stays_as_it_is(name):
    assert plain_name(name) == name
