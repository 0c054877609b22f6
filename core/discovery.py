"""Backends found by a DNS name, and found again every few seconds: how they scale out under an orchestrator.

    dns://llm.default.svc:8080                          every address of a name (a Kubernetes headless service, Docker
                                                        Swarm's tasks.NAME, Consul), at this port
    dns+srv://_http._tcp.llm.service.consul             every target of an SRV record, at its own port
    dns://llm:8080?resolver=127.0.0.1:8600&scheme=https as this resolver says, not the system's

    parse_target   what such a URL says                 lookup      its addresses, by the system or by a resolver
    Discovery      the thread that keeps the pool so     query       one question to a resolver (RFC 1035, 2782, 6891)

A new address is added, one that is gone is drained: what runs there goes on. Where the resolver fails, nothing changes;
where it knows no address at all, those who answer their probes stay, since the backends know better than it does.
"""

import ipaddress
import logging
import random
import socket
import struct
import threading
from dataclasses import dataclass
from typing import List, Optional, Sequence, Set, Tuple
from urllib.parse import parse_qs, urlsplit

from core.pool import Pool, Spec

log = logging.getLogger("comeapi.balancer")

A, AAAA, SRV, _OPT = 1, 28, 33, 41
_NO_ERROR, _NO_SUCH_NAME = 0, 3
_PAYLOAD = 1232  # bytes of an answer by UDP that no network cuts up; a longer one comes by TCP
_TRIES = 2
Address = Tuple[str, int]


class LookupFailed(Exception):
    """The resolver did not answer, or not well: nothing is known."""


@dataclass(frozen=True)
class Target:
    """A name to look up. `port` is 0 where SRV records tell it; no `resolver`: the system's."""

    text: str
    name: str
    port: int
    scheme: str = "http"
    resolver: Optional[Address] = None


def parse_target(text: str) -> Target:
    """Return what dns://NAME:PORT?resolver=IP:PORT&scheme=https says. Raises ValueError."""
    parts = urlsplit(text)
    how = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    srv = parts.scheme == "dns+srv"
    fits = parts.scheme in ("dns", "dns+srv") and parts.hostname and not parts.path.strip("/")
    if not fits or bool(parts.port) == srv or not set(how) <= {"resolver", "scheme"}:
        raise ValueError("%r is neither dns://NAME:PORT nor dns+srv://NAME" % text)
    if how.get("scheme", "http") not in ("http", "https"):
        raise ValueError("%r: the scheme is http or https" % text)
    resolver = _resolver(how["resolver"]) if "resolver" in how else None
    if srv and not resolver:
        raise ValueError("%r: SRV records need ?resolver=IP:PORT, since the system looks up addresses only" % text)
    _encode_name(parts.hostname)
    return Target(text, parts.hostname, parts.port or 0, how.get("scheme", "http"), resolver)


def _resolver(text: str) -> Address:
    parts = urlsplit("//" + text)
    return str(ipaddress.ip_address(parts.hostname or "")), parts.port or 53


# ---------------------------------------------------------------------------------------------- looking up


def lookup(target: Target, timeout: float = 2.0) -> List[str]:
    """Return the URLs that a target stands for, sorted; none where it has no address. Raises LookupFailed."""
    if target.resolver is None:
        found = _ask_system(target.name, target.port)
    elif target.port:
        found = {(ip, target.port) for ip in _addresses(target.resolver, target.name, timeout)}
    else:
        found = set()
        for host, port in query(target.resolver, target.name, SRV, timeout):
            found |= {(ip, port) for ip in _addresses(target.resolver, host, timeout)}
    return sorted("%s://%s:%d" % (target.scheme, "[%s]" % ip if ":" in ip else ip, port) for ip, port in found)


def _ask_system(name: str, port: int) -> Set[Address]:
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
            return set()
        raise LookupFailed(str(error))
    except (OSError, UnicodeError) as error:
        raise LookupFailed(str(error))
    return {(str(each[4][0]), port) for each in found}


def _addresses(resolver: Address, name: str, timeout: float) -> List[str]:
    return [ip for kind in (A, AAAA) for ip, _ in query(resolver, name, kind, timeout)]


