"""Chat templates: what messages may be, and the prompt that each family's template makes of them."""

import datetime
import json

import pytest

from core.chat.messages import read_messages
from core.chat.template import CHATML, ChatTemplate
from core.errors import APIError

# Small templates in the families' own styles: what each one wants of its messages differs.
QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson) }}
    {%- endfor %}
    {{- '\\n</tools>\\nCall in <tool_call></tool_call>.<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.reasoning_content and loop.index0 > ns.last %}
            {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- message.content }}
        {%- for call in message.tool_calls or [] %}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
LLAMA = """\
{{- bos_token }}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + strftime_now('%d %b %Y') }}
{%- if tools is not none %}
    {%- for t in tools %}{{- '\\n' + (t | tojson(indent=2)) }}{%- endfor %}
{%- endif %}
{{- '<|eot_id|>' }}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + message.content + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception('This model only supports single tool-calls at once!') }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- '}<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""  # noqa: E501
MISTRAL = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- if tools is not none and loop.first %}{{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{%- endif %}
        {{- '[INST]' + message.content + '[/INST]' }}
    {%- elif message.role == 'assistant' and message.tool_calls is defined %}
        {{- '[TOOL_CALLS][' }}
        {%- for call in message.tool_calls %}
            {%- if call.id | length != 9 %}{{- raise_exception('Tool call IDs should have length 9!') }}{%- endif %}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}
            {%- if not loop.last %}{{- ', ' }}{%- endif %}
        {%- endfor %}
        {{- ']' + eos_token }}
    {%- elif message.role == 'assistant' %}
        {{- message.content + eos_token }}
    {%- elif message.role == 'tool' %}
        {%- if message.tool_call_id | length != 9 %}{{- raise_exception('Tool call IDs should have length 9!') }}{%- endif %}
        {{- '[TOOL_RESULTS]' + message.content + ' ' + message.tool_call_id + '[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception('Only user and assistant roles are supported!') }}
    {%- endif %}
{%- endfor %}
"""  # noqa: E501
DEEPSEEK = """\
{%- for message in messages %}
    {%- if message.role == 'assistant' and message.content is none %}
        {%- for call in message.tool_calls %}
            {{- '<call>' + call.function.name + '\\n```json\\n' + call.function.arguments + '\\n```' }}
        {%- endfor %}
    {%- elif message.role == 'assistant' %}
        {{- '<A>' + message.content.split('</think>')[-1] }}
    {%- else %}
        {{- '<' + message.role + '>' + message.content }}
    {%- endif %}
{%- endfor %}
{%- if tools %}{{- '<tools>' }}{%- endif %}
{{- '<A><think>\\n' }}
"""
GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{{ '<start_of_turn>' + message['role'] + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""

WHEN = datetime.datetime(2024, 3, 9)
TOOLS = [{"type": "function", "function": {"name": "now", "description": "a <b> & 'c' é", "parameters": {}}}]
TOOLS_JSON = """{"type": "function", "function": {"name": "now", "description": "a <b> & 'c' é", "parameters": {}}}"""


def system(text):
    return {"role": "system", "content": text}


def user(text):
    return {"role": "user", "content": text}


def answer(text, **more):
    return dict({"role": "assistant", "content": text}, **more)


def calling(*arguments, content=None):
    calls = [
        {"id": "call_%d" % number, "type": "function", "function": {"name": "now", "arguments": text}}
        for number, text in enumerate(arguments)
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def result(text, id="call_0"):
    return {"role": "tool", "tool_call_id": id, "content": text}


def render(source, *messages, tools=None, options=None):
    return ChatTemplate(source, "<s>", "</s>").render(read_messages({"messages": list(messages)}), tools, options, WHEN)


def refusal(function, *arguments, **more):
    with pytest.raises(APIError) as caught:
        function(*arguments, **more)
    return caught.value


# ------------------------------------------------------------------------------------------------ families


def test_a_model_without_a_template_gets_chatml():
    prompt = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert render("", system("Be kind."), user("Hi")) == prompt
    assert ChatTemplate("").source == CHATML


def test_qwens_template_shows_tools_calls_and_results():
    prompt = render(
        QWEN, system("S"), user("Hi"), calling('{"a": "<é>"}'), result("noon"), tools=TOOLS, options={"more": 1}
    )
    assert prompt == (
        "<|im_start|>system\nS\n\n<tools>\n" + TOOLS_JSON + "\n</tools>\nCall in <tool_call></tool_call>.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "now", "arguments": {"a": "<é>"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nnoon\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_qwens_thinking_is_an_option():
    assert render(QWEN, user("Hi")).endswith("<|im_start|>assistant\n")
    assert render(QWEN, user("Hi"), options={"enable_thinking": False}).endswith("<think>\n\n</think>\n\n")


def test_earlier_thoughts_are_shown_as_the_template_says():
    old, new = answer("Yo", reasoning_content="OLD"), dict(calling("{}"), reasoning_content="NEW")
    prompt = render(QWEN, user("Hi"), old, user("Time?"), new, result("noon"))
    assert "OLD" not in prompt and "<think>\nNEW\n</think>" in prompt


def test_llamas_template_shows_the_date_and_objects_as_parameters():
    prompt = render(LLAMA, user(" Hi "), calling('{"a": 1}'), result("noon"))
    assert prompt == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday: 09 Mar 2024<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "now", "parameters": {"a": 1}}<|eot_id|>'
        "<|start_header_id|>ipython<|end_header_id|>\n\nnoon<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert '\n{\n  "type": "function",\n' in render(LLAMA, user("Hi"), tools=TOOLS)


def test_mistrals_template_gets_ids_of_nine_characters_that_still_belong_together():
    prompt = render(MISTRAL, user("Hi"), calling("{}", "{}"), result("a", "call_0"), result("b", "call_1"), tools=TOOLS)
    assert prompt.startswith("<s>[AVAILABLE_TOOLS][" + TOOLS_JSON + "][/AVAILABLE_TOOLS][INST]Hi[/INST][TOOL_CALLS][")
    one, two = [prompt.split(before)[1][1:10] for before in ("[TOOL_RESULTS]a", "[TOOL_RESULTS]b")]
    assert one != two
    calls = json.loads(prompt.split("[TOOL_CALLS]")[1].split("</s>")[0])
    assert calls == [{"name": "now", "arguments": {}, "id": one}, {"name": "now", "arguments": {}, "id": two}]


def test_ids_that_mistral_takes_are_left_as_they_are():
    messages = [user("Hi"), calling("{}"), result("noon", "aB3456789")]
    messages[1]["tool_calls"][0]["id"] = "aB3456789"
    assert render(MISTRAL, *messages).count("aB3456789") == 2


def test_a_template_that_wants_null_and_json_text_gets_them():
    prompt = render(DEEPSEEK, user("Hi"), calling('{"a":  1}'), result("noon"))
    assert prompt == '<user>Hi<call>now\n```json\n{"a":  1}\n```<tool>noon<A><think>\n'


def test_a_template_that_loops_over_tools_without_a_check_takes_messages_without_tools():
    assert render("{% for t in tools %}{{ t }}{% endfor %}{{ messages[0].content }}", user("Hi")) == "Hi"


def test_a_template_that_asks_for_none_gets_none_where_there_are_no_tools():
    assert render("{% if tools is not none %}TOOLS{% endif %}{{ messages[0].content }}", user("Hi")) == "Hi"


@pytest.mark.parametrize("arguments", ["", "[1]", "no json", '{"a": "\\ud800"}', "[" * 100000])
def test_arguments_that_are_no_object_are_shown_as_they_are(arguments):
    prompt = render(QWEN, user("Hi"), calling(arguments), result("noon"))
    assert '"arguments": %s}' % (json.dumps(arguments) if arguments else "{}") in prompt
    prompt.encode("utf-8")


# -------------------------------------------------------------------- templates that know nothing of tools


def test_tools_are_described_to_a_template_that_knows_none():
    prompt = render("", system("Be kind."), user("Hi"), tools=TOOLS)
    assert prompt.startswith("<|im_start|>system\nBe kind.\n\n")
    assert TOOLS_JSON in prompt.split("<|im_end|>")[0] and "<tool_call>\n" in prompt
    assert render("", user("Hi"), tools=TOOLS).split("<|im_end|>")[0].startswith("<|im_start|>system\n")


def test_tools_are_described_with_the_first_message_where_there_is_no_system_prompt():
    prompt = render(GEMMA, user("Hi"), tools=TOOLS)
    assert prompt.startswith("<s>") and prompt.count("<start_of_turn>") == 2
    assert TOOLS_JSON in prompt and "\n\nHi<end_of_turn>" in prompt


def test_calls_and_results_become_text_in_a_template_that_knows_none():
    messages = [user("Hi"), calling('{"a": 1}', "", content="Well."), result("noon"), result("one", "call_1")]
    prompt = render("", *messages)
    assert prompt == (
        "<|im_start|>user\nHi<|im_end|>\n"
        '<|im_start|>assistant\nWell.\n<tool_call>\n{"name": "now", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nnoon\n</tool_response>\n<tool_response>\none\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_calls_become_text_in_a_template_that_shows_tools_and_results_only():
    source = "{{ tools }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    prompt = render(source, user("Hi"), calling("{}"), result("noon"))
    assert prompt == 'None<user>Hi<assistant><tool_call>\n{"name": "now", "arguments": {}}\n</tool_call><tool>noon'


# -------------------------------------------------------------------------------------------- continuation


def test_a_last_answer_is_continued():
    prompt = render("", user("Hi"), answer("Hello, "))
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello, "


def test_the_parts_of_an_answer_to_continue_stand_apart_by_an_empty_line_as_at_llama_server():
    parts = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "at"}]
    asked, begun = {"role": "user", "content": parts}, {"role": "assistant", "content": parts}
    contents = [message["content"] for message in read_messages({"messages": [asked, begun, asked, begun]})]
    assert contents == ["Wh\nat", "Wh\nat", "Wh\nat", "Wh\n\nat"]


def test_a_continued_answer_keeps_its_thoughts():
    assert render(QWEN, user("Hi"), answer("Yo", reasoning_content="Hm.")).endswith("<think>\nHm.\n</think>\n\nYo")
    assert (
        render(DEEPSEEK, user("Hi"), answer("Yo", reasoning_content="Hm.")) == "<user>Hi<A><think>\nHm.\n</think>\n\nYo"
    )
    assert render(DEEPSEEK, user("Hi"), answer("Yo")) == "<user>Hi<A><think>\n\n</think>\n\nYo"
    assert render(DEEPSEEK, user("Hi"), answer("")) == "<user>Hi<A><think>\n"
    assert render("", user("Hi"), answer("Yo", reasoning_content="Hm.")).endswith("assistant\nYo")
    done = render(QWEN, user("Hi"), answer("Yo", reasoning_content="Hm."), options={"enable_thinking": False})
    assert done.endswith("<think>\n\n</think>\n\nYo")


def test_a_last_message_that_calls_a_tool_is_not_continued():
    assert render("", user("Hi"), calling("{}")).endswith("</tool_call><|im_end|>\n<|im_start|>assistant\n")


# ---------------------------------------------------------------------------------------------- the language


def test_the_language_is_that_of_transformers():
    source = (
        "{% for n in range(9) %}\n  {% if n == 1 %}{% continue %}{% endif %}\n  {% if n > 2 %}{% break %}{% endif %}\n"
        "{{ n }}\n{% endfor %}\n"
        "{% generation %}[{{ messages[0].content }}]{% endgeneration %}"
        "{{ '<b>' + ({'k': '<é>'} | tojson | safe) }}"
        "{{ {'b': 1, 'a': [1]} | tojson(sort_keys=true, separators=(',', ':')) }}"
    )
    assert render(source, user("Hi")) == '0\n2\n[Hi]<b>{"k": "<é>"}{"a":[1],"b":1}'


def test_options_are_variables_but_not_the_servers_own():
    assert render("{{ a.b }}{{ messages[0].content }}", user("Hi"), options={"a": {"b": 7}}) == "7Hi"
    for name in ("messages", "tools", "add_generation_prompt", "bos_token", "raise_exception"):
        error = refusal(render, "", user("Hi"), options={name: []})
        assert (error.status, error.param) == (400, "chat_template_kwargs." + name)


def test_a_template_that_takes_no_system_message_gets_its_text_with_the_users():
    prompt = render(GEMMA, system("Be kind."), user("Hi"), system("Be brief."))
    assert prompt == render(GEMMA, user("Be kind.\nBe brief.\nHi"))


def test_a_template_may_change_lists_of_its_own_and_no_others():
    source = "{% set own = [] %}{% for m in messages %}{% set _ = own.append(m.role) %}{% endfor %}{{ own.pop(0) }}"
    assert render(source, user("Hi")) == "user"
    endless = "{% set own = [1] %}{% for one in own %}{% set _ = own.append(one) %}{% endfor %}"
    assert "counts further" in refusal(render, endless, user("Hi")).message


def test_the_clients_messages_stay_as_they_are():
    messages = read_messages({"messages": [user("Hi"), calling("{}"), result("noon"), user("Thanks")]})
    before = json.dumps(messages)
    for source in (QWEN, MISTRAL, "", DEEPSEEK):
        ChatTemplate(source).render(messages, TOOLS)
    assert json.dumps(messages) == before


@pytest.mark.parametrize(
    "source, what",
    [
        ("{{ raise_exception('No ' + messages[0].role) }}", "No user"),
        ("{{ messages[0].content + none }}", "NoneType"),
        ("{{ nothing.at.all }}", "undefined"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "counts further"),
        ("{{ range(10**12) }}", "counts further"),
        ("{{ 'x' * 10**12 }}", "characters"),
        ("{{ 10**12 * 'x' }}", "characters"),
        ("{{ 10 ** (10 ** 9) }}", "characters"),
        ("{% set n = namespace(s='x') %}{% for a in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}", "characters"),
        ("{% set n = namespace(s=9) %}{% for a in range(99) %}{% set n.s = n.s * n.s %}{% endfor %}", "characters"),
        ("{% set s = 'x' * 99999 %}{% for a in range(9999) %}{{ s }}{% endfor %}", "characters"),
    ],
)
def test_what_a_template_refuses_or_can_not_do_is_the_requests_error(source, what):
    error = refusal(render, source, system("S"), user("Hi"))
    assert (error.status, error.code, error.param) == (400, "template_error", "messages")
    assert what in error.message


@pytest.mark.parametrize("source", ["{% if %}", "{% for m in messages %}", "{{ 'a' | no_such_filter }}", "{{"])
def test_a_template_with_a_wrong_syntax_is_the_servers_error(source):
    error = refusal(ChatTemplate, source)
    assert (error.status, error.type, error.code) == (500, "template_broken", "template_broken")


# ------------------------------------------------------------------------------------------------ messages


def test_messages_take_their_one_form():
    given = [
        {"role": "developer", "content": "S", "unknown": 1},
        {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "refusal": "No."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "audio": None},
        {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": calling("{}")["tool_calls"]},
        {"role": "tool", "content": [{"type": "text", "text": "noon"}], "tool_call_id": "call_0"},
        {"role": "assistant", "content": "", "tool_calls": []},
    ]
    assert read_messages({"messages": given}) == [
        system("S"),
        dict(user("a\nb"), name="Ann"),
        answer("No."),
        answer("No."),
        answer("", reasoning_content="Hm.", tool_calls=calling("{}")["tool_calls"]),
        result("noon"),
        answer(""),
    ]


def test_the_older_apis_calls_are_tool_calls():
    given = [
        {"role": "assistant", "content": None, "function_call": {"name": "now", "arguments": "{}"}},
        {"role": "function", "name": "now", "content": "noon"},
    ]
    call, done = read_messages({"messages": given})
    assert call["tool_calls"][0]["function"] == {"name": "now", "arguments": "{}"}
    assert (done["role"], done["name"], done["tool_call_id"]) == ("tool", "now", call["tool_calls"][0]["id"])


def part(**fields):
    return {"messages": [user("Hi"), {"role": "user", "content": [{"type": "text", "text": "a"}, fields]}]}


def call(**fields):
    return {"messages": [{"role": "assistant", "tool_calls": [fields]}]}


@pytest.mark.parametrize(
    "body, param",
    [
        ({}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [user("Hi"), "Hi"]}, "messages[1]"),
        ({"messages": [{}]}, "messages[0].role"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "Hi", "name": 7}]}, "messages[0].name"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": "", "reasoning_content": 7}]}, "messages[0].reasoning_content"),
        ({"messages": [{"role": "tool", "content": "noon"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": {}}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [7]}]}, "messages[0].tool_calls[0]"),
        ({"messages": [{"role": "assistant", "function_call": 7}]}, "messages[0].function_call"),
        (call(id="a", type="custom"), "messages[0].tool_calls[0].type"),
        (call(function={"name": "now", "arguments": "{}"}), "messages[0].tool_calls[0].id"),
        (call(id="a"), "messages[0].tool_calls[0].function"),
        (call(id="a", function={"arguments": "{}"}), "messages[0].tool_calls[0].function.name"),
        (call(id="a", function={"name": "now"}), "messages[0].tool_calls[0].function.arguments"),
        (call(id="a", function={"name": "now", "arguments": {}}), "messages[0].tool_calls[0].function.arguments"),
        (part(type="text"), "messages[1].content[1].text"),
        (part(type="text", text=7), "messages[1].content[1].text"),
        (part(type="video"), "messages[1].content[1].type"),
        (part(), "messages[1].content[1].type"),
        ({"messages": [{"role": "user", "content": ["Hi"]}]}, "messages[0].content[0]"),
    ],
)
def test_wrong_messages_are_refused_by_their_place(body, param):
    error = refusal(read_messages, body)
    assert (error.status, error.param) == (400, param)
    assert "'%s'" % param in error.message


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_other_media_are_refused_in_plain_words(kind):
    error = refusal(read_messages, part(type=kind))
    assert (error.status, error.param) == (400, "messages[1].content[1]")
    assert kind in error.message and "takes text only" in error.message
