"""Answers of POST /v1/responses on disk: one file an answer, in a folder that all backends of a machine share.

    keep(id, owner, record) ──> FOLDER/resp_….json ──> find(id, owner), of any backend, also after a restart

A file holds all that a next turn needs: what the model was told, earlier turns included, and what it answered. So no
chain of files can be broken, or go round in a circle. It is written aside and renamed, so that nobody sees half of it;
it is not synced, so the last ones before a power cut may be lost. Only the folder's user can read it.

Limits hold for the whole folder: the oldest files go first. It is looked through now and then, not each time, so there
may be SLACK more of them for each backend. A folder that can't be used costs no answer: it is told in the log, once.
"""

import contextlib
import hmac
import json
import logging
import os
import re
import secrets
import threading
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional

from core.cookie import state_folder
from core.owners import sealed

log = logging.getLogger("comeapi.responses")

ID = re.compile(r"resp_[0-9a-f]{32}", re.ASCII)
SLACK = 64  # files that a process writes between two looks through the folder
_DAY = 86400.0
_DRAFT_SECONDS = 3600.0  # after which a file that was never finished is nobody's
_NAME = re.compile(ID.pattern + r"\.json", re.ASCII)
_DRAFT = ".draft"


class Record(NamedTuple):
    """What is kept of one answer: the items that the model was told, and the object that the client got."""

    items: List[Dict[str, Any]]
    response: Dict[str, Any]


class ResponseStore:
    """The folder. At most `most` files of `most_bytes` together, none older than `days`; `most` 0: nothing is kept.

    `folder` "" is the usual one. Any thread may call.
    """

    def __init__(
        self,
        folder: str = "",
        most: int = 10000,
        most_bytes: int = 1 << 30,
        days: float = 30.0,
        clock: Callable[[], float] = time.time,
    ):
        self._folder = folder or os.path.join(state_folder(), "comeapi", "responses")
        self._most = most
        self._most_bytes = most_bytes
        self._seconds = days * _DAY
        self._clock = clock
        self._complained = False
        self._lock = threading.Lock()  # guards the next two
        self._files = SLACK  # written since the last look through the folder; the first one comes at once
        self._bytes = 0

    def keep(self, id: str, owner: str, record: Record) -> bool:
        """Keep an answer and return whether that worked; one with the same id gives way to it."""
        if not self._most:
            return False
        body = {"owner": sealed(owner, id), "items": record.items, "response": record.response}
        data = json.dumps(body, separators=(",", ":")).encode("ascii")
        if len(data) > self._most_bytes:
            return False
        try:
            self._write(self._path(id), data)
            self._make_room(len(data))
        except OSError as error:
            self._complain(error)
            return False
        self._complained = False
        return True

    def find(self, id: str, owner: str) -> Optional[Record]:
        """Return an answer that is the owner's; None for any other, and for what is no id."""
        if not ID.fullmatch(id):
            return None
        try:
            with open(self._path(id), "rb") as file:
                if os.fstat(file.fileno()).st_mtime < self._clock() - self._seconds:
                    return None
                body = json.loads(file.read().decode("ascii"))
            if not hmac.compare_digest(str(body["owner"]).encode(), sealed(owner, id).encode()):
                return None
            return Record(list(body["items"]), dict(body["response"]))
        except FileNotFoundError:
            return None
        except OSError as error:
            self._complain(error)
            return None
        except (ValueError, TypeError, KeyError, RecursionError):  # cut short by a power cut, or somebody else's
            return None

    def forget(self, id: str, owner: str) -> bool:
        """Remove an answer that is the owner's; return whether there was one."""
        if self.find(id, owner) is None:
            return False
        with contextlib.suppress(OSError):
            os.unlink(self._path(id))
        return True

    # ---- the folder

    def _path(self, id: str) -> str:
        return os.path.join(self._folder, id + ".json")

    def _write(self, path: str, data: bytes) -> None:
        """Write a file, whole or not at all. Raises OSError."""
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        draft = os.path.join(self._folder, secrets.token_hex(8) + _DRAFT)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.replace(draft, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(draft)
            raise

    def _make_room(self, size: int) -> None:
        """Note a file that was written; look through the folder where it is time to. Raises OSError."""
        with self._lock:
            self._files += 1
            self._bytes += size
            due = self._files >= min(SLACK, self._most / 16) or self._bytes >= self._most_bytes / 16
            if due:
                self._files = self._bytes = 0
        if due:
            self._sweep()

    def _sweep(self) -> None:
        """Remove what is too old, and the oldest of what is too much. Raises OSError."""
        now = self._clock()
        with os.scandir(self._folder) as entries:
            found = sorted(filter(None, map(_known, entries)), reverse=True)
        count = total = 0
        for modified, name, size in found:
            if name.endswith(_DRAFT):
                gone = modified < now - _DRAFT_SECONDS
            else:
                count, total = count + 1, total + size
                gone = count > self._most or total > self._most_bytes or modified < now - self._seconds
            if gone:
                with contextlib.suppress(OSError):  # another backend may have removed it
                    os.unlink(os.path.join(self._folder, name))

    def _complain(self, error: OSError) -> None:
        """Log what is wrong with the folder; again only after it has been right."""
        if not self._complained:
            self._complained = True
            log.warning("🟠 answers can't be kept in %s: %s", self._folder, error.strerror or error)


class _File(NamedTuple):
    modified: float
    name: str
    size: int


def _known(entry: "os.DirEntry[str]") -> Optional[_File]:
    """Return a file of the store's; None for any other, and for one that has just gone."""
    if not (_NAME.fullmatch(entry.name) or entry.name.endswith(_DRAFT)):
        return None
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return None
    return _File(status.st_mtime, entry.name, status.st_size)
