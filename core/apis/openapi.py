"""What the OpenAPI document tells of a backend's routes: a summary, the body, the answers and the errors of each.

    operations(defaults)     by method and path; `defaults` are what the server's options make of the fields' defaults

openapi_requests.py has the bodies, openapi_answers.py the answers, openapi_events.py what streams tell.
"""

from typing import Dict, Tuple
from typing import Sequence as Many

from core.apis import openapi_answers as answers
from core.apis import openapi_events as events
from core.apis import openapi_requests as requests
from core.engine.defaults import Defaults
from core.http.openapi import JSON, About, Operation, json_answer
from core.http.schemas import STRING, Schema, choice, whole
from core.http.sse import EVENT_STREAM

ABOUT = About(
    "ComeAPI backend", "One model server: ComeAPI's own API, and those of OpenAI, llama.cpp, Anthropic and Ollama."
)
LINES = "application/x-ndjson"
_WORK = (404, 501)  # there is no such model; the model can't do it
Table = Dict[Tuple[str, str], Operation]


def operations(defaults: Defaults) -> Table:
    """Return what is told of each route."""
    return {
        **_service(), **_own(defaults), **_openai(defaults), **_responses(defaults), **_vectors(), **_native(defaults),
        **_slots(), **_anthropic(defaults), **_ollama(defaults),
    }  # fmt: skip


def _at(method: str, paths: Many[str], operation: Operation) -> Table:
    """Return one operation at several paths."""
    return {(method, path): operation for path in paths}


def _both(path: str) -> Tuple[str, str]:
    """Return a path of OpenAI's, and the same without /v1."""
    return "/v1" + path, path


def _works(summary: str, tag: str, body: Schema, whole: Schema, item: Schema, kind: str = EVENT_STREAM) -> Operation:
    """Return the operation of a route that makes the model work, and answers whole, or with a stream of items."""
    return Operation(summary, tag, {200: {JSON: whole, kind: item}}, body, errors=_WORK)


def _service() -> Table:
    health = Operation(
        "Whether a model is ready", "ComeAPI", {200: {JSON: answers.STATE}, 503: {JSON: answers.UNREADY}}
    )
    return {
        ("GET", "/"): Operation("Who this is, and its state", "ComeAPI", json_answer(answers.ROOT)),
        **_at("GET", ("/health", "/v1/health"), health),
        ("GET", "/live"): Operation(
            "Whether the process still does its work", "ComeAPI", json_answer(answers.LIVE), errors=(503,)
        ),
        ("GET", "/status"): Operation("The backend's state", "ComeAPI", json_answer(answers.STATE)),
        ("GET", "/models"): Operation("The models in the folder", "ComeAPI", json_answer(answers.ALL_MODELS)),
        ("GET", "/turn"): Operation("Wait for a free slot, for a balancer", "ComeAPI", json_answer(answers.TURN)),
        ("GET", "/metrics"): Operation("Prometheus' text", "ComeAPI", {200: {"text/plain": STRING}}),
    }


def _own(defaults: Defaults) -> Table:
    body = requests.generate(defaults)
    return _at("POST", ("/generate",), _works("Continue a prompt", "ComeAPI", body, answers.GENERATE, events.GENERATE))


def _openai(defaults: Defaults) -> Table:
    chat, completion = requests.chat(defaults), requests.completion(defaults)
    count = Operation("Count a chat's tokens", "OpenAI", json_answer(answers.COUNT), chat, errors=_WORK)
    model = Operation("One of the models", "OpenAI", json_answer(answers.MODEL_CARD), errors=(404,))
    return {
        **_at("POST", _both("/chat/completions"), _works("Answer a chat", "OpenAI", chat, answers.CHAT, events.CHAT)),
        **_at("POST", _both("/chat/completions/input_tokens"), count),
        ("POST", "/v1/completions"): _works(
            "Continue prompts", "OpenAI", completion, answers.COMPLETION, events.COMPLETION
        ),
        ("GET", "/v1/models"): Operation("The models", "OpenAI", json_answer(answers.MODELS)),
        ("GET", "/v1/models/{id}"): model,
    }


def _responses(defaults: Defaults) -> Table:
    tag, body = "OpenAI Responses", requests.responses(defaults)
    items = {"order": choice("asc", "desc", default="desc"), "limit": whole(1, 100, 20), "after": STRING}
    stored, missing = json_answer(answers.RESPONSE), (404,)
    table = {
        ("POST", ""): _works("Items in, items out", tag, body, answers.RESPONSE, events.RESPONSES),
        ("POST", "/input_tokens"): Operation("Count tokens", tag, json_answer(answers.COUNT), body, errors=_WORK),
        ("GET", "/{id}"): Operation("A stored answer", tag, stored, query={"stream": choice("false")}, errors=missing),
        ("DELETE", "/{id}"): Operation(
            "Delete a stored answer", tag, json_answer(answers.RESPONSE_DELETED), errors=missing
        ),
        ("POST", "/{id}/cancel"): Operation("Refused: a stored answer has ended", tag, {}, errors=missing),
        ("GET", "/{id}/input_items"): Operation(
            "What the model was told", tag, json_answer(answers.RESPONSE_ITEMS), query=items, errors=missing
        ),
    }  # fmt: skip
    return {
        (method, path): each for (method, end), each in table.items() for path in _both("/responses" + end)
    }


