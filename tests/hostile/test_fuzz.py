"""The same attacks by chance: hypothesis makes up the wire, the bodies, the grammars, the schemas and the upstreams.

    COMEAPI_FUZZ_CASES=20000 python -m pytest -m fuzz tests/hostile/test_fuzz.py

runs so many cases in all, shared out over the tests below (300 without it). COMEAPI_FUZZ_SEED makes them others; a case
that fails is printed with its bytes and comes again with the same two. No case may end a process, hang it, get a 5xx
for a client's fault, or leave threads, files or memory behind.
"""

import contextlib
import json
import os
import re
import time

import pytest

hypothesis = pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from hostile import test_bodies, test_grammars, test_http  # noqa: E402
from hostile.enemy import FUZZED, Fort, Hung, Line, Upstream, answer, get, post, small_generate  # noqa: E402

pytestmark = pytest.mark.fuzz
CASES = int(os.environ.get("COMEAPI_FUZZ_CASES", "300"))
SEED = int(os.environ.get("COMEAPI_FUZZ_SEED", "1"))
SECONDS = 20  # that an answer may take on a loaded machine
SHARES = {"wire": 0.15, "bodies": 0.2, "gbnf": 0.1, "schemas": 0.1, "upstream": 0.1}  # of each test; two run twice


