"""A request's head, taken apart: request line, target, headers, and what they say about the body. Pure functions.

The framing is strict where leniency lets two servers disagree about where a request ends (RFC 9112, section 11.2).
Header lines are read by heads.py, which the client uses, too; its refusals become APIErrors here.
"""

import ipaddress
import re
from typing import Dict, List, Mapping, Optional, Tuple

from core.errors import APIError, shown
from core.http.heads import TOKEN, Malformed, TooManyHeaders, parse_headers, remembered, tokens, whole_number

_VERSION = re.compile(r"HTTP/\d\.\d")
_TARGET = re.compile(r"[\x21-\x7e]+")
_ABSOLUTE = re.compile(r"(?i:https?)://([^/?#]*)([^#]*)")
_AUTHORITY = re.compile(r"([A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")
_SINGLE = frozenset(["content-length", "transfer-encoding", "host", "authorization", "content-type"])


@remembered
def request_line(line: str) -> Tuple[str, str, str]:
    """Return method, target and version (RFC 9112, section 3). Raises APIError 400, 505."""
    words = line.split(" ")
    if len(words) != 3 or not TOKEN.fullmatch(words[0]) or not _VERSION.fullmatch(words[2]):
        raise bad_request("The request line is not 'METHOD TARGET HTTP/1.1'.")
    if words[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise APIError(505, "This server speaks HTTP/1.1, not %s." % words[2], "http_version")
    if not _TARGET.fullmatch(words[1]):
        raise bad_request("The request's target holds characters that must be percent-encoded.")
    return words[0], words[1], words[2]


@remembered
def split_target(target: str) -> Tuple[str, str]:
    """Return a target as path and query, and the authority of an absolute one or "". Raises APIError 400."""
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute:
        host, rest = absolute.groups()
        if not split_authority(host):
            raise bad_request("The request's target is not a URL of a host and a port.")
        return rest if rest.startswith("/") else "/" + rest, host
    if not target.startswith("/") and target != "*":
        raise bad_request("The request's target must start with a slash.")
    return target, ""


@remembered
def split_authority(text: str) -> Optional[Tuple[str, Optional[int]]]:
    """Return host (lower case, no brackets) and port, which may be None, of HOST[:PORT]; None where it is malformed."""
    match = _AUTHORITY.fullmatch(text)
    if not match or int(match.group(2) or 0) > 65535:
        return None
    host = match.group(1).lower()
    if host.startswith("["):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            return None
    return host, int(match.group(2)) if match.group(2) else None


def request_headers(lines: List[str]) -> Dict[str, str]:
    """Return the headers, names in lower case. Raises APIError 400, 431."""
    try:
        return parse_headers(lines, _SINGLE)[1]
    except TooManyHeaders as error:
        raise APIError(431, str(error), "headers_too_large")
    except Malformed as error:
        raise bad_request(str(error))


def check_host(version: str, headers: Mapping[str, str]) -> None:
    """Refuse a request whose Host is missing or malformed (RFC 9112, section 3.2). Raises APIError 400."""
    host = headers.get("host")
    if host is None and version == "HTTP/1.1":
        raise bad_request("The Host header is missing.")
    if host and not split_authority(host):
        raise bad_request("The Host header is not a host and a port.")


def check_framing(version: str, headers: Mapping[str, str]) -> None:
    """Refuse what two servers could read differently. Raises APIError 400, 501."""
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    if length is not None and whole_number(length) is None:
        raise bad_request("Content-Length is not a whole number.")
    if coding is not None and (length is not None or version == "HTTP/1.0"):
        raise bad_request("Transfer-Encoding can't be used here.")
    if coding is not None and coding.lower() != "chunked":
        raise APIError(501, "Transfer-Encoding %s is not supported; chunked is." % shown(coding), "transfer_encoding")


def bad_request(message: str) -> APIError:
    """Return the error of a request that is not HTTP/1.1."""
    return APIError(400, message, "bad_http")


def has_body(headers: Mapping[str, str]) -> bool:
    """Whether a body follows."""
    return "transfer-encoding" in headers or int(headers.get("content-length", 0)) > 0


def wants_close(version: str, headers: Mapping[str, str]) -> bool:
    """Whether the connection is to end with this request."""
    options = tokens(headers.get("connection", ""))
    return "close" in options or (version == "HTTP/1.0" and "keep-alive" not in options)
