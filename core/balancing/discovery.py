"""Backends found by a DNS name, and found again every few seconds: how they scale out under an orchestrator.

    dns://llm.default.svc:8080                          every address of a name (a Kubernetes headless service, Docker
                                                        Swarm's tasks.NAME, Consul), at this port
    dns+srv://_http._tcp.llm.service.consul             every target of an SRV record, at its own port
    dns://llm:8080?resolver=127.0.0.1:8600&scheme=https as this resolver says, not the system's

    parse_target   reads such a URL                lookup    its addresses, from the system or from a resolver
    Discovery      the thread that looks up again  query     one question to a resolver (RFC 1035, 2782, 6891)

A new address is added; one that is gone is drained, so that what runs there goes on. Where the resolver fails, nothing
changes. Where it knows no address at all, the backends that answer their probes stay: they are the better evidence.

Nobody can forge an answer without seeing the question (RFC 5452). The question's number comes from `secrets`; its port
is the system's choice, which is random on today's systems. The socket takes answers of the resolver only, and an answer
counts only where it has the question's number and repeats the question. Everything else is ignored until time is up.
"""

import contextlib
import ipaddress
import logging
import secrets
import socket
import struct
import time
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Set, Tuple
from urllib.parse import parse_qs, urlsplit

from core.balancing.membership import Membership
from core.balancing.pool import Pool
from core.balancing.specs import Spec
from core.loops import Loop

log = logging.getLogger("comeapi.balancer")

A, CNAME, AAAA, SRV, _OPT = 1, 5, 28, 33, 41
_INTERNET = 1  # the class of all records here
_NO_ERROR, _NO_SUCH_NAME = 0, 3
_PAYLOAD = 1232  # bytes of an answer by UDP that no network fragments; a longer one comes by TCP
_TRIES = 2
_MOST_ALIASES = 16  # CNAME records in a row
_MOST_TARGETS = 256  # of an SRV record; each costs two questions
_LOOKUP_SECONDS = 20.0  # for all questions of one look-up
_SYSTEM_SECONDS = 60.0  # that the system's own look-up may take; it has no limit of its own
Address = Tuple[str, int]


class LookupFailed(Exception):
    """The resolver did not answer, or not well: nothing is known."""


@dataclass(frozen=True)
class Target:
    """A name to look up. `port` is 0 where SRV records tell it. Without a `resolver`, the system is asked."""

    text: str
    name: str
    port: int
    scheme: str = "http"
    resolver: Optional[Address] = None


def parse_target(text: str) -> Target:
    """Return what dns://NAME:PORT?resolver=IP:PORT&scheme=https says. Raises ValueError."""
    parts = urlsplit(text)
    how = {option: values[-1] for option, values in parse_qs(parts.query, keep_blank_values=True).items()}
    srv = parts.scheme == "dns+srv"
    name = parts.hostname if parts.scheme in ("dns", "dns+srv") and not parts.path.strip("/") else None
    if not name or bool(parts.port) == srv or not set(how) <= {"resolver", "scheme"}:
        raise ValueError("%r is neither dns://NAME:PORT nor dns+srv://NAME" % text)
    if how.get("scheme", "http") not in ("http", "https"):
        raise ValueError("%r: the scheme is http or https" % text)
    resolver = _resolver(how["resolver"]) if "resolver" in how else None
    if srv and not resolver:
        raise ValueError("%r: SRV records need ?resolver=IP:PORT, since the system looks up addresses only" % text)
    _encode_name(name)
    return Target(text, name, parts.port or 0, how.get("scheme", "http"), resolver)


def _resolver(text: str) -> Address:
    parts = urlsplit("//" + text)
    return str(ipaddress.ip_address(parts.hostname or "")), parts.port or 53


# ---------------------------------------------------------------------------------------------- looking up


def lookup(target: Target, timeout: float = 2.0) -> List[str]:
    """Return the URLs that a target stands for, sorted; none where it has no address. Raises LookupFailed.

    `timeout` is the seconds that a resolver gets for one question.
    """
    if target.resolver is None:
        found = _ask_system(target.name, target.port)
    elif target.port:
        found = {(ip, target.port) for ip in _addresses(target.resolver, target.name, timeout)}
    else:
        found = _services(target.resolver, target.name, timeout)
    return sorted("%s://%s:%d" % (target.scheme, "[%s]" % ip if ":" in ip else ip, port) for ip, port in found)


