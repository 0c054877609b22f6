"""Tool calls: what a request may ask for, the grammar that forces a call, and an answer taken apart as it comes."""

import ctypes
import itertools
import json
import os
import random

import llama_cpp
import pytest
from conftest import ROOT

from core.chat.tools import HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, AnswerParser, forced_grammar, read_tools, syntax_of
from core.errors import APIError

NAMES = ("get_weather", "now", "search-2")
PLACE = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def tool(name="get_weather", **more):
    return {"type": "function", "function": dict({"name": name}, **more)}


def pieces(text, seed):
    """Cut a text at random; seed 0 leaves it whole and seed 1 gives single characters."""
    rng, at = random.Random(seed), 0
    while at < len(text):
        size = len(text) if seed == 0 else 1 if seed == 1 else rng.randint(1, 9)
        yield text[at : at + size]
        at += size


def parse(text, syntax=HERMES, thinking=False, seed=0, names=NAMES):
    """Return an answer's reasoning, content and calls (each [name, arguments]), put together from its deltas."""
    ids = ("call_%d" % number for number in itertools.count())
    parser = AnswerParser(syntax, names, thinking, lambda: next(ids))
    deltas = [delta for piece in pieces(text, seed) for delta in parser.push(piece)] + parser.finish()
    reasoning = "".join(delta.reasoning for delta in deltas)
    content = "".join(delta.content for delta in deltas)
    calls = []
    for delta in deltas:
        assert bool(delta.reasoning) + bool(delta.content) + (delta.call is not None) == 1
        if delta.call is None:
            continue
        if delta.call.name:  # the first of a call, as OpenAI streams it
            assert (delta.call.index, delta.call.id) == (len(calls), "call_%d" % len(calls))
            assert delta.call.arguments == ""
            calls.append([delta.call.name, ""])
        else:
            assert delta.call.index == len(calls) - 1 and not delta.call.id
            calls[-1][1] += delta.call.arguments
    assert parser.calls == len(calls)
    return reasoning, content, calls


WEATHER = ["get_weather", '{"city": "Oslo"}']
NOW = ["now", "{}"]
H_WEATHER = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
H_NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
L_WEATHER = '{"name": "get_weather", "parameters": {"city": "Oslo"}}'
M_WEATHER = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'
NESTED = '{"a": [{"b": "}]{[\\"\\\\"}, 1, -2.5e+3, true, null], "c": {}, "ü": "\\u00fc \U0001f642"}'

