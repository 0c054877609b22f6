"""What is kept for the next request: made once, exactly what was asked for, and never more bytes than the bound."""

import gc
import itertools
import json
import random
import sys
import threading
import tracemalloc

import load_schemas
import pytest
from schemas import random_schema

from core.errors import APIError
from core.grammar import gbnf, patterns, schema
from core.grammar.automata import Machine
from core.grammar.elements import memory
from core.grammar.kept import Kept, exact_key
from core.grammar.schema import json_grammar
from core.grammar.stacks import Stacks

LIMIT = 20000


def text_of(size):
    return lambda: "x" * size


@pytest.fixture
def kept():
    return Kept(LIMIT, sys.getsizeof)


@pytest.fixture
def texts(monkeypatch):
    """The store of schemas' grammars, empty."""
    fresh = Kept(1 << 20, sys.getsizeof)
    monkeypatch.setattr(schema, "_KEPT_TEXTS", fresh)
    return fresh


@pytest.fixture
def conversions(monkeypatch):
    """The names of the schemas that are converted, as they are."""
    seen = []
    convert = schema.Grammar.schema
    monkeypatch.setattr(
        schema.Grammar, "schema", lambda self, what, name="value": [seen.append(name), convert(self, what, name)][1]
    )
    return seen


def in_threads(work, count=8):
    """Let threads do some work, all at once, each with its number; return what each of them returned."""
    results, gate = [None] * count, threading.Barrier(count)

    def run(number):
        gate.wait()
        results[number] = work(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def traced(make):
    """Return what is made, and how many bytes it takes."""
    gc.collect()
    tracemalloc.start()
    try:
        made = make()
        gc.collect()
        return made, tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------------------------------------ the store


def test_a_value_is_made_once(kept):
    made = itertools.count()
    assert [kept.get("a", lambda: str(next(made))) for _ in range(3)] == ["0", "0", "0"]


def test_the_least_recently_used_value_goes_first(kept):
    for key in "abc":
        kept.get(key, text_of(6000))
    kept.get("a", text_of(0))
    kept.get("d", text_of(6000))
    made = []
    for key in "acdb":
        kept.get(key, lambda: made.append(key) or "")
    assert made == ["b"]


def test_it_never_holds_more_than_its_limit(kept):
    rng = random.Random(1)
    for number in range(2000):
        kept.get(str(rng.randrange(300)) * rng.randrange(1, 9), text_of(rng.randrange(8000)))
        assert kept.bytes <= LIMIT
    assert kept.bytes > LIMIT / 2


def test_what_is_larger_than_the_limit_is_not_kept_and_puts_nothing_out(kept):
    kept.get("small", text_of(1000))
    before = kept.bytes
    kept.get("large", text_of(LIMIT))
    kept.get("k" * LIMIT, text_of(1))
    assert kept.bytes == before
    assert len(kept.get("small", text_of(0))) == 1000


def test_an_error_is_not_kept(kept):
    with pytest.raises(ZeroDivisionError):
        kept.get("a", lambda: str(1 // 0))
    assert kept.bytes == 0 and kept.get("a", lambda: "now") == "now"


def test_many_threads_get_what_belongs_to_their_keys_within_the_limit(kept):
    def work(number):
        rng = random.Random(number)
        wrong, most = 0, 0
        for _ in range(3000):
            key = str(rng.randrange(40))
            wrong += kept.get(key, lambda: key * 700) != key * 700
            most = max(most, kept.bytes)
        return wrong, most

    assert all(wrong == 0 and most <= LIMIT for wrong, most in in_threads(work))
    for key in list(kept._entries):  # what is counted is what is there
        kept._bytes -= kept._entries.pop(key)[1]
    assert kept.bytes == 0


def test_nobody_waits_while_another_value_is_made(kept):
    begun, done = threading.Event(), threading.Event()
    slow = threading.Thread(target=kept.get, args=("slow", lambda: [begun.set(), done.wait(60), "late"][2]))
    slow.start()
    assert begun.wait(60)
    assert kept.get("quick", lambda: "at once") == "at once"
    done.set()
    slow.join()
    assert kept.get("slow", lambda: "again") == "late"


def test_the_count_of_bytes_is_what_they_take():
    def fill():
        kept = Kept(1 << 24, sys.getsizeof)
        for number in range(3000):
            kept.get("%05d" % number * 20, lambda: "%05d" % number * 100)
        return kept

    kept, taken = traced(fill)
    assert taken <= kept.bytes <= 1.3 * taken


# ----------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    "one, other",
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ([1], [1.0]),
        ([1], [True]),
        ([1], ["1"]),
        ([0.0], [-0.0]),
        ([None], ["null"]),
        ({"a": {}}, {"a": []}),
        ([[1], 2], [[1, 2]]),
        (["\ud83d\ude00"], ["\U0001f600"]),  # two halves of a character, and the character
        (["\\n"], ["\n"]),
        (['a", "b'], ["a", "b"]),
        ([0.1], [0.1 + 2**-56]),
        ([2**53], [2**53 + 1]),
    ],
)
def test_different_values_have_different_keys(one, other):
    assert exact_key(one) != exact_key(other)


def test_equal_values_have_equal_keys():
    for seed in range(100):
        wanted = random_schema(random.Random(seed), 3)
        assert exact_key(wanted) == exact_key(json.loads(json.dumps(wanted)))
        assert json.loads(exact_key(wanted)) == wanted


def test_what_is_nested_too_deeply_has_no_key():
    deep = []
    for _ in range(200000):
        deep = [deep]
    assert exact_key(deep) is None
    while deep:  # freeing it all at once is as deep
        deep = deep.pop()


# -------------------------------------------------------------------------------------- schemas and grammars


def test_the_same_schema_is_not_converted_again(texts, conversions):
    first = json_grammar(load_schemas.schema_of_500())
    assert json_grammar(load_schemas.schema_of_500(), "tools") is first
    assert conversions == ["value"]


def test_the_order_of_properties_makes_another_grammar(texts, conversions):
    one, two = {"type": "null"}, {"type": "boolean"}
    first = json_grammar({"properties": {"a": one, "b": two}})
    second = json_grammar({"properties": {"b": two, "a": one}})
    assert first != second and len(conversions) == 2
    assert json_grammar({"properties": {"a": one, "b": two}}) is first
    assert json_grammar({"properties": {"b": two, "a": one}}) is second


def test_a_kept_grammar_is_the_one_that_is_made(texts):
    wanted = [random_schema(random.Random(seed), 2) for seed in range(60)]
    first = [json_grammar(each) for each in wanted]
    assert [json_grammar(each) for each in wanted] == first
    texts._entries.clear()
    assert [json_grammar(each) for each in reversed(wanted)] == first[::-1]


def test_a_refused_schema_is_refused_again_in_the_name_of_its_field(texts):
    for param in ("response_format", "tools"):
        with pytest.raises(APIError) as caught:
            json_grammar({"type": "integer", "minimum": 2, "maximum": 1}, param)
        assert caught.value.param == param
    assert texts.bytes == 0


def test_a_list_of_what_another_caller_keeps_is_no_schema(texts):
    schema.kept_text("calls", [1], lambda: "a grammar")
    with pytest.raises(APIError):
        json_grammar([1])


def test_many_schemas_stay_within_the_bound(texts, monkeypatch):
    grammars = Kept(1 << 19, memory)
    monkeypatch.setattr(gbnf, "_KEPT", grammars)
    for number in range(0, 300, 4):
        gbnf.read(json_grammar({"properties": {"p%d" % each: {"type": "string"} for each in range(number)}}))
        assert texts.bytes <= 1 << 20 and grammars.bytes <= 1 << 19
    assert texts.bytes > 1 << 19 and grammars.bytes > 1 << 18


def test_threads_share_schemas_and_grammars(texts):
    wanted = [random_schema(random.Random(seed), 2) for seed in range(12)]
    expected = [json_grammar(each) for each in wanted]
    texts._entries.clear()

    def work(number):
        order = random.Random(number).sample(range(12), 12)
        return {index: (json_grammar(wanted[index]), gbnf.read(expected[index])) for index in order}

    for found in in_threads(work):
        assert [found[index][0] for index in range(12)] == expected
        assert [found[index][1] for index in range(12)] == [gbnf.read(text) for text in expected]


def test_the_same_grammar_is_not_read_again(monkeypatch):
    monkeypatch.setattr(gbnf, "_KEPT", Kept(1 << 20, memory))
    first = gbnf.read('root ::= "a"')
    monkeypatch.delattr(gbnf, "_Reader")
    assert gbnf.read('root ::= "a"') is first


def test_the_same_pattern_is_not_made_into_a_machine_again(monkeypatch):
    monkeypatch.setattr(patterns, "_KEPT", Kept(1 << 20, Machine.memory))
    first = patterns.pattern_machine("^a+$")
    monkeypatch.delattr(patterns, "_PatternReader")
    assert patterns.pattern_machine("^a+$") is first


def test_the_largest_grammar_that_is_taken_is_kept():
    text = "root ::= " + " ".join('("a")' for _ in range(gbnf.MAX_BYTES // 6 - 10))
    assert len(text) > 0.99 * gbnf.MAX_BYTES
    assert gbnf.read(text) is gbnf.read(text)


def test_answers_change_nothing_in_the_grammar_that_they_share():
    text = json_grammar({"type": "array", "items": {"type": ["integer", "string"], "maxLength": 3}, "minItems": 2})
    grammar = gbnf.read(text)
    assert hash(grammar)  # tuples of tuples, down to the numbers
    answer = Stacks(grammar, {})
    for char in '[12, "ab"]':
        answer.move(answer.after(-1, char.encode()))
    answer._forget_others()
    assert answer.may_end() and grammar == gbnf._Measurer(gbnf._Reader(text)).grammar()


GRAMMARS = {
    "of 500 properties": lambda: json_grammar(load_schemas.schema_of_500()),
    "of 3,000 strings": lambda: json_grammar({"properties": {"p%d" % n: {"type": "string"} for n in range(3000)}}),
    "of characters": lambda: "root ::= a0\n%s\na5000 ::= [x]" % "\n".join(
        "a%d ::= [a-%s] a%d?" % (number, chr(0x3000 + number), number + 1) for number in range(5000)
    ),
    "of repetitions": lambda: "root ::= " + '"a"{2000} ' * 20000,
    "of groups": lambda: "root ::= " + '("a") ' * 20000,
    "of one text": lambda: 'root ::= "%s"' % ("a" * 100000),
    "of alternatives": lambda: "root ::= " + " | ".join('"%d"' % number for number in range(8000)),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(GRAMMARS))
def test_the_memory_of_a_grammar_is_what_it_takes(name):
    text = GRAMMARS[name]()
    grammar, taken = traced(lambda: gbnf._Measurer(gbnf._Reader(text)).grammar())
    assert 0.9 * taken <= memory(grammar) <= 1.5 * taken


@pytest.mark.parametrize("pattern", ["(a|b)*a(a|b){10}", "^[A-Z].{0,900}$", "[^a-z]{3}x.*y[0-9]{50}"])
def test_the_memory_of_a_machine_is_what_it_takes(pattern):
    machine, taken = traced(lambda: patterns._made(pattern))
    assert 0.9 * taken <= machine.memory() <= 2.2 * taken


@pytest.mark.parametrize("which", sorted(load_schemas.WAYS))
def test_the_second_time_takes_a_tenth_at_most(which, monkeypatch):
    monkeypatch.setattr(load_schemas, "ROUNDS", 3)
    assert load_schemas.measure(which)["times_faster"] > 10  # some 300 on a usual machine
