"""The admin API: which backends there are, changed while the balancer runs. Off where there is no admin key.

    GET    /admin/backends              all of them
    POST   /admin/backends              add one, or change it: {"url", "slots", "weight", "key", "pass_key", "drain",
                                        "ttl", "name"}
    DELETE /admin/backends?url=URL      drain one and forget it; the URL may also be in the body
    POST   /admin/restart               restart them, one after another, where comeapi.py has started them

`drain` true sends it no more requests, false sends them again. With a `ttl`, in seconds, it is forgotten unless the
same is posted again before: the heartbeat of backends that register themselves (registration.py). With a `name`, it
takes the place of the backend that had the name before: a job that was started again, at another port. A `key` is the
API key that the backend is shown; it is taken as it stands, and told to nobody.

Nothing below /admin goes to a backend, however it is spelt: is_admin_path(target).
"""

import re
from typing import Any, Callable, Dict, List, Optional, Sequence
from urllib.parse import unquote

from core import fields
from core.balancing.facts import MOST_NAME, good_name
from core.balancing.membership import Membership, NameTaken
from core.balancing.pool import Pool
from core.balancing.request import read_body
from core.balancing.specs import Spec, make_spec, quoted
from core.errors import APIError
from core.http.access import key_error, key_is_one_of, presented_key
from core.http.messages import Reply, Request, json_reply
from core.http.routing import Route
from core.jsonbody import read_json

PATH = "/admin/backends"
RESTART_PATH = "/admin/restart"
_KNOWN = frozenset(["url", "slots", "weight", "key", "pass_key", "drain", "ttl", "name"])
_MOST_DECODINGS = 8


def is_admin_path(target: str) -> bool:
    """Whether some server could take a request's target for a path that begins with /admin.

    Servers differ in what they make of percent-encoding (once or again), letters' case, slashes (doubled, or the other
    way round), `.` and `..`, and parameters after `;`.
    """
    path = target.partition("?")[0]
    if "%" not in path and "admin" not in path.lower():  # nearly all paths: every request passes here
        return False
    for _ in range(_MOST_DECODINGS):
        if _begins_with_admin(path):
            return True
        path, before = unquote(path), path
        if path == before:
            return False
    return True  # no client that means well encodes a path so often


def _begins_with_admin(path: str) -> bool:
    names: List[str] = []
    for name in re.split(r"[/\\]+", path.lower()):
        name = name.partition(";")[0].strip("\0\t\n\r ")
        if name == "..":
            del names[-1:]
        elif name not in ("", "."):
            names.append(name)
            if len(names) == 1 and name.startswith("admin"):
                return True
    return False


class Admin:
    """The admin API of a pool. `keys` open it; clients' keys do not.

    `restart()` asks the parent to restart the backends; None where there is no parent.
    """

    def __init__(
        self, pool: Pool, membership: Membership, keys: Sequence[str], restart: Optional[Callable[[], None]] = None
    ):
        self._restart = restart
        self._pool = pool
        self._membership = membership
        self._keys = [key.encode("utf-8") for key in keys]

    def routes(self) -> List[Route]:
        """Return the routes. They are public to the service, since they check another key than its."""
        return [
            Route("GET", PATH, self.show, public=True),
            Route("POST", PATH, self.change, public=True),
            Route("DELETE", PATH, self.remove, public=True),
            Route("POST", RESTART_PATH, self.restart, public=True),
        ]

    def show(self, request: Request) -> Reply:
        """GET: all backends."""
        self._check_key(request)
        return json_reply({"backends": self._pool.describe()})

    def change(self, request: Request) -> Reply:
        """POST: add a backend, or change one that is there."""
        self._check_key(request)
        body = read_json(request.body)
        unknown = sorted(set(body) - _KNOWN)
        if unknown:
            raise APIError(400, "There is no field %s here." % quoted(unknown[0]), "unknown_field", unknown[0])
        url = _url(fields.text(body, "url"))
        known = self._pool.find(url)
        spec = _spec(url, body, known.spec if known else Spec(url))
        if key_is_one_of(spec.key, self._keys):
            raise APIError(400, "'key': a backend can't be shown the admin key.", "invalid_value", "key")
        ttl = fields.number(body, "ttl", None, 1, 86400)
        draining = fields.flag(body, "drain", bool(known and known.draining and not known.leaving))
        try:
            self._membership.add(spec, "registration" if ttl else "", ttl, draining, _name(body))
        except NameTaken as error:
            raise APIError(409, "%s." % error, "name_taken", "name")
        return json_reply(self._described(url), 200 if known else 201)

    def remove(self, request: Request) -> Reply:
        """DELETE: drain a backend and forget it."""
        self._check_key(request)
        url = request.query.get("url") or fields.text(read_body(request.body), "url")
        url = _url(url)
        if not self._membership.drain(url, remove=True):
            raise APIError(404, "There is no backend %s." % quoted(url), "unknown_backend", "url")
        return json_reply({"url": url, "removed": self._pool.find(url) is None}, 202)

    def restart(self, request: Request) -> Reply:
        """POST: ask the parent to restart the backends, one after another. Its console tells how that goes on."""
        self._check_key(request)
        if self._restart is None:
            why = "This balancer was not started by comeapi.py, so nobody here can restart its backends."
            raise APIError(409, why, "no_parent")
        self._restart()
        return json_reply({"message": "comeapi.py was asked to restart the backends, one after another."}, 202)

    def _described(self, url: str) -> Dict[str, Any]:
        return next((each for each in self._pool.describe() if each["url"] == url), {"url": url})

    def _check_key(self, request: Request) -> None:
        if not self._keys:
            raise APIError(404, "There is nothing at %s." % request.path, "unknown_path")
        given = presented_key(request.headers)
        if not key_is_one_of(given, self._keys):
            raise key_error(given, "admin key")


def _url(text: str) -> str:
    try:
        return make_spec(text).url
    except ValueError as error:
        raise APIError(400, "'url': %s." % error, "invalid_value", "url")


def _name(body: Dict[str, Any]) -> str:
    name = fields.text(body, "name", "")
    if name and good_name(name) is None:
        why = "'name' must be a text of 1 to %d printable characters." % MOST_NAME
        raise APIError(400, why, "invalid_value", "name")
    return name


def _spec(url: str, body: Dict[str, Any], known: Spec) -> Spec:
    """Return a backend's Spec with what the body changes. Raises APIError 400."""
    slots = fields.integer(body, "slots", known.slots, 1, 100_000)
    weight = fields.number(body, "weight", known.weight, 0.001, 1000)
    passing = fields.flag(body, "pass_key", known.pass_key)
    try:
        return make_spec(url, slots, weight, fields.text(body, "key", known.key), passing)
    except ValueError as error:
        raise APIError(400, "'key': %s." % error, "invalid_value", "key")
