"""Grammars, samplers and JSON schemas that would kill, wedge or stall the engine.

A row is (a body's fields, what comes). After each one the same process generates. Neither takes longer than SECONDS:
that is far above what a right answer takes (milliseconds; compiling has a budget of its own) on a loaded machine, and
far below what these took before (27 s to for ever).
Sources: llama.cpp's src/llama-grammar.cpp and src/llama-sampler.cpp; the JSON Schema Test Suite's odd corners.
"""

import json
import time

import pytest

from hostile.enemy import Hung, Line, post, unharmed

MODEL = "demo.gguf"
SECONDS = 12
ASK = {"model_name": MODEL, "prompt": "Hi", "max_tokens": 4, "temperature": 0.5}


def check(target, path, body, wanted):
    place, survivors = target
    with unharmed(*survivors):
        began = time.monotonic()
        reply = post(place.port, path, body, patience=SECONDS)
        assert str(reply.status) in wanted.split("/"), (reply.status, reply.body[:300])
        if reply.status != 200:
            assert reply.error["message"] and len(reply.body) < 4096, reply.body[:300]
        assert time.monotonic() - began < SECONDS
    return reply


# ----------------------------------------------------------------------------------------------------- GBNF


def doubling(rules, end):
    """Rules that each are the next one twice: 2^rules ways to be nothing."""
    return "root ::= r0\n" + "".join("r%d ::= r%d r%d\n" % (n, n + 1, n + 1) for n in range(rules)) + "r%d ::= %s" % (
        rules, end,
    )  # fmt: skip


def chain(rules, end='"a"'):
    return "root ::= r0\n" + "".join("r%d ::= r%d\n" % (n, n + 1) for n in range(rules)) + "r%d ::= %s" % (rules, end)


