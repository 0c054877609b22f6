"""The grammar of an answer that may or must call, or follow a schema, followed by llama.cpp itself."""

import ctypes
import json
import os
import sys

import llama_cpp
import pytest
from conftest import ROOT
from toolcalls import NOW, PLACE, WEATHER, tool

from core.chat.families import FAMILIES, GEMMA, HERMES, LLAMA, MISTRAL, QWEN_CODER, style_of
from core.chat.guided import Thinking, answer_grammar
from core.chat.syntaxes import Style
from core.chat.tools import read_tools
from core.errors import APIError
from core.grammar import gbnf, schema
from core.grammar.kept import Kept
from core.grammar.stacks import Stacks

SYNTAXES = [family.syntax for family in FAMILIES]
BY_NAME = {"ids": lambda syntax: syntax.name}
TRIP = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Where to?"},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "days": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "at": {"type": "object", "properties": {"hour": {"type": "integer"}}},
    },
    "required": ["city", "days"],
}


def forced(syntax=HERMES, thinking=False, **body):
    body = dict({"tools": [tool(parameters=PLACE), tool("now")], "tool_choice": "required"}, **body)
    return answer_grammar(Style(syntax), read_tools(body), None, Thinking.OPEN if thinking else Thinking.NONE)


def fits(grammar, text):
    """Whether a whole text follows a grammar, a character at a time."""
    stacks = Stacks(gbnf.read(grammar), {})
    for char in text:
        after = stacks.after(0, char.encode())
        if after is None:
            return False
        stacks.move(after)
    return stacks.may_end()


@pytest.fixture(scope="module")
def accepts():
    """Whether llama.cpp accepts a whole text by a grammar, in the demo model's tokens."""
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(os.fsencode(os.path.join(ROOT, "models", "demo.gguf")), params)
    vocab = llama_cpp.llama_model_get_vocab(model)

    def check(grammar, text):
        if "\u2581" in text:  # it means a blank in this vocabulary
            return fits(grammar, text)
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


@pytest.mark.parametrize("syntax", SYNTAXES, **BY_NAME)
def test_a_forced_answer_is_a_call_of_one_of_the_tools_and_nothing_else(syntax, accepts):
    grammar = forced(syntax)
    assert accepts(grammar, syntax.write([WEATHER])) and accepts(grammar, syntax.write([NOW]))
    assert not accepts(grammar, "Hello") and not accepts(grammar, "")
    assert not accepts(grammar, syntax.write([["nope", "{}"]]))
    assert not accepts(grammar, syntax.write([["get_weather", '{"town": "Oslo"}']]))
    assert not accepts(grammar, syntax.write([WEATHER]) + " Bye")


@pytest.mark.parametrize("syntax", SYNTAXES, **BY_NAME)
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


@pytest.mark.parametrize("syntax", SYNTAXES, **BY_NAME)
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_arguments_of_all_kinds_follow_their_schemas_in_every_form(syntax, choice, accepts):
    grammar = forced(syntax, tools=[tool(parameters=TRIP)], tool_choice=choice)

    def fits(**arguments):
        return accepts(grammar, syntax.write([["get_weather", json.dumps(arguments)]]))

    assert fits(city="Oslo", unit="C", days=3, tags=["a", "b"], at={"hour": 7}) and fits(city="Oslo", days=3)
    assert not fits(city="Oslo") and not fits(city="Oslo", days="x") and not fits(city="Oslo", unit="K", days=3)
    assert not fits(city="Oslo", days=3, tags=[1]) and not fits(city="Oslo", days=3, at={"hour": "7"})
    assert not fits(city="Oslo", days=3, more=1)


def free(syntax=HERMES, thinking=Thinking.POSSIBLE, **body):
    tools = read_tools(dict({"tools": [tool(parameters=PLACE), tool("now")]}, **body))
    return answer_grammar(Style(syntax), tools, None, thinking)


@pytest.mark.parametrize("syntax", SYNTAXES, **BY_NAME)
def test_a_free_answer_is_bound_where_a_call_begins(syntax, accepts):
    grammar, begin = free(syntax), "" if syntax.bare else "Hm. "
    for text in ("", "Hello.", "a < b {} [", "<think>Hm.</think>Hello."):
        assert accepts(grammar, text), text
    for text in (begin, "<think>" + syntax.opener + "</think>\n"):
        assert accepts(grammar, text + syntax.write([WEATHER])), text
        assert not accepts(grammar, text + syntax.write([["get_weather", '{"town": "Oslo"}']])), text
        assert not accepts(grammar, text + syntax.write([["nope", "{}"]])), text
    assert not accepts(grammar, "Hm. " + syntax.opener)
    calls = begin + syntax.write([WEATHER]) + "\n" + syntax.write([NOW])
    assert accepts(grammar, calls) == syntax.several
    assert not accepts(free(syntax, parallel_tool_calls=False), calls)


