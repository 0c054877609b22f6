"""The reader of GBNF: what it takes, and what it refuses, with the place and the bound."""

import random
import time

import pytest
from schemas import random_schema

from core.errors import APIError
from core.grammar import gbnf
from core.grammar.schema import json_grammar
from core.grammar.stacks import Stacks

DOUBLING = "root ::= r0\n" + "\n".join("r%d ::= r%d r%d" % (n, n + 1, n + 1) for n in range(20)) + '\nr20 ::= "a"?'


def stacks(grammar):
    return Stacks(gbnf.read(grammar), {5: 5, "<think>": 6})


def reads(grammar, text):
    """Whether a grammar takes a text, token by token of one character, and may end then."""
    answer = stacks(grammar)
    for char in text:
        state = answer.after(-1, char.encode("utf-8"))
        if state is None:
            return False
        answer.move(state)
    return answer.may_end()


@pytest.mark.parametrize(
    "grammar, good, bad",
    [
        ('root ::= "a"', ["a"], ["", "b", "aa"]),
        ('root ::= "a" | "bc" |', ["a", "bc", ""], ["b", "abc"]),
        ("root ::= [a-c]+ [^a-c]", ["abcd", "a!"], ["abc", "d"]),
        ("root ::= [a\\-z\\]] [--9] [x-]", ["a-x", "-5-", "].x"], ["b-x", "a,x"]),
        ("root ::= [^\\x00-\\x1F]", [" ", "日", "\U0001f600"], ["\n", "\x1f"]),
        ('root ::= "\\x41\\u3042\\U0001F600\\t\\r\\n\\\\\\"\\[\\]\\-"', ['Aあ\U0001f600\t\r\n\\"[]-'], ["A"]),
        ("root ::= . .", ["ab", "日本"], ["a", "abc"]),
        ('root ::= "ab"{2} "c"{0,2} "d"{1,} "e"?', ["ababd", "ababccdde"], ["abd", "ababcccd", "ababc"]),
        ('root ::= "a"{2}{2} "b"{0} "c"{ 1 , 2 }', ["aaaac", "aaaacc"], ["aac", "aaaabc"]),
        ('root ::= "a"{1999,2500}', ["a" * 1999, "a" * 3000], ["a" * 1998]),  # llama.cpp: over 2,000 is any number
        ('root ::= ("a"?){3}', ["", "a", "aaa"], ["aaaa"]),
        ('root ::= ("a"?)* "b"', ["b", "aaab"], ["a"]),
        ('root ::= "[" (root ("," root)*)? "]"', ["[]", "[[],[[]]]"], ["[", "[,]"]),
        ('# first\nroot ::= (\n  a # so\n | b\n)\n\na ::= "x"\r\nb ::=\n "y"\n', ["x", "y"], ["xy"]),
        ('root ::= "x"\nroot ::= "y"', ["y"], ["x"]),  # llama.cpp: the last one counts
        ('root ::= ("" "a" |\n"b")', ["a", "b"], [""]),
        ('a-1 ::= "a"\nroot ::= a-1 a-1', ["aa"], ["a"]),
    ],
)
def test_a_grammar_means_what_it_means_to_llama_cpp(grammar, good, bad):
    assert [text for text in good if not reads(grammar, text)] == []
    assert [text for text in bad if reads(grammar, text)] == []


