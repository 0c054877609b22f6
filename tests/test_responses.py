"""The Responses API as OpenAI's own clients see it: two backends behind the balancer, the demo model, keys.

Held with openai 3.57.0 and openai-agents 0.24.0, and whatever later versions the tests find.
"""

import asyncio
import json
import warnings
from typing import Literal

import pytest
from conftest import LASTING_OPTIONS, Program, Streaming, call, in_parallel, wait_until

openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")

HELLO = "Hello, how are you?"
PICK = {
    "type": "function",
    "name": "pick",
    "description": "Pick a fruit",
    "parameters": {
        "type": "object",
        "properties": {"fruit": {"enum": ["fig", "plum"]}},
        "required": ["fruit"],
        "additionalProperties": False,
    },
    "strict": True,
}
LONG = {"model": "demo.gguf", "temperature": 0.7, "max_output_tokens": 500, "extra_body": {"seed": 1}}
CALM = {"model": "demo.gguf", "temperature": 0, "max_output_tokens": 40}


class System:
    """Backends and a balancer, to which those with another host's name are of another machine."""

    def __init__(self, folders, hosts=("127.0.0.1",), keys=("alice", "bob")):
        self.folders = folders
        self.backends = [self._backend(folder) for folder in folders]
        for backend in self.backends:
            backend.url = backend.wait_for_event("listening")["url"]
            backend.wait_for_event("ready")
        hosts = list(hosts) * (len(folders) // len(hosts))
        urls = [each.url.replace("127.0.0.1", host) for each, host in zip(self.backends, hosts)]
        options = ["--backend=" + url for url in urls] + ["--api-key=" + key for key in keys]
        options += ["--alias=gpt-4.1=demo.gguf", "--recovery-timeout=0.5"]
        self.balancer = Program("balancer.py", "--child", "--port=0", *options)
        self.url = self.balancer.wait_for_event("listening")["url"]
        self.headers = {"Authorization": "Bearer " + keys[0]} if keys else {}
        wait_until(lambda: call(self.url + "/status", headers=self.headers).json["healthy_backends"] == len(folders))

    @staticmethod
    def _backend(folder, port=0):
        options = ["--child", "--port=%s" % port, "--threads=1", "--responses-dir=%s" % folder] + LASTING_OPTIONS
        return Program("backend.py", *options)

    def restart(self, index):
        old = self.backends[index]
        old.close()
        new = self.backends[index] = self._backend(self.folders[index], old.url.rpartition(":")[2])
        new.url = new.wait_for_event("listening")["url"]
        new.wait_for_event("ready")
        wait_until(lambda: call(self.url + "/status", headers=self.headers).json["healthy_backends"] == 2)

    def client(self, key="alice"):
        return openai.OpenAI(base_url=self.url + "/v1", api_key=key, max_retries=0)

    def close(self):
        for program in [self.balancer] + self.backends:
            program.close()


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    made = System([tmp_path_factory.mktemp("kept")] * 2)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def client(system):
    with system.client() as made:
        yield made


@pytest.fixture(scope="module")
def bob(system):
    with system.client("bob") as made:
        yield made


# ------------------------------------------------------------------------------------------------ an answer


def test_a_text_is_answered_with_a_message(client):
    answer = client.responses.create(input=HELLO, instructions="Be kind.", metadata={"of": "mine"}, **CALM)
    assert answer.id.startswith("resp_") and answer.object == "response" and answer.model == "demo.gguf"
    assert answer.status in ("completed", "incomplete") and answer.error is None
    assert answer.output_text and answer.output[0].type == "message" and answer.output[0].id.startswith("msg_")
    usage = answer.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens and 0 < usage.output_tokens <= 40
    assert usage.output_tokens_details.reasoning_tokens == 0 and usage.input_tokens_details.cached_tokens >= 0
    assert answer.instructions == "Be kind." and answer.metadata == {"of": "mine"} and answer.temperature == 0


def test_an_answer_that_is_cut_is_incomplete(client):
    answer = client.responses.create(input="Tell me a story", **dict(CALM, model="gpt-4.1", max_output_tokens=3))
    assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].status == "incomplete" and answer.usage.output_tokens == 3


def test_a_stream_says_the_same_as_a_whole_answer_in_openais_order(client):
    whole = client.responses.create(input=HELLO, **CALM)
    events = list(client.responses.create(input=HELLO, stream=True, **CALM))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    names = [event.type for event in events]
    assert names[:4] == ["response.created", "response.in_progress", "response.output_item.added",
                         "response.content_part.added"]  # fmt: skip
    assert names[-4:-1] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    last = events[-1].response
    assert events[-1].type == "response." + whole.status
    assert (last.output_text, last.usage.output_tokens) == (whole.output_text, whole.usage.output_tokens)
    assert {event.response.id for event in events if hasattr(event, "response")} == {last.id}


