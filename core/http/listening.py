"""The socket that a server listens on: bound here, or handed on by the process that has started this one.

    listening_socket(config)    the one that a ServerConfig asks for

Who hands a socket on keeps it open. So clients' connections wait in its backlog while no server runs, and the next
server accepts them.
"""

import os
import socket
from typing import Any

BACKLOG = 1024  # connections that may wait to be accepted; socketserver's 5 refuses bursts


def listening_socket(config: Any) -> socket.socket:
    """Return a socket that listens: the one whose number is `listen_fd`, else a new one on `host` and `port`.

    Raises OSError where the address is taken or is not ours, and where there is no such socket.
    """
    return _adopted(config.listen_fd) if config.listen_fd >= 0 else _bound(config.host, config.port)


def _bound(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
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
