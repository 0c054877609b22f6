"""The APIs' translations, without a model: bodies to what is asked, answers to bodies."""

import pytest

from core.apis import anthropic, embeddings, llamacpp, ollama, openai_shapes
from core.ask import UNLIMITED
from core.chat.conversation import ChatAsk, Conversation, Message
from core.chat.parser import CallDelta, Delta
from core.engine.outcome import Finished
from core.errors import APIError
from core.models import ModelFile
from core.sampling import Sampling

MODEL = ModelFile("m.gguf", "/m/m.gguf", 1, "llama")
THINKER = ModelFile("t.gguf", "/m/t.gguf", 1, "llama", chat_template="{{ messages[0].content }}<think>\n")
HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
TIMINGS = {"queue_ms": 1.0, "prompt_ms": 2.0, "predicted_ms": 3.0}
END = Finished("stop", 10, 4, 5, TIMINGS)


def refusal(read, body):
    """Return the error that a reader raises for a body."""
    with pytest.raises(APIError) as caught:
        read(body)
    return caught.value


# ------------------------------------------------------------------------------------------------ requests


@pytest.mark.parametrize(
    "field, value",
    [
        ("temperature", "warm"), ("top_p", 2), ("n", 0), ("n", 1000), ("max_tokens", "many"), ("max_tokens", 1.5),
        ("stop", 5), ("stop", ["a"] * 17), ("stream", "yes"), ("seed", "s"), ("logit_bias", "x"),
        ("logprobs", 3), ("top_logprobs", 2),
        ("response_format", "json"), ("response_format", {"type": "xml"}), ("tools", {}), ("stream_options", []),
        ("frequency_penalty", []), ("chat_template_kwargs", "x"), ("messages", []), ("messages", "Hello"), ("model", 5),
    ],
)  # fmt: skip
def test_a_chats_wrong_field_is_named(field, value):
    error = refusal(openai_shapes.read_chat, dict({"messages": HELLO}, **{field: value}))
    assert error.status == 400 and error.param.startswith(field)


