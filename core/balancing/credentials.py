"""Which API key a backend is shown: its own, the balancer's for all of them, or, only where told so, the client's.

    Credentials.own(spec)              the headers of the balancer's own calls, such as probes
    Credentials.sent_on(request, spec)  all headers of a client's request that goes to that backend

A client's key is for the balancer. A backend, which may be somebody else's, gets it only with `pass-key`.
"""

from typing import Dict

from core.balancing.relaying import sent_on
from core.balancing.specs import Spec
from core.http.messages import Request

_CLIENTS = ("authorization", "x-api-key", "api-key", "proxy-authorization")


class Credentials:
    """What is shown to backends; `key` is for those that have no key of their own, "" for none."""

    def __init__(self, key: str = ""):
        self._key = key

    def own(self, spec: Spec) -> Dict[str, str]:
        """Return the headers by which the balancer itself is let in."""
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
