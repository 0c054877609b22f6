"""Reading a JSON request's fields: what is taken, what stands in for a missing one, and what is refused by name."""
import json

import pytest

from core import fields
from core.bounds import Bound
from core.errors import APIError

FOUR, NINE = Bound(4, "strings", "for a test"), Bound(9, "characters in a string", "for a test")
NAN, INFINITY, HUGE = float("nan"), float("inf"), 10**400


def brief(value):
    """A test's id that does not spell out 400 digits."""
    return repr(value)[:20]


def refusal(read, value, *arguments):
    """Read a wrong field; return the message after a check that the error is a 400 which names the field."""
    with pytest.raises(APIError) as caught:
        read({"field": value}, "field", *arguments)
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "invalid_value", "field")
    assert "'field'" in error.message
    assert len(error.message) < 300
    json.dumps(error.envelope(), allow_nan=False)
    return error.message


@pytest.mark.parametrize(
    "read, arguments, default",
    [
        (fields.text, ("hello",), "hello"),
        (fields.text, (None,), None),
        (fields.integer, (7, 0, 10), 7),
        (fields.integer, (None, 0, 10), None),
        (fields.integer, (-1, 0, 10), -1),
        (fields.number, (0.8, 0.0, 2.0), 0.8),
        (fields.number, (None, 0.0, 2.0), None),
        (fields.flag, (True,), True),
        (fields.flag, (False,), False),
        (fields.texts, (FOUR,), []),
    ],
)
@pytest.mark.parametrize("body", [{}, {"field": None}, {"other": 1}])
def test_a_missing_field_and_null_mean_the_default(read, arguments, default, body):
    assert read(body, "field", *arguments) == default


@pytest.mark.parametrize("body", [{}, {"field": None}])
def test_a_text_without_a_default_is_required(body):
    with pytest.raises(APIError) as caught:
        fields.text(body, "field")
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "missing_field", "field")


@pytest.mark.parametrize("value", ["a", " ", "日本🙂", "\x00", "x" * 100000])
def test_a_text_is_taken_as_it_is(value):
    assert fields.text({"field": value}, "field") == value


@pytest.mark.parametrize("value", ["", 0, 1, 1.5, True, False, [], ["a"], {}, {"a": 1}])
def test_what_is_no_text_or_an_empty_one_is_refused(value):
    refusal(fields.text, value)
    refusal(fields.text, value, "default")


@pytest.mark.parametrize("value, taken", [(1, 1), (10, 10), (-5, -5), (0, 0), (3.0, 3), (-0.0, 0), (1e1, 10)])
def test_a_whole_number_within_its_bounds_is_taken(value, taken):
    got = fields.integer({"field": value}, "field", None, -5, 10)
    assert got == taken and type(got) is int


@pytest.mark.parametrize(
    "value",
    [11, -6, 11.0, HUGE, -HUGE, 1e300, 1.5, NAN, INFINITY, -INFINITY, True, False, "1", "", [], [1], {}],
    ids=brief,
)
def test_what_is_no_whole_number_within_its_bounds_is_refused(value):
    refusal(fields.integer, value, 1, -5, 10)


def test_a_refused_whole_number_learns_its_bounds():
    assert "from -5 to 10, not 11" in refusal(fields.integer, 11, 1, -5, 10)


@pytest.mark.parametrize("value", [0, 0.0, 0.5, 2, 2.0, -0.0, 5e-324])
def test_a_number_within_its_bounds_is_taken_as_a_float(value):
    got = fields.number({"field": value}, "field", None, 0.0, 2.0)
    assert got == value and type(got) is float


@pytest.mark.parametrize(
    "value", [2.1, -0.1, 3, HUGE, -HUGE, NAN, INFINITY, -INFINITY, True, False, "1", "", [], [1.0], {}], ids=brief
)
def test_what_is_no_number_within_its_bounds_is_refused(value):
    refusal(fields.number, value, 1.0, 0.0, 2.0)


@pytest.mark.parametrize("value", [NAN, INFINITY, HUGE], ids=brief)
def test_a_number_without_bounds_must_still_be_a_finite_float(value):
    refusal(fields.number, value, 1.0, -INFINITY, INFINITY)


@pytest.mark.parametrize("value", [True, False])
def test_true_and_false_are_taken(value):
    assert fields.flag({"field": value}, "field", not value) is value


@pytest.mark.parametrize("value", [0, 1, 1.0, "true", "", [], {}])
def test_nothing_else_is_true_or_false(value):
    refusal(fields.flag, value, False)


@pytest.mark.parametrize(
    "value, taken",
    [("one", ["one"]), (["one"], ["one"]), (["a", "b", "c", "d"], ["a", "b", "c", "d"]), ([], []), ("\n", ["\n"])],
)
def test_texts_come_as_one_or_as_several(value, taken):
    assert fields.texts({"field": value}, "field", FOUR, NINE) == taken


@pytest.mark.parametrize(
    "value",
    ["", [""], ["a", ""], [1], ["a", None], [["a"]], 1, True, {}, {"a": "b"}, ["a"] * 5, "a" * 10],
)
def test_texts_that_are_none_or_empty_or_too_many_or_too_long_are_refused(value):
    refusal(fields.texts, value, FOUR, NINE)


def test_fields_that_nobody_reads_are_ignored():
    assert fields.integer({"field": 1, "frequency": "high"}, "field", 0, 0, 9) == 1
