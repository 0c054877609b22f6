"""What is asked for beside the answer, and the rule: no field that a client may count on is ignored in silence."""

import json
import math
from types import SimpleNamespace

import pytest
from conftest import MODELS, call

from core.apis import llamacpp, openai
from core.apis.dialect import Call
from core.apis.extras import IGNORED, Extras
from core.apis.host import Host
from core.engine.defaults import Defaults
from core.errors import APIError
from core.models import ModelFolder
from core.settings import EngineSettings

# Fields with a value that asks for something. llama.cpp's server-schema.cpp, llama-cpp-python 0.3.36:
LLAMA = {
    "verbose": True, "timings_per_token": True, "stream": True, "stream_options": {"include_usage": True},
    "cache_prompt": False, "return_tokens": True, "return_progress": True, "sse_ping_interval": 5, "n_predict": 5,
    "n_indent": 2, "n_keep": 2, "n_discard": 2, "n_cmpl": 2, "n_cache_reuse": 2, "t_max_predict_ms": 100,
    "response_fields": ["content"], "top_k": 3, "top_p": 0.5, "min_p": 0.5, "top_n_sigma": 1, "xtc_probability": 0.5,
    "xtc_threshold": 0.3, "typical_p": 0.5, "temperature": 0.5, "dynatemp_range": 0.1, "dynatemp_exponent": 2,
    "repeat_last_n": 5, "repeat_penalty": 2, "frequency_penalty": 1, "presence_penalty": 1, "dry_multiplier": 1,
    "dry_base": 2, "dry_allowed_length": 3, "dry_penalty_last_n": 5, "mirostat": 1, "mirostat_tau": 3,
    "mirostat_eta": 0.2, "adaptive_target": 0.5, "adaptive_decay": 0.5, "seed": 5, "n_probs": 2, "min_keep": 2,
    "backend_sampling": True, "post_sampling_probs": True, "speculative.n_max": 2, "speculative.n_min": 2,
    "speculative.p_min": 0.1, "speculative.type": "none", "speculative.ngram_size_n": 2, "speculative.ngram_size_m": 2,
    "speculative.ngram_min_hits": 2, "dry_sequence_breakers": ["x"], "json_schema": {"type": "object"},
    "grammar": "root ::= [a]", "grammar_lazy": True, "chat_format": 1, "reasoning_format": "none",
    "generation_prompt": "x", "parse_tool_calls": False, "chat_parser": "x", "continue_final_message": True,
    "echo": True, "preserved_tokens": ["x"], "grammar_triggers": [{"type": 1}], "grammar_type": "user",
    "reasoning_control": True, "reasoning_budget_tokens": 5, "reasoning_budget_start_tag": "x",
    "reasoning_budget_end_tags": ["x"], "reasoning_budget_end_tag": "x", "reasoning_budget_message": "x",
    "logit_bias": {"5": 1}, "ignore_eos": True, "stop": ["x"], "samplers": ["top_k"], "id_slot": 1,
    "add_generation_prompt": False, "chat_template_kwargs": {"a": 1}, "logprobs": 2,
}  # fmt: skip
# OpenAI's, of chats and completions (the official client's openai 2.x):
OPENAI = {
    "model": "m", "n": 2, "max_tokens": 5, "max_completion_tokens": 5, "user": "x", "safety_identifier": "x",
    "prompt_cache_key": "x", "prompt_cache_retention": "24h", "metadata": {"a": "b"}, "store": True,
    "service_tier": "flex", "prediction": {"type": "content", "content": "x"}, "verbosity": "low",
    "reasoning_effort": "low", "modalities": ["audio"], "audio": {"voice": "x"}, "web_search_options": {},
    "functions": [{"name": "f"}], "function_call": {"name": "f"}, "seed": 5, "stop": "x", "logit_bias": {"5": 1},
    "frequency_penalty": 1, "presence_penalty": 1, "temperature": 1, "top_p": 0.5, "stream": True,
    "stream_options": {"include_usage": True},
}  # fmt: skip
CHAT_ONLY = {
    "top_logprobs": 2, "response_format": {"type": "json_object"}, "parallel_tool_calls": False,
    "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required", "logprobs": True,
}  # fmt: skip
COMPLETION_ONLY = {"best_of": 2, "echo": True, "suffix": "x", "logprobs": 2}
NOT_IN_CHATS = {"return_tokens", "n_cmpl", "echo", "n_probs"}  # fields of completions
NOT_IN_COMPLETIONS = {
    "reasoning_effort", "modalities", "audio", "web_search_options", "functions", "function_call", "return_tokens",
    "n_cmpl", "continue_final_message", "add_generation_prompt", "chat_template_kwargs", "json_schema", "n_probs",
    "reasoning_format",
}  # fmt: skip
NOT_IN_NATIVE = {"continue_final_message", "add_generation_prompt", "chat_template_kwargs", "stream_options"}
NOT_IN_NATIVE.add("reasoning_format")  # of chats


