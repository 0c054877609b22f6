"""The families of models whose way of writing answers is known, and which of them a chat template speaks of.

    style_of    a template's text ──> Style

The first family whose signs a template holds is its own: the more special ones come first. Sources: the chat templates
that the models' makers ship (llama.cpp collects them in models/templates), and OpenAI's description of harmony.
"""

from dataclasses import replace
from typing import Callable, NamedTuple, Tuple

from core.chat.syntaxes import Keywords, Notation, Style, Syntax, Tags, Thoughts

# ------------------------------------------------------------------------- a call is one JSON object

HERMES = Syntax(  # Hermes, Qwen 2.5 and 3, Granite 4, and many others
    name="hermes",
    opener="<tool_call>",
    head='<tool_call>\n{"name": "%(name)s", "arguments": ',
    tail="}\n</tool_call>",
    between="\n",
    closers=("</tool_call>",),
)
LLAMA = Syntax(  # Llama 3.x; its template refuses a message with two calls, so it must not write two
    name="llama",
    opener="<|python_tag|>",
    head='{"name": "%(name)s", "parameters": ',
    tail="}",
    closers=(";",),
    bare=True,
    several=False,
)


def _array(name: str, opener: str, end: str, before: str = "[", between: str = ", ", **more: str) -> Syntax:
    """Return the syntax of calls that stand in one array, between an opener and an end."""
    head = more.get("head", '{"name": "%(name)s", "arguments": ')
    closers = tuple(each for each in ("]", end.strip()) if each)
    return Syntax(
        name, opener, head, more.get("tail", "}"), opener + before, between, more.get("after", "]") + end, closers,
        arrays=True,
    )  # fmt: skip


_COMMAND_HEAD = '{"tool_call_id": "%(number)s", "tool_name": "%(name)s", "parameters": '
GRANITE = _array("granite", "<|tool_call|>", "")  # Granite 3.x
PHI = _array("phi", "<|tool_call|>", "<|/tool_call|>")  # Phi-4
APRIEL = _array("apriel", "<tool_calls>", "</tool_calls>")
NEMOTRON = _array("nemotron", "<TOOLCALL>", "</TOOLCALL>")
FIREFUNCTION = _array("firefunction", "functools", "")
COMMAND = _array(  # Command-R7B, Command A
    "command", "<|START_ACTION|>", "<|END_ACTION|>", "[\n    ", ",\n    ", head=_COMMAND_HEAD, after="\n]"
)
COMMAND_PLUS = _array(  # Command-R, Command-R+
    "command-plus",
    "Action:\n```json",
    "```",
    "\n[\n    ",
    ",\n    ",
    head='{\n        "tool_name": "%(name)s",\n        "parameters": ',
    tail="\n    }",
    after="\n]",
)
MINIMAX_LINES = Syntax(  # MiniMax M1
    name="minimax-lines",
    opener="<tool_calls>",
    head='{"name": "%(name)s", "arguments": ',
    tail="}",
    before="<tool_calls>\n",
    between="\n",
    after="\n</tool_calls>",
    closers=("</tool_calls>",),
    again="{",
)
GIGACHAT_3 = Syntax(  # GigaChat 3
    name="gigachat-3",
    opener="<|message_sep|>\n\nfunction call<|role_sep|>",
    head='<|message_sep|>\n\nfunction call<|role_sep|>\n{"name": "%(name)s", "arguments": ',
    tail="}",
    several=False,
)
GIGACHAT = Syntax(  # GigaChat 3.1
    name="gigachat", opener="<|function_call|>", head='<|function_call|>{"name": "%(name)s", "arguments": ', tail="}"
)

# ------------------------------------------------- the name stands before the arguments, a JSON object

_NAME = "([a-zA-Z0-9_-]+)"

