"""Thoughts with a budget: in each API that has chats, with schemas and calls after them, with n, and carried on."""

import json

import pytest
from conftest import call
from engines import DEMO, launch, result
from test_structured import ANSWER, FORMAT, THINKING, TOOLS

from core.apis import anthropic, openai_shapes
from core.chat.conversation import Conversation
from core.chat.defaults import ChatDefaults
from core.chat.template import CHATML
from core.engine.generation import Generation
from core.errors import APIError

jsonschema = pytest.importorskip("jsonschema")

ASKED = {"messages": [{"role": "user", "content": "Hello, how are you?"}], "seed": 3, "max_tokens": 200}
BUDGETED = dict(ASKED, reasoning_budget_tokens=7)


@pytest.fixture(scope="module")
def engine():
    engine = launch(slots=4, ctx_size=768, cache_type_k="f32", cache_type_v="f32", flash_attn="off")
    yield engine
    engine.stop()


def conversation(body, defaults=ChatDefaults(THINKING), read=lambda body: openai_shapes.read_chat(body)[0]):
    return Conversation(read(body), DEMO, defaults)


def answers(engine, body, begun=(), **more):
    """Return for each answer its tokens and its message."""
    it = conversation(body, **more)
    generations = [Generation(ask, begun=begun) for ask in it.asks()]
    for generation in generations:
        engine.submit(generation)
    told = []
    for generation in generations:
        text, tokens, end = result(generation)
        text = engine.vocabulary().detokenize(begun).decode() + text if begun else text
        told.append((list(begun) + tokens, it.turn("nonce").read(text, end.reason)))
    return told


def tokens_of(engine, text):
    return len(engine.vocabulary().tokenize(text, False, True))


def test_after_so_many_tokens_the_thought_ends_and_the_answer_begins(engine):
    free = answers(engine, ASKED)[0][1]
    tokens, message = answers(engine, BUDGETED)[0]
    assert len(free.reasoning) > len(message.reasoning) > 0
    assert free.reasoning.startswith(message.reasoning) and message.content
    assert engine.vocabulary().detokenize(tokens[:7]).decode().strip() == message.reasoning


@pytest.mark.parametrize("name", openai_shapes.BUDGETS)
def test_the_field_has_three_names(name):
    assert conversation(dict(ASKED, **{name: 7})).asks()[0].budget.tokens == 7
    with pytest.raises(APIError) as caught:
        conversation(dict(ASKED, **{name: -2}))
    assert caught.value.param == name


def test_a_message_ends_a_thought_that_is_cut_short(engine):
    said = answers(engine, dict(BUDGETED, reasoning_budget_message=" Time is up."))[0][1]
    assert said.reasoning.endswith("Time is up.") and said.content
    with pytest.raises(APIError, match="reasoning_budget_message"):
        conversation(dict(BUDGETED, reasoning_budget_message="x" * 2000))


def test_a_schema_a_call_and_penalties_hold_after_it(engine):
    for seed in range(6):
        body = dict(BUDGETED, seed=seed, temperature=1.5, repeat_penalty=1.1)
        said = answers(engine, dict(body, response_format=FORMAT))[0][1]
        jsonschema.validate(json.loads(said.content), ANSWER)
        said = answers(engine, dict(body, tools=TOOLS, tool_choice="required"))[0][1]
        assert said.calls and len(said.reasoning) < 60


def test_each_of_several_answers_has_its_own(engine):
    messages = [message for _, message in answers(engine, dict(BUDGETED, n=3, temperature=1.2))]
    assert all(message.reasoning and message.content for message in messages)
    assert len({message.reasoning for message in messages}) > 1


@pytest.mark.parametrize("more", [
    {}, {"response_format": FORMAT}, {"mirostat": 2, "temperature": 0.8}, {"repeat_penalty": 1.2},
])  # fmt: skip
def test_an_answer_goes_on_from_any_token(engine, more):
    body = dict(BUDGETED, max_tokens=40, reasoning_budget_message="So be it.", **more)
    whole = answers(engine, body)[0][0]
    for cut in range(1, min(len(whole), 24)):
        assert answers(engine, body, whole[:cut])[0][0] == whole, cut


def test_none_at_all_is_no_thought_even_where_the_template_opens_one(engine):
    said = answers(engine, dict(ASKED, reasoning_budget_tokens=0))[0][1]
    assert not said.reasoning and said.content


def test_the_servers_options_hold_where_a_request_does_not_say():
    defaults = ChatDefaults(THINKING, budget=5, budget_message="Stop.")
    budget = conversation(ASKED, defaults).asks()[0].budget
    assert (budget.tokens, budget.message, budget.begun) == (5, "Stop.", True)
    assert conversation(dict(ASKED, reasoning_budget_tokens=-1), defaults).asks()[0].budget.tokens == 5
    assert conversation(BUDGETED, defaults).asks()[0].budget.tokens == 7


def test_without_thoughts_there_is_no_budget():
    assert conversation(BUDGETED, ChatDefaults(CHATML)).asks()[0].budget is None
    assert conversation(dict(BUDGETED, grammar="root ::= [a-z]+")).asks()[0].budget is None


def test_a_template_that_knows_it_is_told():
    source = THINKING + "{{ thinking_budget }}"
    assert conversation(BUDGETED, ChatDefaults(source)).prompt.endswith("7")
    off, source = dict(ASKED, reasoning_budget_tokens=0), THINKING + "{{ enable_thinking }}"
    assert conversation(off, ChatDefaults(source)).prompt.endswith("False")


def test_anthropics_budget_is_the_same():
    asked = dict(ASKED, thinking={"type": "enabled", "budget_tokens": 9})
    read = anthropic.read_messages_body
    assert conversation(asked, read=read).asks()[0].budget.tokens == 9
    for kind in ("disabled", "adaptive"):
        assert conversation(dict(ASKED, thinking={"type": kind}), read=read).asks()[0].budget is None
    with pytest.raises(APIError) as caught:
        conversation(dict(ASKED, thinking={"type": "enabled", "budget_tokens": 0}), read=read)
    assert caught.value.param == "thinking.budget_tokens"


def test_over_http_it_is_an_option_and_a_field(start):
    program = start(
        "backend.py", "--child", "--port=0", "--threads=1", "--chat-template", THINKING, "--reasoning-budget", 6,
        "--reasoning-budget-message", "Done.",
    )  # fmt: skip
    url = program.wait_for_event("listening")["url"]
    program.wait_for_event("ready")
    message = call(url + "/v1/chat/completions", ASKED).json["choices"][0]["message"]
    assert message["reasoning_content"].endswith("Done.") and message["content"]
    assert call(url + "/v1/completions", {"prompt": "Hi", "reasoning_budget_tokens": 5}).status == 400
    asked = {"input": "Hello, how are you?", "seed": 3, "max_output_tokens": 200, "reasoning_budget_tokens": 4}
    thought = call(url + "/v1/responses", asked).json["output"][0]
    assert thought["type"] == "reasoning" and thought["content"][0]["text"].endswith("Done.")
