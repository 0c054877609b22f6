"""Schemas of the bodies that each API takes, from the same tables of ranges and bounds by which they are checked.

Each function returns one body's schema; `defaults` are what the server's options make of the fields' defaults.
README.md has every field with its reason; here are those that are served.
"""

from dataclasses import asdict
from typing import Dict

from core.adapters import MOST_SCALE
from core.apis.openai_shapes import BUDGETS, DEFAULTS, EFFORTS
from core.ask import UNLIMITED
from core.bounds import (
    ADAPTERS,
    ANSWERS,
    BIAS_LENGTH,
    BREAKER_LENGTH,
    BREAKERS,
    CALLS,
    DOCUMENTS,
    FIELDS,
    FILES,
    LOGIT_BIAS,
    MESSAGES,
    PROMPTS,
    STOP_LENGTH,
    STOPS,
    TOOLS,
)  # fmt: skip
from core.engine.defaults import Defaults
from core.http.schemas import (
    ANY,
    FLAG,
    NUMBER,
    OBJECT,
    STRING,
    TEXT,
    WHOLE,
    Schema,
    array,
    body,
    choice,
    either,
    flag,
    number,
    told,
    whole,
)  # fmt: skip
from core.sampling import INTEGERS, NUMBERS, Sampling

Fields = Dict[str, Schema]

_STOP = either(dict(TEXT, maxLength=STOP_LENGTH.most), array(dict(TEXT, maxLength=STOP_LENGTH.most), STOPS.most))
_NAME = told(TEXT, "A model's name. Without it: the model that is loaded.")
_IDS = array(either(WHOLE, STRING), least=1)
_PARTS = array(body("", {"type": choice("text"), "text": STRING}, {}), least=1)
_PROMPT_SHAPES = (STRING, _IDS, body("", {"prompt_string": STRING}, {}), body("", {"content": _PARTS}, {}))
_PROMPTS = either(*_PROMPT_SHAPES, array(either(*_PROMPT_SHAPES), PROMPTS.most, 1))
_SCHEMA = told(OBJECT, "A JSON schema that the answer must follow.")
_LIMIT = whole(-1, UNLIMITED)
_ADAPTER = told(whole(0, ADAPTERS.most - 1), "One of those that GET /lora-adapters lists.")
ADAPTER_SCALES = array(
    body("", {"id": _ADAPTER}, {"scale": number(-MOST_SCALE, MOST_SCALE, 0.0)}), ADAPTERS.most
)

# ------------------------------------------------------------------------------------- what several APIs have


def _sampling(sampling: Sampling) -> Fields:
    """Return the samplers' fields."""
    own = asdict(sampling)
    made = {name: number(*bounds, own[name]) for name, bounds in NUMBERS.items()}
    made.update({name: whole(*bounds, own[name]) for name, bounds in INTEGERS.items()})
    breakers = array(dict(TEXT, maxLength=BREAKER_LENGTH.most), BREAKERS.most)
    return dict(
        made,
        ignore_eos=flag(own["ignore_eos"]),
        post_sampling_probs=flag(own["post_sampling_probs"]),
        grammar=told(STRING, "A GBNF grammar that the answer must follow."),
        logit_bias=_bias(),
        dry_sequence_breakers=dict(breakers, default=list(own["dry_sequence_breakers"])),
        samplers=either(STRING, array(STRING)),
    )


def _bias() -> Schema:
    bias = either(NUMBER, {"const": False})
    names = {"maxLength": BIAS_LENGTH.most, "minLength": 1}
    pair = array(either(WHOLE, dict(STRING, **names), NUMBER, {"const": False}), 2, 2)
    by_name = {"type": "object", "additionalProperties": bias, "propertyNames": names, "maxProperties": LOGIT_BIAS.most}
    return either(by_name, array(pair, LOGIT_BIAS.most))


def _common(defaults: Defaults, own: Sampling = DEFAULTS) -> Fields:
    """Return the fields of every API that generates."""
    return dict(
        _sampling(defaults.over(own)),
        stop=_STOP,
        stream=flag(False),
        cache_prompt=flag(defaults.cache_prompt),
        lora=ADAPTER_SCALES,
    )


