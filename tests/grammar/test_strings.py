"""Strings of schemas: lengths, patterns as ECMA-262 has them, formats."""

import datetime
import ipaddress
import json
import random
import re

import pytest
from sentences import check, reader, refusal

from core.errors import APIError


def test_lengths_count_characters_however_they_are_written():
    grammar = check({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "日本語", '"\\'], ["a", "abcd", ""])
    assert grammar.accepts(r'"\u00e9\ud83c\udf89"') and not grammar.accepts(r'"\ud83c\udf89"')
    assert not grammar.accepts(r'"\ud83cab"')  # half a character


@pytest.mark.parametrize("low, high", [(0, 2500), (1500, 1500), (999, 3001), (2001, None), (1000, 2000)])
def test_long_lengths_are_exact(low, high):
    schema = {"type": "string", "minLength": low}
    grammar = reader(schema if high is None else dict(schema, maxLength=high))
    for size in {low - 1, low, low + 1, 1000, 2000, (high or 4000) - 1, high or 4000, (high or 4000) + 1} - {-1}:
        assert grammar.accepts('"%s"' % ("x" * size)) == (low <= size <= (high or size)), size


MATCHES = [
    ("^[a-c]+$", ["a", "abc"], ["", "ad", "xa"]),
    ("b+", ["b", "abba"], ["", "a"]),
    ("^a|b$", ["a", "ax", "xb"], ["xa", "bx"]),
    (r"^\d{3}-\d{4}$", ["555-1234"], ["5551234", "555-12345"]),
    (r"^\w+\s\W$", ["ab_1 !", "a\u3000-"], ["a b", "é !"]),
    (r"^[^\"\\]*$", ["x y", ""], ['"', "\\"]),
    (r'^"\\\n\t$', ['"\\\n\t'], ['"\\']),
    (r"^[\"\\\]\-^.]+$", ['"\\]-^.'], ["a"]),
    ("^(?:ab|c(?<name>d)?){2,3}$", ["abc", "cdcdab"], ["ab", "abababab"]),
    ("^a{2}b{1,}c{0,1}?$", ["aab", "aabbc"], ["ab", "aabcc"]),
    (r"^\x41\u3042\u{1F389}\ud83c\udf89\cJ\0$", ["Aあ🎉🎉\n\x00"], ["A"]),
    ("^.$", ["a", "🎉", "\x00"], ["\n", "\u2028", "ab"]),
    ("^$", [""], ["a"]),
    ("", ["", "anything"], []),
    ("^a{,3}$", ["a{,3}"], ["aaa"]),
    (r"^[\w-]+$", ["a-b"], ["a.b"]),
    ("^(?=.*[A-Z])(?=.*[0-9])(?!.*x).{4,6}$", ["Ab1c", "1234AB"], ["abc1", "Ab1x", "Ab1"]),
    (r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$", ["1.5", "-0.", "007"], ["", "-", "+.", "1.2.3"]),
]


@pytest.mark.parametrize("pattern, good, bad", MATCHES)
def test_a_pattern_means_what_ecma_says(pattern, good, bad):
    grammar = reader({"type": "string", "pattern": pattern})
    for text in good + bad:
        written = json.dumps(text, ensure_ascii=False)
        assert grammar.accepts(written) == (text in good), text
    rng = random.Random(3)
    for _ in range(20):
        assert isinstance(json.loads(grammar.sentence(rng)), str)


def some_pattern(rng, depth):
    """A random pattern on which ECMA-262 and Python agree over the texts made of a, b, 1 and -."""
    kind = rng.randrange(7 if depth else 2)
    if kind == 0:
        return rng.choice("ab1-")
    if kind == 1:
        return rng.choice([".", "[ab]", "[^a]", r"\d", r"\w", r"\W", r"[^\w]", r"[\w-]", r"\D"])
    if kind < 4:
        return some_pattern(rng, depth - 1) + some_pattern(rng, depth - 1)
    if kind == 4:
        return "(?:%s|%s)" % (some_pattern(rng, depth - 1), some_pattern(rng, depth - 1))
    if kind == 5:
        return "(%s)%s" % (some_pattern(rng, depth - 1), rng.choice(["*", "+", "?", "{2}", "{1,2}", "{2,}", "*?"]))
    return "(%s%s%s)" % (rng.choice(["", "^"]), some_pattern(rng, depth - 1), rng.choice(["", "$"]))


def test_random_patterns_accept_just_what_python_finds():
    rng = random.Random(11)
    texts = ["".join(rng.choice("ab1-") for _ in range(rng.randrange(7))) for _ in range(40)]
    for _ in range(60):
        pattern = rng.choice(["", "^"]) + some_pattern(rng, 4) + rng.choice(["", "$"])
        try:
            grammar = reader({"type": "string", "pattern": pattern})
        except APIError as error:
            assert "no value" in error.message  # "a^" can't match
            assert not any(re.search(pattern, text) for text in texts)
            continue
        for text in texts:
            assert grammar.accepts('"%s"' % text) == bool(re.search(pattern, text)), (pattern, text)


@pytest.mark.parametrize(
    "pattern, why",
    [
        (r"(a)\1", "refers back"),
        ("a(?=b)", "lookaround"),
        ("(?<=a)b", "lookaround"),
        ("(a", "not closed"),
        ("a)", "too many"),
        ("*a", "repeats nothing"),
        ("[b-a]", "wrong way round"),
        ("[a", "too early"),
        (r"\p{L}", "not supported"),
        ("(?i)a", "unknown kind"),
        ("(a|b)*a(a|b){20}", "too many states"),
        ("((((a{99}){99}){99}){99})", "too many states"),
        ("(" * 300 + ")" * 300, "nested too deeply"),
    ],
)
def test_a_pattern_that_can_not_be_held_is_refused(pattern, why):
    message = refusal({"properties": {"a": {"type": "string", "pattern": pattern}}})
    assert why in message and "#/properties/a/pattern" in message


def test_pattern_format_and_lengths_hold_together():
    check({"type": "string", "pattern": "^a*b*$", "minLength": 2, "maxLength": 3}, ["ab", "aab"], ["a", "ba", "aabb"])
    check({"allOf": [{"pattern": "^a"}, {"pattern": "z$"}], "type": "string"}, ["az", "abz"], ["a", "z"])
    check({"type": "string", "format": "date", "pattern": "^2024-02"}, ["2024-02-29"], ["2024-03-01", "2024-02-30"])
    assert "no value" in refusal({"type": "string", "pattern": "^a{3}$", "maxLength": 2})


FORMATS = {
    "date": (["2024-02-29", "2000-02-29", "1999-12-31"], ["2023-02-29", "1900-02-29", "2024-04-31", "2024-1-1"]),
    "time": (["23:59:59Z", "01:02:03.5+09:00"], ["24:00:00Z", "12:00:00", "12:60:00Z"]),
    "date-time": (["2024-02-29T12:00:00Z"], ["2024-02-29 12:00:00Z", "2024-02-30T12:00:00Z"]),
    "duration": (["P1D", "PT1H30M", "P1Y2M3DT4H", "P2W"], ["P", "PT", "1D", "P1H"]),
    "uuid": (["123e4567-e89b-12d3-a456-426614174000"], ["123e4567e89b12d3a456426614174000", "g" * 36]),
    "email": (["a.b+c@example.co.jp"], ["a", "@b.c", "a@b", "a..b@c.de", "a b@c.de"]),
    "ipv4": (["0.0.0.0", "255.249.199.99"], ["256.1.1.1", "1.2.3", "01.2.3.4"]),
    "ipv6": (["::", "::1", "fe80::1:2", "1:2:3:4:5:6:7:8", "1::"], ["1", ":::", "1::2::3", "12345::", "1:2:3:4:5:6:7"]),
    "hostname": (["localhost", "a-b.example.com"], ["-a", "a-", "a..b", ""]),
    "uri": (["https://example.com:80/a?b=c#d", "mailto:a@b.c", "urn:x:y"], ["example.com", "http://a b", "//x/y"]),
    "json-pointer": (["", "/a~1b/0"], ["a", "/~2"]),
}


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_format_is_held(name):
    good, bad = FORMATS[name]
    grammar = check({"type": "string", "format": name}, good, bad)
    read = {
        "date": datetime.date.fromisoformat,
        "ipv4": ipaddress.IPv4Address,
        "ipv6": ipaddress.IPv6Address,
    }.get(name, str)
    rng = random.Random(9)
    for _ in range(100):
        read(json.loads(grammar.sentence(rng)))


def test_an_unknown_format_is_an_annotation():
    check({"type": "string", "format": "wine"}, ["anything"])