def test_the_clients_own_stream_puts_the_answer_together(client):
    limits = dict(CALM, max_output_tokens=500)
    with client.responses.stream(input=HELLO, **limits) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert final.status == "completed" and final.output_text == text


def test_probabilities_come_with_the_text(client):
    options = dict(CALM, max_output_tokens=5, top_logprobs=2, include=["message.output_text.logprobs"])
    whole = client.responses.create(input=HELLO, **options).output[0].content[0]
    assert "".join(each.token for each in whole.logprobs) == whole.text and len(whole.logprobs[0].top_logprobs) == 2
    events = client.responses.create(input=HELLO, stream=True, **options)
    deltas = [each for event in events if event.type == "response.output_text.delta" for each in event.logprobs]
    assert [each.token for each in deltas] == [each.token for each in whole.logprobs]


class Fruit(pydantic.BaseModel):
    fruit: Literal["fig", "plum"]


def test_a_schema_is_followed_and_parsed(client):
    answer = client.responses.parse(input="Pick a fruit", text_format=Fruit, **CALM)
    assert answer.output_parsed.fruit in ("fig", "plum")
    answer = client.responses.create(input="x", text={"format": {"type": "json_object"}}, **dict(CALM, temperature=1))
    assert answer.status == "incomplete" or isinstance(json.loads(answer.output_text), dict)


def test_thoughts_are_an_item_of_their_own(client):
    """A continued answer that begins with a thought is one way to make a model think that was not taught to."""
    think = {"role": "assistant", "content": "<think>"}
    options = dict(CALM, extra_body={"grammar": 'root ::= "<think>Hm. Well.</think>Yes."'})
    answer = client.responses.create(input=HELLO, **options)
    reasoning, message = answer.output
    assert reasoning.type == "reasoning" and reasoning.id.startswith("rs_")
    assert reasoning.content[0].text == "Hm. Well." and message.content[0].text == "Yes."
    assert 0 < answer.usage.output_tokens_details.reasoning_tokens < answer.usage.output_tokens
    events = list(client.responses.create(input=HELLO, stream=True, **options))
    thoughts = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(thoughts) == "Hm. Well." and events[-1].response.usage.output_tokens_details == (
        answer.usage.output_tokens_details
    )
    given = [{"role": "user", "content": "x"}] + [item.to_dict() for item in answer.output] + [think]
    assert client.responses.create(input=given, **dict(CALM, max_output_tokens=1)).output


# ---------------------------------------------------------------------------------------------------- tools


def test_a_call_and_its_output_go_round(client):
    options = dict(LONG, tools=[PICK])
    first = client.responses.create(input="Pick", tool_choice="required", parallel_tool_calls=False, **options)
    made = first.output[-1]
    assert made.type == "function_call" and made.name == "pick" and made.id.startswith("fc_") and made.call_id
    assert json.loads(made.arguments)["fruit"] in ("fig", "plum") and made.status == "completed"
    output = {"type": "function_call_output", "call_id": made.call_id, "output": "It is ripe."}
    second = client.responses.create(input=[output], previous_response_id=first.id, **options)
    assert second.output_text and second.previous_response_id == first.id
    history = [{"role": "user", "content": "Pick"}] + [item.to_dict() for item in first.output] + [output]
    again = client.responses.create(input=history, store=False, **options)
    assert again.output_text == second.output_text and again.usage.input_tokens == second.usage.input_tokens


def test_a_calls_arguments_are_streamed(client):
    choice = {"type": "function", "name": "pick"}
    events = list(client.responses.create(input="Pick", tools=[PICK], tool_choice=choice, stream=True, **LONG))
    parts = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    done = next(event for event in events if event.type == "response.function_call_arguments.done")
    assert "".join(parts) == done.arguments == events[-1].response.output[-1].arguments
    assert done.name == "pick"


