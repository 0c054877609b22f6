"""What a program tells systemd, where that has started it as a service of Type=notify; nothing elsewhere.

    Notifier()         reads NOTIFY_SOCKET and WATCHDOG_USEC
    .ready(status)     it serves: the start of the unit has ended
    .status(text)      a line for `systemctl status`
    .stopping()        it ends: requests that run may take their time
    .alive(well)       called every few seconds: it is not to be ended for its silence

While it starts or stops, a sign of life gives it more time: a large model loads as long as it takes, and
TimeoutStartSec and TimeoutStopSec count from the last sign. Once it is ready, WatchdogSec does.

Sources: sd_notify(3), sd_watchdog_enabled(3). Each message is one datagram.
"""

import contextlib
import os
import socket
import time
from typing import MutableMapping

MORE_SECONDS = 20  # that a sign of life asks for while the program starts or stops
_PAUSE_SECONDS = 1.0  # between two signs of life
_MOST_STATUS = 500  # characters


class Notifier:
    """Tells the service manager; any thread may use it. Nothing that goes wrong here is told, or stops anything.

    The variables are taken away: what this program starts is no service of systemd's.
    """

    def __init__(self, environ: "MutableMapping[str, str]" = os.environ):
        self._address = environ.pop("NOTIFY_SOCKET", "")
        usec, pid = (environ.pop(name, "") for name in ("WATCHDOG_USEC", "WATCHDOG_PID"))
        self._watched = usec.isdigit() and int(usec) > 0 and pid in ("", str(os.getpid()))
        self._serves = False  # it is ready, and is not stopping
        self._stops = False
        self._next = 0.0  # when a sign of life is due

    def ready(self, status: str = "") -> None:
        """It serves, or has done what it can to; the second time, only the status is told."""
        if self._serves or self._stops:
            return self.status(status)
        self._serves, self._next = True, 0.0
        self._send("READY=1\n" + _status(status))

    def status(self, text: str) -> None:
        """Say in one line what it does."""
        self._send(_status(text))

    def stopping(self) -> None:
        """It is about to end."""
        self._serves, self._stops, self._next = False, True, 0.0
        self._send("STOPPING=1\nSTATUS=stopping: running requests may finish")
        self.alive()

    def alive(self, well: bool = True) -> None:
        """It runs; where it is not `well`, systemd is asked to do with it as with one that says nothing any more."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _PAUSE_SECONDS
        if not self._serves:
            self._send("EXTEND_TIMEOUT_USEC=%d" % (MORE_SECONDS * 1_000_000))
        elif self._watched:
            self._send("WATCHDOG=1" if well else "WATCHDOG=trigger")

    def _send(self, message: str) -> None:
        if not self._address or not message or not hasattr(socket, "AF_UNIX"):
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(_PAUSE_SECONDS)  # its reader may be slow
            sock.sendto(message.strip().encode("utf-8", "replace"), address)


def _status(text: str) -> str:
    line = " ".join(text.split())[:_MOST_STATUS]
    return "STATUS=" + line if line else ""
