"""Schemas of what each API answers: the properties that clients read. Others may stand beside them."""

from core.http.openapi import ERROR
from core.http.schemas import (
    ANY,
    FLAG,
    NUMBER,
    OBJECT,
    STRING,
    WHOLE,
    Schema,
    answer,
    array,
    choice,
    either,
    nullable,
)

_LIST = choice("list")

USAGE = answer("Usage", prompt_tokens=WHOLE, completion_tokens=WHOLE, total_tokens=WHOLE, prompt_tokens_details=OBJECT)
_INPUT_USAGE = answer("InputUsage", prompt_tokens=WHOLE, total_tokens=WHOLE)
TIMINGS = answer(
    "Timings", queue_ms=NUMBER, cache_n=WHOLE, prompt_n=WHOLE, prompt_ms=NUMBER, predicted_n=WHOLE, predicted_ms=NUMBER
)
REASON = choice("stop", "length", "tool_calls")

# ------------------------------------------------------------------------------------------------ the service

TURN = answer("Turn", (), turn=FLAG, free_slots=WHOLE)
STATE = answer(
    "BackendState", ("memory_mb",), status=STRING, model=nullable(STRING), load_progress=nullable(NUMBER), name=STRING,
    version=STRING, slots=WHOLE, free_slots=WHOLE, busy_slots=WHOLE, queued=WHOLE, heartbeat_age=NUMBER, stalled=FLAG,
    largest_batch=WHOLE,
    prompt_tokens=WHOLE, cached_tokens=WHOLE, generated_tokens=WHOLE, engine_seconds=OBJECT, safe_mode=FLAG,
    memory_mb=nullable(NUMBER), carries=FLAG, fingerprint=nullable(STRING), uptime=NUMBER, pid=WHOLE,
)  # fmt: skip
UNREADY = dict(
    ERROR, title="BackendUnready", properties=dict(STATE["properties"], **ERROR["properties"])
)  # the state is missing where the server has no room even for this question
LIVE = answer("Live", status=STRING)
ROOT = answer("BackendRoot", message=STRING, status=OBJECT)
MODEL_CARD = answer("Model", id=STRING, object=choice("model"), created=WHOLE, owned_by=STRING, meta=OBJECT)
MODELS = answer("ModelList", object=_LIST, data=array(OBJECT))
ALL_MODELS = answer("Models", models=array(OBJECT), object=_LIST, data=array(OBJECT))

# --------------------------------------------------------------------------------------------------- each API

GENERATE = answer(
    "GenerateAnswer", ("completion_probabilities",), response=STRING, model=STRING,
    finish_reason=choice("stop", "length"), seed=WHOLE, usage=USAGE, timings=TIMINGS,
    completion_probabilities=array(OBJECT),
)  # fmt: skip


def _openai(title: str, kind: str, piece: Schema) -> Schema:
    """Return the schema of an OpenAI object with choices."""
    choices = array(answer("", index=WHOLE, **piece, logprobs=nullable(OBJECT), finish_reason=REASON))
    return answer(
        title, id=STRING, object=choice(kind), created=WHOLE, model=STRING, system_fingerprint=STRING, choices=choices,
        usage=USAGE, timings=TIMINGS,
    )  # fmt: skip