class Watched(dict):
    """A body that notes which of its fields are looked at."""

    def __init__(self, *fields, **more):
        super().__init__(*fields, **more)
        self.seen = set()

    def get(self, name, default=None):
        self.seen.add(name)
        return super().get(name, default)

    def __getitem__(self, name):
        self.seen.add(name)
        return super().__getitem__(name)


@pytest.fixture(scope="module")
def host():
    folder = ModelFolder(MODELS)
    engine = SimpleNamespace(settings=EngineSettings(slots=4), lora_scales=(), model_name=lambda: "demo.gguf")
    return Host(engine, folder)


def is_noticed(kind, body, host, name, value):
    """Whether a dialect looks at a field, or refuses it by its name."""
    watched = Watched(body, **{name: value})
    try:
        kind(Call(watched, "0" * 32, 0), host)
    except APIError as error:
        return error.status == 400 and (error.param or "").startswith(name)
    except AttributeError:  # the engine that is none: by then the body has been read
        pass
    return name in watched.seen


MESSAGES = {"messages": [{"role": "user", "content": "Hi"}]}
CASES = [
    (kind, body, name, value)
    for kind, body, fields, others in (
        (openai.Chat, MESSAGES, dict(LLAMA, **OPENAI, **CHAT_ONLY), NOT_IN_CHATS),
        (openai.Completion, {"prompt": "x"}, dict(LLAMA, **dict(OPENAI, **COMPLETION_ONLY)), NOT_IN_COMPLETIONS),
        (llamacpp.Completion, {"prompt": "x"}, LLAMA, NOT_IN_NATIVE),
    )
    for name, value in fields.items()
    if name not in others and name not in IGNORED
]


@pytest.mark.parametrize("kind, body, name, value", CASES, ids=lambda each: getattr(each, "__name__", None))
def test_no_known_field_is_ignored_in_silence(host, kind, body, name, value):
    assert is_noticed(kind, body, host, name, value)


def test_what_is_ignored_on_purpose_has_a_reason_and_is_listed():
    assert all(IGNORED.values()) and set(IGNORED) <= set(LLAMA) | set(OPENAI)


@pytest.mark.parametrize("name", ["n_indent", "grammar_lazy", "reasoning_control", "functions", "audio"])
def test_a_field_that_would_change_the_answer_and_can_not_be_honoured_gets_400_with_the_reason(host, name):
    value = dict(LLAMA, **OPENAI)[name]
    with pytest.raises(APIError) as caught:
        openai.Chat(Call(dict(MESSAGES, **{name: value}), "0" * 32, 0), host)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "unsupported", name)
    assert ": " in caught.value.message


def test_a_field_that_asks_for_nothing_is_never_refused(host):
    neutral = {"n_indent": 0, "grammar_lazy": False, "modalities": ["text"], "functions": [], "audio": None, "n": 1}
    openai.Chat(Call(dict(MESSAGES, **neutral), "0" * 32, 0), host)


def test_what_a_server_says_by_its_options_is_what_a_request_begins_with():
    host = Host(None, None, defaults=Defaults({"temperature": 0.1, "seed": 7}, 9, False))
    ask = llamacpp.read_completion({"prompt": "x"}, host.defaults)
    assert (ask.sampling.temperature, ask.sampling.seed, ask.max_tokens, ask.cache_prompt) == (0.1, 7, 9, False)
    ask = llamacpp.read_completion({"prompt": "x", "temperature": 1, "max_tokens": 20}, host.defaults)
    assert (ask.sampling.temperature, ask.sampling.seed, ask.max_tokens) == (1, 7, 20)


def test_a_time_limit_and_a_slot_are_read(host):
    extras = Extras.read({"t_max_predict_ms": 500, "id_slot": 3}, host)
    assert (extras.time_limit, extras.slot) == (0.5, 3)
    assert Extras.read({"t_max_predict_ms": -1, "id_slot": -1}, host) == Extras()
    assert Extras().time_limit == math.inf
    with pytest.raises(APIError):
        Extras.read({"id_slot": 4}, host)


def test_an_answer_is_cut_down_to_the_fields_that_are_asked_for():
    body = {"content": "x", "generation_settings": {"n_predict": 5, "seed": 1}, "tokens": []}
    shown = Extras(fields=("content", "generation_settings/n_predict", "nothing/here")).shown(body)
    assert shown == {"content": "x", "generation_settings/n_predict": 5}
    assert Extras().shown(body) == body


# ------------------------------------------------------------------------------------- on a running backend


def completion(backend, **body):
    return call(backend.url + "/completion", dict({"prompt": "Once upon a time", "n_predict": 6, "seed": 3}, **body))


def events(answer):
    lines = answer.body.decode().split("\n\n")
    return [json.loads(line[len("data: ") :]) for line in lines if line.startswith("data: {")]


