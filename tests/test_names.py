"""Which spellings mean the same model."""

import pytest

from core.names import Names, check_alias, plain_name


@pytest.mark.parametrize("name", ["demo", "demo.gguf", "demo:latest", "demo.gguf:latest", "DEMO", "Demo.GGUF:Latest"])
def test_what_may_be_left_out_of_a_models_name_makes_no_difference(name):
    assert plain_name(name) == "demo"


@pytest.mark.parametrize("name", ["", ":latest", ".gguf", "A" * 5000])
def test_a_name_that_no_model_can_have_stays_as_it_is(name):
    assert plain_name(name) == name


def test_a_further_name_means_its_model_in_any_spelling():
    names = Names(["gpt-4o=big.gguf", "*=small.gguf"])
    assert names.real("GPT-4o:latest") == "big.gguf" and names.real("other") == "other"
    assert names.any_other == "small.gguf" and names.of("big.gguf") == ["gpt-4o"] and names.of("small.gguf") == []


def test_the_first_of_a_models_own_names_is_the_one_it_is_told_by():
    names = Names([], ["tiny", "code"], "stories.gguf")
    assert names.real("tiny") == names.real("code") == "stories.gguf"
    assert names.shown("stories.gguf") == "code" and names.shown("other.gguf") == "other.gguf"
    assert names.of("stories.gguf") == ["code", "tiny"]


@pytest.mark.parametrize("text", ["", "a", "=b", "a="])
def test_what_is_no_alias_is_refused(text):
    with pytest.raises(ValueError):
        check_alias(text)
