"""Which web pages may call this server: its own, and those of the origins that an option names.

A browser lets every page send requests to any address that the user's machine reaches. Two checks keep foreign pages
out. They never refuse curl or the official clients.

    Hosts      checks the name that a request calls us by. This stops DNS rebinding: the owner of a page makes the
               page's own name resolve to our address
    Origins    checks which page a request comes from, and gives the headers that let it read the answer (CORS)

Sources: the Fetch standard (Origin, CORS), W3C Fetch Metadata, Go's net/http.CrossOriginProtection, CVE-2024-28224.
"""

import ipaddress
import re
import socket
from typing import Mapping, Optional, Sequence, Tuple

from core.errors import APIError, shown
from core.http.requesthead import split_authority

ANY = "*"
LOCAL = "localhost"  # among the origins: the pages of this machine, on any port
Headers = Tuple[Tuple[str, str], ...]
_PRIVATE = (".local", ".internal", ".home.arpa")  # no public page can have a name below these
_PORTS = {"http": 80, "https": 443}
_LOCAL_PAGE = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?")
_NAMES = re.compile(r"[ \t]*[!#$%&'*+.^_`|~0-9A-Za-z-]+([ \t]*,[ \t]*[!#$%&'*+.^_`|~0-9A-Za-z-]+)*[ \t]*", re.ASCII)
_LONGEST_ASKED = 4096  # characters of a list of headers' names
_VARY: Headers = (("Vary", "Origin"),)
_EXPOSE: Headers = (("Access-Control-Expose-Headers", "X-Request-Id"),)
_PREFLIGHT: Headers = (
    ("Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS"),
    ("Access-Control-Allow-Credentials", "true"),
    ("Access-Control-Max-Age", "86400"),
)


def check_name(text: str) -> str:
    """Check what --allowed-host takes: NAME, .DOMAIN or *; return it in lower case. Raises ValueError."""
    parts = split_authority(text[1:] if text.startswith(".") else text)
    if text != ANY and (parts is None or parts[1] is not None):
        raise ValueError("%r is not a host's name, a .domain or *" % text)
    return text.lower()


def check_origin(text: str) -> str:
    """Check what --cors-origin takes: SCHEME://HOST[:PORT], localhost or *. Return it as browsers write it.

    Raises ValueError.
    """
    origin = text.lower().rstrip("/")
    if origin not in (ANY, LOCAL) and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s,]+", origin):
        raise ValueError("%r is not an origin such as https://chat.example.com" % text)
    scheme, _, rest = origin.partition("://")
    default = ":%d" % _PORTS.get(scheme, 0)
    return origin[: -len(default)] if rest.endswith(default) else origin


class Hosts:
    """The names that a request may call us by.

    Always: addresses (rebinding needs a name), the names of loopback and of this machine, the name that the server
    listens on, and those that --allowed-host names. Where other machines can reach us, also names that no public page
    can have: those without a dot, as containers and LANs use them, and those below .local, .internal and .home.arpa.
    """

    def __init__(self, listens_on: str, allowed: Sequence[str]):
        machine = socket.gethostname().lower()
        addresses = [address.strip().lower() for address in listens_on.split(",")]
        self._any = ANY in allowed
        self._names = {"localhost", machine, machine.partition(".")[0], *addresses}
        self._names |= {name[1:] if name.startswith(".") else name for name in allowed}
        self._below = (".localhost",) + tuple(name for name in allowed if name.startswith("."))
        self._open = not all(_is_loopback(address) for address in addresses)

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
    """The pages that may call and read the answers: our own, and those of the origins that --cors-origin names."""

    def __init__(self, allowed: Sequence[str]):
        self._any = ANY in allowed
        self._local = LOCAL in allowed
        self._allowed = frozenset(allowed) - {ANY, LOCAL}

    def check(self, method: str, path: str, headers: Mapping[str, str], public: bool) -> None:
        """Refuse a request that a browser sends for a foreign page, unless it only reads what is public.

        Raises APIError 403. Only browsers send the headers that are looked at.
        """
        reads = method in ("GET", "HEAD")
        if self._any or (public and reads):
            return
        origin = headers.get("origin")
        if origin:
            if not self._names(origin) and not _same_origin(origin, headers.get("host", "")):
                raise _origin_error(origin)
        elif headers.get("sec-fetch-site", "") in ("cross-site", "same-site"):
            follows_link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
            if not (follows_link and reads and path == "/"):
                raise _origin_error("another site")

    def preflight(self, headers: Mapping[str, str]) -> Headers:
        """Return the headers that answer a preflight: none for a page that may not call, which its browser stops.

        Whatever headers the browser asks for may be sent. They are named to it, since "*" does not mean Authorization,
        nor anything at all for a request with credentials (Fetch, section 4.9).
        """
        if not self._names(headers.get("origin", "")):
            return ()
        asked = headers.get("access-control-request-headers", "")
        named = len(asked) <= _LONGEST_ASKED and _NAMES.fullmatch(asked)
        return _PREFLIGHT + (("Access-Control-Allow-Headers", asked if named else ANY),)

    def headers(self, origin: str) -> Headers:
        """Return the headers that let this page read an answer, and keep caches from giving it to another page."""
        allow: Headers = (("Access-Control-Allow-Origin", origin),) if origin and self._names(origin) else ()
        return allow + (_EXPOSE if allow else ()) + (_VARY if self._any or self._local or self._allowed else ())

    def _names(self, origin: str) -> bool:
        """Whether an option names this origin."""
        return self._any or origin in self._allowed or (self._local and bool(_LOCAL_PAGE.fullmatch(origin)))


def _origin_error(origin: str) -> APIError:
    message = "Web pages of %s may not call this server; --cors-origin names those that may." % shown(origin)
    return APIError(403, message, "origin_not_allowed")


def _same_origin(origin: str, host: str) -> bool:
    """Whether an Origin is that of the Host. Not by scheme: a proxy before us may have taken off TLS."""
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