GRAMMARS = [
    ("nothing ever allowed again", 'root ::= "a"', {"ignore_eos": True}, "200/400"),
    ("nothing allowed at once", 'root ::= ""', {"ignore_eos": True}, "200/400"),
    ("an empty language", "root ::= [^\\x00-\\U0010FFFF]", {}, "200/400"),
    ("a range the wrong way round", "root ::= [z-a]+", {}, "400"),
    ("a range the wrong way round among others", "root ::= [a-bz-a]", {}, "200/400"),
    ("repetition the wrong way round", 'root ::= "a"{5,2}', {}, "400"),
    ("a token that is none", "root ::= <[1]> <[99999999]>", {}, "400"),
    ("a negative token", "root ::= <[-1]>", {}, "400"),
    ("a token of many digits", "root ::= <[" + "9" * 5000 + "]>", {}, "400"),
    ("half a token", "root ::= <[1", {}, "400"),
    ("an unknown token", "root ::= <no-such-token>", {}, "400"),
    ("no token", "root ::= <>", {}, "400"),
    ("no number for a token", "root ::= <[]>", {}, "400"),
    ("any token but one that is none", "root ::= !<[99999999]>", {}, "400"),
    ("the token that ends all", "root ::= <|im_end|>", {}, "200/400"),
    ("any token but one, for ever", "root ::= !<[5]>*", {}, "200/400"),
    ("no token at all, one at a time", "root ::= !<[5]> <[5]>", {"logit_bias": [[5, False]]}, "200/400"),
    ("10^5 brackets", "root ::= " + "(" * 100000 + '"a"' + ")" * 100000, {}, "400"),
    ("10^5 brackets that nobody closes", "root ::= " + "(" * 100000, {}, "400"),
    ("10^5 brackets that nobody opens", "root ::= " + ")" * 100000, {}, "400"),
    ("10^5 rules in a chain", chain(100000), {}, "400"),
    ("2,000 rules in a chain", chain(2000), {}, "200/400"),
    ("10^5 alternatives", "root ::= " + " | ".join('"%d"' % n for n in range(100000)), {}, "200/400"),
    ("10^5 empty alternatives", "root ::= " + "|" * 100000, {}, "200/400"),
    ("10^5 words", "root ::= " + '"a" ' * 100000, {}, "200/400"),
    ("a word of 10^6 letters", 'root ::= "' + "a" * 1000000 + '"', {}, "200/400"),
    ("a class of 10^5 letters", "root ::= [" + "".join(chr(0x4E00 + n % 20000) for n in range(100000)) + "]", {},
     "200/400"),
    ("20 doublings of what may be nothing", doubling(20, '"a"?'), {}, "200/400"),
    ("40 doublings of what may be nothing", doubling(40, '"a"?'), {}, "400"),
    ("20 doublings of nothing", doubling(20, '""'), {}, "200/400"),
    ("20 doublings of a letter", doubling(20, '"a"'), {}, "200/400"),
    ("40 doublings of any letter", doubling(40, "[a-z]"), {}, "200/400"),
    ("doublings with two ends", doubling(18, '"a" | "aa" | "aaa"'), {}, "200/400"),
    ("alternatives of alternatives",
     "root ::= r0\n" + "".join("r%d ::= r%d | r%d\n" % (n, n + 1, n + 1) for n in range(24))
     + 'r24 ::= "a"', {}, "200/400"),
    ("two ways at each letter", 'root ::= ("a" | "a" "")*', {}, "200/400"),
    ("two ways for ever", "root ::= (x | y)*\nx ::= [a-z]\ny ::= [a-z] | x", {}, "200/400"),
    ("2^n ways to read a run", "root ::= ([a-z ]+)+", {}, "200/400"),
    ("2^n ways to read nothing", "root ::= (([a-z]*)*)*", {}, "200/400"),
    ("optional nothing for ever", 'root ::= (""?)*', {}, "200/400"),
    ("nothing 2,000 times", 'root ::= ""{2000}', {}, "200/400"),
    ("an ambiguous sum", 'root ::= e\ne ::= e "+" e | "1"', {}, "400"),
    ("recursion to the left", 'root ::= root "a" | "a"', {}, "400"),
    ("recursion to the left, round about", 'root ::= x\nx ::= y "a"\ny ::= root | "b"', {}, "400"),
    ("recursion to the left behind nothing", 'root ::= x root "a" | "b"\nx ::= "c"?', {}, "400"),
    ("recursion to the left in brackets", 'root ::= (root)? "a"', {}, "400"),
    ("recursion to the left in a repetition", 'root ::= (root "b")* "a"', {}, "400"),
    ("itself and nothing else", "root ::= root", {}, "400"),
    ("itself, twice", "root ::= root root", {}, "400"),
    ("for ever, to the right", 'root ::= "a" root', {}, "200/400"),
    ("brackets without end", 'root ::= "(" root ")" | ""', {}, "200/400"),
    ("10^5 nested optional groups", "root ::= " + '("a" ' * 20000 + ")?" * 20000, {}, "200/400"),
    ("a billion times", 'root ::= "a"{1000000000}', {}, "400"),
    ("more times than 64 bits hold", 'root ::= "a"{99999999999999999999999}', {}, "400"),
    ("at most a billion times", 'root ::= "a"{0,1000000000}', {}, "200/400"),
    ("negative times", 'root ::= "a"{-1}', {}, "400"),
    ("half a repetition", 'root ::= "a"{2', {}, "400"),
    ("a repetition of commas", 'root ::= "a"{,,}', {}, "400"),
    ("an open repetition", 'root ::= "a"{,}', {}, "200/400"),
    ("nothing to repeat", "root ::= *", {}, "400"),
    ("nothing to repeat in brackets", "root ::= ()*", {}, "200/400"),
    ("a repetition of a repetition", 'root ::= "a"*+?{3}', {}, "200/400"),
    ("1,000 times 1,000 times", 'root ::= ("a"{1000}){1000}', {}, "200/400"),
    ("100 times, five times over", 'root ::= ((((("a"{100}){100}){100}){100}){100})', {}, "200/400"),
    ("a repeated rule, round about", 'root ::= x{1000}\nx ::= y{1000}\ny ::= "a"{1000}', {}, "200/400"),
    ("no root", 'x ::= "a"', {}, "400"),
    ("root twice", 'root ::= "a"\nroot ::= "b"', {}, "200/400"),
    ("a rule that is not there", "root ::= x", {}, "400"),
    ("a rule that is not there and not reached", 'root ::= "a"\ny ::= x', {}, "200/400"),
    ("an empty rule", "root ::=", {}, "200/400"),
    ("no rule", "hello", {}, "400"),
    ("only a comment", "# root", {}, "400"),
    ("only spaces", " \n\t\n", {}, "200/400"),
    ("a comment of 10^6 letters", 'root ::= "a" #' + "x" * 1000000, {}, "200/400"),
    ("a rule's name of 10^6 letters", "x" * 1000000 + ' ::= "a"\nroot ::= "a"', {}, "200/400"),
    ("a name of odd letters", 'rööt ::= "a"', {}, "400"),
    ("one colon", 'root := "a"', {}, "400"),
    ("no end of a word", 'root ::= "a', {}, "400"),
    ("no end of a class", "root ::= [a", {}, "400"),
    ("an empty class", "root ::= []", {}, "200/400"),
    ("an empty class, negated", "root ::= [^]", {}, "200/400"),
    ("half a range", "root ::= [a-]", {}, "200/400"),
    ("an unknown escape", 'root ::= "\\q"', {}, "400"),
    ("half an escape of two", 'root ::= "\\x4"', {}, "400"),
    ("half an escape of four", 'root ::= "\\u12"', {}, "400"),
    ("an escape at the end", 'root ::= "\\', {}, "400"),
    ("more than Unicode", "root ::= [\\U00110000]", {}, "200/400"),
    ("far more than Unicode", "root ::= [\\UFFFFFFFF]", {}, "200/400"),
    ("all that 32 bits hold", "root ::= [\\x00-\\UFFFFFFFF]", {}, "200/400"),
    ("half a pair", "root ::= [\\uD800-\\uDFFF]", {}, "200/400"),
    ("NUL", 'root ::= "\\x00"', {}, "200/400"),
    ("NUL as it is", 'root ::= "a\0b"', {}, "200/400"),
    ("an end behind NUL", "root ::= [a]\0 [z-a]", {}, "200/400"),
    ("control characters", 'root ::= "\x01\x02"', {}, "200/400"),
    ("a byte order mark", '\ufeffroot ::= "a"', {}, "200/400"),
    ("lines of Windows", 'root ::= x\r\nx ::= "a"\r\n', {}, "200"),
    ("any letter", "root ::= .", {}, "200"),
    ("any letters", "root ::= .*", {}, "200"),
    ("letters that no token has", "root ::= [\U000f0000-\U000fffff]+", {}, "200/400"),
    ("emoji", 'root ::= "\U0001f600"+', {}, "200"),
    ("half of what a token is", "root ::= [\x80-\xff]", {}, "200/400"),
]  # fmt: skip


