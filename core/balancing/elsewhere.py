"""A stored answer that a backend does not have, but one on another machine may: each machine keeps its own.

    client ── previous_response_id, or /v1/responses/{id} ──> a backend: "not found" ──> one of another machine …

The backends of one machine share a folder (core/apis/response_store.py), so one of them speaks for all. Backends that
are not ours speak for themselves.
"""

from typing import Iterable, List
from urllib.parse import urlsplit

from core.balancing.backends import Backend
from core.balancing.request import read_body
from core.http.messages import Reply
from core.owners import is_owned

_CODES = ("response_not_found", "previous_response_not_found", "item_not_found")


def may_be_elsewhere(path: str, reply: Reply) -> bool:
    """Whether a backend answers a request to `path` that it does not have what another machine may have stored."""
    if not is_owned(path) or reply.status not in (400, 404):
        return False
    error = read_body(reply.body).get("error")
    return reply.status == 404 or (isinstance(error, dict) and error.get("code") in _CODES)


def neighbours(backend: Backend, backends: Iterable[Backend]) -> List[Backend]:
    """Return the backends that share a folder with one, itself included."""
    host = urlsplit(backend.url).hostname
    return [
        other for other in backends
        if other is backend or not (backend.foreign or other.foreign) and urlsplit(other.url).hostname == host
    ]  # fmt: skip
