"""The OpenAI API as its official client sees it: two backends behind the balancer, the demo model."""

import base64
import json
import shutil
import struct
from typing import List, Literal

import pytest
from conftest import LASTING_OPTIONS, ROOT, Program, call, in_parallel, wait_until
from gguf import write_embedder

openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")

HELLO = [{"role": "user", "content": "Hello, how are you?"}]
STORY = "Once upon a time in a magical forest,"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "東京"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"type": "object", "additionalProperties": False}},
}


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """Two backends with the demo model and an embedding model made of it, and a balancer that wants a key."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copy(ROOT + "/models/demo.gguf", str(folder))
    write_embedder(str(folder / "embedder.gguf"))
    options = ["--child", "--port=0", "--threads=1", "--model=demo.gguf", "--models=%s" % folder]
    programs = [Program("backend.py", *options) for _ in range(2)]
    try:
        urls = [program.wait_for_event("listening")["url"] for program in programs]
        for program in programs:
            program.wait_for_event("ready")
        balancer = Program(
            "balancer.py", "--child", "--port=0", "--api-key=secret", *["--backend=" + url for url in urls]
        )
        programs.append(balancer)
        balancer.url = balancer.wait_for_event("listening")["url"]
        balancer.backends = urls
        headers = {"Authorization": "Bearer secret"}
        wait_until(lambda: call(balancer.url + "/status", headers=headers).json["healthy_backends"] == 2)
        yield balancer
    finally:
        for program in reversed(programs):
            program.close()


@pytest.fixture(scope="module")
def client(system):
    with openai.OpenAI(base_url=system.url + "/v1", api_key="secret", max_retries=0) as made:
        yield made


@pytest.fixture
def chat(client):
    """Ask for a message; returns the answer's first choice and the answer."""

    def ask(messages=HELLO, **options):
        options = dict({"model": "demo.gguf", "temperature": 0, "max_tokens": 40}, **options)
        answer = client.chat.completions.create(messages=messages, **options)
        return answer if options.get("stream") else (answer.choices[0], answer)

    return ask


# ------------------------------------------------------------------------------------------------- models


def test_models_are_listed_and_found(client):
    assert {model.id for model in client.models.list()} >= {"demo.gguf"}
    assert client.models.retrieve("demo.gguf").object == "model"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nobody.gguf")
    assert "demo.gguf" in caught.value.message  # it says what there is


# -------------------------------------------------------------------------------------------------- chats


def test_a_chat_is_answered_with_its_usage_and_origin(chat):
    choice, answer = chat()
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert answer.id.startswith("chatcmpl-") and answer.model == "demo.gguf" and answer.system_fingerprint
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens and 0 < usage.completion_tokens <= 40
    assert answer.timings["predicted_n"] == usage.completion_tokens


def test_a_streamed_chat_says_the_same_as_a_whole_one(chat):
    whole, answer = chat()
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole.message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == answer.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_without_include_usage_no_chunk_is_without_choices(chat):
    assert all(chunk.choices for chunk in chat(stream=True))


def test_a_known_beginning_is_counted_as_cached(client):
    messages = [{"role": "user", "content": "Tell me about the little fox and her friends. " * 8}]
    for _ in range(3):  # the second or third comes to a backend that has seen it
        answer = client.chat.completions.create(model="demo", messages=messages, max_tokens=1)
    assert answer.usage.prompt_tokens_details.cached_tokens > 50


def test_several_answers_share_the_prompts_evaluation(client):
    prompt = [{"role": "user", "content": "Tell me a long story about a fox that nobody has heard. " * 6}]
    answer = client.chat.completions.create(model="demo", messages=prompt, n=3, seed=5, temperature=1, max_tokens=12)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1
    assert answer.usage.completion_tokens <= 36 and answer.usage.prompt_tokens < 200


