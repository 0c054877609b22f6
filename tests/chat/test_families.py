"""How families of models write answers: told by their templates, and read back as their templates write calls."""

import glob
import json
import os

import pytest
from toolcalls import NOW, WEATHER, parse, tool

from core.chat import families
from core.chat.families import FAMILIES, HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, style_of
from core.chat.syntaxes import Style
from core.chat.template import ChatTemplate

SYNTAXES = {family.syntax.name: family.syntax for family in FAMILIES}
# What the makers' templates make of a message that calls get_weather, and then now where the family calls twice.
WRITTEN = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>\n<tool_call>\n'
    '{"name": "now", "arguments": {}}\n</tool_call>',
    "llama": '{"name": "get_weather", "parameters": {"city": "Oslo"}}',
    "mistral": '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Oslo"}, "id": "call00001"}, '
    '{"name": "now", "arguments": {}, "id": "call00002"}]',
    "mistral-args": '[TOOL_CALLS]get_weather[CALL_ID]call00001[ARGS]{"city": "Oslo"}'
    "[TOOL_CALLS]now[CALL_ID]call00002[ARGS]{}",
    "granite": '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Oslo"}}, '
    '{"name": "now", "arguments": {}}]',
    "phi": '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Oslo"}}, {"name": "now", "arguments": {}}]'
    "<|/tool_call|>",
    "apriel": '<tool_calls>[{"name": "get_weather", "arguments": {"city": "Oslo"}}, '
    '{"name": "now", "arguments": {}}]</tool_calls>',
    "nemotron": '<TOOLCALL>[{"name": "get_weather", "arguments": {"city": "Oslo"}}, '
    '{"name": "now", "arguments": {}}]</TOOLCALL>',
    "firefunction": ' functools[{"name": "get_weather", "arguments": {"city": "Oslo"}}, '
    '{"name": "now", "arguments": {}}]',
    "command": '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "get_weather", "parameters": '
    '{"city": "Oslo"}},\n    {"tool_call_id": "1", "tool_name": "now", "parameters": {}}\n]<|END_ACTION|>',
    "command-plus": '\nAction:\n```json\n[\n    {\n        "tool_name": "get_weather",\n        "parameters": {\n'
    '            "city": "Oslo"\n        }\n    },\n    {\n        "tool_name": "now",\n        "parameters": {}\n'
    "    }\n]```\n",
    "minimax-lines": '<tool_calls>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n'
    '{"name": "now", "arguments": {}}\n</tool_calls>',
    "gigachat": '<|function_call|>{"name": "get_weather", "arguments": {"city": "Oslo"}}',
    "gigachat-3": '<|message_sep|>\n\nfunction call<|role_sep|>\n'
    '{"name": "get_weather", "arguments": {"city": "Oslo"}}',
    "kimi-3": '<|open|>tools<|sep|><|open|>call tool="get_weather" index="1"<|sep|><|open|>argument key="city" '
    'type="string"<|sep|>Oslo<|close|>argument<|sep|><|close|>call<|sep|><|open|>call tool="now" index="2"<|sep|>'
    "<|close|>call<|sep|><|close|>tools<|sep|>",
    "lfm": "<|tool_call_start|>[get_weather(city='Oslo'), now()]<|tool_call_end|>",
    "kimi": "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
    '{"city": "Oslo"}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}'
    "<|tool_call_end|><|tool_calls_section_end|>",
    "deepseek-r1": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
    '{"city": "Oslo"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```'
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek-v3.1": '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Oslo"}'
    "<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "harmony": "<|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>"
    '{"city": "Oslo"}<|call|>',
    "functionary": '<function=get_weather>{"city": "Oslo"}</function><function=now>{}</function>',
    "apertus": '<|tools_prefix|>[{"get_weather": {"city": "Oslo"}}, {"now": {}}]<|tools_suffix|>',
    "solar": "<|tool_calls|><|tool_call:begin|>call00001<|tool_call:name|>get_weather<|tool_call:args|>"
    '{"city": "Oslo"}<|tool_call:end|><|tool_call:begin|>call00002<|tool_call:name|>now<|tool_call:args|>{}'
    "<|tool_call:end|><|calls|>",
    "qwen-coder": "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n"
    "</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
    "seed": "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Oslo</parameter>\n</function>\n</seed:tool_call>"
    "\n<seed:tool_call>\n<function=now>\n</function>\n</seed:tool_call>",
    "glm": "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>\n"
    "<tool_call>now\n</tool_call>",
    "glm-line": "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Oslo</arg_value></tool_call>"
    "<tool_call>now</tool_call>",
    "minimax": '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Oslo</parameter>\n</invoke>\n'
    '<invoke name="now">\n</invoke>\n</minimax:tool_call>',
    "deepseek-v3.2": '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" '
    'string="true">Oslo</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name="now">\n</｜DSML｜invoke>\n'
    "</｜DSML｜function_calls>",
    "deepseek-v4": '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" '
    'string="true">Oslo</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name="now">\n\n</｜DSML｜invoke>\n'
    "</｜DSML｜tool_calls>",
    "minicpm": '<function name="get_weather"><param name="city">Oslo</param></function>\n'
    '<function name="now"></function>',
    "hunyuan": "<tool_calls:opensource>\n<tool_call:opensource>get_weather<tool_sep:opensource>\n"
    "<arg_key:opensource>city</arg_key:opensource>\n<arg_value:opensource>Oslo</arg_value:opensource>\n"
    "</tool_call:opensource>\n<tool_call:opensource>now<tool_sep:opensource>\n</tool_call:opensource>\n"
    "</tool_calls:opensource>",
    "gemma": '<|tool_call>call:get_weather{city:<|"|>Oslo<|"|>}<tool_call|><|tool_call>call:now{}<tool_call|>',
    "function-gemma": "<start_function_call>call:get_weather{city:<escape>Oslo<escape>}<end_function_call>"
    "<start_function_call>call:now{}<end_function_call>",
}
# Values that are hard to write: with quotes, tags, line breaks and what JSON has words for.
HARD = {"city": 'a "b"\n<c>\\n{d} </e>\n', "days": 3, "on": True, "none": None, "list": ["x", {"y": [1.5, "z"]}]}


