"""Which API key a backend is shown: its own, the balancer's for all backends, or with `pass-key` the client's.

    Credentials.own(spec)               the headers of the balancer's own calls, such as probes
    Credentials.sent_on(request, spec)  all headers of a client's request that goes to that backend

A client's key is for the balancer. A backend may belong to somebody else, so it gets that key only with `pass-key`.
"""

from typing import Dict

from core.balancing.relaying import sent_on
from core.balancing.specs import Spec
from core.http.messages import Request

_CLIENTS = ("authorization", "x-api-key", "api-key", "proxy-authorization")


class Credentials:
    """The keys that backends are shown. `key` is for backends that have none of their own; "" for no key."""

    def __init__(self, key: str = ""):
        self._key = key

    def own(self, spec: Spec) -> Dict[str, str]:
        """Return the headers with which the balancer itself calls a backend."""
        key = spec.key or self._key
        return {"authorization": "Bearer " + key} if key else {}

    def sent_on(self, request: Request, spec: Spec) -> Dict[str, str]:
        """Return the headers that a backend gets of a client's request."""
        headers = sent_on(request)
        if spec.pass_key:
            return headers
        for name in _CLIENTS:
            headers.pop(name, None)
        headers.update(self.own(spec))
        return headers
