"""How families of models write calls: told by their templates, and read back as written."""

import pytest
from toolcalls import NOW, WEATHER, parse

from core.chat.families import HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, style_of
from core.chat.syntaxes import Style


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


def test_markers_are_what_the_engine_must_show():
    assert set(Style(HERMES).markers) == {"<tool_call>", "</tool_call>", "<think>", "</think>"}
    assert "<|python_tag|>" in Style(LLAMA).markers
    for syntax in (MISTRAL, MISTRAL_ARGS):
        assert {"[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"} < set(Style(syntax).markers)


@pytest.mark.parametrize("syntax", [HERMES, LLAMA, MISTRAL, MISTRAL_ARGS])
def test_what_a_syntax_writes_is_read_back(syntax):
    calls = [WEATHER, NOW][: 2 if syntax.several else 1]
    assert parse(syntax.write(calls), syntax) == ("", "", calls)