def _extras(defaults: Defaults) -> Fields:
    """Return llama-server's fields that say what is told beside the answer."""
    return {
        "id_slot": told(WHOLE, "That slot alone; -1 for any."),
        "n_keep": whole(-1, UNLIMITED - 1),
        "n_discard": whole(0, UNLIMITED - 1, 0),
        "t_max_predict_ms": number(-1.0, 1e12, -1.0),
        "return_progress": flag(False),
        "timings_per_token": flag(False),
        "verbose": flag(defaults.verbose),
        "response_fields": either(TEXT, array(TEXT, FIELDS.most)),
    }


def _template() -> Fields:
    return {
        "chat_template_kwargs": OBJECT,
        "reasoning_effort": choice("none", *EFFORTS),
        "add_generation_prompt": flag(True),
        "continue_final_message": flag(True),
    }


def _limits(default: int) -> Fields:
    """Return the names of the most tokens of an answer."""
    limit = dict(_LIMIT, default=-1 if default >= UNLIMITED else default)
    return {"max_completion_tokens": _LIMIT, "max_tokens": limit, "n_predict": _LIMIT}


def _tools() -> Fields:
    function = body("", {"name": TEXT}, {"description": STRING, "parameters": OBJECT, "strict": FLAG})
    tool = body("", {"type": choice("function"), "function": function}, {})
    return {
        "tools": array(tool, TOOLS.most),
        "tool_choice": either(choice("none", "auto", "required"), OBJECT),
        "parallel_tool_calls": FLAG,
    }


def _messages() -> Schema:
    """Return the schema of a chat's messages."""
    parts = [body("", {"type": choice(kind), kind: STRING}, {}) for kind in ("text", "refusal")]
    content = either(STRING, array(either(*parts), least=1))
    said = body("", {"role": choice("system", "developer", "user", "function"), "content": content}, {})
    result = body("", {"role": choice("tool"), "content": content, "tool_call_id": TEXT}, {})
    function = body("", {"name": TEXT, "arguments": told(STRING, "JSON.")}, {})
    calls = array(body("", {"id": TEXT, "type": choice("function"), "function": function}, {}), CALLS.most)
    answered = body("", {"role": choice("assistant")}, {
        "content": content, "reasoning_content": STRING, "tool_calls": calls,
    })  # fmt: skip
    return array(either(said, result, answered), MESSAGES.most, 1)


# --------------------------------------------------------------------------------------------- each API's own


def generate(defaults: Defaults) -> Schema:
    """POST /generate."""
    common = _common(defaults, Sampling())
    limit = whole(1, UNLIMITED, defaults.limit(100))
    return body("GenerateRequest", {"prompt": TEXT, "model_name": TEXT}, dict(common, max_tokens=limit))


def chat(defaults: Defaults, title: str = "ChatRequest") -> Schema:
    """POST /v1/chat/completions."""
    count = whole(1, ANSWERS.most, 1)
    own = {
        "model": _NAME, "n": count, "stream_options": OBJECT, "logprobs": flag(False), "top_logprobs": whole(0, 20, 0),
        "response_format": body("", {"type": choice("text", "json_object", "json_schema")}, {"json_schema": OBJECT}),
        "json_schema": _SCHEMA, "reasoning_format": choice("auto", "deepseek", "none"),
        "post_sampling_probs": {"enum": [False]}, "response_fields": array(ANY, 0), "reasoning_budget_message": STRING,
        **dict.fromkeys(BUDGETS, whole(-1, UNLIMITED - 1, -1)),
    }  # fmt: skip
    limits = _limits(defaults.limit(UNLIMITED))
    fields = dict(_common(defaults), **_extras(defaults), **limits, **_template(), **_tools())
    return body(title, {"messages": _messages()}, dict(fields, **own))