_CALL = answer("", id=STRING, type=choice("function"), function=answer("", name=STRING, arguments=STRING))
_MESSAGE = answer(
    "", ("reasoning_content", "tool_calls"), role=choice("assistant"), content=nullable(STRING),
    reasoning_content=STRING, tool_calls=array(_CALL),
)  # fmt: skip
CHAT = _openai("ChatAnswer", "chat.completion", {"message": _MESSAGE})
COMPLETION = _openai("CompletionAnswer", "text_completion", {"text": STRING})
COUNT = answer("TokenCount", object=choice("response.input_tokens"), input_tokens=WHOLE)
RESPONSE = answer(
    "Response", ("timings",), id=STRING, object=choice("response"), created_at=NUMBER,
    status=choice("completed", "incomplete", "failed"), error=nullable(OBJECT), incomplete_details=nullable(OBJECT),
    model=STRING, output=array(OBJECT), usage=nullable(OBJECT), timings=TIMINGS,
)  # fmt: skip
RESPONSE_DELETED = answer("ResponseDeleted", id=STRING, object=choice("response"), deleted=FLAG)
RESPONSE_ITEMS = answer(
    "ResponseItems", object=_LIST, data=array(OBJECT), has_more=FLAG, first_id=nullable(STRING),
    last_id=nullable(STRING),
)  # fmt: skip
_NUMBERS = array(NUMBER)
EMBEDDINGS = answer(
    "Embeddings", object=_LIST, model=STRING, usage=_INPUT_USAGE,
    data=array(answer("", object=choice("embedding"), index=WHOLE, embedding=either(_NUMBERS, STRING))),
)  # fmt: skip
NATIVE_EMBEDDINGS = dict(array(answer("", index=WHOLE, embedding=array(_NUMBERS))), title="NativeEmbeddings")
RANKING = dict(
    either(
        answer("", id=STRING, object=_LIST, model=STRING, usage=_INPUT_USAGE, results=array(OBJECT)),
        array(answer("", ("text",), index=WHOLE, score=NUMBER, text=STRING)),
    ),
    title="Ranking",
)
# Without required properties: `response_fields` names those that are shown.
NATIVE_ONE = dict(
    answer(
        "", index=WHOLE, content=STRING, tokens=array(WHOLE), stop=FLAG, model=STRING, tokens_predicted=WHOLE,
        tokens_evaluated=WHOLE, tokens_cached=WHOLE, generation_settings=OBJECT, prompt=ANY, has_new_line=FLAG,
        truncated=FLAG, stop_type=choice("limit", "word", "eos"), stopping_word=STRING, timings=TIMINGS,
    ),
    required=[],
)  # fmt: skip
NATIVE = dict(either(NATIVE_ONE, array(NATIVE_ONE)), title="NativeCompletion")
TOKENS = answer("Tokens", tokens=array(either(WHOLE, answer("", id=WHOLE, piece=either(STRING, array(WHOLE))))))
CONTENT = answer("Content", content=STRING)
PROMPT = answer("Prompt", prompt=STRING)
PROPS = answer(
    "Props", default_generation_settings=OBJECT, total_slots=WHOLE, model_path=STRING, model_alias=STRING,
    chat_template=STRING, bos_token=STRING, eos_token=STRING, modalities=OBJECT, build_info=STRING, is_sleeping=FLAG,
)  # fmt: skip
_SLOT = answer("", id=WHOLE, id_task=WHOLE, n_ctx=WHOLE, speculative=FLAG, is_processing=FLAG)
SLOTS = dict(array(_SLOT), title="Slots")
_SLOT_COUNTS = ("filename", "n_saved", "n_restored", "n_written", "n_read", "n_erased", "timings")
SLOT = answer(
    "SlotAnswer", _SLOT_COUNTS, id_slot=WHOLE, filename=STRING, n_saved=WHOLE, n_restored=WHOLE, n_written=WHOLE,
    n_read=WHOLE, n_erased=WHOLE, timings=OBJECT,
)  # fmt: skip
ADAPTERS = dict(
    array(answer("", id=WHOLE, name=STRING, path=STRING, scale=NUMBER, task_name=STRING, prompt_prefix=STRING)),
    title="Adapters",
)
DONE = answer("Done", success=FLAG)
STOP_REASON = choice("end_turn", "max_tokens", "stop_sequence", "tool_use")
MESSAGE_USAGE = answer(
    "", input_tokens=WHOLE, cache_creation_input_tokens=WHOLE, cache_read_input_tokens=WHOLE, output_tokens=WHOLE
)
MESSAGE = answer(
    "Message", id=STRING, type=choice("message"), role=choice("assistant"), model=STRING, content=array(OBJECT),
    stop_reason=STOP_REASON, stop_sequence=nullable(STRING), usage=MESSAGE_USAGE,
)  # fmt: skip
MESSAGE_TOKENS = answer("MessageTokens", input_tokens=WHOLE)
OLLAMA_MODELS = answer(
    "OllamaModels", models=array(answer("", name=STRING, model=STRING, modified_at=STRING, size=WHOLE, digest=STRING))
)
OLLAMA_EMBED = answer("OllamaEmbed", model=STRING, embeddings=array(array(NUMBER)), prompt_eval_count=WHOLE)
OLLAMA_OLD_EMBED = answer("OllamaEmbedding", embedding=array(NUMBER))
OLLAMA_VERSION = answer("OllamaVersion", version=STRING)
OLLAMA_MODEL = answer(
    "OllamaModel", details=OBJECT, model_info=OBJECT, template=STRING, capabilities=array(STRING), modelfile=STRING,
    parameters=STRING,
)  # fmt: skip


OLLAMA_HEAD = {"model": STRING, "created_at": STRING}
OLLAMA_REASON = choice("stop", "length")
OLLAMA_COUNTS = {name + "_count": WHOLE for name in ("prompt_eval", "eval")}
OLLAMA_COUNTS.update({name + "_duration": WHOLE for name in ("total", "load", "prompt_eval", "eval")})


def _ollama(title: str, **piece: Schema) -> Schema:
    return answer(title, ("thinking",), **OLLAMA_HEAD, **piece, done=FLAG, done_reason=OLLAMA_REASON, **OLLAMA_COUNTS)


OLLAMA_CHAT = _ollama("OllamaChat", message=answer("", role=choice("assistant"), content=STRING))
OLLAMA_GENERATE = _ollama("OllamaGenerate", response=STRING, thinking=STRING)