SLOW = [
    ("2,000 optional words", "root ::= " + '"a"? ' * 2000, {}, "200/400"),
    ("2,000 optional classes", "root ::= " + "[a-z]? " * 2000, {}, "200/400"),
    ("5,000 optional words in brackets", "root ::= (" + '"a"? ' * 5000 + ")*", {}, "200/400"),
    ("500 doublings", doubling(500, '"a"?'), {}, "200/400"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("row", SLOW, ids=[row[0].replace(" ", "-") for row in SLOW])
def test_a_grammar_that_takes_all_the_time_there_is(target, row):
    check(target, "/generate", dict(ASK, grammar=row[1]), row[3])


@pytest.mark.parametrize("row", GRAMMARS, ids=[row[0].replace(" ", "-") for row in GRAMMARS])
def test_a_grammar(alone, row):
    name, grammar, more, wanted = row
    reply = check(alone, "/generate", dict(ASK, grammar=grammar, **more), wanted)
    if reply.status == 400:
        assert reply.error["param"] in ("grammar", "logit_bias", "ignore_eos")


@pytest.mark.parametrize("row", GRAMMARS[:30], ids=[row[0].replace(" ", "-") for row in GRAMMARS[:30]])
def test_a_grammar_through_the_balancer(front, engine, row):
    name, grammar, more, wanted = row
    check((front, (front, engine)), "/generate", dict(ASK, grammar=grammar, **more), wanted)


@pytest.mark.parametrize("row", GRAMMARS[:12], ids=[row[0].replace(" ", "-") for row in GRAMMARS[:12]])
@pytest.mark.parametrize("path", ["/completion", "/v1/chat/completions", "/v1/messages", "/api/chat"])
def test_a_grammar_by_way_of_another_dialect(alone, path, row):
    name, grammar, more, wanted = row
    fields = dict(more, grammar=grammar)
    messages = [{"role": "user", "content": "Hi"}]
    bodies = {
        "/completion": dict(fields, prompt="Hi", n_predict=4),
        "/v1/chat/completions": dict(fields, messages=messages, max_tokens=4),
        "/v1/messages": dict(fields, messages=messages, max_tokens=4, model=MODEL),
        "/api/chat": {"model": MODEL, "messages": messages, "stream": False, "options": dict(fields, num_predict=4)},
    }
    check(alone, path, bodies[path], wanted)


def test_a_grammar_of_another_type(target):
    for wrong in (1, True, [], ["root"], {}, {"root": "a"}):
        check(target, "/generate", dict(ASK, grammar=wrong), "400")


def test_what_a_grammar_demands_is_what_comes_though_the_end_is_ignored(target):
    reply = check(target, "/generate", dict(ASK, grammar='root ::= "a"', ignore_eos=True), "200/400")
    if reply.status == 200:
        assert (reply.json["response"], reply.json["finish_reason"]) == ("a", "stop")


def test_innocent_streams_go_on_beside_a_grammar_that_allows_nothing(target):
    place, survivors = target
    body = json.dumps({"model_name": MODEL, "prompt": "Once upon a time", "max_tokens": 150, "stream": True,
                       "ignore_eos": True})
    with unharmed(*survivors), Line(place.port) as line:
        head = "POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        line.send((head % len(body) + body).encode())
        for grammar, bias in (('root ::= "a"', []), ("root ::= [a-c]", letters(place, "abc"))):
            reply = post(place.port, "/generate", dict(ASK, grammar=grammar, ignore_eos=True, logit_bias=bias))
            assert reply.status in (200, 400)
        reply = line.reply()
        assert reply.status == 200 and reply.body.endswith(b"data: [DONE]\n\n") and b'"error"' not in reply.body


def letters(place, text):
    """Return biases that forbid every token which begins with one of these letters."""
    pieces = post(place.port, "/tokenize", {"content": text, "with_pieces": True}).json["tokens"]
    return [[each["id"], False] for each in pieces]


FORBIDDEN = [
    ("the only letter", 'root ::= "a"', "a"),
    ("the only letter, later", 'root ::= "b" "a"', "a"),
    ("all of a class", "root ::= [abc]+", "abc"),
    ("the only digit", "root ::= [7]", "7"),
]


@pytest.mark.parametrize("row", FORBIDDEN, ids=[row[0].replace(" ", "-") for row in FORBIDDEN])
def test_a_bias_that_forbids_all_that_a_grammar_allows(target, row):
    place, _ = target
    bias = letters(place, row[2])
    for wrong in (False, -1e308):
        fields = {"grammar": row[1], "logit_bias": [[token, wrong] for token, _ in bias], "ignore_eos": True}
        check(target, "/generate", dict(ASK, **fields), "200/400")


def test_a_bias_that_forbids_every_token(target):
    place, survivors = target
    for count in (600, 1024, 3000, 5000):
        body = {"prompt": "Hi", "n_predict": 2, "logit_bias": [[token, False] for token in range(count)]}
        check(target, "/completion", body, "200/400")
        check(target, "/completion", dict(body, ignore_eos=True, temperature=0), "200/400")


# ------------------------------------------------------------------------------------------------- samplers

INT = 2147483647
SAMPLERS = [
    {"repeat_last_n": INT, "repeat_penalty": 1.5}, {"repeat_last_n": -1, "repeat_penalty": 100.0},
    {"repeat_last_n": INT - 1, "presence_penalty": 2.0}, {"repeat_last_n": 1 << 30, "frequency_penalty": -2.0},
    {"dry_multiplier": 1.0, "dry_penalty_last_n": INT}, {"dry_multiplier": 100.0, "dry_penalty_last_n": 1 << 30},
    {"dry_multiplier": 1.0, "dry_allowed_length": INT, "dry_penalty_last_n": INT},
    {"dry_multiplier": 1.0, "dry_base": 100.0, "dry_allowed_length": 0}, {"dry_multiplier": 1.0, "dry_base": 0.01},
    {"dry_multiplier": 1.0, "dry_sequence_breakers": ["\0"]},
    {"dry_multiplier": 1.0, "dry_sequence_breakers": ["a"] * 16},
    {"dry_multiplier": 1.0, "dry_sequence_breakers": []},
    {"dry_multiplier": 1.0, "dry_sequence_breakers": ["x" * 100000]},
    {"mirostat": 1, "mirostat_tau": 0.0}, {"mirostat": 1, "mirostat_tau": 100.0, "mirostat_eta": 10.0},
    {"mirostat": 2, "mirostat_tau": 0.0, "mirostat_eta": 0.0},
    {"mirostat": 2, "mirostat_eta": 10.0, "temperature": 100.0},
    {"mirostat": 1, "temperature": 0.0}, {"mirostat": 2, "temperature": 1e-320}, {"mirostat": 1, "top_k": 1},
    {"mirostat": 1, "n_probs": 20}, {"mirostat": 2, "logit_bias": [[5, 1e308], [6, 1e308]]},
    {"top_k": INT}, {"top_k": 0}, {"top_k": 1}, {"top_k": INT, "top_p": 0.0}, {"top_p": 0.0},
    {"top_p": 0.0, "min_p": 1.0},
    {"min_p": 1.0}, {"typical_p": 0.0}, {"typical_p": 0.0, "top_p": 0.0, "min_p": 1.0, "top_k": 1},
    {"top_n_sigma": 0.0}, {"top_n_sigma": 1e-300}, {"top_n_sigma": 1000.0},
    {"xtc_probability": 1.0, "xtc_threshold": 0.0}, {"xtc_probability": 1.0, "xtc_threshold": 0.5, "top_k": 1},
    {"temperature": 0.0}, {"temperature": 1e-320}, {"temperature": 1e-40}, {"temperature": 100.0},
    {"temperature": 0.0, "dynatemp_range": 100.0}, {"dynatemp_range": 100.0, "dynatemp_exponent": 0.0},
    {"dynatemp_range": 100.0, "dynatemp_exponent": 100.0}, {"min_keep": INT},
    {"min_keep": INT, "top_p": 0.0, "typical_p": 0.0},
    {"min_keep": 0, "top_p": 0.0, "xtc_probability": 1.0}, {"n_probs": 100}, {"n_probs": INT},
    {"n_probs": 100, "top_k": 1},
    {"n_probs": 100, "temperature": 0.0}, {"n_probs": 100, "grammar": 'root ::= "a"'}, {"seed": 0},
    {"seed": 4294967295},
    {"seed": -1}, {"logit_bias": [[n, -1e308] for n in range(1000)]}, {"logit_bias": [[n, 1e308] for n in range(1000)]},
    {"logit_bias": [[5, 3.4e38], [5, 3.4e38]]}, {"logit_bias": [[5, 1e39]]}, {"logit_bias": [[5, -1e39]]},
    {"repeat_penalty": 0.01, "repeat_last_n": INT},
    {"repeat_penalty": 100.0, "presence_penalty": 100.0, "frequency_penalty": -100.0},
    {"ignore_eos": True, "stop": ["\0"]},
    {"cache_prompt": False, "top_k": INT, "repeat_last_n": INT, "dry_multiplier": 1},
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(SAMPLERS)))
def test_a_sampler(alone, number):
    check(alone, "/generate", dict(ASK, **SAMPLERS[number]), "200/400")


@pytest.mark.parametrize("number", range(len(SAMPLERS)))
def test_a_sampler_with_a_grammar(alone, number):
    check(alone, "/generate", dict(ASK, **dict({"grammar": "root ::= [a-z ]+"}, **SAMPLERS[number])), "200/400")


# -------------------------------------------------------------------------------------------------- schemas

BIG = "1" + "0" * 2000


def any_of(depth, width=2):
    schema = {"type": "integer"}
    for _ in range(depth):
        schema = {"anyOf": [schema] * width}
    return schema


def all_of(depth):
    schema = {"type": "integer"}
    for _ in range(depth):
        schema = {"allOf": [{"anyOf": [schema, {"type": "string"}]}, {"anyOf": [schema, {"type": "null"}]}]}
    return schema


def nested(depth, name="properties"):
    schema = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}} if name == "properties" else {name: schema}
    return schema