def _vectors() -> Table:
    ranks = ("/v1/rerank", "/v2/rerank", "/v1/reranking", "/rerank", "/reranking")
    native = json_answer(answers.NATIVE_EMBEDDINGS)
    return {
        ("POST", "/v1/embeddings"): Operation(
            "Texts to vectors", "OpenAI", json_answer(answers.EMBEDDINGS), requests.EMBEDDINGS, errors=_WORK
        ),
        **_at("POST", ("/embeddings", "/embedding"), Operation(
            "Texts to vectors, in llama.cpp's shape", "llama.cpp", native, requests.NATIVE_EMBEDDINGS, errors=_WORK
        )),
        **_at("POST", ranks, Operation(
            "How well documents match a query", "Reranking", json_answer(answers.RANKING), requests.RERANK, errors=_WORK
        )),
    }  # fmt: skip


def _native(defaults: Defaults) -> Table:
    tag, body = "llama.cpp", requests.native(defaults)
    infill = _works("Fill the gap between two texts", tag, requests.infill(defaults), answers.NATIVE, events.NATIVE)
    return {
        **_at("POST", ("/completion", "/completions"), _works("Continue", tag, body, answers.NATIVE, events.NATIVE)),
        ("POST", "/infill"): infill,
        ("POST", "/tokenize"): Operation("A text's tokens", tag, json_answer(answers.TOKENS), requests.TOKENIZE),
        ("POST", "/detokenize"): Operation("Tokens' text", tag, json_answer(answers.CONTENT), requests.DETOKENIZE),
        ("POST", "/apply-template"): Operation(
            "The prompt that a chat becomes", tag, json_answer(answers.PROMPT), requests.APPLY_TEMPLATE, errors=_WORK
        ),
        ("GET", "/props"): Operation("What the server would do", tag, json_answer(answers.PROPS), errors=_WORK),
    }


def _slots() -> Table:
    tag, action = "llama.cpp", {"action": choice("save", "restore", "erase")}
    return {
        ("GET", "/slots"): Operation(
            "What each slot is doing", tag, json_answer(answers.SLOTS), query={"fail_on_no_slot": STRING}
        ),
        ("POST", "/slots/{id}"): Operation(
            "Keep what a slot has evaluated", tag, json_answer(answers.SLOT), requests.SLOT_FILE, action, (404, 409),
            body_required=False,
        ),
        ("GET", "/lora-adapters"): Operation("The LoRA adapters", tag, json_answer(answers.ADAPTERS)),
        ("POST", "/lora-adapters"): Operation("Change their scales", tag, json_answer(answers.DONE), requests.SCALES),
    }  # fmt: skip


def _anthropic(defaults: Defaults) -> Table:
    tag, body = "Anthropic", requests.messages(defaults)
    count = json_answer(answers.MESSAGE_TOKENS)
    return {
        ("POST", "/v1/messages"): _works("Answer messages", tag, body, answers.MESSAGE, events.MESSAGE),
        ("POST", "/v1/messages/count_tokens"): Operation(
            "Count messages' tokens", tag, count, requests.count_messages(defaults), errors=_WORK
        ),
    }


def _ollama(defaults: Defaults) -> Table:
    tag = "Ollama"
    chat, generate = requests.ollama_chat(defaults), requests.ollama_generate(defaults)
    return {
        ("GET", "/api/tags"): Operation("The models", tag, json_answer(answers.OLLAMA_MODELS)),
        ("GET", "/api/ps"): Operation("What is loaded", tag, json_answer(answers.OLLAMA_MODELS)),
        ("POST", "/api/embed"): _works("Embed texts", tag, requests.OLLAMA_EMBED, answers.OLLAMA_EMBED, {}),
        ("POST", "/api/embeddings"): _works(
            "Embed a text", tag, requests.OLLAMA_OLD_EMBED, answers.OLLAMA_OLD_EMBED, {}
        ),
        ("GET", "/api/version"): Operation("The API's version", tag, json_answer(answers.OLLAMA_VERSION)),
        ("POST", "/api/show"): Operation(
            "What a model is", tag, json_answer(answers.OLLAMA_MODEL), requests.OLLAMA_SHOW, errors=(404,)
        ),
        ("POST", "/api/chat"): _works("Answer a chat", tag, chat, answers.OLLAMA_CHAT, events.OLLAMA_CHAT, LINES),
        ("POST", "/api/generate"): _works(
            "Answer a prompt", tag, generate, answers.OLLAMA_GENERATE, events.OLLAMA_GENERATE, LINES
        ),
    }
