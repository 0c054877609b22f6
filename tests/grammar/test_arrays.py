"""Arrays of schemas: items, counts, tuples, different items."""

import json

from sentences import check, reader, refusal


def test_arrays_hold_their_items_and_counts():
    check(
        {"items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
        [[1, 2], [1, 2, 3]],
        [[], [1], [1, 2, 3, 4], ["a", 1]],
    )
    check({"type": "array", "items": {"type": "null"}}, [[], [None] * 5], [[1]])
    check({"type": "array", "maxItems": 0}, [[]], [[1]])
    check({"type": "array", "items": False}, [[]], [[1]])
    grammar = reader({"type": "array", "minItems": 1500, "maxItems": 2600, "items": {"const": 1}})
    assert [size for size in (1499, 1500, 2600, 2601) if grammar.accepts(json.dumps([1] * size))] == [1500, 2600]


def test_tuples_come_whole():
    pair = [{"type": "string"}, {"type": "integer"}]
    check({"prefixItems": pair}, [["a", 1]], [[], ["a"], ["a", 1, 2], [1, "a"]])
    check({"prefixItems": pair, "items": {"type": "null"}}, [["a", 1], ["a", 1, None]], [["a", 1, 2]])
    check({"prefixItems": pair, "minItems": 3}, [["a", 1, {}]], [["a", 1]])
    check({"prefixItems": pair, "maxItems": 1}, [["a"]], [["a", 1]])
    assert reader({"items": pair, "additionalItems": False}).accepts('["a", 1]')  # as draft 7 writes it


def test_unique_items_of_an_enumeration_come_in_its_order():
    schema = {"type": "array", "uniqueItems": True, "items": {"enum": ["a", "b", "c"]}, "minItems": 1, "maxItems": 2}
    check(schema, [["a"], ["b", "c"], ["a", "c"]], [[], ["a", "a"], ["c", "a"], ["a", "b", "c"]])
    assert "uniqueItems" in refusal({"type": "array", "uniqueItems": True, "items": {"type": "string"}})
