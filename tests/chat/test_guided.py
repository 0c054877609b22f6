"""The grammar that forces a call, followed by llama.cpp itself."""

import ctypes
import os
import sys

import llama_cpp
import pytest
from conftest import ROOT
from toolcalls import NOW, PLACE, WEATHER, tool

from core.chat.families import HERMES, LLAMA, MISTRAL, MISTRAL_ARGS
from core.chat.guided import Thinking, answer_grammar
from core.chat.syntaxes import Style
from core.chat.tools import read_tools
from core.errors import APIError
from core.grammar import schema
from core.grammar.kept import Kept


def forced(syntax=HERMES, thinking=False, **body):
    body = dict({"tools": [tool(parameters=PLACE), tool("now")], "tool_choice": "required"}, **body)
    return answer_grammar(Style(syntax), read_tools(body), None, Thinking.OPEN if thinking else Thinking.NONE)


@pytest.fixture(scope="module")
def accepts():
    """Whether llama.cpp accepts a whole text by a grammar, in the demo model's tokens."""
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(os.fsencode(os.path.join(ROOT, "models", "demo.gguf")), params)
    vocab = llama_cpp.llama_model_get_vocab(model)

    def check(grammar, text):
        sampler = llama_cpp.llama_sampler_init_grammar(vocab, grammar.encode("utf-8"), b"root")
        assert sampler, grammar
        raw = text.encode("utf-8")
        tokens = (llama_cpp.llama_token * (len(raw) + 1))()
        count = llama_cpp.llama_tokenize(vocab, raw, len(raw), tokens, len(tokens), False, False)
        try:
            return all(step(sampler, token) for token in list(tokens[:count]) + [llama_cpp.llama_vocab_eot(vocab)])
        finally:
            llama_cpp.llama_sampler_free(sampler)

    def step(sampler, token):
        only = llama_cpp.llama_token_data_array((llama_cpp.llama_token_data * 1)((token, 0.0, 0.0)), 1, -1, False)
        llama_cpp.llama_sampler_apply(sampler, ctypes.byref(only))
        if only.data[0].logit == float("-inf"):
            return False
        llama_cpp.llama_sampler_accept(sampler, token)
        return True

    yield check
    llama_cpp.llama_model_free(model)


@pytest.mark.parametrize("syntax", [HERMES, LLAMA, MISTRAL, MISTRAL_ARGS])
def test_a_forced_answer_is_a_call_of_one_of_the_tools_and_nothing_else(syntax, accepts):
    grammar = forced(syntax)
    assert accepts(grammar, syntax.write([WEATHER])) and accepts(grammar, syntax.write([NOW]))
    assert not accepts(grammar, "Hello") and not accepts(grammar, "")
    assert not accepts(grammar, syntax.write([["nope", "{}"]]))
    assert not accepts(grammar, syntax.write([["get_weather", '{"city": 7}']]))
    assert not accepts(grammar, syntax.write([WEATHER]) + " Bye")


@pytest.mark.parametrize("syntax", [HERMES, LLAMA, MISTRAL, MISTRAL_ARGS])
def test_further_calls_are_open_where_the_request_and_the_syntax_allow_them(syntax, accepts):
    calls = syntax.write([WEATHER, NOW, NOW])
    assert accepts(forced(syntax), calls) == syntax.several
    assert not accepts(forced(syntax, parallel_tool_calls=False), calls)


def test_a_named_choice_is_called_once_and_no_other(accepts):
    grammar = forced(tool_choice=tool("now"))
    assert accepts(grammar, HERMES.write([NOW]))
    assert not accepts(grammar, HERMES.write([WEATHER])) and not accepts(grammar, HERMES.write([NOW, NOW]))


def test_thoughts_come_before_a_forced_call_where_the_prompt_has_opened_them(accepts):
    call = HERMES.write([NOW])
    grammar = forced(thinking=True)
    for thought in ("", "Hm.", "a < b <</thin </thi<nk> \n<"):
        assert accepts(grammar, thought + "</think>\n\n" + call)
    assert not accepts(grammar, call) and not accepts(grammar, "Hm.</think>Hello") and not accepts(grammar, "Hm.")
    assert not accepts(forced(), "</think>" + call)


def test_forced_arguments_have_no_members_that_plain_parameters_do_not_name(accepts):
    more = HERMES.write([["get_weather", '{"city": "Oslo", "more": 1}']])
    assert not accepts(forced(), more) and not accepts(forced(), HERMES.write([["now", '{"a": 1}']]))
    for room in ({"additionalProperties": True}, {"required": ["city", "more"]}):
        assert accepts(forced(tools=[tool(parameters=dict(PLACE, **room))]), more)


def test_parameters_that_no_grammar_can_follow_are_refused_with_their_place():
    broken = {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}
    with pytest.raises(APIError) as caught:
        forced(tools=[tool(), tool("now", parameters=broken)])
    assert (caught.value.status, caught.value.param) == (400, "tools[1].function.parameters")


# ------------------------------------------------------------------------------------- the next request


@pytest.fixture
def conversions(monkeypatch):
    """The names of the schemas that are converted, from an empty store on."""
    seen = []
    convert = schema.Grammar.schema
    monkeypatch.setattr(
        schema.Grammar, "schema", lambda self, what, name="value": [seen.append(name), convert(self, what, name)][1]
    )
    monkeypatch.setattr(schema, "_KEPT_TEXTS", Kept(1 << 20, sys.getsizeof))
    return seen


def test_the_same_tools_are_not_converted_again_with_the_next_turn(conversions):
    first = forced()
    assert forced() is first and conversions == ["arguments-0", "arguments-1"]
    described = [tool(parameters=PLACE, description="It rains."), tool("now", description="What time is it?")]
    assert forced(tools=described) is first  # a grammar has no use for descriptions


def test_whatever_the_request_asks_for_otherwise_makes_another_grammar(conversions):
    turned = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}, "at": {}}}
    again = {"type": "object", "required": ["city"], "properties": {"at": {}, "city": {"type": "string"}}}
    ways = [
        lambda: forced(),
        lambda: forced(LLAMA),
        lambda: forced(MISTRAL),
        lambda: forced(thinking=True),
        lambda: forced(parallel_tool_calls=False),
        lambda: forced(tool_choice=tool("now")),
        lambda: forced(tool_choice=tool()),
        lambda: forced(tools=[tool("now"), tool(parameters=PLACE)]),
        lambda: forced(tools=[tool(parameters=PLACE)]),
        lambda: forced(tools=[tool("other", parameters=PLACE), tool("now")]),
        lambda: forced(tools=[tool(parameters=turned)]),
        lambda: forced(tools=[tool(parameters=again)]),
    ]
    first = [way() for way in ways]
    assert len(set(first)) == len(ways)
    assert [way() for way in ways] == first


def test_refused_parameters_are_refused_again(conversions):
    for _ in range(2):
        with pytest.raises(APIError):
            forced(tools=[tool(parameters={"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}})])
    assert conversions == ["arguments-0"] * 2