def test_several_answers_are_streamed_side_by_side(chat):
    texts = {}
    for chunk in chat(stream=True, n=3, temperature=1, seed=1, max_tokens=10):
        choice = chunk.choices[0]
        texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    assert set(texts) == {0, 1, 2} and all(texts.values())


def test_the_same_seed_gives_the_same_answer(chat):
    first, second = (chat(temperature=1, seed=7)[0].message.content for _ in range(2))
    assert first == second


def test_a_stop_string_is_not_part_of_the_answer(chat):
    whole = chat()[0].message.content
    stop = whole[5:9]
    choice, _ = chat(stop=[stop, "never"])
    assert choice.message.content == whole[: whole.index(stop)] and choice.finish_reason == "stop"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_that_is_cut_short_says_so(client, name):
    answer = client.chat.completions.create(model="demo", messages=HELLO, **{name: 2})
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 2


def test_probabilities_come_with_each_token(chat):
    choice, answer = chat(logprobs=True, top_logprobs=3, max_tokens=6)
    tokens = choice.logprobs.content
    assert len(tokens) >= answer.usage.completion_tokens - 1
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in tokens)
    assert "".join(token.token for token in tokens).startswith(choice.message.content)
    streamed = [chunk.choices[0].logprobs for chunk in chat(stream=True, logprobs=True, top_logprobs=3, max_tokens=6)]
    assert [token.token for part in streamed if part for token in part.content] == [token.token for token in tokens]


def test_a_bias_can_ban_a_token(client, system):
    say = {"model": "demo", "messages": HELLO, "temperature": 0, "max_tokens": 1, "logprobs": True}
    first = client.chat.completions.create(**say).choices[0].message.content
    tokens = call(system.url + "/tokenize", {"content": first}, {"Authorization": "Bearer secret"}).json["tokens"]
    with_space = call(system.url + "/tokenize", {"content": " " + first}, {"Authorization": "Bearer secret"}).json[
        "tokens"
    ]
    bias = {str(token): -100 for token in tokens + with_space}
    assert client.chat.completions.create(logit_bias=bias, **say).choices[0].message.content != first


@pytest.mark.parametrize(
    "wish",
    [
        {"frequency_penalty": 2.0},
        {"presence_penalty": 2.0},
        {"extra_body": {"repeat_penalty": 1.8}},
        {"extra_body": {"dry_multiplier": 5.0, "dry_allowed_length": 1}},
    ],
)
def test_penalties_and_llama_cpps_samplers_change_the_answer(chat, wish):
    story = [{"role": "user", "content": "Tell me a story about a fox."}]
    plain = chat(story, max_tokens=120)[0].message.content
    assert chat(story, max_tokens=120, **wish)[0].message.content != plain


def test_a_user_and_what_nobody_knows_change_nothing(chat):
    plain = chat()[0].message.content
    assert chat(user="me", extra_body={"foo": 1})[0].message.content == plain


def test_content_may_come_in_parts_and_images_are_refused_clearly(chat):
    parts = [{"type": "text", "text": "Hello, "}, {"type": "text", "text": "how are you?"}]
    assert chat([{"role": "user", "content": parts}])[0].message.content
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(openai.BadRequestError) as caught:
        chat([{"role": "user", "content": [image]}])
    assert "text" in caught.value.message and caught.value.param.startswith("messages[0]")


def test_a_last_message_of_the_assistants_is_continued(system, chat):
    headers = {"Authorization": "Bearer secret"}
    begun = HELLO + [{"role": "assistant", "content": "I am"}]
    prompts = [
        call(system.url + "/apply-template", {"model": "demo", "messages": each}, headers).json["prompt"]
        for each in (HELLO, begun)
    ]
    assert prompts[1] == prompts[0] + "I am"
    assert chat(begun)[0].message.content


# --------------------------------------------------------------------------------------- structured answers


class Animal(pydantic.BaseModel):
    kind: str = pydantic.Field(max_length=12)
    legs: int = pydantic.Field(ge=0, le=8)
    friends: List[Literal["fox", "bear"]] = pydantic.Field(max_length=2)