def test_without_an_opener_only_what_begins_as_a_call_does_is_bound(accepts):
    grammar = free(LLAMA)
    for call in ('{"name": "now", "parameters": {}}', ' { "type": "function", "name":"now","arguments":{ } }'):
        assert accepts(grammar, call) and accepts(grammar, "<think>Hm.</think>" + call)
    for text in ('{"answer": {"name": 1}}', "{", "{}", 'See: {"name": "nobody"}', "{{name}}"):
        assert accepts(grammar, text), text
    for text in ('{"name": "nobody", "parameters": {}}', '{ "name": "now", "parameters": {"a": 1}}', '{"name": "now"}'):
        assert not accepts(grammar, text), text


def test_with_a_schema_the_answer_is_a_call_or_follows_it(accepts):
    tools = read_tools({"tools": [tool(parameters=PLACE), tool("now")]})
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for thinking, before in ((Thinking.NONE, [""]), (Thinking.POSSIBLE, ["", "<think>{</think>\n"]),
                             (Thinking.OPEN, ["<tool_call></think>\n\n"])):  # fmt: skip
        grammar = answer_grammar(Style(HERMES), tools, schema, thinking)
        alone = answer_grammar(Style(HERMES), None, schema, thinking)
        for text in before:
            assert accepts(grammar, text + HERMES.write([WEATHER, NOW])) and accepts(grammar, text + '{"a": 1}')
            assert accepts(alone, text + '{"a": 1}') and not accepts(alone, text + HERMES.write([NOW]))
            for wrong in ("Hello", '{"a": "1"}', '{"a": 1}' + HERMES.write([NOW]), ""):
                assert not accepts(grammar, text + wrong) and not accepts(alone, text + wrong)


def test_what_must_follow_a_schema_comes_in_the_final_channel(accepts):
    style = style_of("<|channel|> to= functions.")
    grammar = answer_grammar(style, None, {"type": "integer"}, Thinking.POSSIBLE)
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    for text in ("", thought, thought + thought):
        assert accepts(grammar, text + "<|channel|>final<|message|>7") and not accepts(grammar, text + "7")


def test_a_text_in_tags_never_holds_the_tag_that_ends_it(accepts):
    schema = {"type": "string", "pattern": "^.*$", "maxLength": 40}
    for one in ({"type": "string"}, schema):
        parameters = {"type": "object", "properties": {"a": one}, "required": ["a"]}
        grammar = forced(QWEN_CODER, tools=[tool(parameters=parameters)])
        assert accepts(grammar, QWEN_CODER.write([["get_weather", '{"a": "x < y"}']]))
        assert not accepts(grammar, QWEN_CODER.write([["get_weather", '{"a": "x</parameter>y"}']]))


BROKEN = {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}


@pytest.mark.parametrize("syntax", [HERMES, QWEN_CODER, GEMMA], **BY_NAME)
def test_a_function_that_is_not_strict_may_have_parameters_that_no_grammar_can_follow(syntax, accepts):
    grammar = free(syntax, tools=[tool(parameters=BROKEN)])
    assert accepts(grammar, syntax.write([["get_weather", '{"a": "x", "b": 1}']]))
    assert not accepts(grammar, syntax.write([["nope", "{}"]]))
    with pytest.raises(APIError) as caught:
        free(syntax, tools=[tool(parameters=BROKEN, strict=True)])
    assert (caught.value.status, caught.value.param) == (400, "tools[0].function.parameters")


def test_as_many_tools_as_a_request_may_offer_make_a_grammar_that_can_be_read(accepts):
    names = {"type": "string", "enum": ["value-%d" % number for number in range(16)]}
    large = {"type": "object", "properties": {"member-%d" % number: names for number in range(30)}}
    tools = [tool("tool-%d" % number, parameters=large) for number in range(128)]
    grammar = free(tools=tools)
    assert accepts(grammar, HERMES.write([["tool-77", '{"member-3": "value-5"}']]))
    assert not accepts(grammar, HERMES.write([["tool-128", "{}"]]))


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
