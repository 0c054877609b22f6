"""Bodies, dialect by dialect, at the backend and at the balancer: wrong types in every field, bounds, floods.

A row is (what is merged into a good body of the dialect, what comes, the `param` of the error). 400 where only the
client is wrong; "200/400" where both are sound. Never 5xx, and never longer than a few seconds.
"""

import copy
import json

import pytest

from hostile.enemy import post, unharmed

MODEL = "demo.gguf"
HI = [{"role": "user", "content": "Hi"}]
GOOD = {
    "/generate": {"model_name": MODEL, "prompt": "Hi", "max_tokens": 1},
    "/completion": {"prompt": "Hi", "n_predict": 1},
    "/v1/completions": {"model": MODEL, "prompt": "Hi", "max_tokens": 1},
    "/v1/chat/completions": {"model": MODEL, "messages": HI, "max_tokens": 1},
    "/v1/messages": {"model": MODEL, "messages": HI, "max_tokens": 1},
    "/v1/messages/count_tokens": {"model": MODEL, "messages": HI},
    "/v1/responses": {"model": MODEL, "input": "Hi", "max_output_tokens": 1, "store": False},
    "/v1/responses/input_tokens": {"model": MODEL, "input": "Hi"},
    "/api/chat": {"model": MODEL, "messages": HI, "stream": False, "options": {"num_predict": 1}},
    "/api/generate": {"model": MODEL, "prompt": "Hi", "stream": False, "options": {"num_predict": 1}},
    "/tokenize": {"content": "Hi"},
    "/detokenize": {"tokens": [1, 2]},
    "/apply-template": {"messages": HI},
}
MAKERS = [path for path in GOOD if path not in ("/v1/messages/count_tokens", "/v1/responses/input_tokens", "/tokenize",
                                                "/detokenize", "/apply-template")]
CHATS = ["/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens", "/api/chat", "/apply-template"]
LARGE = 2 << 20  # bytes of a body that may be too many
WHOLE = ("invalid_json", "too_large", "context_length_exceeded")  # codes of errors that are not of one field
FLOOD_SECONDS = 15  # that an answer to a flood may take on a loaded machine; each takes under a second alone


def check(target, path, body, wanted, param=None, seconds=FLOOD_SECONDS):
    """Send a body and compare what comes; `wanted` is such as "400" or "200/400". Very large ones may get 413, too."""
    place, survivors = target
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with unharmed(*survivors):
        reply = post(place.port, path, data, patience=seconds)
        if not (reply.status == 413 and len(data) > LARGE):
            assert str(reply.status) in wanted.split("/"), (reply.status, reply.body[:300])
        if reply.status != 200:
            assert reply.error["message"] and len(reply.body) < 4096, reply.body[:300]
        if param and reply.status == 400 and reply.error["code"] not in WHOLE:
            named = reply.error["param"] or ""
            assert (named[len("options.") :] if named.startswith("options.") else named).startswith(param), reply.error
    return reply


def merged(path, more):
    """Return the dialect's good body with these fields; Ollama's sampling stands in its options."""
    body = copy.deepcopy(GOOD[path])
    if path.startswith("/api/"):
        names = [name for name in more if name in SAMPLING or name == "stop"]
        body["options"].update({name: more[name] for name in names})
        more = {name: value for name, value in more.items() if name not in names}
    body.update(more)
    return body


# ------------------------------------------------------------------------- sampling, in every dialect that makes text

NUMBERS = [
    "temperature", "dynatemp_range", "dynatemp_exponent", "top_p", "min_p", "typical_p", "top_n_sigma",
    "xtc_probability",
    "xtc_threshold", "repeat_penalty", "presence_penalty", "frequency_penalty", "dry_multiplier", "dry_base",
    "mirostat_tau", "mirostat_eta",
]  # fmt: skip
INTEGERS = ["top_k", "repeat_last_n", "dry_allowed_length", "dry_penalty_last_n", "mirostat", "min_keep", "seed"]
SAMPLING = NUMBERS + INTEGERS + [
    "n_probs", "ignore_eos", "grammar", "logit_bias", "dry_sequence_breakers", "num_predict",
]  # fmt: skip
NO_NUMBERS = ["1", [], {"a": 1}, True]
NO_INTEGERS = NO_NUMBERS + [0.5]


