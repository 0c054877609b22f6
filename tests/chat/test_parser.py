"""An answer, taken apart as it comes: reasoning, content and tool calls, whatever the pieces it comes in."""

import json
import random

import pytest
from toolcalls import NAMES, NOW, WEATHER, parse

from core.chat.families import HERMES, LLAMA, MISTRAL, MISTRAL_ARGS
from core.chat.parser import AnswerParser, Offer
from core.chat.syntaxes import Style

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
    offer = Offer(dict.fromkeys(NAMES, frozenset())) if syntax else None
    parser = AnswerParser(Style(syntax or HERMES), offer, thinking, lambda: "id")
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


def test_thoughts_may_stay_in_the_content():
    text = "<think>\nHm.\n</think>\n\n" + H_WEATHER
    for thinking, said in ((False, text), (True, text[len("<think>") :])):
        offer = Offer(dict.fromkeys(NAMES, frozenset()))
        for size in (1, 5, 100):
            parser = AnswerParser(Style(HERMES), offer, thinking, lambda: "id", apart=False)
            deltas = [each for at in range(0, len(said), size) for each in parser.push(said[at : at + size])]
            deltas += parser.finish()
            assert not any(delta.reasoning for delta in deltas) and parser.calls == 1
            assert "".join(delta.content for delta in deltas) == said[: said.index("\n\n<tool_call>")]
