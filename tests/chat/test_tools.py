"""The tools that a request offers: what it may ask for, and what is refused by its name."""

import pytest
from toolcalls import PLACE, tool

from core.chat.tools import read_tools
from core.errors import APIError


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