@pytest.mark.parametrize("name", NUMBERS + INTEGERS)
@pytest.mark.parametrize("path", ["/generate", "/v1/messages", "/api/chat"])
def test_a_number_of_a_wrong_type(alone, path, name):
    for wrong in NO_NUMBERS if name in NUMBERS else NO_INTEGERS:
        check(alone, path, merged(path, {name: wrong}), "400", name)


EXTREMES = ["1e999", "-1e999", "1e308", "-1e308", "1e-320", "-0.0", "2147483647", "2147483648", "-2147483648",
            "-2147483649", "4294967295", "9223372036854775807", "-9223372036854775808", "18446744073709551616",
            "1" + "0" * 400, "-1" + "0" * 400, "0." + "0" * 400 + "1"]  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS + INTEGERS + ["n_probs", "max_tokens", "n_predict", "n", "best_of", "logprobs",
                                                       "n_keep", "id_slot", "t_max_predict_ms", "num_ctx"])  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/chat/completions"])
def test_a_number_at_the_ends_of_the_world(alone, path, name):
    whole = json.dumps(merged(path, {name: 123454321}))
    for extreme in EXTREMES:
        if name in ("max_tokens", "n_predict") and extreme in ("2147483647", "2147483648"):
            continue  # as many tokens as fit: right, and long
        check(alone, path, whole.replace("123454321", extreme).encode(), "200/400", name)


@pytest.mark.parametrize("name", SAMPLING + ["max_tokens", "stop", "stream", "cache_prompt", "model"])
@pytest.mark.parametrize("path", ["/completion", "/v1/messages", "/api/generate"])
def test_null_is_the_default(alone, path, name):
    if name in GOOD[path]:
        pytest.skip("the good body needs it")
    check(alone, path, merged(path, {name: None}), "200")


BIASES = [
    ("text", "400"), (1, "400"), (True, "400"), ([1], "400"), ([[1]], "400"), ([[1, 2, 3]], "400"), ([[]], "400"),
    ([["x", 1]], "200"), ([["", 1]], "400"), ([["x" * 5000, 1]], "400"),
    ([[1.5, 1]], "200/400"), ([[-1, 1]], "400"), ([[1 << 31, 1]], "400"), ([[1 << 70, 1]], "400"),
    ([[1, "x"]], "400"), ([[1, None]], "400"), ([[1, True]], "400"), ([[1, []]], "400"), ([[None, 1]], "400"),
    ([[True, 1]], "200/400"), ({"x": 1}, "200"), ({"": 1}, "400"), ({"-1": 1}, "400"), ({"1": "x"}, "400"),
    ({"1": {}}, "400"), ({"1.5": 1}, "200"), ({"1e3": 1}, "200"), ({"٣": 1}, "200/400"), ({"1" * 5000: 1}, "400"),
    ({"99999999": 1}, "200/400"), ([[99999999, -100]], "200/400"), ([[0, 1e308]], "200/400"),
    ([[0, -1e308]], "200/400"),
    ([[1, 1], [1, 2], [1, False]], "200/400"), ([[str(1), 1]], "200/400"), ({"1_0": 1}, "200/400"),
    ({" 1 ": 1}, "200/400"),
    ([[0, "inf"]], "400"), ([[0, "nan"]], "400"), ([[0, "-Infinity"]], "400"),
]  # fmt: skip


@pytest.mark.parametrize("bias, wanted", BIASES, ids=["%d" % n for n in range(len(BIASES))])
@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/api/chat"])
def test_a_logit_bias(alone, path, bias, wanted):
    check(alone, path, merged(path, {"logit_bias": bias}), wanted, "logit_bias")


