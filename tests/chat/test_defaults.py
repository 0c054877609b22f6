"""What the server's options say of conversations."""

import pytest

from core.chat.conversation import ChatAsk, Conversation
from core.chat.defaults import ChatDefaults
from core.models import ModelFile
from core.settings import ChatSettings

SOURCE = "{{ messages[0].content }}{{ enable_thinking }}{{ depth }}<think>"
MODEL = ModelFile("m.gguf", "/m.gguf", 1, chat_template=SOURCE)


def conversation(options=None, **settings):
    ask = ChatAsk([{"role": "user", "content": "Hi "}], template_options=options or {})
    return Conversation(ask, MODEL, ChatDefaults.of(ChatSettings(**settings)))


@pytest.mark.parametrize(
    "settings, prompt",
    [
        ({}, "Hi True<think>"),
        ({"reasoning": "on"}, "Hi True<think>"),
        ({"reasoning": "off"}, "Hi False<think>"),
        ({"reasoning_budget": 0}, "Hi False<think>"),
        ({"chat_template_kwargs": '{"depth": 3}'}, "Hi True3<think>"),
        ({"chat_template_kwargs": '{"enable_thinking": 7}', "reasoning": "off"}, "Hi 7<think>"),
    ],
)
def test_templates_are_told_what_the_options_say(settings, prompt):
    assert conversation(**settings).prompt == prompt


def test_a_requests_own_variables_win():
    assert conversation({"enable_thinking": True, "depth": 1}, reasoning="off").prompt == "Hi True1<think>"


def test_thoughts_go_where_the_options_say():
    apart = conversation().turn().read("Hm.</think>Hi", "stop")
    beside = conversation(reasoning_format="none").turn().read("Hm.</think>Hi", "stop")
    assert (apart.reasoning, apart.content) == ("Hm.", "Hi")
    assert (beside.reasoning, beside.content) == ("", "Hm.</think>Hi")


def test_a_template_takes_the_place_of_the_models_own():
    assert conversation(chat_template="zephyr").prompt == "<|user|>\nHi <|endoftext|>\n<|assistant|>\n"
    with pytest.raises(ValueError, match="neither"):
        conversation(chat_template="nonesuch")
