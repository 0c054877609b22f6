"""The sockets that a server listens on: bound here, or handed on by the process that has started this one.

    listening_sockets(config)    those that a ServerConfig asks for: the ones whose numbers are its `listen_fd`, else
                                 one for each address in its `host`
    activated(config)            the config of a program whose sockets systemd has bound (socket activation)

Who hands a socket on keeps it open. So clients' connections wait in its backlog while no server runs, and the next
server accepts them.

Source: sd_listen_fds(3). LISTEN_FDS descriptors begin at 3, and are for the process whose number is LISTEN_PID.
"""

import dataclasses
import os
import socket
from typing import Any, List, MutableMapping, TypeVar

from core.options import fail

BACKLOG = 1024  # connections that may wait to be accepted; socketserver's 5 refuses bursts
FIRST_HANDED = 3  # SD_LISTEN_FDS_START: the descriptors after the standard ones
C = TypeVar("C")


def activated(config: C, environ: "MutableMapping[str, str]" = os.environ) -> C:
    """Return a ServerConfig with the sockets that systemd has bound, and with their addresses; the same without them.

    --listen-fd wins. The variables are taken away: programs that this one starts have other descriptors. Ends the
    program where one of the sockets can't be served.
    """
    count, pid, _ = (environ.pop(name, "") for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"))
    theirs: Any = config
    if pid != str(os.getpid()) or not count.isdigit() or not int(count) or theirs.listen_fd:
        return config
    numbers = tuple(range(FIRST_HANDED, FIRST_HANDED + int(count)))
    try:
        names = [_address(number) for number in numbers]
    except OSError as error:
        fail("can't serve the sockets of the systemd unit: %s" % (error.strerror or error))
    hosts = ",".join(name[0] for name in names)
    return dataclasses.replace(theirs, listen_fd=numbers, host=hosts, port=names[0][1])  # type: ignore[no-any-return]


def _address(number: int) -> Any:
    sock = _adopted(number)
    try:
        return sock.getsockname()
    finally:
        sock.detach()


def listening_sockets(config: Any) -> List[socket.socket]:
    """Return sockets that listen: those of `listen_fd`, else new ones on each address of `host`, all on one port.

    Raises OSError where an address is taken or is not ours, and where there is no such socket.
    """
    hosts = [host.strip() for host in config.host.split(",")]
    found: List[socket.socket] = []
    try:
        for number in config.listen_fd:
            found.append(_adopted(number))
        for host in () if config.listen_fd else hosts:
            port = found[0].getsockname()[1] if found else config.port
            found.append(_bound(host, port, alone=len(hosts) == 1))
    except BaseException:
        for sock in found:
            sock.close()
        raise
    return found


def _bound(host: str, port: int, alone: bool) -> socket.socket:
    """Return a socket that listens. Where it is not `alone`, one of IPv6 takes no connections of IPv4."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        if ":" in host and not alone:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if os.name == "posix":  # on Windows it would let two programs share a port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _adopted(number: int) -> socket.socket:
    sock = socket.socket(fileno=number)
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        sock.detach()  # it is another one's
        raise OSError("descriptor %d is no socket of TCP" % number)
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()
        raise OSError("descriptor %d is no listening socket" % number)
    sock.set_inheritable(False)
    return sock