def test_an_answer_is_parsed_into_a_pydantic_model(client):
    answer = client.chat.completions.parse(model="demo", messages=HELLO, response_format=Animal, max_tokens=200)
    assert 0 <= answer.choices[0].message.parsed.legs <= 8


def test_a_json_object_is_one(chat):
    choice, _ = chat(response_format={"type": "json_object"}, max_tokens=600, temperature=0.8)
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)


def test_a_schema_that_can_not_be_honoured_is_refused(chat):
    schema = {"name": "x", "schema": {"type": "string", "pattern": "(?=a)b"}}
    with pytest.raises(openai.BadRequestError) as caught:
        chat(response_format={"type": "json_schema", "json_schema": schema})
    assert caught.value.param == "response_format" and "pattern" in caught.value.message


def test_a_grammar_is_followed_and_a_broken_one_refused(chat):
    assert chat(extra_body={"grammar": 'root ::= "yes" | "no"'})[0].message.content in ("yes", "no")
    with pytest.raises(openai.BadRequestError):
        chat(extra_body={"grammar": "root ::= ("})


# ---------------------------------------------------------------------------------------------------- tools


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_forced_call_always_has_arguments_that_fit(chat, choice):
    for seed in range(4):
        got, _ = chat(tools=[WEATHER], tool_choice=choice, temperature=1, seed=seed, max_tokens=200)
        assert got.finish_reason == "tool_calls" and not got.message.content
        call = got.message.tool_calls[0]
        arguments = json.loads(call.function.arguments)
        assert call.function.name == "get_weather" and call.id
        assert arguments["city"] in ("Paris", "東京") and 1 <= arguments["days"] <= 7


def test_a_call_is_streamed_name_first_and_then_its_arguments(chat):
    chunks = list(chat(tools=[WEATHER], tool_choice="required", stream=True, max_tokens=200, parallel_tool_calls=False))
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert deltas[0].id and deltas[0].function.name == "get_weather" and not any(each.id for each in deltas[1:])
    assert json.loads("".join(each.function.arguments or "" for each in deltas))["days"]
    assert len(deltas) > 3 and chunks[-1].choices[0].finish_reason == "tool_calls"


def test_tools_that_are_not_to_be_called_are_not(chat):
    got, _ = chat(tools=[WEATHER, CLOCK], tool_choice="none")
    assert got.message.tool_calls is None and got.message.content


