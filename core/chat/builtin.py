"""Chat templates by name, as llama.cpp has them built in: for models whose files bring none, or a wrong one.

    template_source    what --chat-template says, a name or a file or a template ──> the template's text
    NAMES              the names

Most of them are tables: what stands around a message of each role, and what begins the answer. Source: the names and
formats of llama.cpp's llama_chat_apply_template(), which gives the same texts.
"""

import difflib
import json
import os
from typing import Dict, List, Optional

from core.settings import is_template


def _turns(
    system: str, user: str, assistant: str, answer: str = "", begin: str = "", tool: Optional[str] = None
) -> str:
    """Return a Jinja template of a table: what stands around a message of each role, and what begins the answer.

    %s is a message's text, %t the same without white space around it.
    """
    branches: List[str] = []
    for role, text in (("system", system), ("user", user), ("assistant", assistant), ("tool", tool)):
        if text is None:
            continue
        branches.append("%s message['role'] == '%s' %%}%s" % (
            "{% elif" if branches else "{% if", role, _output(text),
        ))  # fmt: skip
    return "%s{%% for message in messages %%}%s{%% endif %%}{%% endfor %%}%s" % (
        _text(begin), "".join(branches), _answer(answer),
    )  # fmt: skip


def _every(text: str, answer: str, begin: str = "") -> str:
    """Return a Jinja template in which messages of all roles look alike; %r is the role."""
    role = " + message['role'] + ".join(json.dumps(part, ensure_ascii=False) for part in text.split("%r"))
    return "%s{%% for message in messages %%}{{ %s }}{%% endfor %%}%s" % (_text(begin), _filled(role), _answer(answer))


def _output(text: str) -> str:
    return "{{ %s }}" % _filled(json.dumps(text, ensure_ascii=False)) if text else ""


def _filled(expression: str) -> str:
    """Return an expression with a message's text in its place."""
    for place, content in (("%s", "message['content']"), ("%t", "(message['content'] | trim)")):
        expression = expression.replace(place, '" + %s + "' % content)
    return expression


def _text(text: str) -> str:
    return "{{ %s }}" % json.dumps(text, ensure_ascii=False) if text else ""


def _answer(text: str) -> str:
    return "{%% if add_generation_prompt %%}%s{%% endif %%}" % _text(text) if text else ""


def _llama2(system: str, bos: str = "", content: str = "message['content']") -> str:
    return (
        "[INST] {% for message in messages %}{% if loop.previtem and loop.previtem['role'] == 'assistant' %}"
        "{{ '" + bos + "[INST] ' }}{% endif %}{% if message['role'] == 'system' %}" + system % content +
        "{% elif message['role'] == 'user' %}{{ " + content + " + ' [/INST]' }}"
        "{% else %}{{ " + content + " + '</s>' }}{% endif %}{% endfor %}"
    )  # fmt: skip


_LLAMA2_SYSTEM = "{{ '<<SYS>>\\n' + %s + '\\n<</SYS>>\\n\\n' }}"


def _mistral(leading: str, trailing: str, content: str = "message['content']") -> str:
    return (
        "{% for message in messages %}{% if loop.first or loop.previtem['role'] == 'assistant' %}"
        "{{ '" + leading + "[INST]" + trailing + "' }}{% endif %}"
        "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
        "{% elif message['role'] == 'user' %}{{ message['content'] + '" + leading + "[/INST]' }}"
        "{% else %}{{ '" + trailing + "' + " + content + " + '</s>' }}{% endif %}{% endfor %}"
    )  # fmt: skip


def _with_system_in_user(user: str, assistant: str, answer: str, text: str) -> str:
    """Return a Jinja template in which the systems' texts stand before the next one of the user."""
    return (
        "{% set ns = namespace(system='') %}{% for message in messages %}{% if message['role'] == 'system' %}"
        "{% set ns.system = ns.system + " + text + " %}{% elif message['role'] == 'user' %}"
        "{% if ns.system %}{% set prefix = ns.system + '\\n\\n' %}{% else %}{% set prefix = '' %}{% endif %}"
        + user + "{% set ns.system = '' %}{% else %}" + assistant + "{% endif %}{% endfor %}" + _answer(answer)
    )  # fmt: skip


_TRIMMED = "(message['content'] | trim)"
_COMMAND = "<|START_OF_TURN_TOKEN|><|%s_TOKEN|>%%t<|END_OF_TURN_TOKEN|>"
_EXAONE = ("[|system|]%t[|endofturn|]\n", "[|user|]%t\n", "[|assistant|]%t[|endofturn|]\n", "[|assistant|]")
_GRANITE = _every("<|start_of_role|>%r<|end_of_role|>%s<|end_of_text|>\n", "<|start_of_role|>assistant<|end_of_role|>")
_BAILING = ("<role>SYSTEM</role>%s", "<role>HUMAN</role>%s", "<role>ASSISTANT</role>%s")
_BAILING2 = _turns(
    "<role>SYSTEM</role>%s<|role_end|>", "<role>HUMAN</role>%s<|role_end|>", "<role>ASSISTANT</role>%s<|role_end|>",
    "<role>ASSISTANT</role>",
)  # fmt: skip