@pytest.mark.parametrize("extreme", EXTREMES)
def test_a_logit_bias_at_the_ends_of_the_world(alone, extreme):
    for bias in ('{"5": %s}', "[[5, %s]]", "[[%s, 1]]", '{"%s": 1}'):
        whole = json.dumps(merged("/completion", {"logit_bias": "HERE"})).replace('"HERE"', bias % extreme)
        check(alone, "/completion", whole.encode(), "200/400", "logit_bias")


# ----------------------------------------------------------------------------------- every other field's type

FLAGS = {
    "/generate": ["stream", "cache_prompt", "ignore_eos"],
    "/completion": ["stream", "cache_prompt", "ignore_eos", "return_tokens"],
    "/v1/completions": ["stream", "cache_prompt", "ignore_eos", "echo"],
    "/v1/chat/completions": ["stream", "cache_prompt", "ignore_eos", "logprobs"],
    "/v1/messages": ["stream", "ignore_eos"],
    "/v1/responses": ["stream", "ignore_eos", "store", "background", "parallel_tool_calls"],
    "/api/chat": ["stream"],
    "/api/generate": ["stream", "raw"],
    "/tokenize": ["add_special", "parse_special", "with_pieces"],
}


@pytest.mark.parametrize("path, name", [(path, name) for path, names in FLAGS.items() for name in names])
def test_a_flag_of_a_wrong_type(alone, path, name):
    for wrong in ("true", "", 1, 0, 1.5, [], [True], {}):
        check(alone, path, merged(path, {name: wrong}), "400", name)


STOPS = [
    (1, "400"), (True, "400"), ({}, "400"), ([1], "400"), ([None], "400"), ([""], "400"), ([["a"]], "400"),
    ([{}], "400"),
    (["a"] * 1000, "400"), ([str(n) for n in range(100000)], "400"), ("x" * 2000000, "400"), (["\0"], "200/400"),
    (["\u202e\U0010ffff"], "200"), ([], "200"),
]  # fmt: skip


@pytest.mark.parametrize("stop, wanted", STOPS, ids=["%d" % n for n in range(len(STOPS))])
@pytest.mark.parametrize("path", MAKERS)
def test_stop_strings(alone, path, stop, wanted):
    name = "stop_sequences" if path == "/v1/messages" else "stop"
    check(alone, path, merged(path, {name: stop}), wanted, name)


@pytest.mark.parametrize("path", list(GOOD))
def test_a_model_of_a_wrong_type_or_an_unknown_one(alone, path):
    name = "model_name" if path == "/generate" else "model"
    if path in ("/tokenize", "/detokenize"):
        pytest.skip("it uses the model that is loaded")
    for wrong in (1, 1.5, True, [], ["demo.gguf"], {"name": "demo.gguf"}):
        check(alone, path, dict(GOOD[path], **{name: wrong}), "400", "model")
    for unknown in NAMES:  # any name may mean the one model that there is; none may mean another file
        reply = check(alone, path, dict(GOOD[path], **{name: unknown}), "200/400/404", "model")
        assert b"root:" not in reply.body and len(reply.body) < 8192
        assert reply.json.get("model", "demo.gguf") == "demo.gguf"


NAMES = [
    "no.gguf", "../demo.gguf", "../../etc/passwd", "/etc/passwd", "..\\..\\windows\\win.ini", "C:\\x",
    "models/demo.gguf",
    "./demo.gguf", "demo.gguf/", "demo.gguf/../demo.gguf", "demo.gguf\0", "demo.gguf\0.txt", "\0", "demo.gguf\n",
    "de\rmo",
    "~/.ssh/id_rsa", "file:///etc/passwd", "http://evil.example/x.gguf", "DEMO.GGUF ", " demo.gguf", ".", "..",
    "README.md",
    "make_demo.py", "*", "demo.*", "%2e%2e%2fdemo.gguf", "\u202efugg.omed", "a" * 300, "a" * 100000, "\x1b[31mred",
    "$(id)", "`id`", "'; DROP TABLE models; --", "<script>alert(1)</script>", "{{7*7}}", "CON", "demo.gguf:stream",
    ".gguf", ":latest", "\U0001f4a9", "-", "--help",
]  # fmt: skip