def doubled(depth):
    """Definitions that each are the next one twice."""
    defs = {"d%d" % n: {"type": "object",
                        "properties": {"a": {"$ref": "#/$defs/d%d" % (n + 1)}, "b": {"$ref": "#/$defs/d%d" % (n + 1)}}}
            for n in range(depth)}  # fmt: skip
    return {"$defs": dict(defs, **{"d%d" % depth: {"type": "integer"}}), "$ref": "#/$defs/d0"}


SCHEMAS = [
    ("10^2000", '{"type": "integer", "minimum": %s}' % BIG), ("-10^2000", '{"type": "integer", "maximum": -%s}' % BIG),
    ("a constant of 10^2000", '{"const": %s}' % BIG), ("a list with 10^2000", '{"enum": [1, %s]}' % BIG),
    ("10^-2000", '{"type": "number", "minimum": 1e-2000}'), ("1e999", '{"type": "number", "minimum": 1e999}'),
    ("a constant of 1e999", '{"const": 1e999}'), ("a list with 1e999", '{"enum": [1e999]}'),
    ("a multiple of 1e999", '{"type": "number", "multipleOf": 1e999}'),
    ("a multiple of 1e-300", '{"type": "number", "multipleOf": 1e-300}'),
    ("a multiple of 10^2000", '{"type": "integer", "multipleOf": %s}' % BIG),
    ("a multiple of 0", '{"type": "integer", "multipleOf": 0}'),
    ("a multiple of a prime", '{"type": "integer", "multipleOf": 999983}'),
    ("between two fractions", '{"type": "number", "minimum": 0.%s1, "maximum": 0.%s2}' % ("0" * 300, "0" * 300)),
    ("the largest integers", '{"type": "integer", "minimum": -9223372036854775808, "maximum": 18446744073709551615}'),
    ("minimum above maximum", '{"type": "integer", "minimum": 5, "maximum": 1}'),
    ("minLength 10^9", '{"type": "string", "minLength": 1000000000}'),
    ("minLength 10^2000", '{"type": "string", "minLength": %s}' % BIG),
    ("maxLength 10^9", '{"type": "string", "maxLength": 1000000000}'),
    ("maxLength 1e308", '{"type": "string", "maxLength": 1e308}'),
    ("minLength above maxLength", '{"type": "string", "minLength": 5, "maxLength": 1}'),
    ("minLength -1", '{"type": "string", "minLength": -1}'),
    ("minItems 10^9", '{"type": "array", "minItems": 1000000000}'),
    ("minItems 10^9 of arrays",
     '{"type": "array", "minItems": 100000, "items": {"type": "array", "minItems": 100000}}'),
    ("maxItems 1e999", '{"type": "array", "maxItems": 1e999}'),
    ("minProperties 10^9", '{"type": "object", "minProperties": 1000000000}'),
    ("itself", '{"$ref": "#"}'), ("itself among others", '{"anyOf": [{"$ref": "#"}, {"type": "integer"}]}'),
    ("itself as all", '{"allOf": [{"$ref": "#"}]}'), ("not itself", '{"not": {"$ref": "#"}}'),
    ("a ring", '{"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}'),
    ("a list of itself", '{"type": "array", "items": {"$ref": "#"}}'),
    ("an object of itself", '{"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}'),
    ("a reference to nothing", '{"$ref": "#/$defs/x"}'),
    ("a reference elsewhere", '{"$ref": "http://evil.example/schema.json"}'),
    ("a reference to a file", '{"$ref": "file:///etc/passwd"}'),
    ("a reference of nonsense", '{"$ref": "#/%zz/~2/\\u0000"}'),
    ("a reference of another type", '{"$ref": 1}'), ("a reference to a text", '{"$ref": "#/title", "title": "x"}'),
    ("2^12 alternatives", any_of(12)), ("10^5 alternatives", {"anyOf": [{"const": n} for n in range(100000)]}),
    ("alternatives of alternatives", any_of(5, 8)), ("all of alternatives", all_of(9)),
    ("one of 1,000 objects",
     {"oneOf": [{"type": "object", "properties": {"k%d" % n: {"type": "integer"}}} for n in range(1000)]}),
    ("all of 1,000 objects", {"allOf": [{"properties": {"k%d" % n: {"type": "integer"}}} for n in range(1000)]}),
    ("all of 500 lists", {"allOf": [{"anyOf": [{"const": n}, {"const": -n}]} for n in range(500)]}),
    ("2^40 objects", doubled(40)), ("2^14 objects", doubled(14)), ("90 levels", nested(45)),
    ("400 levels", nested(200)),
    ("400 negations", nested(400, "not")), ("80 negations", nested(80, "not")),
    ("100,000 values", {"enum": list(range(100000))}),
    ("10,000 long values", {"enum": ["x" * 100 + str(n) for n in range(10000)]}),
    ("a value of 10^6 letters", {"const": "x" * 1000000}),
    ("a value of 400 levels", {"const": json.loads("[" * 400 + "]" * 400)}),
    ("5,000 properties", {"type": "object", "properties": {"k%d" % n: {"type": "integer"} for n in range(5000)}}),
    ("300 optional properties in any order",
     {"type": "object", "properties": {"k%d" % n: {} for n in range(300)}, "additionalProperties": True}),
    ("60,000 required names", {"type": "object", "required": ["k%d" % n for n in range(60000)]}),
    ("a name of 10^6 letters", {"type": "object", "properties": {"x" * 1000000: {}}}),
    ("names of odd letters",
     {"type": "object", "properties": {'"\\\n\0': {}, "": {}, "\U0001f600": {}, "::=": {}, "root": {}}}),
    ("200 patterns for names",
     {"type": "object", "patternProperties": {"^a{%d}" % n: {"type": "integer"} for n in range(200)}}),
    ("a list of 1,000 kinds", {"type": ["string"] * 1000}), ("an unknown kind", {"type": "x"}),
    ("a kind of another type", {"type": 1}), ("kinds of kinds", {"type": [["string"]]}),
    ("nothing", False), ("anything", True), ("an empty one", {}), ("a list", []), ("a text", "x"), ("a number", 1),
    ("nothing as its kinds", {"type": []}),
    ("an empty list of values", {"enum": []}), ("no alternatives", {"anyOf": []}),
    ("alternatives that are none", {"anyOf": [1]}),
    ("all that exclude each other", {"allOf": [{"type": "string"}, {"type": "integer"}]}),
    ("properties of another type", {"properties": []}), ("required of another type", {"required": "a"}),
    ("items of another type", {"items": 1}),
    ("unevaluated", {"unevaluatedProperties": {"type": "integer"}}), ("if", {"if": {}, "then": {}}),
    ("a dynamic reference", {"$dynamicRef": "#a"}),
    ("a format of nonsense", {"type": "string", "format": "x" * 10000}),
    ("a unique list", {"type": "array", "uniqueItems": True, "minItems": 100, "items": {"enum": list(range(200))}}),
    ("tuples of 5,000", {"type": "array", "prefixItems": [{"type": "integer"}] * 5000, "minItems": 5000}),
]  # fmt: skip
PATTERNS = [
    "(a+)+$", "^(a|a)*$", "^(a|aa)+$", "(.*)*", "(x+x+)+y", "^(([a-z])+.)+[A-Z]([a-z])+$", "a{1000000}",
    "(a{1000}){1000}", "a{0,100000}",
    "((((a{10}){10}){10}){10}){10}", "(" * 5000 + "a" + ")" * 5000, "(" * 500, ")" * 500, "[", "[z-a]",
    "[^\\u0000-\\uffff]", "(?=a)b", "(?<=a)b", "(?!a)b",
    "\\1(a)", "(?P<x>a)(?P=x)", "(?R)", "(?(1)a|b)", "\\p{L}+", "\\p{x}", "\\k<a>", "a**", "*", "+", "{", "a{",
    "a{2,1}", "a{99999999999999999999}", "\\", "\\u{110000}",
    "\\ud800", "^^^^a$$$$", "$a^", "^(.{1,300}){1,300}$", "(a?){300}a{300}", "(.*a){30}",
    "[a-z]*[a-z]*[a-z]*[a-z]*[a-z]*x", ".*" * 200, "(a|b|c|d|e|f|g)*" * 100,
    "|" * 5000, "(?:" * 2000 + "a" + ")?" * 2000, "[" + "a-z" * 5000 + "]", "(.*1.{16})", "(.*1.{40})",
    "\\d{1,50}\\.\\d{1,50}[eE]\\d{1,400}", "\0", "\n", "(?i)a", "(?s:.)", "\\b\\B\\A\\Z", "[[:alpha:]]", "x" * 100000,
]  # fmt: skip
SCHEMAS += [("the pattern %d" % n, {"type": "string", "pattern": pattern}) for n, pattern in enumerate(PATTERNS)]