@pytest.mark.parametrize("streams", [False, True])
def test_openais_agents_run_their_loop_of_tools(system, streams):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        agents = pytest.importorskip("agents")
        agents.set_tracing_disabled(True)
        picked = []

        @agents.function_tool
        def pick(fruit: Literal["fig", "plum"]) -> str:
            """Pick a fruit."""
            picked.append(fruit)
            return "The %s is ripe." % fruit

        async def run():
            async with openai.AsyncOpenAI(base_url=system.url + "/v1", api_key="alice", max_retries=0) as client:
                agent = agents.Agent(
                    name="Picker", instructions="Pick a fruit.", tools=[pick],
                    model=agents.OpenAIResponsesModel("demo.gguf", client),
                    model_settings=agents.ModelSettings(tool_choice="required", temperature=0.7, max_tokens=500),
                )  # fmt: skip
                if not streams:
                    return await agents.Runner.run(agent, "Which one?", max_turns=5)
                result = agents.Runner.run_streamed(agent, "Which one?", max_turns=5)
                async for _ in result.stream_events():
                    pass
                return result

        result = asyncio.run(run())
        kinds = [item.type for item in result.new_items]
        assert picked and kinds[0] == "tool_call_item" and "tool_call_output_item" in kinds
        assert kinds[-1] == "message_output_item" and isinstance(result.final_output, str)


def test_a_hosted_tool_is_refused_by_name(client):
    with pytest.raises(openai.BadRequestError, match="web_search"):
        client.responses.create(input="x", tools=[{"type": "web_search"}], **CALM)


# -------------------------------------------------------------------------------------------- what is stored


def test_an_answer_is_stored_told_listed_and_deleted(client):
    answer = client.responses.create(input=[{"role": "user", "content": text} for text in "abcde"], **CALM)
    found = client.responses.retrieve(answer.id)
    assert found.output_text == answer.output_text and found.usage == answer.usage
    items = list(client.responses.input_items.list(answer.id, limit=2))  # page after page
    assert [item.content[0].text for item in items] == list("edcba")
    page = client.responses.input_items.list(answer.id, limit=2, order="asc", after=items[-1].id)
    assert [item.content[0].text for item in page.data] == ["b", "c"] and page.has_more
    assert client.responses.delete(answer.id) is None
    for gone in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            gone(answer.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(input="x", previous_response_id=answer.id, **CALM)
    assert caught.value.code == "previous_response_not_found" and caught.value.param == "previous_response_id"


def test_an_answer_that_has_ended_is_not_cancelled(client):
    answer = client.responses.create(input=HELLO, **CALM)
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(answer.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.cancel("resp_" + "0" * 32)


def test_store_false_stores_nothing(client):
    answer = client.responses.create(input=HELLO, store=False, **CALM)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "limit=%D9%A1", "order=up", "after=nobody"])
def test_a_wrong_page_is_refused(system, client, query):
    answer = client.responses.create(input=HELLO, **CALM)
    url = "%s/v1/responses/%s/input_items?%s" % (system.url, answer.id, query)
    reply = call(url, headers=system.headers)
    assert reply.status == 400 and reply.json["error"]["param"] == query.partition("=")[0]


def test_a_chain_goes_over_all_backends(client):
    last, told = None, 0
    for turn in range(6):
        answer = client.responses.create(input="Turn %d" % turn, previous_response_id=last, **CALM)
        assert answer.usage.input_tokens > told
        last, told = answer.id, answer.usage.input_tokens
    items = list(client.responses.input_items.list(last, order="asc", limit=3))
    assert [item.role for item in items] == ["user", "assistant"] * 5 + ["user"]


def test_a_chain_outlives_the_backends(system, client):
    first = client.responses.create(input="My name is Fox.", **CALM)
    for index in range(2):
        system.restart(index)
    again = client.responses.create(input="Hello", previous_response_id=first.id, **CALM)
    assert len(list(client.responses.input_items.list(again.id))) == 3


def test_what_one_key_has_asked_for_no_other_key_sees(client, bob):
    secret = client.responses.create(input=HELLO, **CALM)
    look = [bob.responses.retrieve, bob.responses.delete, bob.responses.cancel, bob.responses.input_items.list]
    for forbidden in look:
        with pytest.raises(openai.NotFoundError):
            forbidden(secret.id)
    with pytest.raises(openai.BadRequestError):
        bob.responses.create(input="x", previous_response_id=secret.id, **CALM)
    reference = {"type": "item_reference", "id": secret.output[0].id}
    with pytest.raises(openai.BadRequestError):
        bob.responses.create(input=[reference], **CALM)
    assert client.responses.retrieve(secret.id).id == secret.id


def test_a_client_cant_say_whose_it_is_through_the_balancer(system, client):
    from core.owners import owner_of

    secret = client.responses.create(input=HELLO, **CALM)
    headers = {"Authorization": "Bearer bob", "X-ComeAPI-Owner": owner_of("alice")}
    assert call(system.url + "/v1/responses/" + secret.id, headers=headers).status == 404