MISTRAL = Syntax(  # Mistral 7B v0.3, Nemo, Large, Small up to 3.1
    name="mistral",
    opener="[TOOL_CALLS]",
    head='{"name": "%(name)s", "arguments": ',
    tail="}",
    before="[TOOL_CALLS][",
    between=", ",
    after="]",
    named=r"\s*%s\s*(\[CALL_ID\].*)?" % _NAME,
    specials=("[CALL_ID]",),
    head_end="[ARGS]",
    arrays=True,
)
MISTRAL_ARGS = Syntax(  # Mistral Small 3.2, Devstral, Magistral, Ministral 3
    name="mistral-args",
    opener="[TOOL_CALLS]",
    head="[TOOL_CALLS]%(name)s[ARGS]",
    named=MISTRAL.named,
    specials=MISTRAL.specials,
    head_end="[ARGS]",
    arrays=True,
)
KIMI = Syntax(  # Kimi K2
    name="kimi",
    opener="<|tool_calls_section_begin|>",
    head="<|tool_call_begin|>functions.%(name)s:%(number)s<|tool_call_argument_begin|>",
    tail="<|tool_call_end|>",
    before="<|tool_calls_section_begin|>",
    after="<|tool_calls_section_end|>",
    closers=("<|tool_call_end|>", "<|tool_calls_section_end|>"),
    again="<|tool_call_begin|>",
    named=r"\s*(?:<\|tool_call_begin\|>)?\s*(?:functions\.)?%s(?::[0-9]+)?\s*" % _NAME,
    head_end="<|tool_call_argument_begin|>",
    envelope=False,
)
_DEEPSEEK_CLOSERS = ("```", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>")
DEEPSEEK_R1 = Syntax(  # DeepSeek V3 and R1
    name="deepseek-r1",
    opener="<｜tool▁calls▁begin｜>",
    head="<｜tool▁call▁begin｜>function<｜tool▁sep｜>%(name)s\n```json\n",
    tail="\n```<｜tool▁call▁end｜>",
    before="<｜tool▁calls▁begin｜>",
    between="\n",
    after="<｜tool▁calls▁end｜>",
    closers=_DEEPSEEK_CLOSERS,
    again="<｜tool▁call▁begin｜>",
    named=r"\s*(?:<｜tool▁call▁begin｜>)?\s*(?:function)?<｜tool▁sep｜>%s\s*" % _NAME,
    head_end="```json",
    envelope=False,
)
DEEPSEEK_V3_1 = Syntax(
    name="deepseek-v3.1",
    opener="<｜tool▁calls▁begin｜>",
    head="<｜tool▁call▁begin｜>%(name)s<｜tool▁sep｜>",
    tail="<｜tool▁call▁end｜>",
    before="<｜tool▁calls▁begin｜>",
    after="<｜tool▁calls▁end｜>",
    closers=_DEEPSEEK_CLOSERS,
    again="<｜tool▁call▁begin｜>",
    named=r"\s*(?:<｜tool▁call▁begin｜>)?\s*%s\s*" % _NAME,
    head_end="<｜tool▁sep｜>",
    envelope=False,
)
HARMONY = Syntax(  # gpt-oss; the recipient may stand in the role or in the channel
    name="harmony",
    opener=" to=functions.",
    head=" to=functions.%(name)s%(gap)s<|message|>",
    before="<|channel|>commentary",
    named=_NAME + r"(?:[ <].*)?",
    head_end="<|message|>",
    gaps=(
        " <|constrain|>json", "<|channel|>commentary json", "<|channel|>commentary <|constrain|>json",
        "<|channel|>commentary", "", " json",
    ),
    envelope=False,
    several=False,
)  # fmt: skip
FUNCTIONARY = Syntax(  # Functionary 3.1
    name="functionary",
    opener="<function=",
    head="<function=%(name)s>",
    tail="</function>",
    closers=("</function>",),
    named=_NAME,
    head_end=">",
    envelope=False,
)
APERTUS = Syntax(
    name="apertus",
    opener="<|tools_prefix|>",
    head='{"%(name)s": ',
    tail="}",
    before="<|tools_prefix|>[",
    between=", ",
    after="]<|tools_suffix|>",
    closers=("}", "]", "<|tools_suffix|>"),
    again=",",
    named=r'\s*[\[,]?\s*\{\s*"%s"\s*' % _NAME,
    head_end=":",
    envelope=False,
)
SOLAR = Syntax(  # Solar Open
    name="solar",
    opener="<|tool_calls|>",
    head="<|tool_call:begin|>call%(number)s<|tool_call:name|>%(name)s<|tool_call:args|>",
    tail="<|tool_call:end|>",
    before="<|tool_calls|>",
    after="<|calls|>",
    closers=("<|tool_call:end|>", "<|calls|>"),
    again="<|tool_call:begin|>",
    named=r".*<\|tool_call:name\|>%s" % _NAME,
    head_end="<|tool_call:args|>",
    envelope=False,
)

# ------------------------------------------------------------------- each argument has tags of its own


def _tagged(name: str, head: str, tail: str, tags: Tags, opener: str = "<tool_call>", **more: str) -> Syntax:
    """Return the syntax of calls with tagged arguments; `head` holds the opener, unless there is a `before`."""
    before, after = more.get("before", ""), more.get("after", "")
    closers = tuple(each for text in (tail, after) for each in text.split("\n") if each)
    return Syntax(
        name, opener, head, tail, before, more.get("between", ""), after, closers, again=more.get("again", ""),
        tags=tags, envelope=False,
    )  # fmt: skip


_PARAMETER = Tags("<parameter=", ">\n", "\n</parameter>\n")
_ARGUMENT = Tags("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n")
_ARGUMENT_LINE = Tags("<arg_key>", "</arg_key><arg_value>", "</arg_value>")
_DSML = Tags(
    '<｜DSML｜parameter name="', '" string="false">', "</｜DSML｜parameter>\n", text_value='" string="true">'
)
QWEN_CODER = _tagged(  # Qwen3-Coder, Qwen 3.5, Nemotron 3, Step 3.5
    "qwen-coder", "<tool_call>\n<function=%(name)s>\n", "</function>\n</tool_call>", _PARAMETER, between="\n"
)
SEED = _tagged(  # Seed-OSS
    "seed",
    "<seed:tool_call>\n<function=%(name)s>\n",
    "</function>\n</seed:tool_call>",
    Tags("<parameter=", ">", "</parameter>\n"),
    "<seed:tool_call>",
    between="\n",
)
GLM = _tagged("glm", "<tool_call>%(name)s\n", "</tool_call>", _ARGUMENT, between="\n")  # GLM 4.5, 4.6
GLM_LINE = _tagged("glm-line", "<tool_call>%(name)s", "</tool_call>", _ARGUMENT_LINE)  # GLM 4.7
MINIMAX = _tagged(  # MiniMax M2
    "minimax",
    '<invoke name="%(name)s">\n',
    "</invoke>\n",
    Tags('<parameter name="', '">', "</parameter>\n"),
    "<minimax:tool_call>",
    before="<minimax:tool_call>\n",
    after="</minimax:tool_call>",
    again='<invoke name="',
)
DEEPSEEK_V3_2 = _tagged(
    "deepseek-v3.2",
    '<｜DSML｜invoke name="%(name)s">\n',
    "</｜DSML｜invoke>\n",
    _DSML,
    "<｜DSML｜function_calls>",
    before="<｜DSML｜function_calls>\n",
    after="</｜DSML｜function_calls>",
    again='<｜DSML｜invoke name="',
)
DEEPSEEK_V4 = _tagged(
    "deepseek-v4",
    DEEPSEEK_V3_2.head,
    DEEPSEEK_V3_2.tail,
    _DSML,
    "<｜DSML｜tool_calls>",
    before="<｜DSML｜tool_calls>\n",
    after="</｜DSML｜tool_calls>",
    again=DEEPSEEK_V3_2.again,
)
MINICPM = _tagged(  # MiniCPM 5
    "minicpm",
    '<function name="%(name)s">',
    "</function>",
    Tags('<param name="', '">', "</param>"),
    '<function name="',
    between="\n",
)
KIMI_3 = replace(  # Kimi K3
    _tagged(
        "kimi-3",
        '<|open|>call tool="%(name)s" index="%(number)s"<|sep|>',
        "<|close|>call<|sep|>",
        Tags('<|open|>argument key="', '" type="%s"<|sep|>', "<|close|>argument<|sep|>", typed=True),
        "<|open|>tools<|sep|>",
        before="<|open|>tools<|sep|>",
        after="<|close|>tools<|sep|>",
        again='<|open|>call tool="',
    ),
    first=1,
)
HUNYUAN = _tagged(  # Hunyuan 3
    "hunyuan",
    "<tool_call:opensource>%(name)s<tool_sep:opensource>\n",
    "</tool_call:opensource>\n",
    Tags(
        "<arg_key:opensource>", "</arg_key:opensource>\n<arg_value:opensource>", "</arg_value:opensource>\n"
    ),
    "<tool_calls:opensource>",
    before="<tool_calls:opensource>\n",
    after="</tool_calls:opensource>",
    again="<tool_call:opensource>",
)  # fmt: skip

# ------------------------------------------------------------------------------------- Gemma's notation

GEMMA = Syntax(  # Gemma 4
    name="gemma",
    opener="<|tool_call>",
    head="<|tool_call>call:%(name)s",
    tail="<tool_call|>",
    closers=("<tool_call|>",),
    notation=Notation('<|"|>'),
    envelope=False,
)
FUNCTION_GEMMA = Syntax(
    name="function-gemma",
    opener="<start_function_call>",
    head="<start_function_call>call:%(name)s",
    tail="<end_function_call>",
    closers=("<end_function_call>",),
    notation=Notation("<escape>"),
    envelope=False,
)

# -------------------------------------------------------------------------------------- Python's notation

LFM = Syntax(  # LFM2, LFM2.5
    name="lfm",
    opener="<|tool_call_start|>",
    head="%(name)s(",
    tail=")",
    before="<|tool_call_start|>[",
    between=", ",
    after="]<|tool_call_end|>",
    closers=("]", "<|tool_call_end|>"),
    again=",",
    keywords=Keywords(),
    envelope=False,
)

# ------------------------------------------------------------------------------------------- which it is

_Sign = Callable[[str], bool]


def _holds(*signs: str) -> _Sign:
    """Return whether a template holds all of some texts."""
    return lambda source: all(sign in source for sign in signs)


def _any_of(*signs: _Sign) -> _Sign:
    """Return whether a template has one of some signs."""
    return lambda source: any(sign(source) for sign in signs)


class Family(NamedTuple):
    """A syntax, and how to tell from a template that its model writes it."""

    syntax: Syntax
    sign: _Sign


FAMILIES: Tuple[Family, ...] = (
    Family(MISTRAL_ARGS, _holds("[TOOL_CALLS]", "[ARGS]")),
    Family(MISTRAL, _holds("[TOOL_CALLS]")),
    Family(HARMONY, _holds("<|channel|>", "to=", "functions.")),
    Family(KIMI, _holds("<|tool_calls_section_begin|>")),
    Family(DEEPSEEK_V3_2, _holds("｜DSML｜", "function_calls")),
    Family(DEEPSEEK_V4, _holds("｜DSML｜", "tool_calls")),
    Family(DEEPSEEK_R1, _holds("<｜tool▁calls▁begin｜>", "```json")),
    Family(DEEPSEEK_V3_1, _holds("<｜tool▁calls▁begin｜>")),
    Family(KIMI_3, _holds("<|open|>", "<|close|>", "<|sep|>")),
    Family(COMMAND, _holds("<|START_ACTION|>")),
    Family(COMMAND_PLUS, _holds("<|CHATBOT_TOKEN|>", "Action:", "tool_name")),
    Family(GEMMA, _holds("<|tool_call>", "<tool_call|>")),
    Family(FUNCTION_GEMMA, _holds("<start_function_call>")),
    Family(HUNYUAN, _holds("<tool_calls:opensource>")),
    Family(SEED, _holds("<seed:tool_call>")),
    Family(MINIMAX, _holds("<minimax:tool_call>", "<invoke name=")),
    Family(MINICPM, _holds('<function name="', '<param name="')),
    Family(GLM_LINE, _holds("<arg_key>", "</arg_key><arg_value>")),
    Family(GLM, _holds("<arg_key>")),
    Family(QWEN_CODER, _holds("<tool_call>", "<function=", "<parameter=")),
    Family(APERTUS, _holds("<|tools_prefix|>")),
    Family(SOLAR, _holds("<|tool_call:begin|>")),
    Family(FUNCTIONARY, _holds("<function=", "</function>")),
    Family(PHI, _holds("<|tool_call|>", "<|/tool_call|>")),
    Family(GRANITE, _holds("<|tool_call|>")),
    Family(NEMOTRON, _holds("<TOOLCALL>")),
    Family(FIREFUNCTION, _holds("functools[")),
    Family(MINIMAX_LINES, _holds("<tool_calls>", "<end_of_sentence>")),
    Family(APRIEL, _holds("<tool_calls>[")),
    Family(GIGACHAT, _holds("<|function_call|>")),
    Family(GIGACHAT_3, _holds("<|message_sep|>", "<|role_sep|>")),
    Family(LFM, _any_of(_holds("<|tool_call_start|>"), _holds("<|tool_list_start|>"), _holds('"List of tools: ["'))),
    Family(HERMES, _holds("<tool_call>")),
    Family(LLAMA, _holds("ipython", '"parameters":')),  # Llama 3.2's does without <|python_tag|>
)

_THOUGHTS = (
    Thoughts("<|channel|>analysis<|message|>", "<|end|>", often=True),
    Thoughts("<|channel>thought\n", "<channel|>"),
    Thoughts("<|START_THINKING|>", "<|END_THINKING|>"),
    Thoughts("<seed:think>", "</seed:think>"),
    Thoughts("<think:opensource>", "</think:opensource>"),
    Thoughts("<mm:think>", "</mm:think>"),
    Thoughts("[THINK]", "[/THINK]"),
    Thoughts(),
)
_KIMI_3_THOUGHTS = Thoughts("<|open|>think<|sep|>", "<|close|>think<|sep|>")
_KIMI_3_FRAMES = ("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>", "<|end_of_msg|>")
_HARMONY_FRAMES = (
    "<|start|>assistant", "<|channel|>final<|message|>", "<|channel|>commentary<|message|>", "<|channel|>commentary",
    "<|channel|>analysis", "<|end|>", "<|return|>", "<|call|>",
)  # fmt: skip


def style_of(template_source: str) -> Style:
    """Return the style that a chat template speaks of; Hermes' calls where it speaks of none that are known.

    What the template makes of a call may stand after its source: some templates put their tags together.
    """
    syntax = next((family.syntax for family in FAMILIES if family.sign(template_source)), HERMES)
    if syntax is HARMONY:
        return Style(
            syntax, _THOUGHTS[0], True, _HARMONY_FRAMES, "<|channel|>final<|message|>",
            after_thoughts="<|start|>assistant",
        )  # fmt: skip
    if syntax is KIMI_3:
        return Style(syntax, _KIMI_3_THOUGHTS, True, _KIMI_3_FRAMES, _KIMI_3_FRAMES[0], _KIMI_3_FRAMES[1])
    found = [each for each in _THOUGHTS[1:] if each.opener.strip() in template_source or each.closer in template_source]
    thoughts = found[0] if found else Thoughts()
    if "<|START_RESPONSE|>" in template_source:
        frames = ("<|START_RESPONSE|>", "<|END_RESPONSE|>")
        return Style(syntax, thoughts, bool(found), frames, *frames)
    return Style(syntax, thoughts, bool(found))
