"""Messages between two processes over a Unix socket: a letter, a number, and with a capital letter a descriptor.

    Post(sock).send(HOLD, serial, fd=fd)    the other process gets a duplicate of the descriptor (SCM_RIGHTS, unix(7))
    Post(sock).receive()                    the messages that have come

What a process has sent arrives, also where it is killed a moment later. All messages have one size. So the bytes of a
read are whole messages, and since a read ends behind a descriptor, that one belongs to the last of them.
"""

import array
import os
import socket
import struct
from typing import List, NamedTuple, Optional

HELLO = b"h"  # a process asks for all that is held; the number is its own, so that it knows the answer
BEGIN = b"b"  # the answer to the HELLO of this number begins
JOURNAL = b"J"  # the memory in which requests are noted
HOLD = b"H"  # a client's connection, by its request's serial number
DROP = b"d"  # the connection of this serial number is not needed any more
END = b"e"  # the answer to the HELLO of this number has ended

_FORM = struct.Struct("=cQ")
_READ = _FORM.size * 400
MOST = 100  # numbers in one go: their bytes are far below what a stream socket splits


class Message(NamedTuple):
    """A message; `fd` is None where no descriptor came, which may be so where this process may open no more."""

    what: bytes
    number: int
    fd: Optional[int]


class Post:
    """One end of a Unix stream socket. Several threads may send, one receives."""

    def __init__(self, sock: socket.socket):
        self._sock = sock

    def send(self, what: bytes, *numbers: int, fd: Optional[int] = None, wait: bool = False) -> None:
        """Send a message for each of up to MOST numbers, all or none of them.

        Raises OSError; BlockingIOError where the other side is behind, unless told to `wait`.
        """
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd is not None else []
        flags = socket.MSG_NOSIGNAL | (0 if wait else socket.MSG_DONTWAIT)
        self._sock.sendmsg([_FORM.pack(what, number) for number in numbers], rights, flags)

    def close(self) -> None:
        """Close this end of the socket."""
        self._sock.close()

    def receive(self) -> List[Message]:
        """Wait for messages and return them; none at the end. Raises OSError, socket.timeout as the socket says."""
        room = socket.CMSG_SPACE(array.array("i").itemsize)
        data, rights, _, _ = self._sock.recvmsg(_READ, room, socket.MSG_CMSG_CLOEXEC)
        messages = [Message(what, number, None) for what, number in _FORM.iter_unpack(data)]
        for fd in _descriptors(rights):
            messages[-1] = messages[-1]._replace(fd=fd)
        return messages


def _descriptors(rights: list) -> List[int]:
    found = array.array("i")
    for level, kind, data in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    for fd in found[1:]:
        os.close(fd)
    return list(found[:1])