def values(calls):
    return [[name, json.loads(arguments)] for name, arguments in calls]


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
    assert style_of(source).syntax is syntax


@pytest.mark.parametrize("name", sorted(set(WRITTEN) - {"llama"}))
def test_what_a_template_makes_of_a_call_tells_its_family_too(name):
    beside = {"command-plus": "<|CHATBOT_TOKEN|>", "minimax-lines": "<end_of_sentence>"}.get(name, "")
    assert style_of(WRITTEN[name] + beside).syntax.name == name


def test_markers_are_what_the_engine_must_show():
    assert set(Style(HERMES).markers) == {"<tool_call>", "</tool_call>", "<think>", "</think>"}
    assert "<|python_tag|>" in Style(LLAMA).markers
    for syntax in (MISTRAL, MISTRAL_ARGS):
        assert {"[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"} < set(Style(syntax).markers)
    assert {"<|message|>", "<|channel|>", "<|start|>", "<|constrain|>"} < set(style_of(WRITTEN["harmony"]).markers)
    assert {"<|tool_call_argument_begin|>", "<|tool_call_end|>"} < set(Style(families.KIMI).markers)
    assert {"<arg_key>", "</arg_value>", "</tool_call>"} < set(Style(families.GLM).markers)
    assert {"｜DSML｜", '<|"|>'} < {*Style(families.DEEPSEEK_V4).markers, *Style(families.GEMMA).markers}


def test_every_family_has_its_example():
    assert set(WRITTEN) == set(SYNTAXES)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_the_template_writes_is_read_back_wherever_it_is_cut(name):
    syntax, text = SYNTAXES[name], "Let me see.\n\n" * (name != "llama") + WRITTEN[name]
    style = style_of(WRITTEN["harmony"]) if name == "harmony" else Style(syntax)
    calls = values([WEATHER, NOW][: 1 if name in ("llama", "gigachat", "gigachat-3", "harmony") else 2])
    for cut in range(len(text) + 1):
        _, content, found = parse(text, style=style, names=("get_weather", "now"), texts=("city",), cut=cut)
        assert (content.rstrip(), values(found)) == ("Let me see." * (name != "llama"), calls), cut


@pytest.mark.parametrize("name", SYNTAXES)
def test_what_a_syntax_writes_is_read_back(name):
    syntax = SYNTAXES[name]
    calls = [["get_weather", json.dumps(HARD)], NOW][: 2 if syntax.several else 1]
    for seed in range(4):
        reasoning, content, found = parse(syntax.write(calls), syntax, seed=seed, texts=("city",))
        assert (reasoning, content.replace("<|channel|>commentary", ""), values(found)) == ("", "", values(calls))


# ------------------------------------------------------------------------------------------------ harmony


def test_harmonys_channels_are_thoughts_content_and_calls():
    style = style_of(WRITTEN["harmony"])
    text = (
        "<|channel|>analysis<|message|>Hm. a < b<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        "<|start|>assistant<|channel|>analysis<|message|>More.<|end|><|start|>assistant<|channel|>final<|message|>"
        "It is to=me.<|return|>"
    )
    for seed in range(5):
        assert parse(text, style=style, seed=seed) == ("Hm. a < bMore.", "I look.It is to=me.", [])
    call = "<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}<|call|>"
    assert parse("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant" + call, style=style) == ("Hm.", "", [NOW])
    assert parse(' to=functions.now<|channel|>commentary json<|message|>{}', style=style) == ("", "", [NOW])