def test_a_tools_result_goes_back_through_the_template(chat):
    call = {"id": "abc123def", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    messages = HELLO + [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abc123def", "content": "12:00"},
    ]
    assert chat(messages, tools=[CLOCK])[1].usage.prompt_tokens > chat(HELLO, tools=[CLOCK])[1].usage.prompt_tokens


def test_what_a_template_makes_of_tools_can_be_seen(system):
    headers = {"Authorization": "Bearer secret"}
    body = {"model": "demo", "messages": HELLO, "tools": [WEATHER]}
    assert "get_weather" in call(system.url + "/apply-template", body, headers).json["prompt"]


# ----------------------------------------------------------------------------------------------- completions


def test_a_completion_continues_its_prompt(client):
    answer = client.completions.create(model="demo", prompt=STORY, max_tokens=8, temperature=0)
    assert answer.choices[0].text and answer.choices[0].finish_reason == "length" and answer.id.startswith("cmpl-")
    chunks = list(client.completions.create(model="demo", prompt=STORY, max_tokens=8, temperature=0, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


def test_prompts_may_be_several_and_tokens(client, system):
    tokens = call(system.url + "/tokenize", {"content": STORY, "add_special": True}, {"X-Api-Key": "secret"}).json[
        "tokens"
    ]
    answer = client.completions.create(model="demo", prompt=[STORY, "Hello"], max_tokens=6, temperature=0, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    one = client.completions.create(model="demo", prompt=tokens, max_tokens=6, temperature=0)
    assert one.choices[0].text == answer.choices[0].text == answer.choices[1].text


def test_a_prompt_is_echoed_and_its_end_may_be_all(client):
    answer = client.completions.create(model="demo", prompt=STORY, max_tokens=5, echo=True)
    assert answer.choices[0].text.startswith(STORY) and len(answer.choices[0].text) > len(STORY)
    assert client.completions.create(model="demo", prompt=STORY, max_tokens=0, echo=True).choices[0].text == STORY


def test_a_completions_probabilities_lie_side_by_side(client):
    logprobs = client.completions.create(model="demo", prompt=STORY, max_tokens=4, logprobs=2).choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 4
    assert logprobs.text_offset == sorted(logprobs.text_offset)


def test_a_model_that_fills_no_gaps_says_so(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="demo", prompt="a", suffix="b")
    assert caught.value.param == "suffix"


# ------------------------------------------------------------------------------------------------ embeddings


def test_embeddings_come_as_floats_and_as_base64_and_can_be_cut(client):
    texts = ["The fox went home.", "A fox is going home.", "こんにちは"]
    floats = client.embeddings.create(model="embedder", input=texts, encoding_format="float")
    vectors = [each.embedding for each in floats.data]
    assert [each.index for each in floats.data] == [0, 1, 2] and floats.usage.prompt_tokens > 6
    assert all(abs(sum(x * x for x in vector) - 1) < 1e-5 for vector in vectors)
    encoded = client.embeddings.with_raw_response.create(model="embedder", input=texts[0], encoding_format="base64")
    text = json.loads(encoded.text)["data"][0]["embedding"]
    raw = base64.b64decode(text)
    assert struct.unpack("<%df" % (len(raw) // 4), raw) == pytest.approx(vectors[0], abs=1e-5)
    short = client.embeddings.create(model="embedder", input=texts[0], dimensions=8, encoding_format="float")
    vector = short.data[0].embedding
    assert len(vector) == 8 and abs(sum(x * x for x in vector) - 1) < 1e-5


def test_a_model_that_gives_no_embeddings_says_so_and_the_other_way_round(client):
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="demo", input="x")
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="embedder", prompt="x")


# ---------------------------------------------------------------------------------------------------- errors


def test_errors_are_the_clients_own_exceptions_with_our_messages(system, client, chat):
    with pytest.raises(openai.NotFoundError) as caught:
        chat(model="gpt-4o")
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    with pytest.raises(openai.BadRequestError) as caught:
        chat(temperature="warm")
    assert caught.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as caught:
        chat([])
    assert caught.value.param == "messages"
    stranger = openai.OpenAI(base_url=system.url + "/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_where_nobody_has_room_the_client_is_told_to_come_back(start):
    backend = start("backend.py", "--child", "--port=0", "--threads=1", "--slots=1", *LASTING_OPTIONS)
    url = backend.wait_for_event("listening")["url"]
    backend.wait_for_event("ready")
    balancer = start("balancer.py", "--child", "--port=0", "--queue-size=0", "--backend=" + url)
    base = balancer.wait_for_event("listening")["url"]
    wait_until(lambda: call(base + "/status").json["healthy_backends"] == 1)
    with openai.OpenAI(base_url=base + "/v1", api_key="none", max_retries=0) as client:
        long = {"ignore_eos": True}
        stream = client.completions.create(model="demo", prompt=STORY, max_tokens=8000, stream=True, extra_body=long)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="demo", prompt=STORY)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        stream.close()


def test_many_clients_at_once_get_their_own_answers(client, chat):
    alone = chat()[0].message.content
    answers = in_parallel(lambda _: chat()[0].message.content, range(12))
    assert answers == [alone] * 12


def test_a_client_that_leaves_frees_its_slots(client, system):
    stream = client.chat.completions.create(
        model="demo", messages=HELLO, stream=True, n=3, max_tokens=900, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    wait_until(lambda: all(call(url + "/health").json["busy_slots"] == 0 for url in system.backends))
