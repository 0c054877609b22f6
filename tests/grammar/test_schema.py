"""JSON schemas as grammars: whatever the grammar accepts is valid, and what people mean by the schema is accepted.

Types, logic, references, and what is refused; the tests of strings, numbers, arrays and objects lie beside this file.
Most read the grammar with a small reader of GBNF (tests/sentences.py); the last ones hand it to the engine.
"""

import random
import time

import pytest
from engines import asked, launch, result
from schemas import A_AND_B, random_schema
from sentences import check, reader, refusal, valid

from core.grammar.schema import JSON_OBJECT, json_grammar
from core.sampling import Sampling

# ------------------------------------------------------------------------------------------ types and values


@pytest.mark.parametrize("schema", [True, {}, {"title": "anything"}, {"x-mine": 1}])
def test_a_schema_that_says_nothing_allows_any_json(schema):
    check(schema, [None, True, -1.5e10, 'é\n"\\', [], {}, {"a": [1, {"b": None}]}], [])
    assert not reader(schema).accepts("{a: 1}") and not reader(schema).accepts("01") and not reader(schema).accepts("")


def test_json_object_is_any_object():
    check(JSON_OBJECT, [{}, {"a": [1, {"b": "c"}]}], [[], 1, "x"])


@pytest.mark.parametrize(
    "types, good, bad",
    [
        ("null", [None], [0, "", False]),
        ("boolean", [True, False], [None, 0]),
        ("integer", [0, -12, 10**14], [1.5, "1", 10**15]),
        ("number", [0, -0.5, 12.25, 1e10], ["1", None]),
        ("string", ["", "x", "naïve 日本 🎉"], [1]),
        ("array", [[], [1, "a", [None]]], [{}]),
        ("object", [{}, {"a": {"b": []}}], [[]]),
        (["string", "null"], ["x", None], [1]),
        (["integer", "number"], [1, 1.5], ["1"]),
    ],
)
def test_a_value_has_one_of_its_types(types, good, bad):
    check({"type": types}, good, bad)


def test_null_is_added_as_openapi_writes_it():
    grammar = reader({"type": "string", "enum": ["a"], "nullable": True})
    assert grammar.accepts("null") and grammar.accepts('"a"') and not grammar.accepts('"b"')


def test_enum_and_const_hold_any_values():
    values = ["a", 'q"\\', 1, 2.5, None, True, [], [1, {"a": "é"}], {"a": None}]
    check({"enum": values}, values, ["b", 3, False, [1], {}])
    check({"const": {"a": [1]}}, [{"a": [1]}], [{"a": []}])
    check({"type": "string", "enum": ["a", 1, "bb"], "maxLength": 1}, ["a"], [1, "bb"])
    words = ["word%d" % number for number in range(900)]
    check({"enum": words + ["x"], "pattern": "^[a-z]{1,40}[0-9]{1,20}$"}, words[:3], ["x"])


def test_a_long_enum_is_one_path():
    words = ["word %d" % number for number in range(300)] + [7, None]
    grammar = check({"enum": words}, words, ["word", "word 300", "word 1 "])
    assert max(len(rows) for rows in grammar.rules.values()) < 20


# ---------------------------------------------------------------------------------------- logic and references


def test_any_of_is_one_or_another():
    check({"anyOf": [{"type": "integer"}, {"const": "x"}, False]}, [1, "x"], ["y", 1.5])
    schema = {"type": "object", "properties": A_AND_B, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}
    check(schema, [{"a": 1}, {"b": None}, {"a": 1, "b": None}], [{}])


def test_one_of_holds_just_one_branch():
    cat = {
        "type": "object",
        "properties": {"kind": {"const": "cat"}, "lives": {"type": "integer"}},
        "required": ["kind"],
    }
    dog = {
        "type": "object",
        "properties": {"kind": {"enum": ["dog"]}, "name": {"type": "string"}},
        "required": ["kind"],
    }
    check(
        {"oneOf": [cat, dog]},
        [{"kind": "cat", "lives": 9}, {"kind": "dog"}],
        [{"kind": "cat", "name": "x"}, {"kind": "x"}],
    )
    check({"oneOf": [{"type": ["string", "integer"]}, {"type": ["integer", "null"]}]}, ["x", None], [1])
    check({"oneOf": [{"enum": [1, 2]}, {"enum": [2, 3]}]}, [1, 3], [2])
    check(
        {"oneOf": [{"type": "string", "pattern": "^a"}, {"type": "string", "pattern": "b$"}]}, ["a", "b"], ["ab", "c"]
    )
    check({"oneOf": [{"type": "integer", "maximum": 3}, {"type": "integer", "minimum": 4}]}, [3, 4])
    schema = {"type": "object", "properties": A_AND_B, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}
    check(schema, [{"a": 1}, {"b": None}], [{}, {"a": 1, "b": None}])
    assert "anyOf" in refusal({"oneOf": [{"type": "number"}, {"type": "integer"}]})


def test_branches_that_contradict_one_another_are_left_out():
    unions = [{"anyOf": [{"const": [i, j]} for j in range(4)] + [{"type": "null"}]} for i in range(9)]
    check({"allOf": unions}, [None], [[0, 0]])