TEXTS = [("/generate", "prompt"), ("/v1/responses", "input"), ("/v1/responses", "instructions"),
         ("/completion", "prompt"), ("/v1/completions", "prompt"), ("/api/generate", "prompt"),
         ("/tokenize", "content"), ("/v1/completions", "suffix"), ("/api/generate", "suffix"),
         ("/api/generate", "system")]  # fmt: skip


@pytest.mark.parametrize("path, name", TEXTS)
def test_a_text_of_a_wrong_type(target, path, name):
    for wrong in (1.5, True, {}, {"a": "b"}, [None], [{}], [[]], [["a", None]], [1.5], [True]):
        check(target, path, merged(path, {name: wrong}), "400", name)


@pytest.mark.parametrize("path, name", TEXTS)
def test_a_text_of_odd_characters(alone, path, name):
    odd = "\0\x01\x1b[2J\x7f\x80\u2028\u202e\ufeff\ufffe\uffff\U0010ffff e\u0301\u0301 \u200d\u200d ﷽"
    for text in (odd, odd * 20, "\0", "\n" * 300, " " * 300, "\t\r\n", "\U0001f600" * 20):
        check(alone, path, merged(path, {name: text}), "200/400", name)


@pytest.mark.parametrize("path", ["/generate", "/completion", "/v1/completions", "/api/generate"])
def test_an_empty_or_a_missing_prompt(target, path):
    for more in ({"prompt": ""}, {"prompt": None}, {"prompt": []}):
        check(target, path, merged(path, more), "200/400", "prompt")
    check(target, path, {}, "400")


TOKENS = [
    ([-1], "400"), ([1 << 31], "400"), ([1 << 70], "400"), ([-(1 << 70)], "400"), ([99999999], "400"),
    ([1.0], "400/200"),
    ([1.5], "400"), ([True], "400"), ([None], "400"), (["1"], "200/400"), ([[1], [99999999]], "400"),
    ([[1], "a"], "200/400"),
    ([1, [2]], "400"), ([[[1]]], "400"), ([[]], "400"), ([1] * 100000, "400"), ([[1]] * 100000, "400"),
    ([""], "200/400"),
    ([0] * 600, "400"), ([{"prompt_string": "a"}], "200"), ([{"prompt_string": 1}], "400"), ([{"content": []}], "400"),
    ([{"prompt_string": "a", "multimodal_data": ["x"]}], "400"), ([{"content": [{"type": "image_url"}]}], "400"),
]  # fmt: skip


@pytest.mark.parametrize("tokens, wanted", TOKENS, ids=["%d" % n for n in range(len(TOKENS))])
@pytest.mark.parametrize("path", ["/completion", "/v1/completions"])
def test_tokens_for_a_prompt(alone, path, tokens, wanted):
    check(alone, path, merged(path, {"prompt": tokens}), wanted, "prompt")


@pytest.mark.parametrize("path", ["/detokenize"])
def test_tokens_to_be_made_text(target, path):
    for wrong in (None, 1, "1", {}, [None], ["1"], [1.5], [True], [[1]], [-1], [1 << 31], [1 << 70], [99999999]):
        check(target, path, {"tokens": wrong}, "400", "tokens")
    check(target, path, {}, "400", "tokens")
    check(target, path, {"tokens": []}, "200")
    check(target, path, {"tokens": [1] * 400000}, "200/400", "tokens")


# ------------------------------------------------------------------------------------------------ embeddings

