"""GET /openapi.json of both programs: it tells all routes, nothing else, and what it tells is true."""

import itertools
import json
import subprocess
import sys
import urllib.request

import pytest
from conftest import MODELS, PATIENCE, call

from backend import Backend
from backend import Config as BackendConfig
from balancer import Balancer
from balancer import Config as BalancerConfig
from core.apis import openapi as of_backends
from core.balancing import openapi as of_balancers
from core.engine.defaults import Defaults
from core.http.openapi import About, Operation, described, document, json_answer
from core.http.routing import Route
from core.http.schemas import OBJECT, answer
from core.page import files as page

FUZZ_SECONDS = 150  # after which it has failed; it takes 20 to 40
OTHER_PATHS = "^/(v2/|v1/reranking|rerank|chat/|responses|completions$|embedding$)"  # aliases


def a_backend(**settings):
    return Backend(BackendConfig(models=MODELS, port=0, **settings))


def a_balancer(**settings):
    return Balancer(BalancerConfig(port=0, **settings))


def routes_of(program):
    return {(route.method, route.path) for route in program._routes()}


def document_of(program):
    """Return a program's document, as a client would get it."""
    program.service.start()
    try:
        key = {"X-Api-Key": program.config.api_key[0]} if program.config.api_key else {}
        return call(program.service.url + "/openapi.json", headers=key).json
    finally:
        program.service.drain(0)


def operations_in(told):
    return {(method.upper(), path) for path, methods in told["paths"].items() for method in methods}


def numbers_of(told, title):
    return told["components"]["schemas"][title]["properties"]


PROGRAMS = pytest.mark.parametrize("make", [a_backend, a_balancer], ids=["backend", "balancer"])


@PROGRAMS
def test_every_route_is_described_and_everything_described_is_a_route(make):
    program = make()
    assert operations_in(document_of(program)) == routes_of(program)


def test_there_is_no_description_without_a_route():
    own = {("GET", "/openapi.json")}
    assert set(of_backends.operations(Defaults())) | own == routes_of(a_backend())
    assert {*of_balancers.OPERATIONS, *page.operations()} | own == routes_of(a_balancer())


def test_a_route_that_is_forgotten_stops_the_program_from_being_made():
    with pytest.raises(KeyError):
        described(About("a", "b"), [Route("GET", "/new", lambda request: None)], {}, False)


def test_one_title_can_not_name_two_schemas():
    routes = [Route("GET", path, lambda request: None) for path in ("/a", "/b")]
    told = {
        ("GET", "/a"): Operation("a", "", json_answer(answer("Same", one=OBJECT))),
        ("GET", "/b"): Operation("b", "", json_answer(answer("Same", two=OBJECT))),
    }
    with pytest.raises(ValueError, match="Same"):
        document(About("a", "b"), routes, told, False)


@PROGRAMS
def test_the_document_is_valid(make):
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(document_of(make()))
    validator.validate(document_of(make(api_key=("secret",))))


@PROGRAMS
def test_with_keys_all_but_the_public_routes_ask_for_one(make):
    program = make(api_key=("secret",))
    told = document_of(program)
    public = {(route.method, route.path) for route in program._routes() if route.public}
    for method, path in operations_in(told):
        operation = told["paths"][path][method.lower()]
        asks = bool(operation["security"])
        assert asks == ("401" in operation["responses"])
        assert asks == ((method, path) not in public or path.startswith("/admin"))


def test_without_keys_no_route_asks_for_one():
    told = document_of(a_backend())
    assert not any(each["security"] for methods in told["paths"].values() for each in methods.values())


def test_defaults_are_those_of_the_servers_options():
    assert numbers_of(document_of(a_backend()), "GenerateRequest")["temperature"]["default"] == 0.8
    told = document_of(a_backend(temperature=0.25, n_predict=7))
    assert numbers_of(told, "GenerateRequest")["temperature"]["default"] == 0.25
    assert numbers_of(told, "GenerateRequest")["max_tokens"]["default"] == 7


def test_ranges_are_those_that_are_checked(backend):
    for name, schema in numbers_of(call(backend.url + "/openapi.json").json, "GenerateRequest").items():
        for bound, step in (("minimum", -1), ("maximum", 1)):
            if bound in schema:
                body = {"prompt": "a", "model_name": "demo", "max_tokens": 1, name: schema[bound] + step}
                refused = call(backend.url + "/generate", body)
                assert (refused.status, refused.json["error"]["param"]) == (400, name)


