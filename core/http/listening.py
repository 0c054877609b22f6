"""The sockets that a server listens on: bound here, or handed on by the process that has started this one.

    listening_sockets(config)    those that a ServerConfig asks for: one for each address in its `host`
    listening_socket(config)     the one of a single address, to be handed on

Who hands a socket on keeps it open. So clients' connections wait in its backlog while no server runs, and the next
server accepts them.
"""

import os
import socket
from typing import Any, List

BACKLOG = 1024  # connections that may wait to be accepted; socketserver's 5 refuses bursts


def listening_socket(config: Any) -> socket.socket:
    """Return a socket that listens: the one whose number is `listen_fd`, else a new one on `host` and `port`.

    Raises OSError where the address is taken or is not ours, and where there is no such socket.
    """
    return _adopted(config.listen_fd) if config.listen_fd >= 0 else _bound(config.host, config.port)


def listening_sockets(config: Any) -> List[socket.socket]:
    """Return sockets that listen on each address of `host`, all on one port. Raises OSError as listening_socket()."""
    hosts = [host.strip() for host in config.host.split(",")]
    if config.listen_fd >= 0 or len(hosts) == 1:
        return [listening_socket(config)]
    bound: List[socket.socket] = []
    try:
        for host in hosts:
            bound.append(_bound(host, bound[0].getsockname()[1] if bound else config.port, alone=False))
    except BaseException:
        for sock in bound:
            sock.close()
        raise
    return bound


def _bound(host: str, port: int, alone: bool = True) -> socket.socket:
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
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()  # it is another one's
        raise OSError("descriptor %d is no listening socket" % number)
    sock.set_inheritable(False)
    return sock
