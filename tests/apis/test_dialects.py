"""llama.cpp's own API, Anthropic's and Ollama's, each as its clients see it, on one backend with the demo model."""

import json

import pytest
from conftest import call

HELLO = "Hello, how are you?"
STORY = "Once upon a time in a magical forest,"
MESSAGES = [{"role": "user", "content": HELLO}]
PICK = {
    "type": "object",
    "properties": {"fruit": {"enum": ["fig", "plum"]}},
    "required": ["fruit"],
    "additionalProperties": False,
}


def post(backend, path, **body):
    return call(backend.url + path, body)


def lines(answer):
    return [json.loads(line) for line in answer.body.decode("utf-8").splitlines()]


def named_events(answer):
    """Return a stream's events as (name, data); their data says its name, too."""
    events = []
    for block in answer.body.decode("utf-8").split("\n\n"):
        parts = [line.partition(": ")[2] for line in block.splitlines() if line.startswith(("event: ", "data: "))]
        if parts:
            events.append((parts[0], json.loads(parts[1])))
    assert all(name == data["type"] for name, data in events)
    return events


# --------------------------------------------------------------------------------------------- llama.cpp's own


def test_a_native_completion_says_all_that_llama_cpps_server_says(backend):
    body = post(backend, "/completion", prompt=STORY, n_predict=6, temperature=0, return_tokens=True, n_probs=2).json
    assert body["content"] and len(body["tokens"]) == 6 and body["stop"] is True
    assert body["stop_type"] == "limit" and body["stopping_word"] == "" and body["truncated"] is False
    assert body["tokens_predicted"] == 6 and body["tokens_evaluated"] > 5 and body["tokens_cached"] >= 0
    assert body["generation_settings"]["temperature"] == 0 and body["generation_settings"]["n_predict"] == 6
    assert body["prompt"].endswith(STORY) and body["timings"]["predicted_n"] == 6 and body["model"] == "demo.gguf"
    assert len(body["completion_probabilities"]) == 6


def test_a_native_prompt_may_mix_tokens_and_texts_or_be_several(backend):
    tokens = post(backend, "/tokenize", content=STORY, add_special=True).json["tokens"]
    say = {"n_predict": 5, "temperature": 0}
    text = post(backend, "/completion", prompt=STORY, **say).json["content"]
    assert post(backend, "/completion", prompt=tokens, **say).json["content"] == text
    assert post(backend, "/completion", prompt=tokens[:-2] + [" forest,"], **say).status == 200
    several = post(backend, "/completion", prompt=[STORY, tokens], **say).json
    assert [each["index"] for each in several] == [0, 1] and {each["content"] for each in several} == {text}


def test_a_native_stream_ends_with_its_summary(backend):
    answer = post(backend, "/completion", prompt=STORY, n_predict=6, temperature=0, stream=True)
    events = [json.loads(line[6:]) for line in answer.body.decode("utf-8").split("\n\n") if line]
    whole = post(backend, "/completion", prompt=STORY, n_predict=6, temperature=0).json
    assert "".join(each["content"] for each in events) == whole["content"]
    assert [each["stop"] for each in events] == [False] * (len(events) - 1) + [True]
    assert events[-1]["tokens_predicted"] == 6 and sum(len(each["tokens"]) for each in events[:-1]) == 6


def test_a_native_completion_says_what_stopped_it(backend):
    whole = post(backend, "/completion", prompt=STORY, n_predict=30, temperature=0).json["content"]
    body = post(backend, "/completion", prompt=STORY, n_predict=30, temperature=0, stop=[whole[8:14]]).json
    assert body["stop_type"] == "word" and body["stopping_word"] == whole[8:14]
    chat = post(backend, "/apply-template", messages=MESSAGES).json["prompt"]
    assert post(backend, "/completion", prompt=chat, n_predict=200, temperature=0).json["stop_type"] == "eos"
    full = post(backend, "/completion", prompt=STORY, n_predict=-1, ignore_eos=True).json
    assert full["stop_type"] == "limit" and full["truncated"] is True


def test_a_native_schema_is_followed(backend):
    body = post(backend, "/completion", prompt=STORY, json_schema=PICK, n_predict=100).json
    assert json.loads(body["content"])["fruit"] in ("fig", "plum")


def test_tokens_and_text_turn_into_each_other(backend):
    text = "A fox, 東京 and ñ."
    tokens = post(backend, "/tokenize", content=text).json["tokens"]
    assert post(backend, "/detokenize", tokens=tokens).json["content"].strip() == text
    pieces = post(backend, "/tokenize", content=text, with_pieces=True).json["tokens"]
    assert [each["id"] for each in pieces] == tokens and all("piece" in each for each in pieces)
    special = post(backend, "/tokenize", content="<|im_start|>").json["tokens"]
    assert (
        len(special) == 1
        and len(post(backend, "/tokenize", content="<|im_start|>", parse_special=False).json["tokens"]) > 1
    )


