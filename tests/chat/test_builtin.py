"""Chat templates by name: the same texts as llama.cpp's own."""

import ctypes

import llama_cpp
import pytest

from core.chat.builtin import NAMES, template_source
from core.chat.template import ChatTemplate

CHATS = [
    ["user Hello "], ["system Be kind.", "user Hi", "assistant  Yes? ", "user\nBye"],
    ["user One", "assistant Two", "user Three"], ["system \"A\"", "user 'B' {{ c }}"],
]  # fmt: skip


def by_llama(name, messages):
    chat = (llama_cpp.llama_chat_message * len(messages))()
    for each, message in zip(chat, messages):
        each.role, each.content = (message[key].encode() for key in ("role", "content"))
    buffer = ctypes.create_string_buffer(4096)
    size = llama_cpp.llama_chat_apply_template(name.encode(), chat, len(messages), True, buffer, 4096)
    return buffer.raw[:size].decode()


def test_all_names_of_llama_cpp_are_known():
    names = (ctypes.c_char_p * 200)()
    count = llama_cpp.llama_chat_builtin_templates(names, 200)
    assert set(NAMES) == {name.decode() for name in names[:count]}


@pytest.mark.parametrize("name", NAMES)
def test_a_named_template_gives_llama_cpps_text(name):
    template = ChatTemplate(template_source(name))
    for chat in CHATS:
        messages = [dict(zip(("role", "content"), (each.split(maxsplit=1)[0], each[len(each.split()[0]) + 1 :])))
                    for each in chat]  # fmt: skip
        if name != "yandex" or chat[0].startswith("user"):  # llama.cpp leaves out what the system says there
            assert template.render(messages) == by_llama(name, messages)


def test_a_template_may_be_given_by_name_as_a_file_or_as_itself(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }} ü", encoding="utf-8")
    assert template_source(str(file)) == "{{ messages[0].content }} ü"
    assert template_source("{{ 'x' }}") == "{{ 'x' }}" and template_source("") == ""
    assert template_source("Say hello. Always.") == "Say hello. Always."  # without a place for messages, as there


@pytest.mark.parametrize("given, hint", [
    ("lama3", "did you mean llama3"), ("my-own", "names are .* chatml"), ("no folder/mine.jinja", "neither a file"),
    ("my own.jinja", "neither a file"),
])  # fmt: skip
def test_a_misspelt_name_or_file_is_no_template(given, hint):
    with pytest.raises(ValueError, match=hint):
        template_source(given)
