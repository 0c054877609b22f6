"""The Responses API without a model: bodies become chats, deltas become items and events, errors name the field."""

import json

import pytest

from core.apis.response_asks import Caller, read_response
from core.apis.response_events import Answer, Head
from core.apis.response_store import Record, ResponseStore
from core.chat.parser import CallDelta, Delta
from core.engine.outcome import Finished
from core.errors import APIError
from core.owners import NOBODY

NONCE = "0123456789abcdef" * 2
PICK = {"type": "function", "name": "pick", "description": "Pick a fruit", "parameters": {"type": "object"}}
LOOK = {"type": "function", "name": "look"}
EMPTY = ResponseStore(most=0)


def read(_store=EMPTY, **body):
    return read_response(dict({"input": "Hello"}, **body), Caller(NONCE, NOBODY), _store)


def messages(*items, **body):
    return read(input=list(items), **body).chat.messages


def refusal(_store=EMPTY, **body):
    with pytest.raises(APIError) as caught:
        read(_store, **body)
    assert caught.value.status == 400
    return caught.value


# ------------------------------------------------------------------------------------------------- the input


def test_a_text_is_what_the_user_says_after_the_instructions():
    assert read(instructions="Be kind.").chat.messages == [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}
    ]  # fmt: skip


def test_messages_have_texts_or_parts():
    given = messages(
        {"role": "developer", "content": "Short."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": t} for t in ("a", "b")]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "c", "annotations": []}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    )
    assert [(each["role"], each["content"]) for each in given] == [
        ("system", "Short."), ("user", "a\nb"), ("assistant", "c"), ("assistant", "No.")
    ]  # fmt: skip


def call(id, name="pick", arguments="{}"):
    return {"type": "function_call", "call_id": id, "name": name, "arguments": arguments}


def output(id, value="fig"):
    return {"type": "function_call_output", "call_id": id, "output": value}


def test_what_the_model_said_in_one_turn_is_one_message():
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
    said = {"role": "assistant", "content": "I look."}
    plum = output("c2", [{"type": "input_text", "text": "plum"}])
    given = messages({"role": "user", "content": "Go"}, thought, said, call("c1"), call("c2"), output("c1"), plum,
                     thought, call("c3"), output("c3"))  # fmt: skip
    assert [each["role"] for each in given] == ["user", "assistant", "tool", "tool", "assistant", "tool"]
    turn = given[1]
    assert (turn["reasoning_content"], turn["content"]) == ("Hm.", "I look.")
    assert [each["id"] for each in turn["tool_calls"]] == ["c1", "c2"]
    assert (given[3]["tool_call_id"], given[3]["content"]) == ("c2", "plum")
    assert given[4]["reasoning_content"] == "Hm." and given[4]["tool_calls"][0]["id"] == "c3"


def test_items_are_kept_with_ids_and_without_what_nobody_knows():
    given = [{"role": "user", "content": "x", "junk": 1}, dict(call("c1"), id="fc_mine", status="odd")]
    assert read(input=given).items == [
        {"id": "msg_%si0" % NONCE, "type": "message", "status": "completed", "role": "user",
         "content": [{"type": "input_text", "text": "x"}]},
        {"id": "fc_mine", "type": "function_call", "status": "completed", "call_id": "c1", "name": "pick",
         "arguments": "{}"},
    ]  # fmt: skip


def test_a_reasoning_that_another_server_has_encrypted_tells_nothing():
    foreign = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}
    assert messages(foreign, {"role": "user", "content": "x"}) == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    "value, param",
    [
        (None, "input"),
        (7, "input"),
        ([], "input"),
        (["x"], "input[0]"),
        ([{"role": "user", "content": "x"}, {"type": "web_search_call"}], "input[1].type"),
        ([{"type": ["message"]}], "input[0].type"),
        ([{"role": "tool", "content": "x"}], "input[0].role"),
        ([{"role": "user"}], "input[0].content"),
        ([{"role": "user", "content": []}], "input[0].content"),
        ([{"role": "user", "content": ["x"]}], "input[0].content[0]"),
        ([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}], "input[0].content[0]"),
        ([{"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}], "input[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "input_text", "text": 1}]}], "input[0].content[0].text"),
        ([{"role": "user", "content": "x", "id": ""}], "input[0].id"),
        ([{"type": "function_call", "call_id": "c", "arguments": "{}"}], "input[0].name"),
        ([{"type": "function_call", "call_id": "c", "name": "f", "arguments": {}}], "input[0].arguments"),
        ([{"type": "function_call_output", "call_id": "c", "output": "x"}], "input[0].call_id"),
        ([call("c"), {"type": "function_call_output", "call_id": "c", "output": 1}], "input[1].output"),
        ([{"type": "reasoning", "summary": "x"}], "input[0].summary"),
        ([{"type": "reasoning", "content": [{"text": 1}]}], "input[0].content[0].text"),
        ([{"type": "item_reference"}], "input[0].id"),
        ([{"type": "item_reference", "id": "msg_" + NONCE + "0"}], "input[0].id"),
        ([{"type": "item_reference", "id": "../../etc/passwd"}], "input[0].id"),
        ([{"role": "user", "content": "x"}] * 5000, "input"),
    ],
)
def test_a_wrong_item_is_named(value, param):
    error = refusal(input=value)
    assert error.param == param and "messages[" not in error.message