@pytest.mark.parametrize(
    "source, opener, text",
    [
        ("<think>", "<think>", "<think>\nHm.\n</think>\n\nYes."),
        ("<|START_THINKING|><|START_RESPONSE|>", "<|START_THINKING|>",
         "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Yes.<|END_RESPONSE|>"),
        ("'<|channel>thought\\n' '<channel|>'", "<|channel>thought\n", "<|channel>thought\nHm.\n<channel|>Yes."),
        ("[THINK]", "[THINK]", "[THINK]Hm.[/THINK]Yes."),
        ("<seed:think>", "<seed:think>", "<seed:think>Hm.</seed:think>Yes."),
    ],
)  # fmt: skip
def test_thoughts_stand_between_what_the_template_says(source, opener, text):
    style = style_of(source)
    assert style.thinks and style.thoughts.opener == opener
    for seed in range(4):
        assert parse(text, style=style, seed=seed) == ("Hm.", "Yes.", [])


def test_kimi_3s_channels_are_thoughts_content_and_calls():
    style = style_of(WRITTEN["kimi-3"])
    text = (
        "Hm.<|close|>think<|sep|><|open|>response<|sep|>I look.<|close|>response<|sep|>%s<|close|>message<|sep|>"
        % WRITTEN["kimi-3"]
    )
    for seed in range(5):
        reasoning, content, found = parse(text, style=style, thinking=True, seed=seed, texts=("city",))
        assert (reasoning, content, values(found)) == ("Hm.", "I look.", values([WEATHER, NOW]))


# ------------------------------------------------------------------------------------ Python's notation


@pytest.mark.parametrize("text, value", [
    ("'a'", "a"), ('"it\'s"', "it's"),
    (r"'a\nb\'c\"\\d\q'", "a\nb'c\"\\d\\q"), (r'"\u00e9\ud83d\ude00\x41"', "é😀A"),
    ("'two\nlines'", "two\nlines"), ("True", True), ("false", False), ("None", None), ("null", None), ("-3", -3),
    ("1.5e2", 150.0), ("[1, 'a', (2, 3),]", [1, "a", [2, 3]]), ("{'k': [], \"v\": {}}", {"k": [], "v": {}}), ("[]", []),
    ('")], "', ")], "),
])  # fmt: skip
def test_pythons_values_are_read_as_jsons(text, value):
    call = "<|tool_call_start|>[get_weather(city=%s, on=True)]<|tool_call_end|>" % text
    for seed in range(4):
        reasoning, content, found = parse("Hm. " + call, families.LFM, seed=seed)
        assert (content, values(found)) == ("Hm.", [["get_weather", {"city": value, "on": True}]])


@pytest.mark.parametrize("text", [
    "city", "city='a", "city=a", "'a'", "city=1 2", "city={1: 2}", "city=f(1)", "city=[", "city=tru",
    "city=" + "[" * 200, "city='a' 'b'", "city=1,, on=2", "city=Truest", "city=1e999", "city=" + "9" * 400,
])  # fmt: skip
def test_what_is_no_call_in_pythons_notation_stays_content(text):
    whole = "<|tool_call_start|>[get_weather(%s)]<|tool_call_end|>" % text
    for seed in range(3):
        assert parse(whole, families.LFM, seed=seed) == ("", whole, [])


# --------------------------------------------------------------------------------- llama.cpp's collection

COLLECTION = os.path.join(os.environ.get("LLAMA_CPP", ""), "models", "templates")
TEMPLATES = glob.glob(os.path.join(COLLECTION, "*.jinja")) if os.environ.get("LLAMA_CPP") else []
# Families whose way of writing calls is not known here.
UNKNOWN = {
    "MiniMax-M3", "meetkai-functionary-medium-v3.2", "muse-glimmer",
}  # fmt: skip
CHAT = [
    {"role": "user", "content": "What is the weather?"},
    {"role": "assistant", "content": "", "tool_calls": []},
    {"role": "tool", "tool_call_id": "call00001", "content": "It rains."},
]


@pytest.mark.skipif(not TEMPLATES, reason="LLAMA_CPP does not name llama.cpp's sources")
@pytest.mark.parametrize("path", TEMPLATES, ids=os.path.basename)
def test_every_template_of_the_collection_renders_and_its_calls_are_read_back(path):
    with open(path, encoding="utf-8") as file:
        template = ChatTemplate(file.read(), "<s>", "</s>")
    offered = [tool(description="D", parameters={"type": "object", "properties": {"city": {"type": "string"}}})]
    template.render([{"role": "system", "content": "Be brief."}, CHAT[0]])
    template.render([CHAT[0]], offered)
    call = {"id": "call00001", "type": "function", "function": {"name": WEATHER[0], "arguments": WEATHER[1]}}
    text = template.render([CHAT[0], dict(CHAT[1], tool_calls=[call]), CHAT[2]], offered)
    if os.path.basename(path)[: -len(".jinja")] in UNKNOWN:
        return
    syntax = template.style.syntax
    begin = (syntax.before + syntax.head).partition("%")[0] if syntax.bare else syntax.opener
    answer = text[text.rindex(begin, 0, text.index("It rains.")) :]
    assert values(parse(answer, style=template.style, texts=("city",))[2])[:1] == values([WEATHER])
