"""What a server's options say of conversations: requests begin with it.

    ChatSettings (the options) ── ChatDefaults.of ──> ChatDefaults
"""

import json
from dataclasses import dataclass, field
from typing import Any, Dict

from core.chat.builtin import template_source
from core.settings import ChatSettings


@dataclass(frozen=True)
class ChatDefaults:
    """`template` takes the place of the models' own; `options` are variables for templates, which a request's replace.

    With `apart`, thoughts are told apart from the content. They may take `budget` tokens (-1: any number); one that is
    cut short ends with `budget_message`.
    """

    template: str = ""
    options: Dict[str, Any] = field(default_factory=dict)
    apart: bool = True
    budget: int = -1
    budget_message: str = ""

    @classmethod
    def of(cls, settings: ChatSettings) -> "ChatDefaults":
        """Return what the options say. Raises ValueError where there is no such template."""
        options = json.loads(settings.chat_template_kwargs or "{}")
        if settings.reasoning_budget == 0 or settings.reasoning != "auto":
            thinks = settings.reasoning == "on" and settings.reasoning_budget != 0
            options = dict({"enable_thinking": thinks}, **options)
        try:
            source = template_source(settings.chat_template)
        except (OSError, ValueError) as error:
            raise ValueError("--chat-template: %s" % error) from error
        apart = settings.reasoning_format != "none"
        return cls(source, options, apart, settings.reasoning_budget, settings.reasoning_budget_message)
