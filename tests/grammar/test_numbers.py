"""Numbers of schemas: bounds and multiples, exactly."""

import random

import pytest
from sentences import reader, refusal


def test_integers_within_bounds_are_exact():
    rng = random.Random(4)
    for _ in range(60):
        low = rng.randrange(-1200, 1200)
        high = low + rng.choice([0, 1, 9, 100, 1500])
        step = rng.choice([1, 1, 2, 7, 10, 25])
        schema = {"type": "integer", "minimum": low, "exclusiveMaximum": high + 1, "multipleOf": step}
        wanted = {number for number in range(low, high + 1) if number % step == 0}
        if not wanted:
            assert "no value" in refusal(schema)
            continue
        grammar = reader(schema)
        for number in rng.sample(range(low - 30, high + 30), 40) + [low - 1, low, high, high + 1]:
            assert grammar.accepts(str(number)) == (number in wanted), (number, schema)


@pytest.mark.parametrize(
    "schema, good, bad",
    [
        ({"minimum": 0}, ["0", "999999999999999"], ["-1", "-0", "00", "1e5"]),
        ({"exclusiveMinimum": 0}, ["1"], ["0", "-1"]),
        ({"maximum": -5}, ["-5", "-123456"], ["-4", "0", "5"]),
        ({"minimum": -(2**63), "maximum": 2**63 - 1}, [str(-(2**63)), str(2**63 - 1)], [str(2**63), str(-(2**63) - 1)]),
        ({"minimum": 1.5, "maximum": 3.5}, ["2", "3"], ["1", "4"]),
        ({"minimum": 3, "exclusiveMinimum": True}, ["4"], ["3"]),
        ({"maximum": 1e308}, ["-1", "999999999999999"], ["1.0"]),
        ({"multipleOf": 1000}, ["0", "-5000", "123000"], ["500", "1001"]),
        ({"multipleOf": 1.5}, ["3", "6"], ["1", "2"]),
    ],
)
def test_integer_bounds(schema, good, bad):
    grammar = reader(dict(schema, type="integer"))
    assert [text for text in good if not grammar.accepts(text)] == []
    assert [text for text in bad if grammar.accepts(text)] == []


@pytest.mark.parametrize(
    "schema, good, bad",
    [
        ({"minimum": 0, "maximum": 1}, ["0", "1", "0.5", "0.00001", "1.0"], ["1.01", "-0.1", "2", ".5", "1."]),
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 1}, ["0.5", "0.001"], ["0", "1", "0.0", "1.0"]),
        ({"minimum": -1.25, "maximum": -0.5}, ["-1.25", "-0.5", "-1", "-0.75"], ["-1.251", "-0.49", "0", "1"]),
        ({"minimum": -90, "maximum": 90}, ["-90", "35.6895", "-0.5", "0"], ["90.5", "-91", "100"]),
        ({"minimum": 9.5, "maximum": 10.5}, ["9.5", "10", "10.49"], ["9.4", "10.6", "1", "105"]),
        ({"multipleOf": 0.01}, ["1.05", "3", "-0.1"], ["1.005"]),
        ({"multipleOf": 0.25, "minimum": 0}, ["0.25", "1.5", "2"], ["0.3", "0.125"]),
    ],
)
def test_number_bounds(schema, good, bad):
    grammar = reader(dict(schema, type="number"))
    assert [text for text in good if not grammar.accepts(text)] == []
    assert [text for text in bad if grammar.accepts(text)] == []


def test_numbers_end():
    longest = max(len(reader({"type": "number"}).sentence(random.Random(seed))) for seed in range(50))
    assert longest < 40
    assert not reader({"type": "number"}).accepts("3." + "3" * 16)