def cases(what):
    """Run a test with this area's share of all cases, always the same ones for one seed."""
    kept = settings(
        max_examples=max(10, int(CASES * SHARES[what])),
        deadline=None,
        database=None,
        derandomize=False,
        print_blob=True,
        verbosity=Verbosity.normal,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    return lambda function: kept(seed(SEED)(function))


@contextlib.contextmanager
def case_of(fort):
    """Time a case; where the server hangs in it, put another in its place, so that the next case is not blamed."""
    began = time.monotonic()
    try:
        yield
    except Hung:
        fort.check()
        raise
    finally:
        FUZZED["cases"] += 1
        FUZZED["slowest"] = max(FUZZED["slowest"], time.monotonic() - began)


# ----------------------------------------------------------------------------------------- what may not grow


def stock(fort):
    """Return a process' threads, open files and memory (MiB)."""
    with open("/proc/%d/status" % fort.pid) as status:
        text = status.read()
    threads = int(re.search(r"Threads:\s+(\d+)", text).group(1))
    return threads, len(os.listdir("/proc/%d/fd" % fort.pid)), int(re.search(r"VmRSS:\s+(\d+)", text).group(1)) // 1024


@pytest.fixture
def bounded():
    """Return a function that keeps an eye on servers; at the end, none may have grown, or be another process."""
    watched = []

    def watch(*forts):
        for fort in forts:
            fort.check()
            watched.append((fort, fort.pid, stock(fort)))

    yield watch
    for fort, pid, before in watched:
        fort.check()
        assert fort.pid == pid, "it died on the way"
        deadline = time.monotonic() + 15  # connections of the last cases may still be on their way out
        while True:
            after = stock(fort)
            grown = [now - was for now, was in zip(after, before)]
            if grown[0] <= 12 and grown[1] <= 12 and grown[2] <= 200:
                break
            assert time.monotonic() < deadline, "threads, files, MiB grew from %s to %s" % (before, after)
            time.sleep(0.1)


def sound(fort, reply):
    """Assert that an answer is one that a client's fault may get."""
    if reply is not None:
        assert reply.status < 500 or reply.status in (501, 505), (reply.status, reply.body[:300])
        if reply.status >= 400 and reply.body:
            assert reply.error["message"] and len(reply.body) < 8192
    if not fort.alive():
        fort.replace()
        raise AssertionError("the server died")


# -------------------------------------------------------------------------------------------------- the wire

ROWS = [row[1] for table in (test_http.REQUEST_LINES, test_http.TARGETS, test_http.FIELDS, test_http.LENGTHS,
                             test_http.CODINGS,
                             test_http.PIPELINES) for row in table if len(row[1]) < 2000]  # fmt: skip
ROWS += [test_http.CHUNKED + row[1] for row in test_http.CHUNKS if len(row[1]) < 2000]
BITS = [b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b";", b",", b"/", b"?", b"%", b"\xff", b"chunked",
        b"0\r\n\r\n", b"Content-Length: 1\r\n",
        b"Transfer-Encoding: chunked\r\n", b"Host: x\r\n", b"HTTP/1.1", b"GET ", b"POST /tokenize",
        b"Expect: 100-continue\r\n",
        b"Connection: close\r\n", b"\x80", b"\x7f", b"-", b"+", b"0x", b"\\"]  # fmt: skip

mutations = st.lists(
    st.tuples(st.sampled_from(["insert", "delete", "replace", "double", "cut"]), st.floats(0, 1),
              st.one_of(st.sampled_from(BITS), st.binary(max_size=6))),
    min_size=1, max_size=4,
)  # fmt: skip


def mutate(data, changes):
    for what, where, bit in changes:
        at = int(where * len(data))
        end = min(len(data), at + max(1, len(bit)))
        data = {
            "insert": data[:at] + bit + data[at:], "delete": data[:at] + data[end:],
            "replace": data[:at] + bit + data[end:],
            "double": data[:end] + data[at:], "cut": data[:at] if at else data,
        }[what]  # fmt: skip
    return data


wire = st.one_of(st.builds(mutate, st.sampled_from(ROWS), mutations), st.binary(max_size=300),
                 st.lists(st.sampled_from(BITS), max_size=40).map(b"".join))


def shoot(fort, data):
    """Send bytes and no more, and read all answers until the end. Raises Hung."""
    replies = []
    with Line(fort.port, SECONDS) as line:
        line.send(data)
        line.half_close()
        head = b"HEAD " in data
        while True:
            try:
                reply = line.reply(head)
            except AssertionError as error:
                if head and not isinstance(error, Hung):  # which of the answers is that of HEAD can't be told
                    return replies
                raise
            if reply is None:
                return replies
            replies.append(reply)


@pytest.mark.parametrize("what", ["backend", "balancer"])
def test_the_wire(engine, front, bounded, what):
    fort = engine if what == "backend" else front
    bounded(engine, front)

    @cases("wire")
    @given(wire)
    def attack(data):
        with case_of(fort):
            for reply in shoot(fort, data):
                sound(fort, reply)

    attack()


# ------------------------------------------------------------------------------------------------- the bodies

names = sorted(
    set(test_bodies.SAMPLING) | {name for body in test_bodies.GOOD.values() for name in body}
    | {"stop", "stop_sequences", "n", "best_of", "echo", "suffix", "logprobs", "top_logprobs", "tools", "tool_choice",
       "system", "format", "think",
       "response_format", "json_schema", "chat_template_kwargs", "stream_options", "cache_prompt", "thinking", "raw",
       "template", "with_pieces",
       "add_special", "parse_special", "images", "keep_alive", "parallel_tool_calls", "return_tokens", "role",
       "content", "name", "type", "text", "function",
       "arguments", "tool_calls", "tool_call_id", "id", "input", "parameters", "description", "reasoning_content",
       "refusal", "encoding_format",
       "dimensions", "schema", "max_completion_tokens", "input_schema", "enable_thinking", "include_usage"}
)  # fmt: skip
words = st.sampled_from(["user", "assistant", "system", "tool", "function", "text", "auto", "none", "required", "any",
                         "json", "json_object", "json_schema",
                         "demo.gguf", "demo", "string", "object", "<|im_end|>", "", "a", "base64", "enabled",
                         "root ::= [a-z]", "\0", "\n"])  # fmt: skip
numbers = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**31 - 1, 2**31, 2**32, 2**63, -(2**31), -(2**63), 10**30, 0.0, -0.0, 0.5, 1e-320, 1e308,
                     -1e308]), st.floats(allow_nan=False, allow_infinity=False)
)  # fmt: skip
texts = st.one_of(words, st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4),
                            st.dictionaries(st.one_of(st.sampled_from(names), texts), inner, max_size=4)),
    max_leaves=12,
)
LIMITS = ("max_tokens", "max_completion_tokens", "n_predict", "num_predict", "n", "best_of")


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def tamed(value):
    """Bound what a body may rightly ask for much of: answers' lengths and their numbers."""
    if isinstance(value, dict):
        few = {name: 4 for name, each in value.items() if name in LIMITS and is_number(each) and each > 4}
        return {name: few.get(name, tamed(each)) for name, each in value.items()}
    return [tamed(each) for each in value] if isinstance(value, list) else value


