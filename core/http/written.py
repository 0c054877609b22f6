"""How many bytes programs have written on a TCP connection: Linux knows it, also when the program is dead.

    bytes_written(sock)   those that the peer has, and those that still wait in the kernel

Source: tcp(7) and linux/tcp.h: `tcpi_bytes_acked` of TCP_INFO, and the ioctl SIOCOUTQ. Of a connection that was
accepted, the acknowledgement of the handshake is not counted.
"""

import socket
import struct

_STATE, _ACKED = 0, 120  # the fields' offsets in struct tcp_info
_INFO_SIZE = 128
_OPEN = (1, 8)  # ESTABLISHED, and CLOSE_WAIT: the peer has closed its sending side


def bytes_written(sock: socket.socket) -> int:
    """Return how many bytes were written on an accepted connection. Linux only. Raises OSError where it has ended."""
    acked = _acked(sock)
    while True:
        total, before = acked + _waiting(sock), acked
        acked = _acked(sock)
        if acked == before:  # nothing was acknowledged between the two questions
            return total


def _acked(sock: socket.socket) -> int:
    """Return how many bytes the peer has acknowledged. Raises OSError."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_SIZE)
    if len(info) < _INFO_SIZE:
        raise OSError("this system does not tell how much was acknowledged")
    if info[_STATE] not in _OPEN:
        raise OSError("the connection has ended")
    acked: int = struct.unpack_from("Q", info, _ACKED)[0]
    return acked


def _waiting(sock: socket.socket) -> int:
    """Return how many bytes the peer has not acknowledged: sent ones, and those that are not sent yet."""
    import fcntl  # here: POSIX only
    import termios

    waiting: int = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]
    return waiting