def test_streams_are_told_by_the_types_that_they_have(backend):
    told = call(backend.url + "/openapi.json").json
    chat = {"model": "demo", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "stream": True}
    for path in ("/v1/chat/completions", "/api/chat"):
        kind = call(backend.url + path, chat).headers["Content-Type"]
        assert set(told["paths"][path]["post"]["responses"]["200"]["content"]) == {"application/json", kind}


ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}]
SAID = {"max_tokens": 3, "temperature": 0, "stop": ["x"], "logit_bias": {"5": -1, "a": False}, "seed": 1}
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "boolean"}}}}
TOOLS = [{"type": "function", "function": FUNCTION}]
FORMAT = {"type": "json_schema", "json_schema": {"name": "b", "schema": {"type": "boolean"}}}
TYPICAL = [
    ("/generate", dict(SAID, prompt="a", model_name="demo", n_probs=2)),
    ("/v1/chat/completions", dict(SAID, messages=ASKED, n=2, logprobs=True, top_logprobs=1, response_format=FORMAT)),
    ("/v1/chat/completions", {"messages": ASKED, "max_tokens": 40, "tools": TOOLS, "tool_choice": "required"}),
    ("/v1/chat/completions/input_tokens", {"messages": ASKED}),
    ("/v1/completions", dict(SAID, prompt=["a", [5, 6]], logprobs=1, echo=None)),
    ("/v1/responses/input_tokens", {"input": "a", "tools": [dict(FUNCTION, type="function")]}),
    ("/v1/responses", {"input": "a", "max_output_tokens": 3, "store": False, "reasoning": {"effort": "low"}}),
    ("/v1/messages", {"messages": ASKED[1:], "max_tokens": 3, "system": "Be brief.", "stop_sequences": ["x"]}),
    ("/v1/messages/count_tokens", {"messages": ASKED[1:]}),
    ("/completion", dict(SAID, prompt="a", n_probs=1, samplers=["top_k"])),
    ("/completion", {"prompt": [["a", 5], "b"], "n_predict": 2, "response_fields": ["content"]}),
    ("/tokenize", {"content": "a b", "with_pieces": True}),
    ("/detokenize", {"tokens": [5, 6]}),
    ("/apply-template", {"messages": ASKED}),
    ("/lora-adapters", []),
    ("/api/chat", {"model": "demo", "messages": ASKED, "stream": False, "options": {"num_predict": 3}}),
    ("/api/generate", {"model": "demo", "prompt": "a", "stream": False, "raw": True, "options": {"num_predict": 3}}),
    ("/api/show", {"model": "demo"}),
]


@pytest.mark.parametrize("path, body", TYPICAL, ids=[path for path, body in TYPICAL])
def test_a_typical_request_fits_its_schema_and_its_answer_fits_that(backend, path, body):
    jsonschema = pytest.importorskip("jsonschema")
    told = call(backend.url + "/openapi.json").json
    operation = told["paths"][path]["post"]
    answered = call(backend.url + path, body)
    assert answered.status == 200, answered.body
    for value, holder in ((body, operation["requestBody"]), (answered.json, operation["responses"]["200"])):
        schema = dict(holder["content"]["application/json"]["schema"], components=told["components"])
        jsonschema.Draft202012Validator(schema).validate(value)


CALLING = {"tools": TOOLS, "tool_choice": "required", "max_tokens": 60}
MESSAGES = {"messages": ASKED[1:], "max_tokens": 5, "stream": True}
TOLD = {"input": "a", "store": False}
CLAUDES = [{"name": "f", "input_schema": FUNCTION["parameters"]}]
STREAMS = [
    ("/generate", dict(SAID, prompt="a", model_name="demo", n_probs=2)),
    ("/v1/chat/completions", dict(SAID, messages=ASKED, n=2, logprobs=True, top_logprobs=1)),
    ("/v1/chat/completions", dict(CALLING, messages=ASKED, stream_options={"include_usage": True})),
    ("/v1/chat/completions", dict(SAID, messages=ASKED, return_progress=True, timings_per_token=True)),
    ("/v1/completions", dict(SAID, prompt=["a", [5, 6]], logprobs=1, stream_options={"include_usage": True})),
    ("/v1/responses", dict(TOLD, max_output_tokens=3, top_logprobs=1)),
    ("/v1/responses", dict(TOLD, tools=[dict(FUNCTION, type="function")], tool_choice="required")),
    ("/completion", dict(SAID, prompt="a", n_probs=1, return_progress=True)),
    ("/completion", {"prompt": [["a", 5], "b"], "n_predict": 2, "response_fields": ["content", "timings"]}),
    ("/v1/messages", dict(MESSAGES, stop_sequences=["x"])),
    ("/v1/messages", dict(MESSAGES, max_tokens=60, tools=CLAUDES, tool_choice={"type": "any"})),
    ("/api/chat", {"model": "demo", "messages": ASKED, "options": {"num_predict": 3}}),
    ("/api/chat", {"model": "demo", "messages": ASKED, "tools": TOOLS, "options": {"num_predict": 20}}),
    ("/api/generate", {"model": "demo", "prompt": "a", "options": {"num_predict": 3}}),
]