# syntax (None: no tools), thinking, the answer, its reasoning, content and calls
ANSWERS = [
    # reasoning
    (None, False, "Hello", "", "Hello", []),
    (None, False, "  Hello ", "", "  Hello ", []),
    (None, False, "<think>\nHm.\n</think>\n\nHello", "Hm.", "Hello", []),
    (None, False, "\n <think>Hm. \n\n Yes.</think>Hello\n", "Hm. \n\n Yes.", "Hello\n", []),
    (None, False, "<think>\n\n</think>\n\nHello", "", "Hello", []),
    (None, False, "Hello <think>no</think>", "", "Hello <think>no</think>", []),
    (None, False, "<thin", "", "<thin", []),
    (None, False, " <b>", "", " <b>", []),
    (None, False, "", "", "", []),
    (None, True, "Hm.\n</think>\n\nHello", "Hm.", "Hello", []),
    (None, True, "\n<think>\nHm.</think>Hello", "Hm.", "Hello", []),
    (None, True, "Hm. a < b </thin", "Hm. a < b </thin", "", []),
    (None, True, "</think>Hello</think>", "", "Hello</think>", []),
    (None, False, H_NOW, "", H_NOW, []),
    # Hermes
    (HERMES, False, H_WEATHER, "", "", [WEATHER]),
    (HERMES, False, "  Let me see.\n\n" + H_WEATHER + "\n", "", "  Let me see.", [WEATHER]),
    (HERMES, False, H_WEATHER + "\n" + H_NOW, "", "", [WEATHER, NOW]),
    (HERMES, False, H_WEATHER + "\n\nDone. ", "", "Done. ", [WEATHER]),
    (HERMES, False, "<think>\nI call.\n</think>\n\n" + H_NOW, "I call.", "", [NOW]),
    (HERMES, True, "I could " + H_NOW + "</think>" + H_WEATHER, "I could " + H_NOW, "", [WEATHER]),
    (HERMES, False, H_NOW.replace("</tool_call>", "") + H_WEATHER, "", "", [NOW, WEATHER]),
    (HERMES, False, '<tool_call>{"arguments":{"city": "Oslo"},"name":"get_weather"}', "", "", [WEATHER]),
    (HERMES, False, '<tool_call>{"name": "now"}</tool_call>', "", "", [NOW]),
    (HERMES, False, '<tool_call>{"id": [1, {"name": "x"}], "name": "now", "parameters": {}, "more": 1}', "", "", [NOW]),
    (HERMES, False, '<tool_call>{"n\\u0061me": "n\\u006fw", "arguments": { } }</tool_call>', "", "", [["now", "{ }"]]),
    (HERMES, False, '<tool_call>{"name": "now", "arguments": %s}</tool_call>' % NESTED, "", "", [["now", NESTED]]),
    (HERMES, False, '<tool_call>{"name": "now", "arguments": {"a": "x\ny\t"}}', "", "", [["now", '{"a": "x\\ny\\t"}']]),
    # Llama
    (LLAMA, False, L_WEATHER, "", "", [WEATHER]),
    (LLAMA, False, "\n<|python_tag|>" + L_WEATHER, "", "", [WEATHER]),
    (LLAMA, False, L_WEATHER + "; " + L_WEATHER, "", "", [WEATHER, WEATHER]),
    (LLAMA, False, '{"type": "function", "name": "now", "parameters": {}}', "", "", [NOW]),
    (LLAMA, False, "<think>Hm.</think>\n" + L_WEATHER, "Hm.", "", [WEATHER]),
    (LLAMA, False, '{"answer": 42}', "", '{"answer": 42}', []),
    (LLAMA, False, '{"name": "Bob", "age": 3}', "", '{"name": "Bob", "age": 3}', []),
    (LLAMA, False, '{"name": "now", "age": 3}', "", '{"name": "now", "age": 3}', []),
    (LLAMA, False, " {no} " + L_WEATHER, "", " {no} " + L_WEATHER, []),
    (LLAMA, False, "It is " + L_WEATHER, "", "It is " + L_WEATHER, []),
    (LLAMA, False, "<|python_tag|>print(1)", "", "<|python_tag|>print(1)", []),
    # Mistral
    (MISTRAL, False, "[TOOL_CALLS][" + M_WEATHER + "]", "", "", [WEATHER]),
    (MISTRAL, False, "[TOOL_CALLS] [%s , %s]\nBye" % (M_WEATHER, M_WEATHER), "", "Bye", [WEATHER, WEATHER]),
    (MISTRAL, False, '[TOOL_CALLS][{"name": "now", "arguments": {}, "id": "abcdefghi"}]', "", "", [NOW]),
    (MISTRAL, False, "[TOOL_CALLS]" + M_WEATHER, "", "", [WEATHER]),
    (MISTRAL, False, 'Ok. [TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}', "", "Ok.", [WEATHER]),
    (MISTRAL_ARGS, False, "[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]search-2[ARGS] {}", "", "", [NOW, ["search-2", "{}"]]),
    (MISTRAL_ARGS, False, "[TOOL_CALLS]now[CALL_ID]abcdefghi[ARGS]{}", "", "", [NOW]),
    (MISTRAL_ARGS, False, "[TOOL_CALLS]nowhere[ARGS]{}", "", "[TOOL_CALLS]nowhere[ARGS]{}", []),
    (MISTRAL_ARGS, False, "[TOOL_CALLS]now[ARG]{}", "", "[TOOL_CALLS]now[ARG]{}", []),
    (MISTRAL_ARGS, False, "[TOOL_CALLS]no", "", "[TOOL_CALLS]no", []),
    (MISTRAL, False, "[TOOL_CALLS][]", "", "[TOOL_CALLS][]", []),
    (MISTRAL, False, "[TOOL_CALLS][{}, 1]", "", "[TOOL_CALLS][{}, 1]", []),
    # what only looks like a call is content
    (HERMES, False, "a <tool_call> is a tag", "", "a <tool_call> is a tag", []),
    (HERMES, False, H_NOW.replace("now", "nope"), "", H_NOW.replace("now", "nope"), []),
    (HERMES, False, H_NOW.replace('"now"', "7"), "", H_NOW.replace('"now"', "7"), []),
    (HERMES, False, H_NOW.replace("{}", '"x"'), "", H_NOW.replace("{}", '"x"'), []),
    (HERMES, False, "x <tool_call>{now}" + H_WEATHER, "", "x <tool_call>{now}", [WEATHER]),
    (HERMES, False, "<tool_call>" + H_NOW, "", "<tool_call>", [NOW]),
    (HERMES, False, "a < b <tool", "", "a < b <tool", []),
    (HERMES, False, 'x\n<tool_call>\n{"name": "now"', "", 'x\n<tool_call>\n{"name": "now"', []),
    (HERMES, False, "x\n<tool_call>\n", "", "x\n<tool_call>\n", []),
    (HERMES, False, "x \n", "", "x \n", []),
    # a call that was told of and then breaks or ends is told of as far as it came
    (HERMES, False, '<tool_call>{"name": "now", "arguments": {"a": "b', "", "", [["now", '{"a": "b']]),
    (HERMES, False, '<tool_call>{"name": "now", "arguments": {"a": oops}}</tool_call>k', "", "k", [["now", '{"a": ']]),
    (HERMES, False, '<tool_call>{"name": "now", "arguments": {]}}</tool_call>' + H_NOW, "", "", [["now", "{"], NOW]),
    (HERMES, False, '<tool_call>{"name": "now", "arguments": {}, oops}</tool_cal', "", "", [NOW]),
    (LLAMA, False, '{"name": "now", "parameters": {"a": 01}} {', "", "", [["now", '{"a": 01']]),
]  # fmt: skip


