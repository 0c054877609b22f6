"""What is here of a file that is being fetched: NAME.part, and NAME.part.json, which remembers where it is from.

One process at a time has a part: on POSIX systems, by a lock on it (flock), which ends with the process.
"""

import contextlib
import hashlib
import json
import os
import sys
from typing import Any, BinaryIO, Dict, Iterator, Optional

_PIECE = 1 << 20


class Busy(Exception):
    """Another process is fetching the same file."""


class Partial:
    """The beginning of a file, with the SHA-256 so far, `digest`. `at` is how many bytes are here."""

    def __init__(self, path: str):
        self.path = path
        self.at = 0
        self.etag = ""  # of what is here, where the server has told a strong one
        self.pieced = False  # it was gone on with: it is of more than one answer
        self.digest = hashlib.sha256()
        self._url = ""
        self._sha256 = ""
        self._file: Optional[BinaryIO] = None

    def size(self) -> int:
        """Return how many bytes are here from an earlier try."""
        return os.path.getsize(self.path) if os.path.exists(self.path) else 0

    @contextlib.contextmanager
    def held(self, url: str, sha256: str) -> Iterator[None]:
        """Have the part, which is to be of this URL and SHA-256 ("": unknown). Raises Busy, OSError."""
        self._url, self._sha256 = url, sha256
        self._file = open(self.path, "a+b", buffering=0)  # unbuffered: what is written counts, or was refused
        try:
            _lock(self._file)
            yield
            empty = self.size() == 0
        except Busy:
            self._close()
            raise
        except BaseException:
            empty = self.at == 0
            raise
        finally:
            if self._file is not None:
                self._close()
                if empty:
                    self.delete()

    def resume(self, total: Optional[int]) -> None:
        """Go on with what is here, where it is of the same file and no more than its `total` bytes."""
        known = self._remembered()
        same = known.get("url") == self._url or bool(self._sha256 and known.get("sha256") == self._sha256)
        self.etag = known.get("etag", "")
        if not same or not self._provable or (total is not None and self.size() > total):
            self.clear()
            return
        self.digest, self.at = digest_of(self.path), self.size()
        self.pieced = self.at > 0

    @property
    def _provable(self) -> bool:
        """Whether it will be seen that the rest is of the same file."""
        return bool(self.etag or self._sha256)

    def range_headers(self) -> Dict[str, str]:
        """Return the headers that ask for the rest; none where everything is to come."""
        if self.at and not self._provable:
            self.clear()
        if not self.at:
            return {}
        self.pieced = True
        headers = {"Range": "bytes=%d-" % self.at}
        if self.etag:
            headers["If-Range"] = self.etag
        return headers

    def add(self, piece: bytes) -> None:
        """Add bytes. Raises OSError; then the part holds what had room."""
        if self._file is None:
            raise ValueError("the part is not held")
        if self.at == 0:
            self._remember()
        left = memoryview(piece)
        while left:
            count = self._file.write(left)
            self.digest.update(left[:count])
            self.at += count
            left = left[count:]

    def clear(self) -> None:
        """Begin anew."""
        if self._file is not None:
            self._file.truncate(0)
        self.digest, self.at, self.etag, self.pieced = hashlib.sha256(), 0, "", False

    def finish(self, path: str) -> None:
        """Give it the name of a whole file, once it is on the disk. Raises OSError."""
        if self._file is None:
            raise ValueError("the part is not held")
        os.fsync(self._file.fileno())
        self._close()  # first: Windows renames no open file
        os.replace(self.path, path)
        self._forget()

    def delete(self) -> None:
        """Delete what is here."""
        self._close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        self._forget()

    def _remember(self) -> None:
        with contextlib.suppress(OSError):
            with open(self.path + ".json", "w", encoding="utf-8") as notes:
                json.dump({"url": self._url, "sha256": self._sha256, "etag": self.etag}, notes)

    def _remembered(self) -> Dict[str, str]:
        try:
            with open(self.path + ".json", encoding="utf-8") as notes:
                known = json.load(notes)
        except (OSError, ValueError):
            return {}
        return {name: text for name, text in known.items() if isinstance(text, str)} if isinstance(known, dict) else {}

    def _forget(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.path + ".json")

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _lock(file: BinaryIO) -> None:
    """Keep other processes away from a file until it is closed. Raises Busy."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise Busy("another pull is fetching this file now; see %s" % file.name)


def digest_of(path: str) -> Any:
    """Return the SHA-256 of a file, to which more can be added. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(_PIECE), b""):
            digest.update(piece)
    return digest
