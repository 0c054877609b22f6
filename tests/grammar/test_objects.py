"""Objects of schemas: declared members in their order, further ones, counts, blanks."""

from schemas import A_AND_B
from sentences import check, reader, refusal

from core.grammar.schema import json_grammar


def test_properties_come_in_their_order_and_optional_ones_may_lack():
    schema = {"type": "object", "properties": dict(A_AND_B, c={"const": 1}), "required": ["b"]}
    check(schema, [{"b": None}, {"a": 1, "b": None}, {"a": 1, "b": None, "c": 1}], [{}, {"a": 1}, {"b": None, "a": 1}])
    check(
        {"type": "object", "properties": A_AND_B},
        [{}, {"a": 1}, {"b": None}, {"a": 1, "b": None}],
        [{"b": 1}, {"x": 1}],
    )
    check({"type": "object", "properties": {}, "additionalProperties": False}, [{}], [{"a": 1}])


def test_names_are_escaped_as_json_says():
    name = 'a "b" \\ \n é'
    check({"type": "object", "properties": {name: {"const": 1}}, "required": [name]}, [{name: 1}], [{"a": 1}])


def test_additional_properties_follow_and_never_repeat_a_declared_name():
    schema = {"type": "object", "properties": A_AND_B, "required": ["a"], "additionalProperties": {"type": "boolean"}}
    grammar = check(schema, [{"a": 1}, {"a": 1, "b": None, "x": True, "ab": False}], [{"a": 1, "x": 2}, {"x": True}])
    assert not grammar.accepts('{"a": 1, "a": true}') and not grammar.accepts(r'{"a": 1, "\u0062": true}')
    check({"type": "object", "properties": A_AND_B, "additionalProperties": True}, [{"x": {"y": 1}}], [{"a": "x"}])
    check({"type": "object", "additionalProperties": {"type": "integer"}}, [{}, {"a": 1, "b": 2}], [{"a": "x"}])
    check({"type": "object", "required": ["id"]}, [{"id": 1, "x": 2}], [{}, {"x": 1}])


def test_names_by_pattern():
    schema = {"type": "object", "patternProperties": {"^n_": {"type": "integer"}, "^s_": {"type": "string"}}}
    check(schema, [{}, {"n_a": 1, "s_b": "x"}], [{"n_a": "x"}, {"x": 1}])
    check(dict(schema, additionalProperties={"type": "null"}), [{"x": None}], [{"n_a": None}])
    check(
        {"type": "object", "propertyNames": {"pattern": "^[a-z]+$", "maxLength": 3}},
        [{"abc": 1}],
        [{"abcd": 1}, {"A": 1}],
    )
    check({"type": "object", "propertyNames": {"enum": ["a", "b"]}}, [{"a": 1}], [{"c": 1}])


def test_counts_of_properties():
    properties = {name: {"const": 1} for name in "abcd"}
    schema = {"type": "object", "properties": properties, "required": ["b"], "minProperties": 2, "maxProperties": 3}
    check(
        schema,
        [{"a": 1, "b": 1}, {"b": 1, "c": 1, "d": 1}],
        [{"b": 1}, {"a": 1, "c": 1}, {"a": 1, "b": 1, "c": 1, "d": 1}],
    )
    check({"type": "object", "minProperties": 1, "maxProperties": 2}, [{"a": 1}, {"a": 1, "b": 2}], [{}])
    assert "minProperties" in refusal({"type": "object", "minProperties": 2})


def test_many_optional_properties_take_rules_in_proportion():
    sizes = [len(json_grammar({"properties": {"p%d" % i: {"type": "string"} for i in range(n)}})) for n in (100, 200)]
    assert sizes[1] < 2.3 * sizes[0]


def test_blanks_are_bounded():
    grammar = reader({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}}})
    assert grammar.accepts('{\n  "a": [\n    1,\n    2\n  ]\n}') and grammar.accepts('{"a":[1,2]}')
    assert not grammar.accepts('{  "a": []}') and not grammar.accepts('{\n\n"a": []}')
    assert not grammar.accepts("{\n" + " " * 21 + "}")
