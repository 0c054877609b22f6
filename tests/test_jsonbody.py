"""What is read of a body, and what is refused before Python's reader keeps all threads waiting for it."""

import json

import pytest

from core.bounds import DEPTH, VALUES
from core.errors import APIError
from core.jsonbody import read_json

DEEPEST = DEPTH.most - 1  # levels below the outermost object
PASTED = ",".join(["1"] * 2 * VALUES.most)


def in_a_list(values):
    return b'{"a":[' + b",".join(values) + b"]}"


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": 1, "b": -2.5e-3, "c": [true, false, null], "d": "\\ud83d\\ude00 \\\\ \\" ,,[["}',
        b' \n{"a": 1.7976931348623157e308, "b": 1e-999}\t',
        in_a_list([b"1"] * (VALUES.most - 10)),
        b'{"a":' + b"[" * DEEPEST + b"]" * DEEPEST + b"}",
        json.dumps({"a": PASTED}).encode(),
        json.dumps({"a": '"%s\\' % PASTED, "b\\": "[{" * VALUES.most}).encode(),
        b'{"a": %s}' % (b"9" * 300),
    ],
)
def test_what_fits_is_read_as_pythons_reader_reads_it(body):
    assert read_json(body) == json.loads(body)


@pytest.mark.parametrize(
    "body, why",
    [
        (in_a_list([b"[]"] * VALUES.most), "at most %d values" % VALUES.most),
        (in_a_list([b'""'] * VALUES.most + [b"[]"] * 10), "at most %d values" % VALUES.most),
        (b'{"a":"' + b"," * VALUES.most + b'","b":[' + b"1," * VALUES.most + b"1]}", "at most %d values" % VALUES.most),
        (b'{"a":' + b"[" * DEPTH.most + b"]" * DEPTH.most + b"}", "at most %d levels" % DEPTH.most),
        (b'{"a":' * DEPTH.most + b"{}" + b"}" * DEPTH.most, "at most %d levels" % DEPTH.most),
        (b"[" * 100000, "not valid JSON"),
        (b'{"a": %s}' % (b"9" * 10**6), "characters of a number"),
        (b'{"a": 0.%s}' % (b"1" * 10**6), "characters of a number"),
        (b'{"a": 1e999}', "1e999, which is too large"),
        (b'{"a": [-1e400]}', "-1e400, which is too large"),
        (b'{"a": %s}' % (b"9" * 400), "which is too large"),
        (b'{"a": NaN}', "NaN is not allowed"),
        (b'{"a": -Infinity}', "-Infinity is not allowed"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\uDFFF\\ud800": 1}', "half of a surrogate pair"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"a": 1]}', "not valid JSON"),
        (b"][" * 200, "not valid JSON"),
        (b'{"a" ' + b'"' * 501, "not valid JSON"),
        (b"[1]", "must be a JSON object, not an array"),
        (b"", "not valid JSON"),
    ],
)
def test_what_is_refused_says_why(body, why):
    with pytest.raises(APIError) as refused:
        read_json(body)
    assert refused.value.status == 400 and why in refused.value.message