def completion(defaults: Defaults) -> Schema:
    """POST /v1/completions."""
    count = whole(1, ANSWERS.most, 1)
    own = {
        "model": _NAME, "n": count, "best_of": whole(1, ANSWERS.most), "suffix": STRING, "echo": flag(False),
        "logprobs": whole(0, 20), "stream_options": OBJECT, "post_sampling_probs": {"enum": [False]},
        "response_fields": array(ANY, 0),
    }  # fmt: skip
    fields = dict(_common(defaults), **_extras(defaults), **_limits(defaults.limit(16)))
    return body("CompletionRequest", {"prompt": _PROMPTS}, dict(fields, **own))


def _native(defaults: Defaults) -> Fields:
    own = {
        "model": _NAME, "n": whole(1, ANSWERS.most, 1), "n_cmpl": whole(1, ANSWERS.most), "return_tokens": flag(False),
        "json_schema": _SCHEMA, "logprobs": whole(0, 100, 0),
    }  # fmt: skip
    return dict(_common(defaults), **_extras(defaults), **_limits(defaults.limit(UNLIMITED)), **own)


def native(defaults: Defaults) -> Schema:
    """POST /completion."""
    return body("NativeCompletionRequest", {"prompt": _PROMPTS}, _native(defaults))


def infill(defaults: Defaults) -> Schema:
    """POST /infill."""
    files = array(body("", {"text": STRING}, {"filename": STRING}), FILES.most)
    gap = {"input_prefix": STRING, "input_suffix": STRING}
    return body("InfillRequest", gap, dict(_native(defaults), prompt=STRING, input_extra=files))


def responses(defaults: Defaults) -> Schema:
    """POST /v1/responses."""
    tool = body("", {"type": choice("function"), "name": TEXT}, {"description": STRING, "parameters": OBJECT})
    own: Fields = {
        "model": _NAME, "instructions": STRING, "previous_response_id": TEXT, "store": flag(True),
        "max_output_tokens": _LIMIT, "tools": array(tool, TOOLS.most),
        "tool_choice": either(choice("none", "auto", "required"), OBJECT), "parallel_tool_calls": flag(True),
        "text": OBJECT, "reasoning": OBJECT, "include": either(TEXT, array(TEXT, STOPS.most)),
        "top_logprobs": whole(0, 20, 0), "metadata": dict(OBJECT, maxProperties=16), "user": TEXT,
        "truncation": choice("disabled"), "background": {"enum": [False]}, "stream_options": OBJECT,
        "chat_template_kwargs": OBJECT,
    }  # fmt: skip
    items = array(OBJECT, MESSAGES.most, 1)
    return body("ResponseRequest", {"input": either(STRING, items)}, dict(_common(defaults), **own))


def _anthropic(required: Fields, defaults: Defaults, title: str) -> Schema:
    content = either(STRING, array(body("", {"type": STRING}, {})))
    message = body("", {"role": choice("user", "assistant", "system"), "content": content}, {})
    tool = body("", {"name": TEXT}, {"description": STRING, "input_schema": OBJECT})
    fields = dict(
        _common(defaults), model=_NAME, system=either(STRING, array(body("", {"text": STRING}, {}))),
        stop_sequences=_STOP, tools=array(tool, TOOLS.most), thinking=OBJECT, metadata=OBJECT,
        tool_choice=body("", {"type": choice("auto", "any", "tool", "none")}, {}),
    )  # fmt: skip
    del fields["stop"]
    return body(title, dict(required, messages=array(message, MESSAGES.most, 1)), fields)


def messages(defaults: Defaults) -> Schema:
    """POST /v1/messages."""
    return _anthropic({"max_tokens": whole(1, UNLIMITED)}, defaults, "MessagesRequest")


def count_messages(defaults: Defaults) -> Schema:
    """POST /v1/messages/count_tokens."""
    return _anthropic({}, defaults, "CountMessagesRequest")