def test_not_is_held_where_it_can_be_told_apart():
    check({"type": "string", "not": {"const": ""}}, ["x"], [""])
    check({"enum": [1, 2, 3], "not": {"enum": [2]}}, [1, 3], [2])
    assert "#/not" in refusal({"type": "integer", "not": {"const": 3}})


def test_all_of_merges():
    schema = {"allOf": [{"type": "object", "properties": {"a": {"type": "integer", "minimum": 3}}, "required": ["a"]},
                        {"properties": {"a": {"maximum": 5}, "b": {"const": 1}}}]}  # fmt: skip
    check(schema, [{"a": 4}, {"a": 5, "b": 1}], [{"a": 6}, {"a": 2}, {"b": 1}])
    check({"allOf": [{"type": ["string", "null"]}, {"type": ["null", "integer"]}]}, [None], ["x", 1])
    assert "no value" in refusal({"allOf": [{"type": "string"}, {"type": "integer"}]})


def test_references_are_followed_recursive_ones_too():
    tree = {
        "type": "object",
        "properties": {"value": {"type": "integer"}, "kids": {"type": "array", "items": {"$ref": "#"}}},
    }
    check(
        dict(tree, required=["value"]), [{"value": 1, "kids": [{"value": 2, "kids": []}]}], [{"value": 1, "kids": [{}]}]
    )
    check({"$ref": "#/definitions/a~1b%20c", "definitions": {"a/b c": {"const": 1}}}, [1], [2])
    check({"properties": {"x": {"const": 1}, "y": {"$ref": "#/properties/x"}}}, [{"y": 1}], [{"y": 2}])
    check({"anyOf": [{"const": 1}, {"$ref": "#/anyOf/0"}]}, [1], [2])
    chain = {"d%d" % i: {"type": "array", "items": {"$ref": "#/$defs/d%d" % (i + 1)}} for i in range(2000)}
    assert json_grammar({"$ref": "#/$defs/d0", "$defs": dict(chain, d2000={})})


@pytest.mark.parametrize(
    "schema, where",
    [
        (False, "no value"),
        ([], "must be an object"),
        ({"$ref": "https://example.com/schema"}, "#/$ref"),
        ({"$ref": "#/anyOf/-1", "anyOf": [{}]}, "points to nothing"),
        ({"$ref": "#/$defs/none"}, "points to nothing"),
        ({"$ref": "#"}, "refers to itself"),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "refers to itself"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "never end"),
        ({"type": "array", "minItems": 1, "items": {"$ref": "#"}}, "never end"),
        ({"type": "array", "prefixItems": [{}], "minItems": 2, "items": {"$ref": "#"}}, "never end"),
        ({"minProperties": 1, "properties": {"a": {"$ref": "#"}}}, "never end"),
        ({"minProperties": 1, "additionalProperties": {"$ref": "#"}}, "never end"),
        ({"properties": {"a/b": {"if": {}}}}, "#/properties/a~1b/if"),
        ({"if": True, "then": False}, "#/if"),
        ({"contains": True}, "#/contains"),
        ({"unevaluatedItems": False}, "#/unevaluatedItems"),
        ({"dependentRequired": {}}, "#/dependentRequired"),
        ({"type": "text"}, "#/type"),
        ({"type": "object", "properties": {"a": 1}}, "#/properties"),
        ({"required": "a"}, "#/required"),
        ({"required": ["a"], "additionalProperties": False}, "no value"),
        ({"minLength": -1}, "#/minLength"),
        ({"enum": []}, "#/enum"),
        ({"minimum": "3"}, "#/minimum"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no value"),
        ({"type": "integer", "multipleOf": 123457}, "too many states"),
    ],
)
def test_what_can_not_be_honoured_is_refused_with_its_place(schema, where):
    assert where in refusal(schema)


def test_schemas_that_would_exhaust_anything_are_refused_at_once():
    deep = wide = {}
    for _ in range(5000):
        deep = {"items": deep}
    for depth in range(30):
        wide = {"anyOf": [{"properties": {"p%d" % depth: {"const": n}}} for n in range(3)], "allOf": [wide]}
    started = time.thread_time()
    assert "levels deep" in refusal(deep)
    assert "branches" in refusal(wide)
    assert "too large" in refusal({"type": "string", "minLength": 10**9})
    assert "too large" in refusal({"properties": {"p%d" % n: {} for n in range(30000)}})
    assert time.thread_time() - started < 20


def tagged(number, value):
    return {"type": "object", "properties": {"kind": {"const": number}, "value": value}, "required": ["kind", "value"]}


