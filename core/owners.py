"""Whose a stored answer is: the API key's that it was asked for with. Pure functions.

    client ── Authorization: Bearer KEY ──> balancer ── X-ComeAPI-Owner: a hash of KEY ──> backend

A balancer does not send clients' keys on, so it tells its own backends whose a request is by a hash of the key. Only
who knows the key can name the hash, so a backend believes it. All who call without a key are one owner.
"""

import hashlib
import hmac
from typing import Mapping

OWNER = "x-comeapi-owner"
NOBODY = "none"  # of a request without a key
_ABOUT = ("/v1/responses", "/responses")  # paths whose answers have owners


def owner_of(key: str) -> str:
    """Return what stands for an API key in the header: a hash of it, or NOBODY for the empty text."""
    return hmac.digest(key.encode("utf-8", "replace"), b"comeapi owner", "sha256").hex() if key else NOBODY


def asking(headers: Mapping[str, str], key: str) -> str:
    """Return the owner that a backend sees: the one that a balancer names, else that of the request's own key."""
    return headers.get(OWNER) or owner_of(key)


def is_owned(path: str) -> bool:
    """Whether a balancer must say whose a request to this path is."""
    return path.startswith(_ABOUT)


def sealed(owner: str, id: str) -> str:
    """Return what is written beside a stored answer, so that its file tells neither the key nor what else is its."""
    return hashlib.sha256(("%s %s" % (id, owner)).encode("utf-8", "replace")).hexdigest()