def _ollama(defaults: Defaults) -> Fields:
    limit = whole(-2, UNLIMITED, None if defaults.most_tokens is None else min(defaults.most_tokens, UNLIMITED))
    options = dict(_sampling(defaults.over(DEFAULTS)), num_predict=limit, stop=_STOP)
    return {
        "format": either(choice("", "json"), OBJECT), "think": FLAG, "stream": flag(True),
        "options": body("", {}, options), "keep_alive": ANY, "lora": ADAPTER_SCALES,
    }  # fmt: skip


def ollama_chat(defaults: Defaults) -> Schema:
    """POST /api/chat."""
    calls = array(body("", {"function": body("", {"name": TEXT}, {"arguments": OBJECT})}, {}), CALLS.most)
    more = {"thinking": STRING, "tool_calls": calls, "images": array(ANY, 0)}
    message = body("", {"role": choice("system", "user", "assistant", "tool"), "content": STRING}, more)
    own = {"tools": _tools()["tools"]}
    required = {"model": TEXT, "messages": array(message, MESSAGES.most, 1)}
    return body("OllamaChatRequest", required, dict(_ollama(defaults), **own))


def ollama_generate(defaults: Defaults) -> Schema:
    """POST /api/generate."""
    own = {
        "prompt": STRING, "system": TEXT, "raw": flag(False), "suffix": STRING, "images": array(ANY, 0),
    }  # fmt: skip
    return body("OllamaGenerateRequest", {"model": TEXT}, dict(_ollama(defaults), **own))


# ------------------------------------------------------------------------------------------ without defaults

OLLAMA_SHOW = body("OllamaShowRequest", {"model": TEXT}, {})
_OLLAMA_IGNORED: Fields = {"options": OBJECT, "keep_alive": ANY, "lora": ADAPTER_SCALES}
OLLAMA_EMBED = body(
    "OllamaEmbedRequest", {"model": TEXT}, dict(
        _OLLAMA_IGNORED, input=either(TEXT, array(TEXT, PROMPTS.most)), truncate=flag(True),
        dimensions=whole(0, 1 << 20),
    )
)  # fmt: skip
OLLAMA_OLD_EMBED = body("OllamaEmbeddingsRequest", {"model": TEXT}, dict(_OLLAMA_IGNORED, prompt=STRING))
_VECTORS: Fields = {
    "model": _NAME, "dimensions": whole(1, 1 << 20), "embd_normalize": told(whole(-1, 1000), "-1: as they are."),
    "lora": ADAPTER_SCALES,
}  # fmt: skip
EMBEDDINGS = body(
    "EmbeddingsRequest", {"input": _PROMPTS}, dict(_VECTORS, encoding_format=choice("float", "base64", default="float"))
)
NATIVE_EMBEDDINGS = dict(
    body("NativeEmbeddingsRequest", {}, dict(_VECTORS, encoding_format=choice("float"))),
    anyOf=[body("", {name: _PROMPTS}, {}) for name in ("input", "content")],
)
_DOCUMENTS = array(either(STRING, body("", {"text": STRING}, {})), DOCUMENTS.most, 1)
RERANK = dict(
    body("RerankRequest", {"query": TEXT}, {
        "model": _NAME, "top_n": whole(1, 1 << 31), "return_documents": flag(False), "return_text": flag(False),
        "lora": ADAPTER_SCALES,
    }),
    anyOf=[body("", {name: _DOCUMENTS}, {}) for name in ("documents", "texts")],
)  # fmt: skip
TOKENIZE = body("TokenizeRequest", {}, {
    "add_special": flag(False), "parse_special": flag(True), "with_pieces": flag(False),
})  # fmt: skip
TOKENIZE["properties"]["content"] = STRING
DETOKENIZE = body("DetokenizeRequest", {"tokens": array({"type": "integer", "minimum": 0})}, {})
APPLY_TEMPLATE = body(
    "ApplyTemplateRequest", {"messages": _messages()}, dict(_template(), model=_NAME, **_tools())
)
SLOT_FILE = body("SlotRequest", {}, {"filename": told(TEXT, "For save and restore: a file's name.")})
SCALES = dict(ADAPTER_SCALES, title="AdapterScales")