def _services(resolver: Address, name: str, timeout: float) -> Set[Address]:
    """Return the addresses and ports of all targets of an SRV record."""
    found: Set[Address] = set()
    targets = query(resolver, name, SRV, timeout)
    until = time.monotonic() + _LOOKUP_SECONDS
    if len(targets) > _MOST_TARGETS:
        raise LookupFailed("%s has more than %d targets" % (name, _MOST_TARGETS))
    for host, port in targets:
        if time.monotonic() > until:
            raise LookupFailed("%s has too many targets for a slow resolver" % name)
        found |= {(ip, port) for ip in _addresses(resolver, host, timeout)}
    return found


def _ask_system(name: str, port: int) -> Set[Address]:
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
            return set()
        raise LookupFailed(str(error))
    except (OSError, ValueError) as error:  # ValueError: a name that can't be written
        raise LookupFailed(str(error))
    return {(str(each[4][0]), port) for each in found}


def _addresses(resolver: Address, name: str, timeout: float) -> List[str]:
    return [ip for kind in (A, AAAA) for ip, _ in query(resolver, name, kind, timeout)]


def query(resolver: Address, name: str, kind: int, timeout: float = 2.0) -> List[Address]:
    """Ask a resolver for a name's records of one kind: (address, 0) each, or (target, port) of SRV.

    A name that does not exist has none, nor has one whose SRV target is "." (RFC 2782). Raises LookupFailed.
    """
    failure: Exception = LookupFailed("")
    for _ in range(_TRIES):
        try:
            return _ask(resolver, name, kind, timeout)
        except (OSError, struct.error, IndexError, ValueError) as error:
            failure = error
    raise LookupFailed("%s:%d does not answer for %r: %s" % (resolver + (name, failure)))


def _ask(resolver: Address, name: str, kind: int, timeout: float) -> List[Address]:
    """Ask once. Raises OSError, and ValueError, IndexError or struct.error for an answer that can't be read."""
    question = _encode_name(name) + struct.pack(">HH", kind, _INTERNET)
    edns = b"\0" + struct.pack(">HHIH", _OPT, _PAYLOAD, 0, 0)
    asked = struct.pack(">HHHHHH", secrets.randbelow(1 << 16), 0x0100, 1, 0, 0, 1) + question + edns
    answer = _by_udp(resolver, asked, timeout)
    if answer[2] & 0x02:  # cut off
        answer = _by_tcp(resolver, asked, timeout)
        if not _answers(answer, asked):
            raise ValueError("not an answer to the question")
    return _records(answer, kind)


