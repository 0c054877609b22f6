"""llama.cpp's endpoint for editors: the text between two others.

POST /infill      {"input_prefix", "input_suffix", "input_extra", "prompt", …} to what POST /completion answers

All other fields are those of POST /completion.
"""

from dataclasses import replace
from typing import Any, List, Tuple

from core import fields
from core.apis.dialect import Body, Call
from core.apis.endpoint import Endpoint
from core.apis.host import Host
from core.apis.llamacpp import Completion
from core.ask import Infill
from core.bounds import FILES
from core.errors import APIError
from core.http.routing import Route


def read_infill(body: Body) -> Infill:
    """Return what a body asks for. Raises APIError 400."""
    for name in ("input_prefix", "input_suffix"):
        if body.get(name) is None:
            raise APIError(400, "The field '%s' is missing." % name, "missing_field", name)
    return Infill(
        prefix=fields.any_text(body, "input_prefix"),
        suffix=fields.any_text(body, "input_suffix"),
        files=_files(body.get("input_extra")),
        start=fields.any_text(body, "prompt"),
    )


def _files(value: Any) -> Tuple[Tuple[str, str], ...]:
    """Return other files, each a name and a text."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _wrong("input_extra", "an array of {\"filename\": string, \"text\": string}")
    FILES.check(len(value), "input_extra")
    return tuple(_file(each, "input_extra[%d]" % index) for index, each in enumerate(value))


def _file(value: Any, name: str) -> Tuple[str, str]:
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise _wrong(name, "an object with a \"text\" that is a string")
    called = "tmp" if value.get("filename") is None else value["filename"]
    if not isinstance(called, str):
        raise _wrong(name + ".filename", "a string")
    return called, value["text"]


def _wrong(name: str, what: str) -> APIError:
    return APIError(400, "'%s' must be %s." % (name, what), "invalid_value", name)


class InfillCompletion(Completion):
    """A request of POST /infill. Raises APIError 400, 404."""

    def __init__(self, call: Call, host: Host):
        infill = read_infill(call.body)
        super().__init__(call._replace(body=dict(call.body, prompt=infill.prefix + infill.start)), host)
        self.asks = [replace(ask, prompt=infill) for ask in self.asks]


def routes(endpoint: Endpoint) -> List[Route]:
    """Return the routes."""
    return [endpoint.route("/infill", InfillCompletion)]