@pytest.mark.parametrize(
    "grammar, what",
    [
        ("", "no rule 'root'"),
        ('start ::= "a"', "no rule 'root'"),
        ("nothing", "line 1, column 8: '::='"),
        ('root ::= "a"\nx := "b"', "line 2, column 3: '::='"),
        ("root ::= foo", "column 10: there is no rule 'foo'"),
        ("root ::= (", "column 11: ')'"),
        ('root ::= "a" )', "column 14: a new line or the end"),
        ('root ::= "a', "a string has no end"),
        ('root ::= "a\\', "a string has no end"),
        ("root ::= [a", "has no end"),
        ("root ::= []", "is empty"),
        ("root ::= [^]", "is empty"),
        ("root ::= [z-a]+", "column 11: a range of characters ends"),
        ('root ::= "\\q"', "column 11: there is no escape '\\q'"),
        ('root ::= "\\x4"', "no escape"),
        ('root ::= "\\UFFFFFFFF"', "no character"),
        ('root ::= "\0"', "code 0"),
        ('root ::= "\ud800"', "surrogate"),
        ("root ::= *", "nothing to repeat"),
        ('root ::= ""*', "nothing to repeat"),
        ('root ::= "a" | +', "nothing to repeat"),
        ('root ::= "a"{5,2}', "column 13: a repetition's maximum"),
        ('root ::= "a"{,2}', "a repetition is"),
        ('root ::= "a"{2', "a repetition is"),
        ('root ::= "a"{-1}', "a repetition is"),
        ('root ::= "a"{2001}', "most is 2000"),
        ('root ::= "a"{%s}' % ("9" * 5000), "most is 2000"),
        ('root ::= "a"' + "?" * 9, "more than 8 repetitions"),
        ("root ::= <[x]>", "a token is"),
        ("root ::= <think", "a token is"),
        ("root ::= !a", "a token is"),
        ("root ::= root", "left-recursive: the rule 'root'"),
        ('root ::= a "x"\na ::= root | "b"', "left-recursive"),
        ('root ::= e root "x" | "y"\ne ::= f f\nf ::= "z"?', "left-recursive"),  # llama.cpp does not see this one
        ('root ::= ("a"? root)*', "left-recursive"),
        (DOUBLING, "more than 8192 ways"),
        ("root ::= (" + "|".join('"a"' for _ in range(9000)) + ")", "more than 8192 ways"),
        ("root ::= " + "(" * 101 + '"a"' + ")" * 101, "more than 100 parentheses"),
        ('root ::= "' + "a" * (1 << 19) + '"', "may have 524288"),
    ],
)
def test_what_is_wrong_gets_400_that_names_the_place_or_the_bound(grammar, what):
    with pytest.raises(APIError) as raised:
        gbnf.read(grammar)
    error = raised.value
    assert (error.status, error.code, error.param) == (400, "invalid_grammar", "grammar")
    assert what in error.message


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= " + "(" * 100000 + '"a"' + ")" * 100000,
        "root ::= r0\n" + "\n".join("r%d ::= r%d" % (n, n + 1) for n in range(20000)) + '\nr20000 ::= "a"',
        DOUBLING,
        'root ::= "b" (' + DOUBLING.partition("\n")[0][9:] + ")" + DOUBLING[len("root ::= r0") :],
        "root ::= " + " | ".join('"%d"' % n for n in range(40000)),
        'root ::= "' + "a" * 500000 + '"',
        'root ::= "a"' + " # " + "#" * 500000,
        "root ::= " + '"a"{2000} ' * 20000,
        "root ::= " + "[a-z]? " * 60000,
        "root ::= " + "((((((((a*)*)*)*)*)*)*)*)*" + '\na ::= "a"*',
    ],
)
def test_a_grammar_that_would_take_llama_cpp_minutes_or_its_life_takes_seconds(grammar):
    started = time.process_time()
    try:
        stacks(grammar).after(-1, b"aaaaaaaaaaaaaaaa")
    except APIError as error:
        assert error.status == 400
    assert time.process_time() - started < 6  # about 1 at most on a usual machine


def test_grammars_of_schemas_pass():
    for seed in range(100):
        gbnf.read(json_grammar(random_schema(random.Random(seed), 3)))
    for schema in (
        {"type": "string", "maxLength": 90000},
        {"properties": {"p%d" % number: {"type": "string"} for number in range(3000)}},
        {"enum": ["value %d" % number for number in range(5000)]},
    ):
        stacks(json_grammar(schema))


def test_a_token_is_taken_by_its_id_and_any_other_by_not_being_it():
    answer = stacks('root ::= <[5]> !<think> "x"')
    assert answer.after(4, b"x") is None
    answer.move(answer.after(5, b"whatever"))
    assert answer.after(6, b"<think>") is None
    answer.move(answer.after(7, b"<b>"))
    answer.move(answer.after(8, b"x"))
    assert answer.may_end()


def test_a_token_never_begins_within_another_ones_text():
    # llama.cpp lets "ab" through here, and then ends the process
    assert stacks('root ::= "a" !<[5]>').after(7, b"ab") is None


def test_a_character_may_come_in_parts():
    answer = stacks("root ::= [ぁ-ん]")
    assert answer.after(1, b"\xe4") is None  # no character from there on is one of these
    for part in (b"\xe3", b"\x81", b"\x82"):
        answer.move(answer.after(1, part))
    assert answer.may_end()
    assert stacks("root ::= .").after(1, b"\xff") is None


def test_a_long_answer_does_not_gather_stacks():
    answer = stacks('root ::= ("[" [a-z]{0,300} "]")*')
    for _ in range(2000):
        answer.move(answer.after(-1, b"[" + b"abc" * 60 + b"]"))
    assert answer.may_end() and len(answer._known) < 60000
