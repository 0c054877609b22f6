"""How each family of models writes tool calls, and what it puts its thoughts between.

    Syntax       one family's way of writing calls; HERMES, LLAMA, MISTRAL, MISTRAL_ARGS
    syntax_of    which of them a chat template speaks of

Source: the chat templates that the models' makers ship.
"""

import json
from dataclasses import dataclass
from typing import Sequence, Tuple

THINK, END_THINK = "<think>", "</think>"


@dataclass(frozen=True)
class Syntax:
    """How a family of models writes tool calls.

    `markers` are strings that may be special tokens of the model, which the engine must show as text. `opener` begins a
    call and `closer`, if there is one, ends it. Written out, calls are `before`, then each call as `head` (%s is the
    function's name), its arguments and `tail`, with `between` between two of them, then `after`.
    """

    name: str
    markers: Tuple[str, ...]
    opener: str
    head: str
    tail: str = ""
    before: str = ""
    between: str = ""
    after: str = ""
    closer: str = ""
    bare: bool = False  # a JSON object at the beginning of the content may be a call, too, without the opener
    several: bool = True  # an answer may hold more than one call

    def write(self, calls: Sequence[Tuple[str, str]]) -> str:
        """Return calls, each a name and the JSON text of its arguments, as the model would write them."""
        written = [self.head % json.dumps(name)[1:-1] + arguments + self.tail for name, arguments in calls]
        return self.before + self.between.join(written) + self.after


HERMES = Syntax(  # Hermes, Qwen 2.5 and 3, and many others
    name="hermes",
    markers=("<tool_call>", "</tool_call>", THINK, END_THINK),
    opener="<tool_call>",
    head='<tool_call>\n{"name": "%s", "arguments": ',
    tail="}\n</tool_call>",
    between="\n",
    closer="</tool_call>",
)
LLAMA = Syntax(  # Llama 3.x; its template refuses a message with two calls, so it must not write two
    name="llama",
    markers=("<|python_tag|>", THINK, END_THINK),
    opener="<|python_tag|>",
    head='{"name": "%s", "parameters": ',
    tail="}",
    bare=True,
    several=False,
)
MISTRAL = Syntax(  # Mistral 7B v0.3, Nemo, Large, Small up to 3.1
    name="mistral",
    markers=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", THINK, END_THINK),
    opener="[TOOL_CALLS]",
    head='{"name": "%s", "arguments": ',
    tail="}",
    before="[TOOL_CALLS][",
    between=", ",
    after="]",
)
MISTRAL_ARGS = Syntax(  # Mistral Small 3.2, Devstral, Magistral, Ministral 3
    name="mistral-args",
    markers=MISTRAL.markers,
    opener="[TOOL_CALLS]",
    head="[TOOL_CALLS]%s[ARGS]",
)


def syntax_of(template_source: str) -> Syntax:
    """Return the syntax that a chat template speaks of; Hermes' where it speaks of none that is known."""
    if "[TOOL_CALLS]" in template_source:
        return MISTRAL_ARGS if "[ARGS]" in template_source else MISTRAL
    if "<tool_call>" in template_source:
        return HERMES
    if "ipython" in template_source and '"parameters":' in template_source:  # Llama 3.2's does without <|python_tag|>
        return LLAMA
    return HERMES