@pytest.mark.parametrize("row", SCHEMAS, ids=[row[0].replace(" ", "-").replace("^", "") for row in SCHEMAS])
def test_a_schema(alone, row):
    schema = row[1] if isinstance(row[1], str) and row[1].startswith("{") else json.dumps(row[1])
    body = '{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "response_format": ' + (
        '{"type": "json_schema", "json_schema": {"name": "x", "schema": %s}}}' % schema
    )
    check(alone, "/v1/chat/completions", body.encode(), "200/400")


@pytest.mark.parametrize("row", SCHEMAS[:50], ids=[row[0].replace(" ", "-").replace("^", "") for row in SCHEMAS[:50]])
def test_a_schema_of_a_tool(alone, row):
    schema = row[1] if isinstance(row[1], str) and row[1].startswith("{") else json.dumps(row[1])
    body = '{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "tool_choice": "required", "tools": ' + (
        '[{"type": "function", "function": {"name": "f", "parameters": %s}}]}' % schema
    )
    check(alone, "/v1/chat/completions", body.encode(), "200/400")


def test_many_hard_grammars_at_once_stall_nobody(target):
    place, survivors = target
    hard = dict(ASK, grammar=doubling(20, '"a"?'))
    with unharmed(*survivors):
        lines = [Line(place.port) for _ in range(8)]
        body = json.dumps(hard).encode()
        for line in lines:
            line.send(b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        try:
            began = time.monotonic()
            reply = post(place.port, "/generate", ASK, patience=30)
            assert reply.status == 200 and time.monotonic() - began < 30
        except Hung:
            raise AssertionError("a good request waited for the hard ones")
        finally:
            for line in lines:
                line.reset()
