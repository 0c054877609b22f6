"""Rules under construction: their names, and the texts that literals stand for."""

import pytest
from sentences import Reader

from core.grammar.rules import literal
from core.grammar.schema import Grammar


def test_the_reader_of_these_tests_knows_gbnf():
    grammar = Reader('root ::= "a" b{2,3} ("x" | [\\x41-C\\u3042])* "\\"\\n"?\nb ::= [0-9] | "-"+\n')
    for text in ("a01", "a0--", 'a123xABあ"\n', "a--"):
        assert grammar.accepts(text), text
    for text in ("", "a1", "a12y", "a12\n", "a12D"):
        assert not grammar.accepts(text), text


def test_the_same_rule_is_written_once_and_another_gets_a_name_of_its_own():
    grammar = Grammar()
    assert grammar.rule("city name!", '"x"') == grammar.rule("city name!", '"x"') == "city-name"
    assert grammar.rule("city name!", '"y"') == "city-name-2"
    assert grammar.rule("root", '"z"') != "root"
    assert grammar.text("city-name").startswith("root ::= city-name\n")


def test_several_schemas_share_a_grammar():
    grammar = Grammar()
    first = grammar.schema({"$ref": "#/$defs/x", "$defs": {"x": {"const": 1}}}, "tool")
    second = grammar.schema({"$ref": "#/$defs/x", "$defs": {"x": {"const": 2}}}, "tool")
    both = Reader(grammar.text('%s "," %s' % (first, second)))
    assert both.accepts("1,2") and not both.accepts("2,1")


@pytest.mark.parametrize("text", ["plain", 'a"b', "a\\b", "a\nb\r\t", "\x00\x1f\x7f", "日本 é 🎉", "[a-z]{2}"])
def test_a_literal_is_just_its_text(text):
    grammar = Reader("root ::= " + literal(text))
    assert grammar.accepts(text) and not grammar.accepts(text + "x")
