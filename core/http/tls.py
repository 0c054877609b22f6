"""TLS on both sides: which certificates are shown and asked for, handshakes with a deadline, refusals in plain words.

    ServerTLS(cert, key, client_ca)   what a server shows; with client_ca, its clients must show a certificate, too
    ClientTLS(ca, cert, key, name)    what a client trusts and shows
    shake_hands(sock, timeout)        a handshake on a socket that does not block
    refusal(error)                    why the two sides do not trust each other; "" where it is no matter of trust

Certificates are renewed while programs run: the files are looked at every RENEW_SECONDS while connections are made, and
read again when they have changed. Connections that are open stay as they are.

Since TLS 1.3, a client's handshake ends before the server has checked its certificate. So a refusal may come as the
first thing that the client reads.

Source: RFC 8446, section 6.2 (alerts); OpenSSL's x509_vfy.h (the numbers of what a check has found).
"""

import logging
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Sequence, Tuple

from core.http.sockets import wait_as_wanted, would_block

if TYPE_CHECKING:
    import ssl  # a Python without it can still speak HTTP

log = logging.getLogger("comeapi.http")

RENEW_SECONDS = 10.0
_NOT_YET, _EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 9, 10, 62, 64  # X509_V_ERR_…
_FROM_NOBODY = (2, 18, 19, 20, 21)  # signed by itself, or by a CA that is not known
_ALERTS = {  # part of OpenSSL's reason: what the server means
    "CERTIFICATE_REQUIRED": "it asks for a client certificate, and none is shown",
    "CERTIFICATE_EXPIRED": "the client certificate that it is shown has expired",
    "CERTIFICATE_REVOKED": "the client certificate that it is shown is revoked",
    "UNKNOWN_CA": "it does not know the CA of the client certificate that it is shown",
    "BAD_CERTIFICATE": "it refuses the client certificate that it is shown",
    "CERTIFICATE_UNKNOWN": "it refuses the client certificate that it is shown",
    "HANDSHAKE_FAILURE": "it ends the handshake: it may ask for a client certificate, or for another cipher",
    "WRONG_VERSION_NUMBER": "it does not speak TLS, or no version of it that is safe",
    "RECORD_LAYER_FAILURE": "it does not speak TLS, or no version of it that is safe",
    "HTTP_REQUEST": "it does not speak TLS",
}
Look = Tuple[Tuple[int, int, int], ...]


class _Files:
    """A TLS context made of files, and made again once they have changed. Any thread may use it.

    `make` returns the context; it raises OSError, ValueError.
    """

    def __init__(self, files: Sequence[str], make: "Callable[[], ssl.SSLContext]"):
        self._files = [file for file in files if file]
        self._make = make
        self._lock = threading.Lock()  # guards all below
        self._made_of = self._failed_with = self._look()
        self._look_at = time.monotonic() + RENEW_SECONDS
        self._context = make()

    def context(self) -> "ssl.SSLContext":
        """Return the context for a new connection."""
        with self._lock:
            now = time.monotonic()
            if self._files and now >= self._look_at:
                self._look_at = now + RENEW_SECONDS
                self._renew()
            return self._context

    def _renew(self) -> None:
        """Read the files again where they have changed. One that is no good changes nothing: it may be half written."""
        look = self._look()
        if look == self._made_of:
            return
        names = ", ".join(self._files)
        try:
            self._context, self._made_of = self._make(), look
            log.info("🔏 the certificates were read again: %s", names)
        except (OSError, ValueError) as error:
            if look != self._failed_with:
                self._failed_with = look
                log.warning("🔏 the old certificates stay: %s", error)

    def _look(self) -> Look:
        looks = []
        for file in self._files:
            try:
                about = os.stat(file)
                looks.append((about.st_mtime_ns, about.st_size, about.st_ino))
            except OSError:
                looks.append((0, 0, 0))
        return tuple(looks)