def test_the_probabilities_after_all_samplers_are_told_where_they_are_asked_for(backend):
    body = completion(backend, n_probs=5, post_sampling_probs=True, top_k=3, temperature=1.0).json
    for token in body["completion_probabilities"]:
        assert 0 < token["prob"] <= 1 and 1 <= len(token["top_probs"]) <= 3
        assert abs(sum(each["prob"] for each in token["top_probs"]) - 1) < 1e-6
        assert token["prob"] in [each["prob"] for each in token["top_probs"] if each["id"] == token["id"]]
    greedy = completion(backend, n_probs=5, post_sampling_probs=True, temperature=0).json
    assert [len(each["top_probs"]) for each in greedy["completion_probabilities"]] == [1] * 6


def test_samplers_run_in_the_order_that_is_asked_for(backend):
    whole = completion(backend, temperature=0).json
    assert completion(backend, samplers=["top_k"], top_k=1, temperature=5).json["content"] == whole["content"]
    order = completion(backend, samplers="kt").json["generation_settings"]["samplers"]
    assert order == ["top_k", "temperature"]
    hot = [completion(backend, samplers=["top_k"], top_k=2, temperature=50, seed=seed).json for seed in (1, 2)]
    cold = [completion(backend, samplers=["top_k"], top_k=2, temperature=1, seed=seed).json for seed in (1, 2)]
    assert [each["content"] for each in hot] == [each["content"] for each in cold]  # no sampler uses the temperature


def test_a_stream_tells_how_much_of_its_prompt_is_evaluated_and_times_with_each_token(backend):
    prompt = "The quick brown fox jumps over the lazy dog. " * 40
    told = events(completion(backend, prompt=prompt, stream=True, return_progress=True, timings_per_token=True,
                             cache_prompt=False))  # fmt: skip
    progress = [event["prompt_progress"] for event in told if "prompt_progress" in event]
    assert progress[0]["processed"] == progress[0]["cache"] == 0 and progress[-1]["processed"] == progress[-1]["total"]
    assert told[0]["timings"]["prompt_n"] == told[0]["timings"]["prompt_ms"] == 0
    texts = [event for event in told if event.get("content") and not event["stop"]]
    assert [event["timings"]["predicted_n"] for event in texts] == sorted({*range(1, 7)})[: len(texts)]
    assert "timings" not in events(completion(backend, stream=True))[0]


def test_timings_are_complete_and_finite_however_short_the_answer_is(backend):
    names = {"prompt_per_token_ms", "prompt_per_second", "predicted_per_token_ms", "predicted_per_second"}
    for count in (1, 5):
        timings = completion(backend, n_predict=count).json["timings"]
        assert names <= set(timings) and all(0 <= value < math.inf for value in timings.values())
        assert timings["prompt_per_token_ms"] > 0 and (timings["predicted_per_second"] > 0) == (count > 1)


def test_verbose_tells_beside_the_answer_what_the_engine_was_asked(backend):
    chat = dict(MESSAGES, max_tokens=3, temperature=0)
    told = call(backend.url + "/chat/completions", dict(chat, verbose=True)).json["__verbose"]
    assert "Hi" in told["prompt"] and told["generation_settings"]["n_predict"] == 3
    assert "__verbose" not in call(backend.url + "/chat/completions", chat).json
    streamed = events(call(backend.url + "/v1/chat/completions", dict(chat, verbose=True, stream=True)))
    assert streamed[-1]["__verbose"]["prompt"] == told["prompt"]


def test_a_bias_may_name_a_text(backend):
    first = completion(backend, temperature=0).json["content"].split()[0]
    answer = completion(backend, temperature=0, logit_bias=[[" " + first, False], [first, False], ["zebra", -100]]).json
    assert answer["content"].split()[0] != first
    assert {each["bias"] for each in answer["generation_settings"]["logit_bias"]} == {None, -100}


def test_an_answer_with_a_line_break_ends_when_its_time_is_up(backend):
    lines = {"grammar": 'root ::= "a\\n" [a-z ]*', "ignore_eos": True, "n_predict": 900}
    answer = completion(backend, t_max_predict_ms=1, **lines).json
    assert answer["stop_type"] == "limit" and answer["tokens_predicted"] < 900


def test_a_prompt_that_is_too_long_gets_llama_servers_error(backend):
    error = call(backend.url + "/v1/chat/completions", {"messages": [{"role": "user", "content": "word " * 9000}]})
    told = error.json["error"]
    assert (error.status, told["type"], told["code"]) == (400, "exceed_context_size_error", "context_length_exceeded")
    assert told["n_prompt_tokens"] > told["n_ctx"] > 0 and "exceeds the available context size" in told["message"]


@pytest.mark.parametrize("path", ["/completions", "/chat/completions", "/v1/completions"])
def test_paths_without_v1_are_served_as_llama_server_does(backend, path):
    body = dict(MESSAGES, prompt="Once", max_tokens=2)
    answer = call(backend.url + path, body).json
    assert ("content" in answer) == (path == "/completions") and "error" not in answer
    assert call(backend.url + "/v1/health").json["status"] == "ok"
