"""The OpenAPI document of a service, made from its own routes, so that no route can be left out.

    routes ──┐
             ├── described(about, routes, operations, keyed) ──> the routes, and GET /openapi.json beside them
    operations, by method and path: what is told of each route

A route without an operation raises KeyError when the service is made. An error that any request may get is written
here once. Source: the OpenAPI Specification 3.1.0.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Dict, List, Mapping, NamedTuple, Optional, Tuple

from core.http.messages import Reply
from core.http.routing import Route
from core.http.schemas import OBJECT, STRING, Schema, answer, body, nullable

PATH = "/openapi.json"
JSON = "application/json"
Content = Dict[str, Schema]  # by the content's type

_ERRORS = {
    400: "The request is malformed, or a field is wrong: `param` names it.",
    401: "The key is missing, or is not one of this server's.",
    403: "A foreign web page, or a name that this server does not answer to.",
    404: "There is no such thing: a model, a backend, a stored answer, or the path is switched off.",
    408: "The request came too slowly.",
    409: "The state of things does not allow it.",
    411: "The body's length is not told.",
    413: "The body is too large.",
    415: "The body is in a coding that this server does not take.",
    429: "A limit of the key is reached; Retry-After says when to try again.",
    431: "The headers are too large.",
    500: "The server failed: a model file that can't be loaded, or a defect.",
    501: "This server, or its model, can't do it.",
    502: "The backend broke off.",
    503: "Nothing is free or ready now; Retry-After, where there is one, says when to try again.",
    504: "The backend is too slow.",
}
_ELSEWHERE = (400, 401, 403, 404, 413, 429, 500, 502, 503, 504)  # of a balancer
_ANY_REQUEST = (400, 403, 408, 431, 500, 503)
_ANY_BODY = (411, 413, 415, 501)  # a request may bring a body, whatever its method
_KEY = "An API key; below /admin, the admin key."
_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer", "description": _KEY},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": _KEY},
}
ERROR = body("Error", {"error": body("", {
    "message": STRING, "type": STRING, "param": nullable(STRING), "code": nullable(STRING),
}, {})}, {})  # fmt: skip


class About(NamedTuple):
    """What a document says of its service; `elsewhere`: of the paths that no route names."""

    title: str
    description: str
    elsewhere: str = ""


@dataclass(frozen=True)
class Operation:
    """What is told of one route.

    `answers` are those of a request that works, by status; `errors` are those that not any request may get. `query`
    has the schemas of the query's fields. `own_key`: the handler checks a key that is not the service's.
    """

    summary: str
    tag: str
    answers: Mapping[int, Content]
    body: Optional[Schema] = None
    query: Mapping[str, Schema] = field(default_factory=dict)
    errors: Tuple[int, ...] = ()
    own_key: bool = False
    body_required: bool = True


Operations = Mapping[Tuple[str, str], Operation]  # by method and path


def json_answer(schema: Schema) -> Dict[int, Content]:
    """Return the answers of a route that answers 200 with JSON."""
    return {200: {JSON: schema}}


def described(about: About, routes: List[Route], operations: Operations, keyed: bool) -> List[Route]:
    """Return the routes with GET /openapi.json, which tells them all. `keyed`: requests need an API key.

    Raises KeyError for a route that is in no operation.
    """
    data = b""
    every = [*routes, Route("GET", PATH, lambda request: Reply(data))]
    data = json.dumps(document(about, every, {**operations, **_OWN}, keyed), ensure_ascii=False).encode("utf-8")
    return every


def document(about: About, routes: List[Route], operations: Operations, keyed: bool) -> Schema:
    """Return the document. Raises KeyError for a route that is in no operation."""
    components = _Components()
    paths: Dict[str, Schema] = {}
    for route in routes:
        operation = operations[route.method, route.path]
        paths.setdefault(route.path, {})[route.method.lower()] = _told(route, operation, keyed, components)
    made: Schema = {
        "openapi": "3.1.0",
        "info": {"title": about.title, "description": about.description, "version": "1"},
        "paths": paths,
        "components": components.told(),
    }
    if about.elsewhere:
        made["x-other-paths"] = {"description": about.elsewhere, "responses": components.errors(_ELSEWHERE)}
    return made


class _Components:
    """What operations share: schemas by their titles, and errors."""

    def __init__(self) -> None:
        self._schemas: Dict[str, Schema] = {"Error": ERROR}
        self._responses: Dict[str, Schema] = {}

    def schema(self, schema: Schema) -> Schema:
        """Return a reference to a schema that has a title, any other as it is. Raises ValueError for one title of two.
        """
        title = schema.get("title")
        if not title:
            return schema
        if self._schemas.setdefault(title, schema) != schema:
            raise ValueError("two schemas are called %s" % title)
        return {"$ref": "#/components/schemas/" + title}

    def errors(self, statuses: Tuple[int, ...]) -> Schema:
        """Return the answers of errors, by status."""
        for status in statuses:
            content = {JSON: {"schema": self.schema(ERROR)}}
            self._responses[str(status)] = {"description": _ERRORS[status], "content": content}
        return {str(status): {"$ref": "#/components/responses/%d" % status} for status in sorted(statuses)}

    def told(self) -> Schema:
        """Return them all."""
        return {"schemas": self._schemas, "responses": self._responses, "securitySchemes": _KEYS}


def _told(route: Route, operation: Operation, keyed: bool, components: _Components) -> Schema:
    """Return what the document says of one route."""
    locked = operation.own_key or (keyed and not route.public)
    errors = (401,) * locked + (429,) * (keyed and route.counts and not route.public)
    made: Schema = {
        "operationId": re.sub(r"\W+", "_", "%s %s" % (route.method.lower(), route.path.strip("/"))).strip("_"),
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": _responses(operation, errors, components),
        "security": _security(route) if locked else [],
    }
    parameters = [_parameter(name, "path", STRING) for name in re.findall(r"\{(\w+)\}", route.path)]
    parameters += [_parameter(name, "query", schema) for name, schema in operation.query.items()]
    if parameters:
        made["parameters"] = parameters
    if operation.body is not None:
        content = {JSON: {"schema": components.schema(operation.body)}}
        made["requestBody"] = {"required": operation.body_required, "content": content}
    return made


def _security(route: Route) -> List[Schema]:
    """Return the ways to be let in; where some requests need no key, none is one."""
    ways: List[Schema] = [{name: []} for name in _KEYS]
    return ways if route.keyless is Route.keyless else [*ways, {}]


def _responses(operation: Operation, more: Tuple[int, ...], components: _Components) -> Schema:
    """Return the answers of a route by status: those of a request that works, and errors."""
    errors = {*_ANY_REQUEST, *_ANY_BODY, *operation.errors, *more} - set(operation.answers)
    answers = {
        str(status): {
            "description": operation.summary,
            "content": {kind: {"schema": components.schema(schema)} for kind, schema in content.items()},
        }
        for status, content in operation.answers.items()
    }
    return dict(answers, **components.errors(tuple(errors)))


def _parameter(name: str, place: str, schema: Schema) -> Schema:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


_OWN: Operations = {
    ("GET", PATH): Operation(
        "This document", "ComeAPI", json_answer(answer("OpenAPI", openapi=STRING, info=OBJECT, paths=OBJECT))
    )
}