# --------------------------------------------------------------------------------------------- other fields


def test_fields_are_those_of_a_chat_under_their_own_names():
    ask = read(model="demo", max_output_tokens=7, temperature=0.5, top_p=0.3, seed=4, stop=["x"], stream=True)
    chat = ask.chat
    assert (chat.model, chat.max_tokens, chat.stop, ask.stream) == ("demo", 7, ("x",), True)
    assert (chat.sampling.temperature, chat.sampling.top_p, chat.sampling.seed) == (0.5, 0.3, 4)


def test_the_forms_of_a_text():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert read(text={"format": {"type": "json_schema", "name": "x", "schema": schema}}).chat.schema == schema
    assert read(text={"format": {"type": "json_object"}}).chat.schema is not None
    assert read(text={"format": {"type": "text"}, "verbosity": "low"}).chat.schema is None


def test_tools_are_functions_and_a_choice_may_allow_some():
    tools = read(tools=[PICK, LOOK], tool_choice={"type": "function", "name": "look"}).chat.tools
    assert tools.names == ("pick", "look") and (tools.choice, tools.name) == ("function", "look")
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "look"}]}
    tools = read(tools=[PICK, LOOK], tool_choice=allowed, parallel_tool_calls=False).chat.tools
    assert (tools.names, tools.choice, tools.parallel) == (("look",), "required", False)
    assert read(tool_choice="auto").chat.tools is None


def test_an_effort_reaches_the_template():
    def options(**reasoning):
        return read(reasoning=reasoning).chat.template_options

    assert options(effort="none") == {"enable_thinking": False}
    assert options(effort="xhigh", summary="auto") == {"enable_thinking": True, "reasoning_effort": "high"}
    assert options() == {}
    assert read(reasoning={"effort": "low"}, chat_template_kwargs={"enable_thinking": 1}).chat.template_options == {
        "enable_thinking": 1, "reasoning_effort": "low"
    }  # fmt: skip


def test_probabilities_are_asked_for_by_include_or_by_number():
    assert read().logprobs is None
    assert read(include=["message.output_text.logprobs"]).logprobs == 0
    assert read(top_logprobs=3).logprobs == 3
    assert read(include=["reasoning.encrypted_content"]).logprobs is None


@pytest.mark.parametrize(
    "body, param",
    [
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"messages": []}, "messages"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"response_format": {"type": "text"}}, "response_format"),
        ({"n": 2}, "n"),
        ({"max_output_tokens": "x"}, "max_output_tokens"),
        ({"max_tool_calls": 0}, "max_tool_calls"),
        ({"instructions": 3}, "instructions"),
        ({"store": 1}, "store"),
        ({"stream": 1}, "stream"),
        ({"stream_options": 1}, "stream_options"),
        ({"include": ["everything"]}, "include"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"text": []}, "text"),
        ({"text": {"format": "x"}}, "text.format"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"text": {"verbosity": "none"}}, "text.verbosity"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"reasoning": {"effort": ["low"]}}, "reasoning.effort"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
        ({"tools": {}}, "tools"),
        ({"tools": ["x"]}, "tools[0]"),
        ({"tools": [LOOK, {"type": "web_search"}]}, "tools[1].type"),
        ({"tools": [{"type": "custom", "name": "x"}]}, "tools[0].type"),
        ({"tools": [LOOK, {"type": "function"}]}, "tools[1].name"),
        ({"tools": [LOOK, {"type": "function", "name": "b", "parameters": [1]}]}, "tools[1].parameters"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [LOOK], "tool_choice": {"type": "function", "name": "b"}}, "tool_choice.name"),
        ({"tools": [LOOK], "tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"tools": [LOOK], "tool_choice": {"type": "allowed_tools", "mode": "x"}}, "tool_choice.mode"),
        ({"tools": [LOOK], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"name": "b"}]}},
         "tool_choice.tools[0].name"),
        ({"previous_response_id": 5}, "previous_response_id"),
        ({"previous_response_id": "resp_nobody"}, "previous_response_id"),
    ],
)  # fmt: skip
def test_what_is_wrong_or_not_served_is_named(body, param):
    assert refusal(**body).param == param