def wants_much(limit):
    """Whether an answer would go on until its context is full."""
    return limit is None or (is_number(limit) and limit < 0)


@st.composite
def bodies(draw):
    path = draw(st.sampled_from(sorted(test_bodies.GOOD) + ["/v1/embeddings", "/api/show"]))
    body = test_bodies.merged(path,
                              draw(st.dictionaries(st.sampled_from(names), values,
                                                   max_size=4))) if path in test_bodies.GOOD else draw(
        st.dictionaries(st.sampled_from(names), values, max_size=5)
    )  # fmt: skip
    body = tamed(body)
    if path in test_bodies.MAKERS:
        for holder, name in ((body, "max_tokens"), (body, "n_predict"), (body.get("options"), "num_predict")):
            if isinstance(holder, dict) and wants_much(holder.get(name)):
                holder[name] = 2
    data = json.dumps(body).encode()
    return path, mutate(data, draw(mutations)) if draw(st.integers(0, 9)) == 0 else data


@pytest.mark.parametrize("what", ["backend", "balancer"])
def test_bodies_of_every_dialect(engine, front, bounded, what):
    fort = engine if what == "backend" else front
    bounded(engine, front)

    @cases("bodies")
    @given(bodies())
    def attack(case):
        path, data = case
        with case_of(engine):
            sound(engine, post(fort.port, path, data, patience=SECONDS))

    attack()


# ----------------------------------------------------------------------------------------------- the grammars

GRAMMAR_BITS = ["root", "x", "y", "::=", "|", "(", ")", "[", "]", "[a-z]", "[^a]", "[z-a]", '"a"', '"ab"', '""', '"',
                "*", "+", "?", "{2}", "{1,3}", "{,4}",
                "{3,}", "{0}", ".", "\n", " ", "#c\n", "\\x41", "\\", "<[5]>", "!<[5]>", "<[", "root ::= ", "\nx ::= ",
                "\ny ::= ", "\0", "é", "-"]  # fmt: skip


@st.composite
def sound_grammars(draw):
    """A grammar that llama.cpp could read, mostly: rules of alternatives of words."""
    atom = st.one_of(st.sampled_from(['"a"', '"b c"', "[a-z]", "[^x]", ".", '""', "x", "y", "z", "<[5]>", "!<[5]>"]),
                     st.sampled_from(["(x | y)", '("a" | [0-9])']))
    word = st.tuples(atom, st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,3}", "{,2}", "{2,}"])).map("".join)
    body = st.lists(st.lists(word, max_size=4).map(" ".join), min_size=1, max_size=3).map(" | ".join)
    return "\n".join("%s ::= %s" % (name, draw(body)) for name in ("root", "x", "y", "z"))


grammars = st.one_of(st.lists(st.sampled_from(GRAMMAR_BITS), max_size=25).map(" ".join), sound_grammars(),
                     sound_grammars(), st.text(max_size=40),
                     st.sampled_from([row[1] for row in test_grammars.GRAMMARS if len(row[1]) < 500]))  # fmt: skip
biases = st.lists(st.tuples(st.integers(0, 600), st.sampled_from([False, -100, 100])).map(list), max_size=5)
extras = st.fixed_dictionaries(
    {},
    optional={
        "ignore_eos": st.booleans(),
        "temperature": st.sampled_from([0, 0.8, 100]),
        "n_probs": st.sampled_from([0, 5]),
        "logit_bias": biases,
        "top_k": st.sampled_from([0, 1, 40]),
        "mirostat": st.sampled_from([0, 1, 2]),
    },
)


def test_grammars(engine, bounded):
    bounded(engine)

    @cases("gbnf")
    @given(grammars, extras)
    def attack(grammar, more):
        if any(0xD800 <= ord(letter) < 0xE000 for letter in grammar):
            return
        body = dict({"model_name": "demo.gguf", "prompt": "Hi", "max_tokens": 6, "grammar": grammar}, **more)
        with case_of(engine):
            sound(engine, post(engine.port, "/generate", body, patience=SECONDS))

    attack()


# ------------------------------------------------------------------------------------------------ the schemas