@pytest.mark.parametrize("path, body", STREAMS, ids=[path for path, body in STREAMS])
def test_each_item_of_a_stream_fits_the_schema_of_items(backend, path, body):
    told = call(backend.url + "/openapi.json").json
    answered = call(backend.url + path, dict(body, stream=True))
    content = told["paths"][path]["post"]["responses"]["200"]["content"]
    kind = answered.headers["Content-Type"]
    lines = answered.body.decode().splitlines()
    items = list(map(json.loads, lines)) if kind == "application/x-ndjson" else list(events_of(lines))
    for item in items:
        check_item(item, dict(content[kind]["schema"], components=told["components"]))
    assert len(items) > 2


def events_of(lines):
    """Yield server-sent events as objects of their fields."""
    event = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if name in ("event", "data"):
            event[name] = value
        elif not line and event:
            yield event
            event = {}


def check_item(item, schema):
    """Check an item of a stream, and the JSON in an event's data, which validators leave alone."""
    validator = pytest.importorskip("jsonschema").Draft202012Validator
    validator(schema).validate(item)
    if item.get("data") not in (None, "[DONE]"):
        validator(dict(schema_of_data(schema), components=schema["components"])).validate(json.loads(item["data"]))


def schema_of_data(schema):
    """Return the schema of the JSON in an event's data."""
    named = schema["components"]["schemas"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    data = named["properties"]["data"]
    return data.get("anyOf", [data])[0]["contentSchema"]


def test_each_event_of_the_balancers_feed_fits_its_schema(start):
    balancer = start("balancer.py", "--child", "--port=0", "--backend=http://127.0.0.1:9")
    url = balancer.wait_for_event("listening")["url"]
    told = call(url + "/openapi.json").json
    schema = told["paths"]["/events"]["get"]["responses"]["200"]["content"]["text/event-stream"]["schema"]
    with urllib.request.urlopen(url + "/events", timeout=PATIENCE) as feed:
        lines = (line.decode().rstrip("\n") for line in feed)
        for event in itertools.islice(events_of(lines), 3):  # what was, and two seconds
            check_item(event, dict(schema, components=told["components"]))


def test_what_is_no_item_does_not_fit():
    """The schemas of items say something: each wants its own fields."""
    told = document_of(a_backend())
    jsonschema = pytest.importorskip("jsonschema")
    for title in ("Generate", "Chat", "Completion", "Response", "Message"):
        schema = {"$ref": "#/components/schemas/%sEvent" % title, "components": told["components"]}
        for strange in ({}, {"type": "response.created"}, {"choices": [{}]}, {"done": True}, "a"):
            event = {"event": "message_start", "data": json.dumps(strange)}
            with pytest.raises(jsonschema.ValidationError):
                check_item(event, schema)


@pytest.mark.fuzz
def test_what_schemathesis_sends_gets_answers_that_the_document_tells(start, tmp_path):
    pytest.importorskip("schemathesis")
    backend = start(
        "backend.py", "--child", "--port", 0, "--threads", 1, "--ctx-size", 256, "--predict", 8,
        "--responses-dir", tmp_path / "responses", "--slot-save-path", tmp_path,
    )  # fmt: skip
    url = backend.wait_for_event("listening")["url"]
    backend.wait_for_event("ready")
    settings = tmp_path / "schemathesis.toml"
    settings.write_text('[checks]\nnot_a_server_error.expected-statuses = ["2xx", "4xx", 501, 503]\n')
    conformance = ("status_code", "content_type", "response_schema")
    checks = ["not_a_server_error"] + [each + "_conformance" for each in conformance]
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(settings), "run", url + "/openapi.json",
        "--checks", ",".join(checks), "--phases", "coverage,fuzzing", "--max-examples", "2", "--no-color",
        "--exclude-path-regex", OTHER_PATHS,
    ]  # fmt: skip
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    ended = subprocess.run(command, timeout=FUZZ_SECONDS, cwd=str(tmp_path), **both)
    assert not ended.returncode, ended.stdout.decode("utf-8", "replace")