def test_a_hosted_tool_is_refused_by_its_name():
    assert "web_search" in refusal(tools=[{"type": "web_search"}]).message


# ------------------------------------------------------------------------------------------ earlier answers


def stored(store, nonce, **body):
    """Store an answer "fig" to a request, and return its id."""
    ask = read_response(dict({"input": "Hello"}, **body), Caller(nonce, NOBODY), store)
    answer = Answer(Head(nonce, 1, "demo", ask.told), None)
    for deltas in ([], [Delta(content="fig")]):
        list(answer.push(deltas, []))
    list(answer.finish("stop"))
    response = answer.response("completed")
    assert store.keep(response["id"], NOBODY, Record(ask.items, response))
    return response["id"]


@pytest.fixture
def store(tmp_path):
    return ResponseStore(str(tmp_path / "kept"))


def test_a_chain_tells_the_model_all_earlier_turns_but_not_their_instructions(store):
    first = stored(store, "a" * 32, instructions="Be kind.")
    second = stored(store, "b" * 32, previous_response_id=first, input="More")
    store.forget(first, NOBODY)  # a later one holds all that is needed
    ask = read(store, previous_response_id=second, instructions="Be brief.", input="Last")
    assert [each["content"] for each in ask.chat.messages] == ["Be brief.", "Hello", "fig", "More", "fig", "Last"]
    assert len(ask.items) == 5 and len({item["id"] for item in ask.items}) == 5
    assert refusal(store, previous_response_id=first).code == "previous_response_not_found"


def test_an_item_is_referred_to_by_its_id_and_not_told_twice(store):
    first = stored(store, "a" * 32)
    item = {"type": "item_reference", "id": "msg_%s0" % ("a" * 32)}
    assert [each["content"] for each in read(store, input=[{"role": "user", "content": "x"}, item]).chat.messages] == [
        "x", "fig"
    ]  # fmt: skip
    assert read(store, input=[{"id": "msg_%si0" % ("a" * 32)}]).chat.messages[0]["content"] == "Hello"
    assert refusal(store, previous_response_id=first, input=[item]).param == "input[0].id"


def test_an_output_may_answer_a_call_of_the_previous_response(store):
    ask = read_response({"input": "x", "tools": [PICK]}, Caller("a" * 32, NOBODY), store)
    answer = Answer(Head("a" * 32, 1, "demo", ask.told), None)
    list(answer.push([Delta(call=CallDelta(0, "c1", "pick")), Delta(call=CallDelta(0, arguments="{}"))], []))
    list(answer.finish("stop"))
    store.keep("resp_" + "a" * 32, NOBODY, Record(ask.items, answer.response("completed")))
    given = read(store, previous_response_id="resp_" + "a" * 32, input=[output("c1")]).chat.messages
    assert [each["role"] for each in given] == ["user", "assistant", "tool"]


# ------------------------------------------------------------------------------------------------ the answer

END = Finished("stop", 10, 4, 7, {"predicted_ms": 1.0})


def told(deltas, reason="stop", logprobs=None, tokens=1):
    """Return the events of an answer that grows by these deltas, one a token, and its object at the end."""
    answer = Answer(Head(NONCE, 5, "demo", {"store": True}), logprobs)
    events = answer.begin()
    for delta in deltas:
        events += answer.push([delta], [])
        answer.count(tokens)
    events += answer.finish(reason)
    response = answer.response("incomplete" if reason == "length" else "completed", END)
    return events + [answer.end(response)], response


CALL = [Delta(call=CallDelta(0, "c1", "pick")), Delta(call=CallDelta(0, arguments='{"a"')),
        Delta(call=CallDelta(0, arguments=":1}"))]  # fmt: skip


