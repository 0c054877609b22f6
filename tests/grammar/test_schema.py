"""JSON schemas as grammars: whatever the grammar accepts is valid, and what people mean by the schema is accepted.

Most tests read the grammar with a small reader of GBNF below, which recognises texts and makes up random ones; the last
ones hand it to llama.cpp.
"""

import datetime
import ipaddress
import json
import random
import re
import time

import pytest
from engines import DEMO, launch, result
from schemas import random_schema

from core.engine.engine import Job, Sampling
from core.errors import APIError
from core.grammar.rules import literal
from core.grammar.schema import JSON_OBJECT, Grammar, json_grammar

# ------------------------------------------------------------------------------------------- reading GBNF

_TOKEN = re.compile(
    r'\s*(?:(?P<text>"(?:[^"\\]|\\.)*")|(?P<set>\[(?:[^\]\\]|\\.)*\])|(?P<name>[a-zA-Z0-9-]+)'
    r"|(?P<count>[*+?]|\{\d+(?:,\d*)?\})|(?P<mark>[()|]))"
)
_CHAR = re.compile(r"\\x([0-9A-Fa-f]{2})|\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})|\\(.)|(.)", re.DOTALL)


def codes(text):
    """The code points that the inside of a literal or of a class stands for, each with whether it was escaped."""
    for two, four, eight, escaped, plain in _CHAR.findall(text):
        digits = two or four or eight
        if digits:
            yield int(digits, 16), True
        else:
            yield ord({"n": "\n", "r": "\r", "t": "\t"}.get(escaped, escaped) or plain), bool(escaped)


def ranges(text):
    """The ranges of a class, which is never a negated one."""
    chars, found = list(codes(text)), []
    while chars:
        first, last = chars.pop(0)[0], None
        if len(chars) > 1 and chars[0] == (ord("-"), False):
            chars.pop(0)
            last = chars.pop(0)[0]
        found.append((first, first if last is None else last))
    return tuple(found)


def tokens(body):
    found, at = [], 0
    while at < len(body.rstrip()):
        match = _TOKEN.match(body, at)
        assert match, "not GBNF: " + body[at:]
        found.append((match.lastgroup, match.group(match.lastgroup)))
        at = match.end()
    return found + [("end", "")]


def times(text):
    """The least and the most (None: any number) that a quantifier stands for."""
    if text in "*+?":
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[text]
    low, comma, high = text[1:-1].partition(",")
    assert int(low) <= 2000 and int(high or 0) <= 2000, "llama.cpp takes no more"
    return int(low), int(high) if high else None if comma else int(low)


def some_char(rng, allowed):
    """A random character of some ranges, mostly an easy one."""
    first, last = rng.choice(allowed)
    return chr(rng.randint(first, min(last, first + 25) if rng.random() < 0.9 else last))


class Reader:
    """A grammar's rules. Items are ("set", ranges), ("rule", name), ("choice", rows), ("repeat", item, low, high)."""

    def __init__(self, grammar):
        self.rules = {}
        for line in grammar.splitlines():
            name, _, body = line.partition(" ::= ")
            assert name not in self.rules
            self._tokens = tokens(body)
            self.rules[name] = self._rows()
            assert self._tokens == [("end", "")]
        self._depths = self._shallowest()

    def _rows(self):
        rows = [self._row()]
        while self._tokens[0] == ("mark", "|"):
            self._tokens.pop(0)
            rows.append(self._row())
        return tuple(rows)

    def _row(self):
        items = []
        while self._tokens[0][0] in ("text", "set", "name", "count") or self._tokens[0] == ("mark", "("):
            kind, text = self._tokens.pop(0)
            if kind == "text":
                items.append(("choice", (tuple(("set", ((code, code),)) for code, _ in codes(text[1:-1])),)))
            elif kind == "set":
                items.append(("set", ranges(text[1:-1])))
            elif kind == "name":
                items.append(("rule", text))
            elif kind == "mark":
                items.append(("choice", self._rows()))
                assert self._tokens.pop(0) == ("mark", ")")
            else:
                items.append(("repeat", items.pop()) + times(text))
        return tuple(items)

    # ---- recognising: the sets of stacks that llama.cpp goes through

    def accepts(self, text):
        stacks = self._settled({(("rule", "root"), None)})
        for char in text:
            taken = {rest for item, rest in filter(None, stacks) if any(a <= ord(char) <= b for a, b in item[1])}
            stacks = self._settled(taken)
        return None in stacks

    def _settled(self, stacks):
        """Expand stacks until each begins with a set of characters, or is empty."""
        seen, settled, todo = set(stacks), set(), list(stacks)
        while todo:
            stack = todo.pop()
            if stack is None or stack[0][0] == "set":
                settled.add(stack)
            else:
                fresh = {push(row, stack[1]) for row in self._ways(stack[0])} - seen
                seen |= fresh
                todo += fresh
        return settled

    def _ways(self, item):
        if item[0] == "rule":
            return self.rules[item[1]]
        if item[0] == "choice":
            return item[1]
        _, inner, low, high = item
        if low:
            return [[inner, ("repeat", inner, low - 1, high and high - 1)]]
        return [[]] + ([[inner, ("repeat", inner, 0, high and high - 1)]] if high != 0 else [])

    # ---- making up texts

    def sentence(self, rng, patience=60):
        """A random text of the grammar; once `patience` choices are made, the shallowest way out is taken."""
        out, todo = [], [("rule", "root")]
        while todo:
            item = todo.pop()
            if item[0] == "set":
                out.append(some_char(rng, item[1]))
            elif item[0] == "repeat":
                _, inner, low, high = item
                more = rng.choice([0, 0, 1, 2, 5]) if patience > 0 else 0
                patience -= more
                todo += [inner] * (low + (more if high is None else min(more, high - low)))
            else:
                rows = self._ways(item)
                patience -= len(rows) > 1
                row = rng.choice(rows) if patience > 0 else min(rows, key=self._depth)
                todo += reversed(row)
        return "".join(out)

    def _depth(self, row):
        return max((self._item_depth(item) for item in row), default=0)

    def _item_depth(self, item):
        if item[0] == "set":
            return 0
        if item[0] == "rule":
            return self._depths[item[1]]
        if item[0] == "choice":
            return min(map(self._depth, item[1]))
        return self._item_depth(item[1]) if item[2] else 0

    def _shallowest(self):
        """How deep each rule's shallowest text is; every rule must have a text."""
        self._depths = {name: float("inf") for name in self.rules}
        for _ in self.rules:
            depths = {name: 1 + min(map(self._depth, rows)) for name, rows in self.rules.items()}
            if depths == self._depths:
                break
            self._depths = depths
        assert max(self._depths.values()) < float("inf"), "a rule has no finite text"
        return self._depths


