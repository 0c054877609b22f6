"""A secret that all programs of one user on one machine share, in a file that nobody else can read.

By it a balancer proves to the backends beside it that it is theirs (core/carriage.py), with nothing to configure.
Programs on several machines, or of several users, are given one by --carry-secret.
"""

import contextlib
import os
import secrets
import stat


def shared_secret() -> str:
    """Return the secret; it is made when first asked for. "" where there is no place to keep it."""
    path = os.path.join(state_folder(), "comeapi", "secret")
    try:
        with contextlib.suppress(FileExistsError):
            _make(path)
        return _read(path)
    except OSError:
        return ""


def state_folder() -> str:
    """Return where programs keep what they must remember (XDG Base Directory Specification)."""
    given = os.environ.get("XDG_STATE_HOME", "")
    return given if os.path.isabs(given) else os.path.join(os.path.expanduser("~"), ".local", "state")


def _make(path: str) -> None:
    """Write a new secret, whole or not at all: another program may look at the same moment. Raises OSError."""
    if os.path.exists(path):
        return
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    draft = "%s.%d.%s" % (path, os.getpid(), secrets.token_hex(4))
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
        os.link(draft, path) if hasattr(os, "link") else os.rename(draft, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(draft)


def _read(path: str) -> str:
    """Return a secret that only this user can have written and read; "" for any other. Raises OSError."""
    with open(path, encoding="ascii", errors="replace") as file:
        status = os.fstat(file.fileno())
        if hasattr(os, "geteuid") and (status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077):
            return ""
        return file.read(200).strip()