schema_keys = st.sampled_from(["type", "enum", "const", "properties", "required", "items", "anyOf", "allOf", "oneOf",
                               "not", "pattern", "format", "minLength",
                               "maxLength", "minItems", "maxItems", "minimum", "maximum", "exclusiveMinimum",
                               "multipleOf", "$ref", "$defs", "additionalProperties",
                               "prefixItems", "patternProperties", "propertyNames", "uniqueItems", "minProperties",
                               "maxProperties", "nullable"])  # fmt: skip
schema_leaves = st.one_of(st.booleans(), st.integers(-5, 50), st.sampled_from([10**20, 1e300, -1e-300, 0.1, 2**63]),
                          st.sampled_from(["string", "integer", "number", "object", "array", "null", "boolean", "#",
                                           "#/$defs/a", "a", "^a+$", "[a-z]{2,5}",
                                           "date-time", "(a|b)*c", ".*", "uuid", "email", "x{3,}"]))  # fmt: skip
schemas = st.recursive(
    schema_leaves,
    lambda inner: st.one_of(st.dictionaries(schema_keys, inner, max_size=4), st.lists(inner, max_size=4),
                            st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3)),
    max_leaves=15,
)


def test_schemas(engine, bounded):
    bounded(engine)

    @cases("schemas")
    @given(schemas)
    def attack(schema):
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6,
                "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}  # fmt: skip
        with case_of(engine):
            sound(engine, post(engine.port, "/v1/chat/completions", body, patience=SECONDS))

    attack()


# ------------------------------------------------------------------------------------------------ the upstream

UPSTREAM_BITS = [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 204 N\r\n",
                 b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 503 X\r\n", b"Content-Length: 8\r\n",
                 b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Content-Type: text/event-stream\r\n",
                 b"Connection: close\r\n", b"X-A: \x01\r\n",
                 b"X-ComeAPI-Backend: evil\r\n", b"\r\n", b"\n", b"\r", b'{"a": 1}', b"8\r\n", b"0\r\n\r\n",
                 b"data: 1\n\n", b"\0", b"\xff", b": ",
                 b"f" * 17 + b"\r\n", b"Set-Cookie: a=b\r\n", b"\xb2"]  # fmt: skip
FIRST = [b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n" + b'{"a": 1}',
         b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n" + b'{"a": 1}\r\n0\r\n\r\n',
         b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
         b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n0\r\n\r\n"]  # fmt: skip
upstreams = st.one_of(st.builds(mutate, st.sampled_from(FIRST), mutations),
                      st.lists(st.sampled_from(UPSTREAM_BITS), max_size=12).map(b"".join),
                      st.lists(st.sampled_from(UPSTREAM_BITS),
                               max_size=8).map(lambda bits: UPSTREAM_BITS[0] + b"".join(bits)))  # fmt: skip


class Faced:
    """A balancer before a backend whose next answer is `upstream.script[""]`, and whose health is always good."""

    def __init__(self):
        self.upstream = Upstream({"": answer(b"{}")})
        arguments = ("--child", "--port", 0, "--backend", self.upstream.url, "--timeout", 2, "--retries", 0,
                     "--recovery-timeout", 5)
        self.fort = Fort("balancer.py", arguments, lambda fort: get(fort.port, "/status"), "up")

    def close(self):
        self.fort.close()
        self.upstream.close()


@pytest.fixture
def faced():
    faced = Faced()
    yield faced
    faced.close()


def test_upstreams(faced, bounded):
    bounded(faced.fort)

    @cases("upstream")
    @given(upstreams)
    def attack(data):
        faced.upstream.script[""] = data
        fort = faced.fort
        with case_of(fort):
            reply = read_one(fort)
        if reply is not None:
            assert reply.header("x-comeapi-backend") in ("", faced.upstream.url)
        if not fort.alive():
            fort.replace()
            raise AssertionError("the balancer died")

    attack()


def read_one(fort):
    """Ask; return the answer, None where it was cut: what is there must be well-formed all the same."""
    with Line(fort.port, SECONDS) as line:
        line.send(b"POST /x HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
        try:
            return line.reply()
        except Hung:
            raise
        except AssertionError as error:
            if "are missing" in str(error) or "in the middle of chunks" in str(error):
                return None
            raise


def test_the_good_request_after_all_that_is_answered(engine, front):
    assert small_generate(engine).status == 200 and small_generate(front).status == 200