def test_the_servers_properties_and_slots_are_told(backend):
    props = call(backend.url + "/props").json
    assert (
        props["total_slots"] == 4 and props["model_path"].endswith("demo.gguf") and "im_start" in props["chat_template"]
    )
    assert props["default_generation_settings"]["n_ctx"] == 1024
    slots = call(backend.url + "/slots").json
    assert [each["id"] for each in slots] == [0, 1, 2, 3] and not any(each["is_processing"] for each in slots)


@pytest.mark.parametrize(
    "body, param",
    [
        ({}, "prompt"),
        ({"prompt": [[1], "x", True]}, "prompt"),
        ({"prompt": [10**8]}, "prompt"),
        ({"prompt": "x", "n_predict": "many"}, "n_predict"),
        ({"prompt": "x", "grammar": "root ::= \"a\"", "json_schema": PICK}, "grammar"),
    ],
)  # fmt: skip
def test_a_wrong_native_field_is_named(backend, body, param):
    answer = call(backend.url + "/completion", body)
    assert answer.status == 400 and answer.json["error"]["param"] == param


# -------------------------------------------------------------------------------------------------- Anthropic


def test_a_message_is_answered_in_blocks(backend):
    body = post(backend, "/v1/messages", model="demo", max_tokens=12, system="Be kind.", messages=MESSAGES).json
    assert body["type"] == "message" and body["role"] == "assistant" and body["id"].startswith("msg_")
    assert body["content"][0]["type"] == "text" and body["content"][0]["text"]
    assert body["stop_reason"] in ("end_turn", "max_tokens") and body["usage"]["output_tokens"] <= 12


