"""The models behind a balancer: their names and aliases, and the lists of them.

    Catalogue.routes()                      GET /models, /v1/models, /v1/models/{name}
    Catalogue.meant(name, request)          the model that a name means; 404 where no backend has it
    Catalogue.makes_no_difference(name)     whether every backend could run it at once
"""

import contextlib
import threading
from typing import Any, Callable, Dict, Iterable, List, Optional

from core.balancing.backends import Backend
from core.balancing.credentials import Credentials
from core.balancing.health import Health
from core.balancing.pool import Pool
from core.balancing.specs import quoted
from core.errors import APIError
from core.http.messages import Reply, Request, json_reply
from core.http.routing import Route
from core.names import ANY, Names, plain_name

_MOST_LISTED = 50  # names in an error's message


class Catalogue:
    """The union of what the backends have, and `aliases`, each NAME=MODEL."""

    def __init__(
        self, pool: Pool, health: Health, credentials: Credentials, aliases: Iterable[str], patience: float
    ):  # fmt: skip
        self._pool = pool
        self._health = health
        self._credentials = credentials
        self._names = Names(aliases)
        self._patience = patience  # seconds that backends may take to list what they have
        self._refreshed = float("-inf")  # when a request last made us ask them

    def routes(self) -> List[Route]:
        """Return the routes that list the models."""
        return [
            Route("GET", "/models", self.models),
            Route("GET", "/v1/models", self.openai_models),
            Route("GET", "/v1/models/{name}", self.openai_model),
        ]

    def models(self, request: Request) -> Reply:
        """GET /models: the union over the backends that are up, and the aliases; `data` is OpenAI's list of them."""
        self._refresh_all(request)
        known = list(self._known().values())
        return json_reply({"models": known, "object": "list", "data": [_openai_model(model) for model in known]})

    def openai_models(self, request: Request) -> Reply:
        """GET /v1/models: the same as a list in OpenAI's form."""
        self._refresh_all(request)
        return json_reply({"object": "list", "data": [_openai_model(model) for model in self._known().values()]})

    def openai_model(self, request: Request) -> Reply:
        """GET /v1/models/{name}: one of them."""
        self._refresh(request)
        model = named(self._known(), request.params["name"])
        if model is None:
            raise self._unknown(request.params["name"])
        return json_reply(_openai_model(model))

    def meant(self, name: str, request: Request) -> str:
        """Return the name of the model that a name means.

        An alias means its model. Where all backends together have one model, any other name means it, and with the
        alias * that one's. The backends are asked before, at most once a second. Raises APIError 404.
        """
        real = self._names.real(name)
        if not real or self._pool.knows(real):
            return real
        if self._pool.clock() - self._refreshed > 1:
            self._refresh(request)
        if self._pool.knows(real):
            return real
        other = self._names.any_other or self._pool.only_model()
        if not other or not self._pool.knows(other):
            raise self._unknown(real)
        return other

    def makes_no_difference(self, model: str) -> bool:
        """Whether a request that may name this model, or none, goes the same way: every backend could run it at once.

        Where it is so, the name means itself.
        """
        return not model or (not self._names.has(model) and self._pool.is_everywhere(model))

    def _known(self) -> Dict[str, Dict[str, Any]]:
        known = self._pool.models()
        for alias, name in self._names.pairs:
            target = named(known, name)
            if target and alias != ANY:
                known[alias] = dict(target, name=alias, alias_of=target["name"])
        return known

    def _refresh_all(self, request: Request) -> None:
        """Ask the backends, of which one must be up. Raises APIError 503."""
        self._refresh(request)
        if not self._pool.any_up():
            raise no_backend(self._pool)

    def _refresh(self, request: Request) -> None:
        """Ask all backends that are up for their models, all at once, as this client."""
        self._refreshed = self._pool.clock()
        ask_all(self._pool, lambda backend: self._ask(backend, request), self._patience)

    def _ask(self, backend: Backend, request: Request) -> None:
        models = self._health.models_of(backend.url, self._credentials.sent_on(request, backend.spec))
        if models is not None:  # else what its last probe found out stays
            self._pool.note_models(backend, models)

    def _unknown(self, name: str) -> APIError:
        known = list(self._known())
        listed = ", ".join(known[:_MOST_LISTED]) or "none"
        more = ", and %d more" % (len(known) - _MOST_LISTED) if len(known) > _MOST_LISTED else ""
        message = "There is no model %s here. There is: %s%s." % (quoted(name), listed, more)
        return APIError(404, message, "model_not_found", "model")


def ask_all(pool: Pool, ask: Callable[[Backend], None], patience: float) -> None:
    """Call `ask` with each backend that is up, all at once; wait so many seconds for each."""
    asked = [
        threading.Thread(target=ask, args=(backend,), name="probe", daemon=True)
        for backend in pool.everyone()
        if backend.vitals.up
    ]
    with contextlib.suppress(RuntimeError):  # the system has no more threads: the others are not asked
        for thread in asked:
            thread.start()
    for thread in asked:
        if thread.is_alive():
            thread.join(patience)


def no_backend(pool: Pool) -> APIError:
    """Return the error for a request while no backend is up; it says why each is not."""
    states = "; ".join("%s: %s" % (backend["url"], backend["why"]) for backend in pool.describe())
    return APIError(503, "No backend is up. %s" % states, "no_backend", headers=[("Retry-After", "1")])


def named(known: Dict[str, Dict[str, Any]], name: str) -> Optional[Dict[str, Any]]:
    """Return the first of the known models that a name means, or None."""
    wanted = plain_name(name)
    return next((model for known_name, model in known.items() if plain_name(known_name) == wanted), None)


def _openai_model(model: Dict[str, Any]) -> Dict[str, Any]:
    """Return a model as OpenAI's list has it, with what else is known of it."""
    known = {"id": model["name"], "object": "model", "created": 0, "owned_by": "comeapi"}
    return dict(known, **{key: value for key, value in model.items() if key not in ("name", "object")})