_SOURCES: Dict[str, str] = {
    "chatml": _every("<|im_start|>%r\n%s<|im_end|>\n", "<|im_start|>assistant\n"),
    "llama2": _llama2("{{ %s + '\\n' }}"),
    "llama2-sys": _llama2(_LLAMA2_SYSTEM),
    "llama2-sys-bos": _llama2(_LLAMA2_SYSTEM, bos="<s>"),
    "llama2-sys-strip": _llama2(_LLAMA2_SYSTEM, content=_TRIMMED),
    "mistral-v1": _mistral(" ", " "),
    "mistral-v3": _mistral("", " ", _TRIMMED),
    "mistral-v3-tekken": _mistral("", ""),
    "mistral-v7": _turns("[SYSTEM_PROMPT] %s[/SYSTEM_PROMPT]", "[INST] %s[/INST]", " %s</s>"),
    "mistral-v7-tekken": _turns("[SYSTEM_PROMPT]%s[/SYSTEM_PROMPT]", "[INST]%s[/INST]", "%s</s>"),
    "phi3": _every("<|%r|>\n%s<|end|>\n", "<|assistant|>\n"),
    "phi4": _every("<|im_start|>%r<|im_sep|>%s<|im_end|>", "<|im_start|>assistant<|im_sep|>"),
    "falcon3": _every("<|%r|>\n%s\n", "<|assistant|>\n"),
    "zephyr": _every("<|%r|>\n%s<|endoftext|>\n", "<|assistant|>\n"),
    "monarch": "{% for message in messages %}{{ ('' if loop.first else '<s>') + message['role'] + '\\n' + "
    "message['content'] + '</s>\\n' }}{% endfor %}" + _answer("<s>assistant\n"),
    "gemma": _with_system_in_user(
        "{{ '<start_of_turn>user\\n' + prefix + " + _TRIMMED + " + '<end_of_turn>\\n' }}",
        "{{ '<start_of_turn>model\\n' + " + _TRIMMED + " + '<end_of_turn>\\n' }}",
        "<start_of_turn>model\n", _TRIMMED,
    ),
    "orion": _with_system_in_user(
        "{{ 'Human: ' + prefix + message['content'] + '\\n\\nAssistant: </s>' }}",
        "{{ message['content'] + '</s>' }}", "", "message['content']",
    ),
    "openchat": _turns(
        "%s<|end_of_turn|>", "GPT4 Correct User: %s<|end_of_turn|>", "GPT4 Correct Assistant: %s<|end_of_turn|>",
        "GPT4 Correct Assistant:",
    ),
    "vicuna": _turns("%s\n\n", "USER: %s\n", "ASSISTANT: %s</s>\n", "ASSISTANT:"),
    "vicuna-orca": _turns("SYSTEM: %s\n", "USER: %s\n", "ASSISTANT: %s</s>\n", "ASSISTANT:"),
    "deepseek": _turns("%s", "### Instruction:\n%s\n", "### Response:\n%s\n<|EOT|>\n", "### Response:\n"),
    "deepseek2": _turns("%s\n\n", "User: %s\n\n", "Assistant: %s<｜end▁of▁sentence｜>", "Assistant:"),
    "deepseek3": _turns("%s\n\n", "<｜User｜>%s", "<｜Assistant｜>%s<｜end▁of▁sentence｜>", "<｜Assistant｜>"),
    "deepseek-ocr": _every("%s", ""),
    "command-r": _turns(
        _COMMAND % "SYSTEM", _COMMAND % "USER", _COMMAND % "CHATBOT", "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
    ),
    "llama3": _every(
        "<|start_header_id|>%r<|end_header_id|>\n\n%t<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "chatglm3": _every("<|%r|>\n %s", "<|assistant|>", "[gMASK]sop"),
    "chatglm4": _every("<|%r|>\n%s", "<|assistant|>\n", "[gMASK]<sop>"),
    "glmedge": _every("<|%r|>\n%s", "<|assistant|>"),
    "minicpm": _turns("%t", "<用户>%t<AI>", "%t"),
    "exaone3": _turns(*_EXAONE),
    "exaone4": _turns(*_EXAONE, tool="[|tool|]%t[|endofturn|]\n"),
    "exaone-moe": _every("<|%r|>\n%t<|endofturn|>\n", "<|assistant|>\n"),
    "rwkv-world": _turns("System: %t\n\n", "User: %t\n\n", "Assistant: %t\n\n", "Assistant:"),
    "granite": _GRANITE,
    "granite-4.0": _GRANITE,
    "granite-4.1": _GRANITE,
    "gigachat": _turns(
        "%s<|message_sep|>",
        "user<|role_sep|>%s<|message_sep|>available functions<|role_sep|>[]<|message_sep|>",
        "assistant<|role_sep|>%s<|message_sep|>", "assistant<|role_sep|>", "<s>",
    ),
    "megrez": _every("<|role_start|>%r<|role_end|>%s<|turn_end|>", "<|role_start|>assistant<|role_end|>"),
    "yandex": _turns("", " Пользователь: %s\n\n", " Ассистент: %s\n\n", " Ассистент:[SEP]"),
    "bailing": _turns(*_BAILING, "<role>ASSISTANT</role>"),
    "bailing-think": _turns(*_BAILING, "<role>ASSISTANT</role><think>"),
    "bailing2": "{% if messages[0]['role'] != 'system' %}"
    "{{ '<role>SYSTEM</role>detailed thinking off<|role_end|>' }}{% endif %}" + _BAILING2,
    "llama4": _every(
        "<|header_start|>%r<|header_end|>\n\n%t<|eot|>", "<|header_start|>assistant<|header_end|>\n\n"
    ),
    "smolvlm": _turns(
        "%s\n\n", "User: %s<end_of_utterance>\n", "Assistant: %s<end_of_utterance>\n", "Assistant:", "<|im_start|>"
    ),
    "hunyuan-moe": _turns("<|startoftext|>%s<|extra_4|>", "<|startoftext|>%s<|extra_0|>", "%s<|eos|>"),
    "gpt-oss": _turns(
        "<|start|>system<|message|>%s<|end|>", "<|start|>user<|message|>%s<|end|>",
        "<|start|>assistant<|message|>%s<|return|>", "<|start|>assistant",
    ),
    "hunyuan-dense": "{% if messages[0]['role'] == 'system' %}"
    "{{ messages[0]['content'] + '<｜hy_place▁holder▁no▁3｜>' }}{% endif %}" + _turns(
        "", "<｜hy_User｜>%s<｜hy_Assistant｜>", "<｜hy_Assistant｜>%s<｜hy_place▁holder▁no▁2｜>"
    ),
    "hunyuan-vl": _turns(
        "%s<｜hy_place▁holder▁no▁3｜>", "%s<｜hy_User｜>", "%s<｜hy_Assistant｜>", "", "<｜hy_begin▁of▁sentence｜>"
    ),
    "kimi-k2": _turns(
        "<|im_system|>system<|im_middle|>%s<|im_end|>", "<|im_user|>user<|im_middle|>%s<|im_end|>",
        "<|im_assistant|>assistant<|im_middle|>%s<|im_end|>", "<|im_assistant|>assistant<|im_middle|>",
    ),
    "seed_oss": _turns(
        "<seed:bos>system\n%s<seed:eos>", "<seed:bos>user\n%s<seed:eos>", "<seed:bos>assistant\n%t<seed:eos>",
        "<seed:bos>assistant\n",
    ),
    "grok-2": _turns(
        "System: %t<|separator|>\n\n", "Human: %t<|separator|>\n\n", "Assistant: %s<|separator|>\n\n", "Assistant:"
    ),
    "pangu-embedded": "{% if messages[0]['role'] != 'system' %}{{ '[unused9]系统：[unused10]' }}{% endif %}" + _turns(
        "[unused9]系统：%s[unused10]", "[unused9]用户：%s[unused10]", "[unused9]助手：%s[unused10]", "[unused9]助手："
    ),
    "solar-open": _every("<|begin|>%r<|content|>%s<|end|>", "<|begin|>assistant"),
}  # fmt: skip
NAMES: List[str] = sorted(_SOURCES)


def template_source(given: str) -> str:
    """Return the Jinja text of what --chat-template says: a name, a file, or the template itself; "" for "".

    Raises ValueError where it is none of them, OSError and UnicodeDecodeError for a file that can't be read.
    """
    if given in _SOURCES or not given:
        return _SOURCES.get(given, "")
    if is_template(given):
        return given
    if os.path.isfile(given):
        with open(given, encoding="utf-8") as file:
            return file.read()
    like = difflib.get_close_matches(given, NAMES, 1)
    hint = "; did you mean %s?" % like[0] if like else "; names are %s" % ", ".join(NAMES)
    raise ValueError("%s is neither a file nor a template's name%s" % (given, hint))