EMBEDDINGS = [
    ({"input": "Hi", "model": MODEL}, "400"),  # the demo gives text
    ({"input": 1}, "400"), ({"input": {}}, "400"), ({"input": []}, "400"), ({"input": None}, "400"), ({}, "400"),
    ({"input": [None]}, "400"), ({"input": [[]]}, "400"), ({"input": [1.5]}, "400"), ({"input": [[1], [True]]}, "400"),
    ({"input": ["x"] * 100000}, "400"), ({"input": [[1]] * 100000}, "400"), ({"input": [99999999]}, "400"),
    ({"input": "Hi", "encoding_format": "x"}, "400"), ({"input": "Hi", "encoding_format": 1}, "400"),
    ({"input": "Hi", "dimensions": 0}, "400"), ({"input": "Hi", "dimensions": -1}, "400"),
    ({"input": "Hi", "dimensions": 1 << 70}, "400"), ({"input": "Hi", "dimensions": "x"}, "400"),
    ({"input": "Hi", "model": "../../x"}, "400/404"), ({"input": "x" * 2000000}, "400"),
]  # fmt: skip


@pytest.mark.parametrize("body, wanted", EMBEDDINGS, ids=["%d" % n for n in range(len(EMBEDDINGS))])
def test_embeddings(target, body, wanted):
    check(target, "/v1/embeddings", body, wanted)


# ------------------------------------------------------------------------------------------------- messages

MESSAGES = [
    ("x", "400"), (1, "400"), ({}, "400"), ([], "400"), (None, "400"), ([None], "400"), (["x"], "400"), ([[]], "400"),
    ([{}], "400"), ([{"role": "user"}], "200/400"), ([{"content": "x"}], "400"),
    ([{"role": None, "content": "x"}], "400"),
    ([{"role": 1, "content": "x"}], "400"), ([{"role": [], "content": "x"}], "400"),
    ([{"role": "", "content": "x"}], "400"),
    ([{"role": "root", "content": "x"}], "400"), ([{"role": "User", "content": "x"}], "400"),
    ([{"role": "user\n", "content": "x"}], "400"), ([{"role": "<|im_start|>", "content": "x"}], "400"),
    ([{"role": "user", "content": 1}], "400"), ([{"role": "user", "content": True}], "400"),
    ([{"role": "user", "content": {}}], "400"), ([{"role": "user", "content": [1]}], "400"),
    ([{"role": "user", "content": [None]}], "400"), ([{"role": "user", "content": [[]]}], "400"),
    ([{"role": "user", "content": [{"type": "text"}]}], "400"), ([{"role": "user", "content": [{"text": "x"}]}], "400"),
    ([{"role": "user", "content": [{"type": "text", "text": 1}]}], "400"),
    ([{"role": "user", "content": [{"type": [], "text": "x"}]}], "400"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}], "400"),
    ([{"role": "user", "content": [{"type": "x" * 100000, "text": "x"}]}], "400"),
]  # fmt: skip
FLOODS = [
    [{"role": "user", "content": "x" * 3000000}], HI * 80000, HI * 4000,
    [{"role": "user", "content": [{"type": "text", "text": "x"}] * 60000}],
    [{"role": "user", "content": "\n" * 1000000}], [{"role": "user", "content": " " * 1000000}],
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(FLOODS)))
@pytest.mark.parametrize("path", CHATS)
def test_floods_of_messages(alone, path, number):
    only_rendered = path in ("/apply-template", "/v1/messages/count_tokens")  # long is not wrong there
    check(alone, path, dict(GOOD[path], messages=FLOODS[number]), "200/400" if only_rendered else "400")


@pytest.mark.parametrize("number", range(len(MESSAGES)))
@pytest.mark.parametrize("path", CHATS)
def test_messages(target, path, number):
    messages, wanted = MESSAGES[number]
    if path == "/api/chat" and not messages:
        wanted = "200/400"  # Ollama's way to load a model
    check(target, path, dict(GOOD[path], messages=messages), wanted)


