"""What outlives a balancer that is killed: its clients' connections, and its notes of what it was telling them.

    balancer ── Post: hold, drop ──> Holder ── Post: all that is held ──> the next balancer

The Holder has duplicates of the connections' descriptors. It never reads or writes there: while the balancer lives,
they change nothing; when it dies, they keep the connections open. The notes are memory that both share
(core/balancing/journal.py). core/balancing/keeping.py is the other side.
"""

import logging
import os
import socket
import sys
import threading
import traceback
from typing import Any, Dict, Optional

from core.balancing import journal
from core.handing import BEGIN, DROP, END, HELLO, HOLD, JOURNAL, Post

log = logging.getLogger("comeapi.supervisor")


def make_holder(config: Any) -> Optional["Holder"]:
    """Return a Holder whose thread runs; None where this can't be done.

    That is so but on Linux, and over TLS, whose keys die with the process that has them.
    """
    if not sys.platform.startswith("linux") or not hasattr(os, "memfd_create") or config.tls_cert:
        return None
    try:
        return Holder().start()
    except (OSError, RuntimeError) as error:
        log.warning("answers would not survive the balancer's death: %s", error)
        return None


class Holder:
    """Holds what the balancers are to find. `theirs` is their end of the socket. Raises OSError."""

    def __init__(self) -> None:
        self._journal = os.memfd_create("comeapi-journal", os.MFD_CLOEXEC)
        os.ftruncate(self._journal, journal.SIZE)
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._ours = ours
        self._held: Dict[int, int] = {}  # descriptors by serial number; the thread alone uses it

    def start(self) -> "Holder":
        """Start the thread. Raises RuntimeError where none can be started."""
        threading.Thread(target=self._run, name="holder", daemon=True).start()
        return self

    def close(self) -> None:
        """Let go of everything; the thread ends."""
        self._ours.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        with self._ours, self.theirs:
            self._serve(Post(self._ours))
        for fd in [self._journal, *self._held.values()]:
            os.close(fd)

    def _serve(self, post: Post) -> None:
        for messages in iter(post.receive, []):
            for each in messages:
                try:
                    self._hear(post, *each)
                except Exception:  # whatever a balancer says, the next one must find what is held
                    log.error("what the balancer hands over was not understood:\n%s", traceback.format_exc())

    def _hear(self, post: Post, what: bytes, number: int, fd: Optional[int]) -> None:
        if what == HOLD and fd is not None:
            self._drop(number)
            self._held[number] = fd
        elif what == DROP:
            self._drop(number)
        elif what == HELLO:
            self._tell(post, number)

    def _drop(self, number: int) -> None:
        fd = self._held.pop(number, None)
        if fd is not None:
            os.close(fd)

    def _tell(self, post: Post, number: int) -> None:
        """Hand everything to a balancer that has begun; it stays here, too."""
        post.send(BEGIN, number, wait=True)
        post.send(JOURNAL, 0, fd=self._journal, wait=True)
        for serial, fd in self._held.items():
            post.send(HOLD, serial, fd=fd, wait=True)
        post.send(END, number, wait=True)