@pytest.mark.parametrize("syntax, thinking, answer, reasoning, content, calls", ANSWERS)
def test_an_answer_is_split_the_same_however_it_comes(syntax, thinking, answer, reasoning, content, calls):
    for seed in range(30):
        assert parse(answer, syntax, thinking, seed) == (reasoning, content, calls), "seed %d" % seed


def test_random_soups_of_markers_give_the_same_however_they_come():
    rng = random.Random(4)
    parts = [
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "[",
        "]",
        ",",
        "{",
        "}",
        '"',
        " ",
        "\n",
    ]
    parts += [
        "<|python_tag|>",
        "now",
        "[ARGS]",
        '{"name": "now", "arguments": ',
        '{"a": 1}',
        "{}",
        "\\",
        ":",
        "x",
        "<",
        "1",
    ]
    for number in range(1500):
        text = "".join(rng.choice(parts) for _ in range(rng.randint(1, 14)))
        syntax, thinking = rng.choice((None, HERMES, LLAMA, MISTRAL)), rng.random() < 0.3
        whole = parse(text, syntax, thinking, 0)
        assert parse(text, syntax, thinking, 1) == whole, text
        assert parse(text, syntax, thinking, number + 2) == whole, text


def test_arguments_of_a_complete_call_are_json_however_the_model_writes_them():
    rng = random.Random(5)

    def value(depth):
        kind = rng.randrange(7 if depth else 4)
        if kind >= 5:
            return {rng.choice('ab"\\{}é'): value(depth - 1) for _ in range(3)}
        if kind == 4:
            return [value(depth - 1) for _ in range(3)]
        return [
            rng.random() * 10 ** rng.randint(-9, 9),
            rng.choice((True, None, -3)),
            '"}{][\\/\n<tool_call>ß🙂',
            10**20,
        ][kind]

    for seed in range(200):
        arguments = {"a": value(4)}
        text = json.dumps(arguments, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, 2)))
        for syntax in (HERMES, LLAMA, MISTRAL, MISTRAL_ARGS):
            _, content, calls = parse(syntax.write([("now", text)]), syntax, seed=seed)
            assert (content, len(calls), calls[0][0]) == ("", 1, "now")
            assert json.loads(calls[0][1]) == arguments


def test_what_is_read_as_arguments_is_what_json_allows():
    rng = random.Random(6)
    texts = ['{"a": [1, -2.5e+3, "x\\u00e9\\n", true], "b": {"c": null, "": []}}', '{"k": "v"}', "{ }"]
    seen = set()
    for number in range(4000):
        text = list(rng.choice(texts))
        for _ in range(rng.randint(0, 2)):
            at = rng.randrange(len(text))
            text[at : at + rng.randint(0, 1)] = rng.choice(["", *'{}[]",:\\ue0-.1 tn\n'])
        text = "".join(text)
        try:
            expected = json.loads(text, strict=False)
        except ValueError:
            expected = None
        _, content, calls = parse("[TOOL_CALLS]now[ARGS]" + text, MISTRAL_ARGS, seed=number)
        try:
            got = None if content or not calls else json.loads(calls[0][1])
        except ValueError:
            got = None
        assert got == (expected if isinstance(expected, dict) else None), text
        seen.add(got is None)
    assert seen == {True, False}


def released(answer, syntax=HERMES, thinking=False):
    """What each character of an answer releases, as text."""
    parser = AnswerParser(syntax, NAMES, thinking, lambda: "id")
    shown = []
    for char in answer:
        deltas = parser.push(char)
        shown.append("".join(d.content or d.reasoning or d.call.name or d.call.arguments for d in deltas))
    return shown


def test_content_passes_at_once_unless_a_marker_may_begin():
    assert released("Hi <b> you") == ["H", "i", "", "", " <b", ">", "", " y", "o", "u"]
    assert released("Hi [b]", None) == ["H", "i", " ", "[", "b", "]"]
    assert released("Hi <T", None, True) == ["H", "i", "", "", " <T"]


def test_arguments_pass_as_they_come():
    text = '<tool_call>{"name": "now", "arguments": {"a": "bc"}}'
    assert released(text)[text.index('{"a"') :] == ["now{"] + list('"a": "bc"}') + [""]