CALLS = [
    "x", 1, {}, [None], [1], [{}], [{"id": 1}],
    [{"id": "a", "type": "x", "function": {"name": "f", "arguments": "{}"}}],
    [{"id": "a", "type": "function"}], [{"id": "a", "type": "function", "function": None}],
    [{"id": "a", "type": "function", "function": {}}], [{"id": "a", "type": "function", "function": {"name": 1}}],
    [{"id": "a", "type": "function", "function": {"name": "f", "arguments": 1}}],
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CALLS)))
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat", "/apply-template"])
def test_tool_calls_of_an_earlier_answer(alone, path, number):
    messages = HI + [{"role": "assistant", "content": "", "tool_calls": CALLS[number]}] + HI
    check(alone, path, dict(GOOD[path], messages=messages), "200/400")


def deep(depth, inner="x"):
    """Return a value of twice so many levels."""
    for _ in range(depth):
        inner = {"a": [inner]}
    return inner


FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def function(**more):
    return [{"type": "function", "function": dict({"name": "f"}, **more)}]


TOOLS = [
    ("x", "400"), (1, "400"), ({}, "200/400"), ([None], "400"), (["x"], "400"), ([{}], "400"), ([{"type": "x"}], "400"),
    ([{"type": "function"}], "400"), ([{"type": "function", "function": 1}], "400"), (function(name=1), "400"),
    (function(name=""), "400"), (function(name="a b"), "200/400"), (function(name="f" * 100000), "400"),
    (function(name='a"}\n<|im_end|>'), "200/400"), (function(description=1), "200/400"),
    (function(parameters=1), "400"), (function(parameters=[]), "400"), (function(parameters={"type": "x"}), "200/400"),
    (function(parameters=deep(150)), "200/400"), ([FUNCTION] * 5000, "400"), ([FUNCTION, FUNCTION], "200/400"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(TOOLS)))
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat", "/apply-template", "/v1/messages"])
def test_tools(alone, path, number):
    tools, wanted = TOOLS[number]
    if path == "/v1/messages":
        wanted = "200/400"  # it has another shape
    check(alone, path, dict(GOOD[path], tools=tools), wanted)


CHOICES = ["x", 1, [], {}, {"type": "x"}, {"type": "function"}, {"type": "function", "function": 1},
           {"type": "function", "function": {}}, {"type": "function", "function": {"name": "other"}},
           {"type": "function", "function": {"name": 1}}, {"type": "tool"}, {"type": "tool", "name": "other"},
           {"type": ["auto"]}, {"type": {}}, True]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CHOICES)))
def test_a_choice_of_tools(target, number):
    body = dict(GOOD["/v1/chat/completions"], tools=function(parameters={"type": "object"}),
                tool_choice=CHOICES[number])
    check(target, "/v1/chat/completions", body, "400")
    tools = [{"name": "f", "input_schema": {"type": "object"}}]
    check(target, "/v1/messages", dict(GOOD["/v1/messages"], tools=tools, tool_choice=CHOICES[number]), "400")


BLOCKS = [
    [{}], [{"type": None}], [{"type": []}], [{"type": "image", "source": {}}], [{"type": "text", "text": None}],
    [{"type": "tool_use"}], [{"type": "tool_use", "id": "a", "name": "f", "input": 1}],
    [{"type": "tool_result"}], [{"type": "tool_result", "tool_use_id": 1}],
    [{"type": "tool_result", "tool_use_id": "a", "content": 1}],
    [{"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image"}]}],
    [{"type": "document", "source": {"type": "url", "url": "file:///etc/passwd"}}], [], [{"type": "x" * 100000}],
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_blocks(alone, number):
    for role in ("user", "assistant"):
        messages = HI + [{"role": role, "content": BLOCKS[number]}]
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            check(alone, path, dict(GOOD[path], messages=messages), "200/400" if not BLOCKS[number] else "400")