def test_many_are_stored_at_once(client):
    answers = in_parallel(lambda n: client.responses.create(input="Hello %d" % n, **CALM), range(16))
    found = in_parallel(lambda answer: client.responses.retrieve(answer.id), answers)
    assert [each.output_text for each in found] == [each.output_text for each in answers]


# ------------------------------------------------------------------------------------- counts, and other paths


def test_input_tokens_are_counted_as_they_are_read(system, client):
    body = dict(input=HELLO, instructions="Be kind.", tools=[PICK])
    count = client.responses.input_tokens.count(model="demo.gguf", **body)
    assert count.object == "response.input_tokens"
    assert count.input_tokens == client.responses.create(**dict(CALM, **body)).usage.input_tokens
    chat = {"messages": [{"role": "user", "content": HELLO}]}
    for path in ("/v1/chat/completions/input_tokens", "/chat/completions/input_tokens"):
        counted = call(system.url + path, chat, system.headers).json["input_tokens"]
        answer = client.chat.completions.create(model="demo.gguf", max_tokens=1, **chat)
        assert counted == answer.usage.prompt_tokens


def test_llama_cpps_clients_need_no_v1(system):
    answer = call(system.url + "/responses", {"input": HELLO, "max_output_tokens": 3}, system.headers).json
    assert call(system.url + "/responses/" + answer["id"], headers=system.headers).json["id"] == answer["id"]


# ---------------------------------------------------------------------------------- backends that die meanwhile

ENDLESS = {"input": "Tell me a story", "max_output_tokens": 1500, "ignore_eos": True, "temperature": 2}


def events_of(answer):
    lines = answer.body.decode("utf-8").split("\n")
    return [json.loads(line[len("data: ") :]) for line in lines if line.startswith("data: ")]


def kill_under(system, stream):
    """Kill the backend that gives a streamed answer; return its number."""
    url = stream._answer.headers["X-ComeAPI-Backend"]
    index = [backend.url for backend in system.backends].index(url)
    system.backends[index].process.kill()
    return index


def test_an_answer_that_another_backend_goes_on_with_is_stored_under_its_first_id(system, client):
    stream = Streaming(system.url + "/v1/responses", ENDLESS, system.headers)
    killed = kill_under(system, stream)
    events = events_of(stream.end())
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    found = client.responses.retrieve(events[0]["response"]["id"])
    assert found.output_text == text == events[-1]["response"]["output"][0]["content"][0]["text"]
    assert found.usage.output_tokens == 1500
    system.restart(killed)


def test_an_answer_that_no_backend_goes_on_with_has_failed(tmp_path):
    lonely = System([tmp_path / "kept"], keys=())
    try:
        stream = Streaming(lonely.url + "/v1/responses", ENDLESS)
        kill_under(lonely, stream)
        last = events_of(stream.end())[-1]
        assert last["type"] == "response.failed" and last["response"]["status"] == "failed"
        assert last["response"]["error"]["code"] == "server_error" and last["sequence_number"] > 4
    finally:
        lonely.close()


# --------------------------------------------------------------------------------- several machines, and none


def test_what_another_machine_has_stored_is_found_there(tmp_path):
    several = System([tmp_path / "one", tmp_path / "two"], ["127.0.0.1", "localhost"], keys=())
    try:
        with several.client() as client:
            firsts = [client.responses.create(input="Hello", **CALM).id for _ in range(4)]
            for folder in several.folders:
                assert list(folder.iterdir())  # each has answered some
            for id in firsts:
                client.responses.create(input="Go on", previous_response_id=id, **CALM)
            ids = [path.name[: -len(".json")] for folder in several.folders for path in folder.iterdir()]
            assert {client.responses.retrieve(id).id for id in ids} == set(ids)
            for id in ids:
                client.responses.delete(id)
            assert not [path for folder in several.folders for path in folder.iterdir()]
            with pytest.raises(openai.NotFoundError, match="another machine"):
                client.responses.retrieve(ids[0])
    finally:
        several.close()


def test_a_folder_that_cant_be_used_costs_no_answer(start, tmp_path):
    (tmp_path / "file").write_text("in the way")
    backend = start("backend.py", "--child", "--port=0", "--threads=1", "--responses-dir", tmp_path / "file")
    url = backend.wait_for_event("listening")["url"]
    backend.wait_for_event("ready")
    for _ in range(2):
        answer = call(url + "/v1/responses", {"input": HELLO, "max_output_tokens": 3})
        assert answer.status == 200 and answer.json["store"] is False and answer.json["output"]
    backend.close()
    assert len([line for line in backend.errors if "can't be kept" in line]) == 1
