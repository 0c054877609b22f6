"""What web pages may do here: nothing, unless they are this server's own, or an option names where they come from.

A browser sends requests for any page that its user looks at, to any address that the user's machine reaches. So there
are two checks, which curl and the official clients never notice:

    Hosts      the name that we are called by: against DNS rebinding, where a page's own name comes to mean our address
    Origins    the page that a browser calls for, and the headers that let it read the answer (CORS)

Sources: the Fetch standard (Origin, CORS), W3C Fetch Metadata, Go's net/http.CrossOriginProtection, CVE-2024-28224.
"""

import ipaddress
import re
import socket
from typing import Mapping, Optional, Sequence, Tuple

from core.errors import APIError, shown
from core.http.requesthead import split_authority

ANY = "*"
Headers = Tuple[Tuple[str, str], ...]
_PRIVATE = (".local", ".internal", ".home.arpa")  # no public page can have a name below these
_PORTS = {"http": 80, "https": 443}
_VARY: Headers = (("Vary", "Origin"),)
_EXPOSE: Headers = (("Access-Control-Expose-Headers", "X-Request-Id"),)
_PREFLIGHT: Headers = (
    ("Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS"),
    ("Access-Control-Allow-Headers", "*, Authorization"),
    ("Access-Control-Max-Age", "86400"),
)


def check_name(text: str) -> str:
    """Check what --allowed-host takes: NAME, .DOMAIN or *; return it in lower case. Raises ValueError."""
    parts = split_authority(text[1:] if text.startswith(".") else text)
    if text != ANY and (parts is None or parts[1] is not None):
        raise ValueError("%r is not a host's name, a .domain or *" % text)
    return text.lower()


def check_origin(text: str) -> str:
    """Check what --cors-origin takes, SCHEME://HOST[:PORT] or *; return it as browsers write it. Raises ValueError."""
    origin = text.lower().rstrip("/")
    if origin != ANY and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s,]+", origin):
        raise ValueError("%r is not an origin such as https://chat.example.com" % text)
    scheme, _, rest = origin.partition("://")
    default = ":%d" % _PORTS.get(scheme, 0)
    return origin[: -len(default)] if rest.endswith(default) else origin


class Hosts:
    """The names that a request may call us by.

    Addresses, since rebinding needs a name; loopback's names, this machine's, the one listened on, and those allowed.
    Where others than this machine can reach us, also names that no public page can have: those without a dot, as
    containers and LANs use them, and those below .local, .internal and .home.arpa.
    """

    def __init__(self, listens_on: str, allowed: Sequence[str]):
        machine = socket.gethostname().lower()
        self._any = ANY in allowed
        self._names = {"localhost", machine, machine.partition(".")[0], listens_on.lower()}
        self._names |= {name[1:] if name.startswith(".") else name for name in allowed}
        self._below = (".localhost",) + tuple(name for name in allowed if name.startswith("."))
        self._open = not _is_loopback(listens_on)

    def allow(self, host: str) -> bool:
        """Whether a Host header, which is well-formed or empty, is one of ours. An empty one comes from no browser."""
        parts = split_authority(host)
        if self._any or parts is None:
            return True
        name = parts[0].rstrip(".")
        if name in self._names or name.endswith(self._below) or _is_address(name):
            return True
        return self._open and ("." not in name or name.endswith(_PRIVATE))


def host_error(host: str) -> APIError:
    """Return the error of a request that calls us by a name that is not ours."""
    name = shown((split_authority(host) or (host, None))[0])
    message = "This server does not go by the name %s. If it is to, start it with --allowed-host %s." % (name, name)
    return APIError(403, message, "host_not_allowed")


class Origins:
    """Which pages may call, and read the answers: our own, and those of the origins that --cors-origin names."""

    def __init__(self, allowed: Sequence[str]):
        self._any = ANY in allowed
        self._allowed = frozenset(allowed)

    def check(self, method: str, path: str, headers: Mapping[str, str], public: bool) -> None:
        """Refuse a request that a browser sends for a foreign page, but for reading what is public.

        Raises APIError 403. Whatever is no browser sends none of these headers.
        """
        reads = method in ("GET", "HEAD")
        if self._any or (public and reads):
            return
        origin = headers.get("origin")
        if origin:
            if origin not in self._allowed and not _same_origin(origin, headers.get("host", "")):
                raise _origin_error(origin)
        elif headers.get("sec-fetch-site", "") in ("cross-site", "same-site"):
            follows_link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
            if not (follows_link and reads and path == "/"):
                raise _origin_error("another site")

    def preflight(self, headers: Mapping[str, str]) -> Headers:
        """Return the headers that answer a preflight. Raises APIError 403 where the page may not call."""
        self.check("OPTIONS", "", headers, public=False)
        return _PREFLIGHT

    def headers(self, origin: str) -> Headers:
        """Return the headers that let a page read an answer, or keep caches from giving it to another one."""
        if self._any:
            return (("Access-Control-Allow-Origin", ANY),) + _EXPOSE
        if origin in self._allowed:
            return (("Access-Control-Allow-Origin", origin),) + _EXPOSE + _VARY
        return _VARY if self._allowed else ()


def _origin_error(origin: str) -> APIError:
    message = "Web pages of %s may not call this server; --cors-origin names those that may." % shown(origin)
    return APIError(403, message, "origin_not_allowed")


def _same_origin(origin: str, host: str) -> bool:
    """Whether an Origin is that of the Host. The scheme is left out: there may be a proxy with TLS before us."""
    scheme, _, rest = origin.partition("://")
    page, ours = split_authority(rest), split_authority(host)
    if page is None or ours is None or scheme not in _PORTS:
        return False
    return page[0] == ours[0] and _port(page[1], scheme) == _port(ours[1], scheme)


def _port(port: Optional[int], scheme: str) -> int:
    return _PORTS[scheme] if port is None else port


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback if _is_address(host) else host.lower() == "localhost"