@pytest.mark.parametrize(
    "body, param",
    [
        ({}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": [True]}, "prompt"), ({"prompt": ["a", None]}, "prompt"),
        ({"prompt": "x", "best_of": 3}, "best_of"), ({"prompt": "x", "echo": True, "logprobs": 2}, "echo"),
        ({"prompt": "x", "logprobs": 99}, "logprobs"), ({"prompt": "x", "suffix": 4}, "suffix"),
    ],
)  # fmt: skip
def test_a_completions_wrong_field_is_named(body, param):
    assert refusal(openai_shapes.read_completion, body).param == param


@pytest.mark.parametrize(
    "body, param",
    [
        ({}, "input"), ({"input": ["x"] * 3000}, "input"), ({"input": "x", "dimensions": 0}, "dimensions"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format"),
    ],
)  # fmt: skip
def test_a_wrong_field_of_embeddings_is_named(body, param):
    assert refusal(embeddings.read_embeddings, body).param == param


def test_what_nobody_knows_is_ignored_and_null_is_the_default():
    body = {"messages": HELLO, "store": True, "temperature": None, "n": None}
    ask, streaming, logprobs = openai_shapes.read_chat(body)
    assert ask.sampling == openai_shapes.DEFAULTS and ask.count == 1 and ask.max_tokens == UNLIMITED
    assert not streaming.on and logprobs is None


def test_the_newer_name_of_max_tokens_wins():
    assert openai_shapes.read_chat({"messages": HELLO, "max_tokens": 5, "max_completion_tokens": 7})[0].max_tokens == 7
    assert openai_shapes.read_completion({"prompt": "x"}).max_tokens == 16
    assert openai_shapes.read_completion({"prompt": "x", "max_tokens": -1}).max_tokens == UNLIMITED


@pytest.mark.parametrize(
    "given, prompts",
    [
        ("a", ("a",)), (["a", "b"], ("a", "b")), ([1, 2], ((1, 2),)), ([[1, 2], [3]], ((1, 2), (3,))),
        (["a", [1]], ("a", (1,))), (["a", 5], (("a", 5),)),
    ],
)  # fmt: skip
def test_prompts_come_in_every_shape(given, prompts):
    assert openai_shapes.read_completion({"prompt": given}).prompts == prompts
    assert embeddings.read_embeddings({"input": given}).inputs == prompts


@pytest.mark.parametrize(
    "given, prompts, several",
    [
        ("a", ("a",), False), ([1, "a", 2], ((1, "a", 2),), False), (["a", "b"], ("a", "b"), True),
        ([[1], "a", [2, "b"]], ((1,), "a", (2, "b")), True),
    ],
)  # fmt: skip
def test_native_prompts_come_in_every_shape(given, prompts, several):
    ask = llamacpp.read_completion({"prompt": given})
    assert ask.prompts == prompts and ask.several is several


def test_a_template_is_told_of_the_effort_and_the_request_says_where_thoughts_go():
    def options(**body):
        return openai_shapes.read_chat(dict(body, messages=HELLO))[0]

    assert options(reasoning_effort="none").template_options == {"enable_thinking": False}
    given = options(reasoning_effort="minimal", chat_template_kwargs={"enable_thinking": False}).template_options
    assert given == {"enable_thinking": False, "reasoning_effort": "low"}
    assert [options(reasoning_format=each).apart for each in (None, "auto", "none", "deepseek")] == [
        None, None, False, True,
    ]  # fmt: skip
    for wrong in ({"reasoning_effort": "much"}, {"reasoning_format": "deepseek-legacy"}):
        assert refusal(openai_shapes.read_chat, dict(wrong, messages=HELLO)).param == next(iter(wrong))


# ------------------------------------------------------------------------------------------- conversations


def test_answers_of_one_request_have_seeds_of_their_own():
    asks = Conversation(ChatAsk(HELLO, count=3, sampling=Sampling(seed=4294967295)), MODEL).asks()
    assert [ask.sampling.seed for ask in asks] == [4294967295, 0, 1]


@pytest.mark.parametrize(
    "body",
    [
        {"grammar": 'root ::= "a"', "response_format": {"type": "json_object"}},
        {"grammar": 'root ::= "a"', "tools": [TOOL]},
    ],
)
def test_two_wishes_that_contradict_are_refused(body):
    ask, _, _ = openai_shapes.read_chat(dict(body, messages=HELLO))
    assert refusal(lambda ask: Conversation(ask, MODEL), ask).code == "contradiction"


def test_tools_that_are_not_to_be_called_are_not_shown_to_the_model():
    ask, _, _ = openai_shapes.read_chat({"messages": HELLO, "tools": [TOOL], "tool_choice": "none"})
    plain, _, _ = openai_shapes.read_chat({"messages": HELLO})
    assert Conversation(ask, MODEL).prompt == Conversation(plain, MODEL).prompt


def test_a_prompt_that_ends_in_thought_is_answered_with_thought_first():
    turn = Conversation(ChatAsk(HELLO), THINKER).turn()
    message = Message()
    for deltas in (turn.push("I think"), turn.push(" so.</think>\n\nYes."), turn.finish("stop")):
        message.add(deltas)
    assert message.reasoning == "I think so." and message.content == "Yes." and turn.reason == "stop"


def test_an_answer_that_calls_ends_for_that_reason_unless_it_was_cut():
    ask, _, _ = openai_shapes.read_chat({"messages": HELLO, "tools": [TOOL]})
    conversation = Conversation(ask, MODEL)
    text = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    whole, cut = conversation.turn(), conversation.turn()
    message = whole.read(text, "stop")
    assert whole.reason == "tool_calls" and message.calls[0]["name"] == "f" and message.content == ""
    cut.read(text, "length")
    assert cut.reason == "length"


# -------------------------------------------------------------------------------------------------- answers


def test_a_prompt_shared_by_several_answers_is_counted_once():
    usage = openai_shapes.total_usage([END, END, END, END], 2)
    assert usage["prompt_tokens"] == 20 and usage["completion_tokens"] == 20 and usage["total_tokens"] == 40
    assert usage["prompt_tokens_details"] == {"cached_tokens": 8}


def test_anthropics_blocks_begin_grow_and_end_one_after_another():
    blocks = anthropic._Blocks()
    deltas = [
        Delta(reasoning="hm"),
        Delta(content="a"),
        Delta(content="b"),
        Delta(call=CallDelta(0, "id", "f", "")),
        Delta(call=CallDelta(0, arguments="{}")),
        Delta(call=CallDelta(1, "id2", "g", "")),
    ]
    events = [event for delta in deltas for event in blocks.push(delta)] + list(blocks.close())
    begun = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert begun == ["thinking", "text", "tool_use", "tool_use"]
    order = [(event["type"].rpartition("_")[2], event["index"]) for event in events]
    assert order[:3] == [("start", 0), ("delta", 0), ("stop", 0)] and order[-1] == ("stop", 3)


def test_anthropics_tool_results_become_messages_before_the_users_words():
    blocks = [{"type": "tool_result", "tool_use_id": "t1", "content": "42"}, {"type": "text", "text": "So?"}]
    use = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}
    body = {
        "max_tokens": 5,
        "system": [{"type": "text", "text": "Be kind."}],
        "messages": HELLO + [{"role": "assistant", "content": [use]}, {"role": "user", "content": blocks}],
    }
    messages = anthropic.read_messages_body(body).messages
    assert [each["role"] for each in messages] == ["system", "user", "assistant", "tool", "user"]
    assert messages[3]["content"] == "42" and messages[4]["content"] == "So?"


def test_ollamas_options_are_llama_cpps():
    options = {
        "temperature": 0.1,
        "num_predict": 7,
        "top_k": 5,
        "repeat_penalty": 1.2,
        "stop": "x",
        "seed": 3,
        "num_ctx": 99,
    }
    ask = ollama.read_chat({"model": "m:latest", "messages": HELLO, "options": options, "think": False})
    assert ask.model == "m:latest" and ask.max_tokens == 7 and ask.stop == ("x",) and ask.sampling.top_k == 5
    assert ask.template_options == {"enable_thinking": False}


def test_ollamas_durations_are_in_nanoseconds():
    body = ollama.end_body(END, "stop")
    assert body["prompt_eval_duration"] == 2 * 10**6 and body["total_duration"] == 6 * 10**6