def query(resolver: Address, name: str, kind: int, timeout: float = 2.0) -> List[Address]:
    """Ask a resolver for a name's records of one kind: (address, 0) each, or (target, port) of SRV.

    A name that does not exist has none. Raises LookupFailed.
    """
    number = random.randrange(1 << 16)
    question = _encode_name(name) + struct.pack(">HH", kind, 1)
    edns = b"\0" + struct.pack(">HHIH", _OPT, _PAYLOAD, 0, 0)
    asked = struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 1) + question + edns
    for attempt in range(_TRIES):
        try:
            answer = _by_udp(resolver, asked, number, timeout)
            if answer[2] & 0x02:  # cut off
                answer = _by_tcp(resolver, asked, timeout)
            return _records(answer, number, kind)
        except (OSError, struct.error, IndexError, ValueError) as error:
            failure = LookupFailed("%s:%d does not answer for %s: %s" % (resolver + (name, error)))
    raise failure


def _by_udp(resolver: Address, asked: bytes, number: int, timeout: float) -> bytes:
    family = socket.AF_INET6 if ":" in resolver[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout)
        sock.connect(resolver)  # from now on nobody else's answers come in
        sock.send(asked)
        while True:
            answer = sock.recv(65535)
            if len(answer) >= 12 and answer[:2] == asked[:2]:
                return answer


def _by_tcp(resolver: Address, asked: bytes, timeout: float) -> bytes:
    with socket.create_connection(resolver, timeout) as sock, sock.makefile("rb") as stream:
        sock.sendall(struct.pack(">H", len(asked)) + asked)
        return stream.read(struct.unpack(">H", stream.read(2))[0])


def _records(answer: bytes, number: int, kind: int) -> List[Address]:
    """Return an answer's records of one kind. Raises ValueError, IndexError, struct.error."""
    got, flags, questions, answers = struct.unpack(">HHHH", answer[:8])
    status = flags & 0x0F
    if got != number or not flags & 0x8000:
        raise ValueError("not an answer to the question")
    if status not in (_NO_ERROR, _NO_SUCH_NAME):
        raise ValueError("status %d" % status)
    at = 12
    for _ in range(questions):
        at = _decode_name(answer, at)[1] + 4
    found = []
    for _ in range(answers):
        at = _decode_name(answer, at)[1]
        its_kind, _class, _ttl, length = struct.unpack(">HHIH", answer[at : at + 10])
        at += 10
        if its_kind == kind:
            found.append(_value(answer, at, length, kind))
        at += length
    return found


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
    """Return a name and where the bytes after it begin; RFC 1035, section 4.1.4, has the pointers."""
    labels, end = [], None
    for _ in range(128):  # a pointer may lead in a circle
        length = answer[at]
        if length >= 0xC0:
            end = at + 2 if end is None else end
            at = (length & 0x3F) << 8 | answer[at + 1]
        elif length:
            labels.append(answer[at + 1 : at + 1 + length].decode("ascii"))
            at += 1 + length
        else:
            return ".".join(labels), at + 1 if end is None else end
    raise ValueError("a name without an end")


# ------------------------------------------------------------------------------------------------ keeping up


class Discovery:
    """The thread that looks the targets up every `interval` seconds and keeps the pool so."""

    def __init__(self, pool: Pool, targets: Sequence[Target], interval: float):
        self._pool = pool
        self._targets = list(targets)
        self._interval = interval
        self._stopped = threading.Event()
        self._last = {target: "" for target in self._targets}  # why its last look-up failed

    def start(self) -> None:
        """Start looking up, where there is something to look up."""
        if self._targets:
            threading.Thread(target=self._run, name="discovery", daemon=True).start()

    def stop(self) -> None:
        """Look up no more."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            for target in self._targets:
                self._update(target)
            self._stopped.wait(self._interval)

    def _update(self, target: Target) -> None:
        try:
            urls, failure = lookup(target), ""
        except LookupFailed as error:
            urls, failure = [], str(error)
        if failure != self._last[target]:
            self._last[target] = failure
            log.warning("%s: %s", target.text, failure or "is looked up again")
        if not failure and not self._stopped.is_set():
            if not urls:
                urls = [each.url for each in self._pool.everyone() if each.source == target.text and each.vitals.up]
            self._pool.replace([Spec(url) for url in urls], target.text)