def _by_udp(resolver: Address, asked: bytes, timeout: float) -> bytes:
    """Return the first answer to a question that comes within `timeout` seconds; other messages are ignored."""
    until = time.monotonic() + timeout
    with socket.socket(socket.AF_INET6 if ":" in resolver[0] else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(resolver)  # from now on, the socket takes messages of the resolver only
        sock.send(asked)
        while True:
            sock.settimeout(_left(until))
            answer = sock.recv(65535)
            if _answers(answer, asked):
                return answer


def _by_tcp(resolver: Address, asked: bytes, timeout: float) -> bytes:
    until = time.monotonic() + timeout
    with socket.create_connection(resolver, timeout) as sock:
        sock.sendall(struct.pack(">H", len(asked)) + asked)
        (length,) = struct.unpack(">H", _read(sock, 2, until))
        return _read(sock, length, until)


def _read(sock: socket.socket, count: int, until: float) -> bytes:
    """Return the next `count` bytes. Raises OSError at the end, and when time is up."""
    data = b""
    while len(data) < count:
        sock.settimeout(_left(until))
        piece = sock.recv(count - len(data))
        if not piece:
            raise OSError("the answer broke off")
        data += piece
    return data


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise socket.timeout("timed out")
    return left


def _answers(answer: bytes, asked: bytes) -> bool:
    """Whether a message is the answer to a question: the same number, and the same question, in whatever case."""
    if len(answer) < 12 or answer[:2] != asked[:2] or not answer[2] & 0x80 or answer[4:6] != b"\0\1":
        return False
    with contextlib.suppress(IndexError, ValueError):
        (theirs, their_end), (ours, our_end) = _decode_name(answer, 12), _decode_name(asked, 12)
        return theirs == ours and answer[their_end : their_end + 4] == asked[our_end : our_end + 4]
    return False


def _records(answer: bytes, kind: int) -> List[Address]:
    """Return the values of an answer's records of one kind, for the name asked for or the one that CNAME leads to.

    Records of other names are ignored. Raises ValueError, IndexError, struct.error.
    """
    status = answer[3] & 0x0F
    if status not in (_NO_ERROR, _NO_SUCH_NAME):
        raise ValueError("status %d" % status)
    name, at = _decode_name(answer, 12)
    at += 4
    values: Dict[str, List[Address]] = {}  # by name
    aliases: Dict[str, str] = {}
    for _ in range(struct.unpack(">H", answer[6:8])[0]):
        owner, at = _decode_name(answer, at)
        its_kind, its_class, _ttl, length = struct.unpack(">HHIH", answer[at : at + 10])
        at += 10
        if its_class == _INTERNET and its_kind == kind:
            values.setdefault(owner, []).append(_value(answer, at, length, kind))
        elif its_class == _INTERNET and its_kind == CNAME:
            aliases[owner] = _decode_name(answer, at)[0]
        at += length
    for _ in range(_MOST_ALIASES):
        if name in values or name not in aliases:
            break
        name = aliases[name]
    return [(host, port) for host, port in values.get(name, []) if host]  # SRV: no host where the target is "."


def _value(answer: bytes, at: int, length: int, kind: int) -> Address:
    if kind == SRV:
        return _decode_name(answer, at + 6)[0], struct.unpack(">H", answer[at + 4 : at + 6])[0]
    return str(ipaddress.ip_address(answer[at : at + length])), 0


def _encode_name(name: str) -> bytes:
    labels = [
        label.encode("idna") if not label.isascii() else label.encode("ascii") for label in name.strip(".").split(".")
    ]
    if not all(0 < len(label) < 64 for label in labels) or sum(map(len, labels)) + len(labels) > 254:
        raise ValueError("%r is no name that DNS could know" % name)
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def _decode_name(answer: bytes, at: int) -> Tuple[str, int]:
    """Return a name in lower case and where the bytes after it begin; RFC 1035, section 4.1.4, has the pointers."""
    labels, end = [], None
    for _ in range(128):  # a pointer may lead in a circle
        length = answer[at]
        if length >= 0xC0:
            end = at + 2 if end is None else end
            at = (length & 0x3F) << 8 | answer[at + 1]
        elif length >= 0x40:
            raise ValueError("a name of an unknown form")
        elif length:
            labels.append(answer[at + 1 : at + 1 + length].decode("ascii").lower())
            at += 1 + length
        else:
            return ".".join(labels), at + 1 if end is None else end
    raise ValueError("a name without an end")


# ------------------------------------------------------------------------------------------------ keeping up


class Discovery:
    """The thread that looks the targets up every `interval` seconds and changes the pool. `loop` is the thread."""

    def __init__(self, pool: Pool, membership: Membership, targets: Sequence[Target], interval: float):
        self._pool = pool
        self._membership = membership
        self._targets = list(targets)
        self._last = {target: "" for target in self._targets}  # why its last look-up failed
        self.loop = Loop("discovery", interval, self._step, step_seconds=_SYSTEM_SECONDS * len(self._targets), log=log)

    def start(self) -> None:
        """Start looking up, where there is something to look up."""
        if self._targets:
            self.loop.start()

    def stop(self) -> None:
        """Look up no more."""
        self.loop.stop()

    def _step(self) -> None:
        """Look all targets up. An unforeseen error of one is raised only after the others have had their turn."""
        failure: Optional[Exception] = None
        for target in self._targets:
            try:
                self._update(target)
            except Exception as error:
                failure = error
        if failure:
            raise failure

    def _update(self, target: Target) -> None:
        try:
            urls, failure = lookup(target), ""
        except LookupFailed as error:
            urls, failure = [], str(error)
        if failure != self._last[target]:
            self._last[target] = failure
            log.warning("%s: %s", target.text, failure or "is looked up again")
        if not failure and not self.loop.stopped:
            if not urls:
                urls = [each.url for each in self._pool.everyone() if each.source == target.text and each.vitals.up]
            self._membership.replace([Spec(url) for url in urls], target.text)