def test_a_message_is_streamed_in_anthropics_events(backend):
    say = {"model": "demo", "max_tokens": 12, "temperature": 0, "messages": MESSAGES}
    whole = post(backend, "/v1/messages", **say).json
    events = named_events(post(backend, "/v1/messages", stream=True, **say))
    names = [name for name, _ in events]
    assert names[:2] == ["message_start", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    text = "".join(data["delta"]["text"] for name, data in events if name == "content_block_delta")
    assert text == whole["content"][0]["text"]
    assert events[-2][1]["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


def test_a_tool_use_comes_with_its_input_and_its_result_goes_back(backend):
    tools = [{"name": "pick", "description": "Pick a fruit", "input_schema": PICK}]
    choice = {"type": "any", "disable_parallel_tool_use": True}
    say = {"model": "demo", "max_tokens": 100, "messages": MESSAGES, "tools": tools, "tool_choice": choice}
    body = post(backend, "/v1/messages", **say).json
    block = body["content"][-1]
    assert (
        body["stop_reason"] == "tool_use" and block["type"] == "tool_use" and block["input"]["fruit"] in ("fig", "plum")
    )
    events = named_events(post(backend, "/v1/messages", stream=True, **say))
    parts = [data["delta"]["partial_json"] for name, data in events if name == "content_block_delta"]
    assert json.loads("".join(parts))["fruit"] in ("fig", "plum")
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": block["id"], "content": "yum"}]}
    more = MESSAGES + [{"role": "assistant", "content": body["content"]}, result]
    assert post(backend, "/v1/messages", model="demo", max_tokens=4, messages=more, tools=tools).status == 200


def test_anthropics_tokens_are_counted_and_its_stop_sequences_named(backend):
    count = post(backend, "/v1/messages/count_tokens", model="demo", messages=MESSAGES).json["input_tokens"]
    say = {"model": "demo", "max_tokens": 30, "temperature": 0, "messages": MESSAGES}
    body = post(backend, "/v1/messages", **say).json
    usage = body["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == count
    word = body["content"][0]["text"][4:9]
    stopped = post(backend, "/v1/messages", stop_sequences=[word], **say).json
    assert stopped["stop_reason"] == "stop_sequence" and stopped["stop_sequence"] == word


@pytest.mark.parametrize(
    "body, param",
    [
        ({"messages": MESSAGES}, "max_tokens"),
        ({"max_tokens": 5}, "messages"),
        ({"max_tokens": 5, "messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0]"),
        (
            {"max_tokens": 5, "messages": MESSAGES, "tools": [{"name": "f"}], "tool_choice": {"type": "x"}},
            "tool_choice",
        ),
    ],
)
def test_a_wrong_field_of_anthropics_is_named(backend, body, param):
    answer = call(backend.url + "/v1/messages", dict(body, model="demo"))
    assert answer.status == 400 and answer.json["error"]["param"] == param


def test_anthropics_own_client_reads_it(backend):
    anthropic = pytest.importorskip("anthropic")
    with anthropic.Anthropic(base_url=backend.url, api_key="none", max_retries=0) as client:
        with client.messages.stream(model="demo", max_tokens=10, messages=MESSAGES) as stream:
            text = "".join(stream.text_stream)
            assert text == stream.get_final_message().content[0].text
        with pytest.raises(anthropic.BadRequestError):
            client.messages.create(model="demo", max_tokens=0, messages=MESSAGES)
        any_name = client.messages.create(model="any-model", max_tokens=1, messages=MESSAGES)
        assert any_name.model == "demo.gguf"  # the one model that is there


# ----------------------------------------------------------------------------------------------------- Ollama


def test_ollamas_models_are_listed_and_shown(backend):
    model = call(backend.url + "/api/tags").json["models"][0]
    assert model["name"] == "demo.gguf" and model["details"]["format"] == "gguf" and model["modified_at"] > "2020"
    assert post(backend, "/api/show", model="demo.gguf:latest").json["details"]["family"] == "llama"
    assert call(backend.url + "/api/version").json["version"]
    [loaded] = call(backend.url + "/api/ps").json["models"]
    assert loaded["name"] == "demo.gguf" and loaded["size"] > model["size"] and loaded["size_vram"] == 0
    assert loaded["digest"] == model["digest"] and loaded["context_length"] > 0


def test_an_ollama_chat_comes_in_lines_or_whole(backend):
    say = {"model": "demo", "messages": MESSAGES, "options": {"temperature": 0, "num_predict": 10}}
    parts = lines(post(backend, "/api/chat", **say))
    whole = post(backend, "/api/chat", stream=False, **say).json
    assert "".join(part["message"]["content"] for part in parts) == whole["message"]["content"]
    assert [part["done"] for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1]["eval_count"] == whole["eval_count"] and whole["done_reason"] in ("stop", "length")


def test_an_ollama_prompt_goes_through_the_template_unless_it_is_raw(backend):
    options = {"temperature": 0, "num_predict": 8}
    answer = post(backend, "/api/generate", model="demo", prompt=HELLO, stream=False, options=options).json
    raw = post(backend, "/api/generate", model="demo", prompt=HELLO, raw=True, stream=False, options=options).json
    chat = post(backend, "/api/chat", model="demo", messages=MESSAGES, stream=False, options=options).json
    assert answer["response"] == chat["message"]["content"] and raw["prompt_eval_count"] < answer["prompt_eval_count"]
    assert lines(post(backend, "/api/generate", model="demo", prompt=HELLO, options=options))[0]["response"]


def test_an_ollama_format_is_followed(backend):
    say = {"model": "demo", "prompt": HELLO, "stream": False, "options": {"num_predict": 100}}
    assert json.loads(post(backend, "/api/generate", format=PICK, **say).json["response"])["fruit"] in ("fig", "plum")


def test_ollamas_tool_calls_have_arguments_as_objects(backend):
    tool = {"type": "function", "function": {"name": "pick", "description": "Pick a fruit", "parameters": PICK}}
    call_made = {"function": {"name": "pick", "arguments": {"fruit": "fig"}}}
    messages = MESSAGES + [
        {"role": "assistant", "content": "", "tool_calls": [call_made]},
        {"role": "tool", "content": "yum"},
    ]
    options = {"num_predict": 5}
    assert post(backend, "/api/chat", model="demo", messages=messages, tools=[tool], options=options).status == 200


def test_ollamas_own_client_reads_it(backend):
    ollama = pytest.importorskip("ollama")
    client = ollama.Client(host=backend.url)
    assert client.list().models[0].model == client.ps().models[0].model == "demo.gguf"
    assert client.ps().models[0].expires_at.year == 9999
    parts = list(client.chat(model="demo", messages=MESSAGES, stream=True, options={"num_predict": 6}))
    assert parts[-1].done and "".join(part.message.content for part in parts)
    with pytest.raises(ollama.ResponseError):
        client.show("nobody")
    client._client.close()


def anthropic(*blocks, **body):
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": list(blocks)}]
    return dict({"max_tokens": 1, "messages": messages}, **body)


ASKED = {"max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}


def tool(**fields):
    return dict({"name": "look", "input_schema": {"type": "object"}}, **fields)


@pytest.mark.parametrize(
    "path, body, param",
    [
        ("/v1/messages", anthropic({"type": "tool_use", "name": "look", "input": {}}), "messages[1].content[0].id"),
        (
            "/v1/messages",
            anthropic({"type": "text", "text": "x"}, {"type": "tool_use", "id": "a", "input": {}}, system="s"),
            "messages[1].content[1].name",
        ),
        (
            "/v1/messages",
            anthropic(messages=[{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]),
            "messages[0].content[0].tool_use_id",
        ),
        ("/v1/messages", dict(ASKED, tools=[tool(name="")]), "tools[0].name"),
        ("/v1/messages", dict(ASKED, tools=[tool(), tool(name="b", input_schema=[1])]), "tools[1].input_schema"),
        ("/api/chat", {"messages": [{"role": "assistant", "thinking": 7}]}, "messages[0].thinking"),
        ("/api/chat", {"messages": [{"role": "user", "content": "x"}], "format": {"type": "no"}}, "format"),
        ("/api/chat", {"messages": [{"role": "user", "content": "x"}], "options": {"top_k": "x"}}, "options.top_k"),
        ("/api/generate", {"prompt": "x", "options": {"num_predict": "x"}}, "options.num_predict"),
    ],
)
def test_an_error_names_the_field_that_the_client_sent(backend, path, body, param):
    answer = post(backend, path, **dict({"model": "demo"}, **body))
    error = answer.json["error"]
    assert answer.status == 400 and error["param"] == param
    assert "messages[" not in error["message"].replace(param, "") and "function" not in error["message"]