OTHERS = [
    ("/v1/messages", {"system": 1}, "400"), ("/v1/messages", {"system": {}}, "400"),
    ("/v1/messages", {"system": [1]}, "400"),
    ("/v1/messages", {"system": [{"type": "text"}]}, "400"), ("/v1/messages", {"max_tokens": None}, "400"),
    ("/v1/messages", {"max_tokens": 0}, "400"), ("/v1/messages", {"max_tokens": -1}, "400"),
    ("/v1/messages", {"thinking": 1}, "200/400"), ("/v1/messages", {"thinking": {"type": []}}, "200/400"),
    ("/v1/messages", {"metadata": deep(90)}, "200/400"),
    ("/v1/messages", {"tools": [{"name": "f", "input_schema": 1}]}, "400"),
    ("/v1/messages", {"tools": [{"name": 1, "input_schema": {}}]}, "400"),
    ("/v1/chat/completions", {"n": 0}, "400"), ("/v1/chat/completions", {"n": 129}, "400"),
    ("/v1/chat/completions", {"n": 1000000}, "400"), ("/v1/chat/completions", {"n": "2"}, "400"),
    ("/v1/chat/completions", {"top_logprobs": 5}, "400"),
    ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 21}, "400"),
    ("/v1/chat/completions", {"stream_options": 1}, "400"),
    ("/v1/chat/completions", {"stream_options": {"include_usage": 1}}, "400"),
    ("/v1/chat/completions", {"chat_template_kwargs": 1}, "400"),
    ("/v1/chat/completions", {"chat_template_kwargs": {"messages": []}}, "400"),
    ("/v1/chat/completions", {"chat_template_kwargs": {"range": 1}}, "400"),
    ("/v1/chat/completions", {"chat_template_kwargs": {"namespace": 1, "loop": 1, "self": 1, "cycler": 1}}, "200/400"),
    ("/v1/chat/completions", {"chat_template_kwargs": {"": 1, "a b": 2, "__class__": 3}}, "200/400"),
    ("/v1/chat/completions", {"chat_template_kwargs": {"x%d" % n: n for n in range(50000)}}, "200/400"),
    ("/v1/chat/completions", {"response_format": "json"}, "400"),
    ("/v1/chat/completions", {"response_format": {}}, "400"),
    ("/v1/chat/completions", {"response_format": {"type": 1}}, "400"),
    ("/v1/chat/completions", {"response_format": {"type": "json_schema"}}, "400"),
    ("/v1/chat/completions", {"response_format": {"type": "json_schema", "json_schema": []}}, "400"),
    ("/v1/chat/completions", {"response_format": {"type": "json_schema", "json_schema": {"schema": 1}}}, "400"),
    ("/v1/chat/completions", {"response_format": {"type": "json_object"}, "grammar": "root ::= [a]"}, "400"),
    ("/v1/chat/completions", {"user": deep(90)}, "200/400"), ("/v1/chat/completions", {"metadata": 1}, "200/400"),
    ("/v1/completions", {"n": 128, "prompt": ["a"] * 1000}, "400"),
    ("/v1/completions", {"prompt": ["a"] * 100000}, "400"),
    ("/v1/completions", {"best_of": 2}, "400"), ("/v1/completions", {"echo": True, "logprobs": 1}, "400"),
    ("/v1/completions", {"logprobs": True}, "400"), ("/v1/completions", {"suffix": "x" * 1000000}, "400"),
    ("/completion", {"prompt": ["a"] * 100000}, "400"), ("/completion", {"prompt": ["a", 1] * 100000}, "400"),
    ("/completion", {"prompt": "x" * 3000000}, "400"), ("/completion", {"prompt": "\n" * 1000000}, "400"),
    ("/completion", {"prompt": "\n" * 1000000, "stream": True}, "400"),
    ("/completion", {"prompt": "<|im_start|>" * 100000}, "400"),
    ("/completion", {"prompt": "\U0001f600" * 250000}, "400"),
    ("/completion", {"prompt": "a\u0301" * 300000}, "400"), ("/completion", {"prompt": "あ" * 300000}, "400"),
    ("/completion", {"prompt": " a" * 500000}, "400"), ("/completion", {"prompt": "'" * 1000000}, "400"),
    ("/completion", {"prompt": "\r\n" * 500000}, "400"), ("/completion", {"prompt": "1" * 1000000}, "400"),
    ("/completion", {"prompt": "\0" * 1000000}, "400"), ("/completion", {"json_schema": 1}, "400"),
    ("/completion", {"json_schema": {}, "grammar": "root ::= [a]"}, "400"), ("/completion", {"n_predict": -2}, "400"),
    ("/completion", {"samplers": ["x"] * 100000}, "200/400"), ("/completion", {"id_slot": 99}, "200/400"),
    ("/completion", {"dry_sequence_breakers": 1}, "400"), ("/completion", {"dry_sequence_breakers": [""]}, "400"),
    ("/completion", {"dry_sequence_breakers": [1]}, "400"),
    ("/completion", {"dry_multiplier": 1, "dry_sequence_breakers": ["x"] * 10000}, "400"),
    ("/completion", {"dry_multiplier": 1, "dry_sequence_breakers": ["x" * 1000000]}, "200/400"),
    ("/completion", {"logit_bias": [[n % 500, 1] for n in range(300000)]}, "400"),
    ("/completion", {"logit_bias": {str(n): 1 for n in range(100000)}}, "400"),
    ("/tokenize", {"content": "\n" * 1000000}, "200/400"), ("/tokenize", {"content": "x" * 5000000}, "200/400"),
    ("/tokenize", {"content": " " * 3000000}, "200/400"),
    ("/tokenize", {"content": "\n" * 200000, "with_pieces": True}, "200/400"),
    ("/tokenize", {"content": None}, "200/400"), ("/tokenize", {"content": ["a"]}, "400"),
    ("/api/chat", {"options": 1}, "400"), ("/api/chat", {"options": []}, "400"), ("/api/chat", {"format": 1}, "400"),
    ("/api/chat", {"format": "xml"}, "400"), ("/api/chat", {"format": []}, "400"),
    ("/api/chat", {"think": "x" * 100000}, "200/400"),
    ("/api/chat", {"keep_alive": deep(50)}, "200/400"), ("/api/generate", {"images": ["x"]}, "400"),
    ("/api/generate", {"images": 1}, "400"), ("/api/generate", {"template": "{{.System}}" * 100000}, "200/400"),
    ("/api/generate", {"context": [99999999]}, "200/400"), ("/api/generate", {"options": {"num_predict": -3}}, "400"),
    ("/api/generate", {"prompt": "x" * 2000000, "raw": True}, "400"), ("/api/generate", {"model": None}, "400"),
    ("/api/generate", {"model": ":latest"}, "200/400/404"),
    ("/api/show", {}, "400"), ("/api/show", {"model": 1}, "400"),
    ("/api/show", {"model": "../../../etc/passwd"}, "400/404"), ("/api/show", {"name": ["demo.gguf"]}, "400"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(OTHERS)))
def test_a_field_of_one_dialect(alone, number):
    path, more, wanted = OTHERS[number]
    check(alone, path, dict(GOOD.get(path, {}), **more), wanted)


@pytest.mark.parametrize("path", list(GOOD))
def test_a_body_of_many_levels(alone, path):
    for depth in (40, 90, 150, 300):
        check(alone, path, dict(GOOD[path], metadata=deep(depth)), "200/400")
        name = next(name for name in ("prompt", "messages", "input", "content", "tokens") if name in GOOD[path])
        check(alone, path, dict(GOOD[path], **{name: deep(depth)}), "400")


@pytest.mark.parametrize("path", list(GOOD))
def test_unknown_fields_are_nobodys_business(target, path):
    more = {"": 1, " ": 2, "\0": 3, "x" * 10000: 4, "__proto__": {"stream": True}, "self": 5, "\U0010ffff": 6}
    check(target, path, dict(GOOD[path], **more), "200")