def push(row, rest):
    for item in reversed(row):
        rest = (item, rest)
    return rest


def reader(schema):
    return Reader(json_grammar(schema))


def check(schema, good=(), bad=(), seed=1):
    """Good values are accepted, bad ones are not, and random sentences are valid. Texts stand for themselves."""
    grammar = reader(schema)
    for value in good:
        assert grammar.accepts(json.dumps(value, ensure_ascii=False)), value
    for value in bad:
        assert not grammar.accepts(json.dumps(value, ensure_ascii=False)), value
    rng = random.Random(seed)
    for _ in range(30):
        assert valid(grammar.sentence(rng), schema)
    return grammar


def valid(text, schema):
    validator = pytest.importorskip("jsonschema").Draft202012Validator(schema)
    return validator.is_valid(json.loads(text))


def refusal(schema):
    """The message with which a schema is refused."""
    with pytest.raises(APIError) as caught:
        json_grammar(schema, "tools")
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "unsupported_schema", "tools")
    return error.message


def test_the_reader_of_these_tests_knows_gbnf():
    grammar = Reader('root ::= "a" b{2,3} ("x" | [\\x41-C\\u3042])* "\\"\\n"?\nb ::= [0-9] | "-"+\n')
    for text in ("a01", "a0--", 'a123xABあ"\n', "a--"):
        assert grammar.accepts(text), text
    for text in ("", "a1", "a12y", "a12\n", "a12D"):
        assert not grammar.accepts(text), text


# ------------------------------------------------------------------------------------------ building rules


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


# --------------------------------------------------------------------------------------------------- strings


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


# --------------------------------------------------------------------------------------------------- numbers


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


# ---------------------------------------------------------------------------------------------------- arrays


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


# --------------------------------------------------------------------------------------------------- objects

A_AND_B = {"a": {"type": "integer"}, "b": {"type": "null"}}


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
        jobs = []
        for number, schema in enumerate(schemas[begin : begin + 4]):
            sampler = Sampling(grammar=json_grammar(schema), seed=begin + number, **sampling)
            jobs.append(Job(DEMO, "Answer in JSON: ", max_tokens=400, sampling=sampler))
            engine.submit(jobs[-1])
        for job in jobs:
            text, _, end = result(job)
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
    jobs = []
    ended = 0
    try:
        for seed in range(300):
            schema = random_schema(random.Random(seed), 3)
            sampling = Sampling(grammar=json_grammar(schema), seed=seed, temperature=0.8)
            jobs.append((schema, Job(DEMO, "Answer in JSON: ", max_tokens=400, sampling=sampling)))
            engine.submit(jobs[-1][1])
        for seed, (schema, job) in enumerate(jobs):
            text, _, end = result(job)
            assert end.reason in ("stop", "length"), seed
            assert end.timings["prompt_ms"] + end.timings["predicted_ms"] < SECONDS * 1e3, seed
            if end.reason == "stop":
                assert valid(text, schema), (seed, text, schema)
                ended += 1
    finally:
        engine.stop()
    assert ended >= 150