def test_json_that_is_no_call_passes_from_its_first_key_on():
    assert released('{"answer": [1]}', LLAMA)[10:] == ["", '{"answer": [', "1", "]", "}"]


def test_a_deep_nest_is_no_trouble():
    deep = '{"a": ' + "[" * 50000 + "]" * 50000 + "}"
    assert parse(HERMES.write([("now", deep)]))[2] == [["now", deep]]
    text = '<tool_call>{"name": ' + "[" * 50000
    assert parse(text)[1] == text


# ------------------------------------------------------------------------------------------------ syntaxes


@pytest.mark.parametrize(
    "source, syntax",
    [
        ("{{ '<tool_call>' }}{% if tools %}", HERMES),
        ("", HERMES),
        ("{{ messages }}", HERMES),
        ('ipython {"name": function name, "parameters": dictionary}', LLAMA),
        ('<tool_call> ipython "parameters":', HERMES),
        ("{{- '[TOOL_CALLS][' }}", MISTRAL),
        ("{{- '[TOOL_CALLS]' + name + '[ARGS]' }}", MISTRAL_ARGS),
    ],
)
def test_a_template_tells_its_familys_syntax(source, syntax):
    assert syntax_of(source) is syntax


def test_markers_are_what_the_engine_must_show():
    assert set(HERMES.markers) == {"<tool_call>", "</tool_call>", "<think>", "</think>"}
    assert "<|python_tag|>" in LLAMA.markers
    assert {"[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"} < set(MISTRAL.markers) & set(MISTRAL_ARGS.markers)


@pytest.mark.parametrize("syntax", [HERMES, LLAMA, MISTRAL, MISTRAL_ARGS])
def test_what_a_syntax_writes_is_read_back(syntax):
    calls = [WEATHER, NOW][: 2 if syntax.several else 1]
    assert parse(syntax.write(calls), syntax) == ("", "", calls)


# --------------------------------------------------------------------------------------------------- tools


@pytest.mark.parametrize("body", [{}, {"tools": None}, {"tools": []}, {"tools": [], "tool_choice": "none"}])
def test_a_request_without_tools_has_none(body):
    assert read_tools(body) is None


def test_tools_are_given_what_templates_count_on():
    tools = read_tools({"tools": [tool("now", strict=True), tool(description="It rains.", parameters=PLACE)]})
    nothing = {"type": "object", "properties": {}}
    assert [each["function"] for each in tools.tools] == [
        {"name": "now", "description": "", "parameters": nothing},
        {"name": "get_weather", "description": "It rains.", "parameters": PLACE},
    ]
    assert (tools.choice, tools.name, tools.parallel, tools.names) == ("auto", "", True, ("now", "get_weather"))


@pytest.mark.parametrize(
    "choice, kind, name",
    [
        (None, "auto", ""),
        ("auto", "auto", ""),
        ("none", "none", ""),
        ("required", "required", ""),
        (tool("now"), "function", "now"),
    ],
)
def test_a_choice_is_a_kind_and_a_name(choice, kind, name):
    tools = read_tools({"tools": [tool(), tool("now")], "tool_choice": choice, "parallel_tool_calls": False})
    assert (tools.choice, tools.name, tools.parallel) == (kind, name, False)


@pytest.mark.parametrize(
    "body, param",
    [
        ({"tools": {}}, "tools"),
        ({"tools": [tool("f%d" % number) for number in range(129)]}, "tools"),
        ({"tools": [tool(), "now"]}, "tools[1]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [tool("a b")]}, "tools[0].function.name"),
        ({"tools": [tool("a\n")]}, "tools[0].function.name"),
        ({"tools": [tool("a" * 65)]}, "tools[0].function.name"),
        ({"tools": [tool(7)]}, "tools[0].function.name"),
        ({"tools": [tool(), tool("now"), tool()]}, "tools[2].function.name"),
        ({"tools": [tool(description=1)]}, "tools[0].function.description"),
        ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters"),
        ({"tools": [tool(parameters={"type": "string"})]}, "tools[0].function.parameters"),
        ({"tools": [tool()], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": 1}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": {"type": "custom"}}, "tool_choice.type"),
        ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": [tool()], "tool_choice": tool("x")}, "tool_choice.function.name"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [tool()], "parallel_tool_calls": "yes"}, "parallel_tool_calls"),
    ],
)  # fmt: skip
def test_wrong_tools_are_refused_by_name(body, param):
    with pytest.raises(APIError) as caught:
        read_tools(body)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert "'%s'" % param in caught.value.message


# ------------------------------------------------------------------------------------------------- grammar


def forced(syntax=HERMES, thinking=False, **body):
    body = dict({"tools": [tool(parameters=PLACE), tool("now")], "tool_choice": "required"}, **body)
    return forced_grammar(syntax, read_tools(body), thinking)


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