class ServerTLS:
    """What a server shows to its clients, and, with `client_ca`, what they must show.

    Raises OSError where a file can't be used, and for a client_ca without a certificate.
    """

    def __init__(self, cert: str, key: str = "", client_ca: str = ""):
        if client_ca and not cert:
            raise OSError("--client-ca needs --tls-cert: only https clients can show a certificate")
        self._files = _Files((cert, key, client_ca), lambda: _server_context(cert, key, client_ca))

    def wrap(self, sock: socket.socket) -> "ssl.SSLSocket":
        """Return a TLS socket in place of a plain one. The handshake is still to come. Raises OSError, ValueError."""
        return self._files.context().wrap_socket(sock, server_side=True, do_handshake_on_connect=False)


class ClientTLS:
    """What a client trusts and shows: any thread may use it.

    `ca` are the certificates that servers are checked by, "" for the system's; `cert` and `key` its own certificate and
    private key. `name` must stand in the servers' certificates, "" for the host of each one's URL. The files are read
    when an https server is called first, or by load(). Raises ValueError for a key without a certificate.
    """

    def __init__(self, ca: str = "", cert: str = "", key: str = "", name: str = ""):
        if key and not cert:
            raise ValueError("a client's private key needs its certificate")
        self._name = name
        self._lock = threading.Lock()  # guards the one below
        self._made: Optional[_Files] = None
        self._make = lambda: _Files((ca, cert, key), lambda: _client_context(ca, cert, key))
        self._named = bool(ca or cert)

    def load(self) -> "ClientTLS":
        """Read the files that are named, so that what is wrong with them is told now. Raises OSError."""
        if self._named:
            self._files()
        return self

    def wrap(self, sock: socket.socket, host: Optional[str]) -> "ssl.SSLSocket":
        """Return a TLS socket in place of a plain one. The handshake is still to come. Raises OSError, ValueError."""
        return self._files().context().wrap_socket(
            sock, do_handshake_on_connect=False, server_hostname=self._name or host
        )

    def _files(self) -> _Files:
        """Return the context's files. Raises OSError."""
        with self._lock:
            self._made = self._made or self._make()
            return self._made


def _server_context(cert: str, key: str, client_ca: str) -> "ssl.SSLContext":
    import ssl  # here, so that a Python without it can still serve HTTP

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _load(cert, lambda: context.load_cert_chain(cert, key or None))
    if client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        _load(client_ca, lambda: context.load_verify_locations(client_ca))
    return context


def _client_context(ca: str, cert: str, key: str) -> "ssl.SSLContext":
    import ssl  # here, so that a Python without it can still speak HTTP

    context = _load(ca, lambda: ssl.create_default_context(cafile=ca or None))
    if cert:
        _load(cert, lambda: context.load_cert_chain(cert, key or None))
    return context


def _load(file: str, load: Callable[[], Any]) -> Any:
    """Return what `load` returns; say of which file it speaks where it raises. Raises OSError."""
    try:
        return load()
    except OSError as error:  # ssl.SSLError is one, and names no file
        raise OSError("the certificate in %s can't be used: %s" % (file, error))


def shake_hands(sock: "ssl.SSLSocket", timeout: float) -> None:
    """Do the handshake of a TLS socket that does not block. Raises OSError, ValueError, TimedOut after `timeout` s."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return sock.do_handshake()
        except OSError as error:
            if not would_block(error):
                raise
            wait_as_wanted(sock, error, deadline)


def refusal(error: Exception) -> str:
    """Return why one side does not trust the other, in plain words; "" for an error that is about something else."""
    code = getattr(error, "verify_code", None)
    if code is not None:
        return "its certificate %s" % _verdict(code, str(getattr(error, "verify_message", error)))
    reason = str(getattr(error, "reason", None) or "")
    return next((words for part, words in _ALERTS.items() if part in reason), "")


def _verdict(code: int, message: str) -> str:
    if code in (_OTHER_NAME, _OTHER_ADDRESS):
        return "is for another name: %s" % message.rstrip(".")
    if code in _FROM_NOBODY:
        return "is not signed by a CA that is trusted here: %s" % message
    known: Dict[int, str] = {_EXPIRED: "has expired", _NOT_YET: "is not valid yet, by this machine's clock"}
    return known.get(code, "is not accepted: %s" % message)