TEXTS = [{"type": "string", "pattern": "^[a-z]{0,100}%d$" % number} for number in range(290)]
COSTLY = {
    "branches told apart by a property": {"oneOf": [tagged(number, True) for number in range(290)]},
    "branches told apart by a pattern": {"oneOf": [dict(tagged(0, text), title="x") for text in TEXTS]},
    "strings that exclude one another": {"oneOf": TEXTS},
    "values held against other branches": {"oneOf": [{"enum": [[n, m] for m in range(50)]} for n in range(290)]},
    "patterns that explode": {"properties": {str(n): {"pattern": "(a|b)*a(a|b){10}c{%d}" % n} for n in range(60)}},
    "names held against patterns": {
        "patternProperties": {"a{%d}" % number: {} for number in range(60)},
        "required": ["a" * number for number in range(200)],
    },
    "very many properties": {"properties": {"p%d" % number: {"type": "string"} for number in range(19000)}},
    "very many values": {"enum": ["w%d" % number for number in range(45000)], "pattern": "^[a-z]+[0-9]+$"},
}


@pytest.mark.parametrize("what", sorted(COSTLY))
def test_a_schema_that_would_take_long_is_refused_after_about_a_second(what):
    started = time.thread_time()
    assert "too large" in refusal(COSTLY[what])
    assert time.thread_time() - started < 4  # on any machine; about 1 on a usual one


def test_what_people_mean_is_not_too_large():
    assert json_grammar({"oneOf": [tagged(number, {"type": "string"}) for number in range(80)]})
    assert json_grammar({"oneOf": [{"const": "country %d" % number, "title": "x"} for number in range(250)]})
    assert json_grammar({"properties": {"p%d" % number: {"type": "string"} for number in range(3000)}})
    assert json_grammar({"enum": ["value %d" % number for number in range(5000)]})


# -------------------------------------------------------------------------------------------- random schemas


def test_sentences_of_random_schemas_are_valid():
    pytest.importorskip("jsonschema")
    rng = random.Random(2)
    for _ in range(150):
        schema = random_schema(rng, 3)
        grammar = reader(schema)
        for _ in range(5):
            text = grammar.sentence(rng)
            assert valid(text, schema), (text, schema)


# --------------------------------------------------------------------------------- the engine, the demo model


@pytest.fixture(scope="module")
def engine():
    engine = launch(ctx_size=1024)
    yield engine
    engine.stop()


def answers(engine, schemas, **sampling):
    """Let the model answer to each schema, some at once; yields text, the end and the seconds it took."""
    for begin in range(0, len(schemas), 4):
        started = time.monotonic()
        generations = []
        for number, schema in enumerate(schemas[begin : begin + 4]):
            sampler = Sampling(grammar=json_grammar(schema), seed=begin + number, **sampling)
            generations.append(asked(prompt="Answer in JSON: ", max_tokens=400, sampling=sampler))
            engine.submit(generations[-1])
        for generation in generations:
            text, _, end = result(generation)
            yield text, end, time.monotonic() - started


@pytest.mark.parametrize("sampling", [{"temperature": 0.8}, {"temperature": 100.0, "top_k": 0, "top_p": 1.0}])
def test_the_model_answers_to_random_schemas(engine, sampling):
    pytest.importorskip("jsonschema")
    rng = random.Random(7)
    schemas = [random_schema(rng, 3) for _ in range(20)]
    ended = 0
    for schema, (text, end, seconds) in zip(schemas, answers(engine, schemas, **sampling)):
        assert seconds < 30
        if end.reason == "length":
            continue
        assert end.reason == "stop"
        assert valid(text, schema), (text, schema)
        ended += 1
    assert ended >= 10


LARGE = [
    {"type": "string", "maxLength": 90000},
    {"type": "array", "items": {"type": "integer"}, "minItems": 1500, "maxItems": 6000},
    {"properties": {"p%d" % number: {"type": "string"} for number in range(300)}},
    {"enum": ["value %d" % number for number in range(2000)]},
    {"type": "string", "pattern": "^[A-Z].{0,900}$"},
    {
        "anyOf": [
            {"properties": {"kind": {"const": n}, "at": {"format": "date-time"}}, "required": ["kind"]}
            for n in range(90)
        ]
    },
]


def test_llama_takes_large_grammars(engine):
    for _, end, seconds in answers(engine, LARGE, temperature=0.8):
        assert end.reason in ("stop", "length") and seconds < 30


SECONDS = 30  # that an answer may take once it has a slot; on two busy cores the slowest of these took 10


@pytest.mark.slow
def test_the_model_answers_to_three_hundred_random_schemas_that_wait_for_four_slots():
    pytest.importorskip("jsonschema")
    engine = launch(ctx_size=1024, slots=4, max_queue=1000)
    generations = []
    ended = 0
    try:
        for seed in range(300):
            schema = random_schema(random.Random(seed), 3)
            sampling = Sampling(grammar=json_grammar(schema), seed=seed, temperature=0.8)
            generations.append((schema, asked(prompt="Answer in JSON: ", max_tokens=400, sampling=sampling)))
            engine.submit(generations[-1][1])
        for seed, (schema, generation) in enumerate(generations):
            text, _, end = result(generation)
            assert end.reason in ("stop", "length"), seed
            assert end.timings["prompt_ms"] + end.timings["predicted_ms"] < SECONDS * 1e3, seed
            if end.reason == "stop":
                assert valid(text, schema), (seed, text, schema)
                ended += 1
    finally:
        engine.stop()
    assert ended >= 150
