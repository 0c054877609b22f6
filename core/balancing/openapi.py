"""What the OpenAPI document tells of a balancer's own routes; of all other paths, ABOUT.elsewhere."""

from core.http.openapi import ERROR, JSON, About, Operation, Operations, json_answer
from core.http.schemas import (
    FLAG,
    NUMBER,
    OBJECT,
    STRING,
    TEXT,
    WHOLE,
    answer,
    array,
    body,
    choice,
    either,
    flag,
    json_text,
    nullable,
    number,
    told,
    whole,
)  # fmt: skip
from core.http.sse import EVENT_STREAM

ABOUT = About(
    "ComeAPI balancer",
    "One address in front of several model servers. Every path that is not here goes to a backend; GET /openapi.json "
    "at a backend describes those.",
    "Any other path goes to a backend. Its answer comes as it is, with X-ComeAPI-Backend and X-ComeAPI-Queue-Ms, or "
    "one of these errors of the balancer's.",
)
_OWN, _ADMIN, _OPENAI, _OLLAMA = "ComeAPI", "Admin", "OpenAI", "Ollama"
_BACKEND = answer(
    "Backend", url=STRING, name=STRING, healthy=FLAG, state=STRING, why=STRING, error_count=WHOLE,
    avg_response_time=NUMBER, last_check=NUMBER, in_flight=WHOLE, capacity=WHOLE, weight=NUMBER, requests=WHOLE,
    model=nullable(STRING),
)  # fmt: skip
_STATUS = answer(
    "Status", total_backends=WHOLE, healthy_backends=WHOLE, queued=WHOLE, policy=STRING, adopted=WHOLE,
    backends=array(_BACKEND),
)  # fmt: skip
_MODEL = answer("Model", id=STRING, object=STRING, created=WHOLE, owned_by=STRING)
_MODELS = answer("ModelList", object=STRING, data=array(_MODEL))
_OLLAMA_MODELS = answer("OllamaModels", models=array(answer("", name=STRING, model=STRING, size=WHOLE)))
_HEALTH = answer("Health", status=STRING, version=STRING, loops=OBJECT)
_LIVE = answer("Live", status=STRING)
_UNHEALTHY = dict(ERROR, title="Unhealthy", properties=dict(ERROR["properties"], version=STRING, loops=OBJECT))
_CHANGE = dict(
    body("BackendChange", {"url": TEXT}, {
        "slots": whole(1, 100_000), "weight": number(0.001, 1000), "key": TEXT, "pass_key": flag(False),
        "drain": flag(False), "ttl": number(1, 86400), "name": TEXT,
    }),
    additionalProperties=False,
)  # fmt: skip
_REMOVED = answer("BackendRemoved", url=STRING, removed=FLAG)
_TOLD = Operation("Whether a backend is up", _OWN, {200: {JSON: _HEALTH}, 503: {JSON: _UNHEALTHY}})
_CHANGED = answer(
    "", ("url", "state", "why", "count"), t=NUMBER, kind=STRING, url=STRING, state=STRING, why=STRING, count=WHOLE
)
_SAMPLED = {
    "t": NUMBER, "requests": NUMBER, "first_token": nullable(NUMBER), "tokens": NUMBER, "queued": WHOLE, "busy": WHOLE,
    "streams": WHOLE, "carried": WHOLE,
}  # fmt: skip
_COLUMNS = {name: array(kind) for name, kind in _SAMPLED.items()}
_PAST = answer("", history=answer("", (), **_COLUMNS), changes=array(_CHANGED), policy=STRING, seconds=WHOLE)
_PRESENT = answer("", sample=answer("", (), **_SAMPLED), backends=array(_BACKEND), changes=array(_CHANGED))
_FEED = told(
    answer("FeedEvent", event=choice("history", "now"), data=json_text(either(_PAST, _PRESENT))),
    "One server-sent event: first what was, then each second what is.",
)
OPERATIONS: Operations = {
    ("GET", "/"): Operation(
        "Who this is, and its state; for a browser, the web page", _OWN,
        {200: {JSON: answer("Root", message=STRING, status=_STATUS), "text/html": STRING}},
    ),
    ("GET", "/events"): Operation(
        "What the web page shows, each second", _OWN, {200: {EVENT_STREAM: _FEED}}
    ),
    ("GET", "/health"): _TOLD,
    ("GET", "/v1/health"): _TOLD,
    ("GET", "/live"): Operation("Whether the process still does its work", _OWN, json_answer(_LIVE), errors=(503,)),
    ("GET", "/status"): Operation("All backends, and the queue", _OWN, json_answer(_STATUS)),
    ("GET", "/metrics"): Operation("Prometheus' text", _OWN, {200: {"text/plain": STRING}}),
    ("GET", "/models"): Operation(
        "The models of all backends", _OWN,
        json_answer(answer("Models", models=array(OBJECT), object=STRING, data=array(_MODEL))),
    ),
    ("GET", "/v1/models"): Operation("The same, in OpenAI's form", _OPENAI, json_answer(_MODELS)),
    ("GET", "/v1/models/{name}"): Operation("One of the models", _OPENAI, json_answer(_MODEL), errors=(404,)),
    ("GET", "/api/tags"): Operation("The models of all backends", _OLLAMA, json_answer(_OLLAMA_MODELS)),
    ("GET", "/api/ps"): Operation("What is loaded in all backends", _OLLAMA, json_answer(_OLLAMA_MODELS)),
    ("GET", "/admin/backends"): Operation(
        "All backends", _ADMIN, json_answer(answer("Backends", backends=array(_BACKEND))), errors=(404,), own_key=True
    ),
    ("POST", "/admin/backends"): Operation(
        "Add a backend, or change it", _ADMIN, {200: {JSON: _BACKEND}, 201: {JSON: _BACKEND}}, _CHANGE, errors=(404,),
        own_key=True,
    ),
    ("DELETE", "/admin/backends"): Operation(
        "Drain a backend and forget it", _ADMIN, {202: {JSON: _REMOVED}}, body("BackendName", {"url": TEXT}, {}),
        {"url": told(TEXT, "Else in the body.")}, (404,), own_key=True, body_required=False,
    ),
    ("POST", "/admin/restart"): Operation(
        "Restart the backends, one after another", _ADMIN, {202: {JSON: answer("Restarting", message=STRING)}},
        errors=(404, 409), own_key=True,
    ),
}  # fmt: skip