def test_the_events_come_in_openais_order_and_are_numbered():
    deltas = [Delta(reasoning="Hm"), Delta(reasoning="."), Delta(content="I "), Delta(content="look.")] + CALL
    events, response = told(deltas)
    assert [each["type"].partition("response.")[2] for each in events] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    assert [each["sequence_number"] for each in events] == list(range(len(events)))
    assert [each["output_index"] for each in events if each["type"].endswith("item.done")] == [0, 1, 2]
    assert [each["item"] for each in events if each["type"].endswith("item.done")] == response["output"]


def test_an_item_grows_from_empty_to_done():
    events, response = told([Delta(content="a"), Delta(content="b")])
    by_type = {each["type"].partition("response.")[2]: each for each in events}
    added, done = by_type["output_item.added"]["item"], by_type["output_item.done"]["item"]
    assert (added["status"], added["content"]) == ("in_progress", [])
    assert by_type["content_part.added"]["part"]["text"] == ""
    assert done["status"] == "completed" and done["content"][0]["text"] == "ab" == by_type["output_text.done"]["text"]
    assert by_type["created"]["response"]["status"] == "in_progress" and by_type["created"]["response"]["output"] == []
    assert by_type["completed"]["response"] == response and response["usage"]["total_tokens"] == 17


def test_calls_side_by_side_are_items_of_their_own():
    second = [Delta(call=CallDelta(1, "c2", "look"))]
    response = told(CALL + second)[1]
    assert [(item["call_id"], item["name"], item["arguments"]) for item in response["output"]] == [
        ("c1", "pick", '{"a":1}'), ("c2", "look", "")
    ]  # fmt: skip


def test_an_answer_that_is_cut_says_so():
    events, response = told([Delta(reasoning="Hm"), Delta(content="a")], "length")
    assert events[-1]["type"] == "response.incomplete" and response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]


def test_an_answer_without_a_word_is_an_empty_message():
    response = told([])[1]
    assert response["output"][0]["content"][0]["text"] == "" and response["output"][0]["type"] == "message"


def test_reasonings_tokens_are_counted():
    response = told([Delta(reasoning="Hm"), Delta(reasoning="."), Delta(content="a")], tokens=2)[1]
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 4}
    assert response["usage"]["input_tokens_details"]["cached_tokens"] == 4


def probability(token):
    return {"token": token, "logprob": -1.0, "bytes": [97], "id": 5, "top_logprobs": [
        {"token": each, "logprob": -1.0, "bytes": [97], "id": 5} for each in "xyz"
    ]}  # fmt: skip


def test_probabilities_go_with_the_messages_text():
    answer = Answer(Head(NONCE, 5, "demo", {}), 2)
    events = []
    for deltas, token in (([Delta(reasoning="Hm")], "h"), ([], "a"), ([Delta(content="ab")], "b"), ([], "c")):
        events += answer.push(deltas, [probability(token)])
    events += answer.finish("stop")
    grown = next(each for each in events if each["type"] == "response.output_text.delta")
    assert [each["token"] for each in grown["logprobs"]] == ["a", "b"]
    shown = answer.response("completed")["output"][1]["content"][0]["logprobs"]
    assert [each["token"] for each in shown] == ["a", "b", "c"] and len(shown[0]["top_logprobs"]) == 2
    assert set(shown[0]) == {"token", "logprob", "bytes", "top_logprobs"}


def test_a_failure_ends_the_events_with_what_there_is():
    answer = Answer(Head(NONCE, 5, "demo", {}), None)
    events = answer.begin() + list(answer.push([Delta(content="a")], []))
    failed = answer.failed(APIError(503, "The engine broke.", "engine_down"))
    assert failed["type"] == "response.failed" and failed["sequence_number"] == len(events)
    assert failed["response"]["status"] == "failed" and failed["response"]["error"]["code"] == "server_error"
    early = Answer(Head(NONCE, 5, "demo", {}), None).failed(APIError(502, "x"))
    assert early["sequence_number"] > 1 << 30  # it is told after all events of another backend


def test_what_is_told_is_json():
    ask = read(tools=[PICK], metadata={"a": "b"}, text={"format": {"type": "json_object"}}, instructions="x", user="u")
    told_back = json.loads(json.dumps(ask.told))
    assert told_back["tools"][0]["strict"] is True and told_back["metadata"] == {"a": "b"}
    assert told_back["text"]["format"] == {"type": "json_object"} and told_back["store"] is True
