"""A backend as an option, a file or the admin API names it: its URL, and what is set for it.

    parse_spec("http://gpu1:8080,slots=8,weight=2,key=@FILE,pass-key") ── make_spec ── Spec
    specs_in_file(path)                                                   one Spec a line
    backend_url("gpu1:8080")                                              "http://gpu1:8080"

What is wrong raises a ValueError. Its message quotes the first part of a long text only, and never a key.

Sources: RFC 3986, section 3.2 (authority); RFC 5891 (internationalized host names).
"""

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Any, List, Optional

from core import options
from core.errors import shown

_LONGEST_URL = 2000
_URL = re.compile(r"(?:(https?)://)?(\[[0-9A-Fa-f:.]+\]|[^\[\]:@=/?#%\\]+)(?::([0-9]{1,5}))?/?", re.IGNORECASE)
_HOST = re.compile(r"[A-Za-z0-9._-]+")
_KEY = re.compile(r"[\x21-\x7e]+")
_COMMENT = re.compile(r"(?:^|\s)#")  # a key may hold one
_OPTIONS = frozenset(["slots", "weight", "key", "pass-key"])


@dataclass(frozen=True)
class Spec:
    """A backend as it is named. Where `slots` is None, the backend is asked for them.

    `key` is the API key that the balancer shows it, "" for the key of all backends. With `pass_key`, requests carry
    their client's key to it.
    """

    url: str
    slots: Optional[int] = None
    weight: float = 1.0
    key: str = field(default="", repr=False)
    pass_key: bool = False


def quoted(text: Any) -> str:
    """Return a text as messages repeat it: in quotes, a long one shortened."""
    return repr(shown(str(text)))


def backend_url(text: str) -> str:
    """Return a backend's URL in its one form: scheme, ASCII host, and the port if one is given. Raises ValueError."""
    match = _URL.fullmatch(text) if len(text) <= _LONGEST_URL else None
    if not match:
        raise ValueError("%s is not a URL like http://127.0.0.1:8080" % quoted(text))
    scheme, host, port = match.groups()
    if port and not 1 <= int(port) <= 65535:
        raise ValueError("the port of %s is not from 1 to 65535" % quoted(text))
    return "%s://%s%s" % ((scheme or "http").lower(), _host(host), ":%d" % int(port) if port else "")


def _host(text: str) -> str:
    """Return a host's name as DNS spells it, or its address. Raises ValueError."""
    try:
        if text.startswith("["):
            return "[%s]" % ipaddress.IPv6Address(text[1:-1])
        name = text if text.isascii() else text.encode("idna").decode("ascii")
    except ValueError:  # UnicodeError and AddressValueError are subclasses
        raise ValueError("%s is no host's name or address" % quoted(text))
    labels = name[:-1].split(".") if name.endswith(".") else name.split(".")
    if len(name) > 253 or not _HOST.fullmatch(name) or not all(1 <= len(label) <= 63 for label in labels):
        raise ValueError("%s is no host's name or address" % quoted(text))
    return name


def parse_spec(text: str) -> Spec:
    """Return what URL,slots=N,weight=X,key=KEY|@FILE,pass-key says (`;` separates as well). Raises ValueError."""
    url, *rest = text.replace(";", ",").split(",")
    named = dict(part.partition("=")[::2] for part in rest)
    if not set(named) <= _OPTIONS or named.get("pass-key"):
        raise ValueError("after a backend's URL, only slots=N, weight=X, key=KEY or @FILE, and pass-key can stand")
    key = _key_of(named["key"]) if "key" in named else ""
    return make_spec(url, named.get("slots"), named.get("weight"), key, "pass-key" in named)


def make_spec(url: str, slots: Any = None, weight: Any = None, key: str = "", pass_key: bool = False) -> Spec:
    """Check values and return them as a Spec. Raises ValueError."""
    try:
        numbers = (None if slots is None else int(slots), 1.0 if weight is None else float(weight))
    except (TypeError, ValueError, OverflowError):
        raise ValueError("slots must be a whole number, and weight a number")
    spec = Spec(backend_url(url), *numbers, key=checked_key(key), pass_key=pass_key)
    if spec.slots is not None and not 1 <= spec.slots <= 100_000:
        raise ValueError("slots must be from 1 to 100000")
    if not 0.001 <= spec.weight <= 1000:
        raise ValueError("weight must be from 0.001 to 1000")
    return spec


def checked_key(key: str) -> str:
    """Return a key that a backend can be shown, or "" for none. Raises ValueError."""
    if key and not _KEY.fullmatch(key):
        raise ValueError("a backend's key may hold no spaces and only ASCII characters")
    return key


def specs_in_file(path: str) -> List[Spec]:
    """Return what a file names, one backend a line; # begins a comment. Raises OSError, ValueError."""
    specs = []
    with open(path, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            text = _COMMENT.split(line)[0].strip()
            try:
                specs += [parse_spec(text)] if text else []
            except ValueError as error:
                raise ValueError("line %d: %s" % (number, error))
    return specs


def _key_of(text: str) -> str:
    if not text:
        raise ValueError("key= needs a key, or @FILE")
    return options.keys_in_file(text[1:])[0] if text.startswith("@") else text
