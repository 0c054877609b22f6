"""Ollama's lists of models, of all backends together: what any of them has, and what is loaded.

    GET /api/tags     each model once
    GET /api/ps       each loaded model once, with the memory that it takes in all backends

Asked of all backends that are up, at once, as this client. One that does not speak Ollama's API is left out: it could
not answer for its models in that API either.
"""

from typing import Any, Dict, Iterable, List

from core.balancing.backends import Backend
from core.balancing.catalogue import ask_all, named, no_backend
from core.balancing.credentials import Credentials
from core.balancing.health import Health
from core.balancing.pool import Pool
from core.http.messages import Reply, Request, json_reply
from core.http.routing import Route
from core.names import ANY, Names

Models = Dict[str, Dict[str, Any]]  # by their names


class OllamaLists:
    """The two lists. `aliases` are further names of models, each NAME=MODEL."""

    def __init__(
        self, pool: Pool, health: Health, credentials: Credentials, aliases: Iterable[str], patience: float
    ):  # fmt: skip
        self._pool = pool
        self._health = health
        self._credentials = credentials
        self._names = Names(aliases)
        self._patience = patience  # seconds that backends may take

    def routes(self) -> List[Route]:
        """Return the routes."""
        return [Route("GET", "/api/tags", self.tags), Route("GET", "/api/ps", self.running)]

    def tags(self, request: Request) -> Reply:
        """GET /api/tags: the models, and the aliases."""
        models: Models = {}
        for each in self._told("/api/tags", request):
            models.setdefault(each["name"], each)
        for alias, name in self._names.pairs:
            target = named(models, name)
            if target and alias != ANY:
                models[alias] = dict(target, name=alias, model=alias)
        return json_reply({"models": list(models.values())})

    def running(self, request: Request) -> Reply:
        """GET /api/ps: the loaded models."""
        models: Models = {}
        for each in self._told("/api/ps", request):
            before = models.get(each["name"])
            sums = {key: _count(each, key) + _count(before or {}, key) for key in ("size", "size_vram")}
            models[each["name"]] = dict(before or each, **sums)
        return json_reply({"models": list(models.values())})

    def _told(self, path: str, request: Request) -> List[Dict[str, Any]]:
        """Return what all backends list, in the order of their names. Raises APIError 503 where none is up."""
        if not self._pool.any_up():
            raise no_backend(self._pool)
        told: Dict[str, List[Dict[str, Any]]] = {}

        def ask(backend: Backend) -> None:
            headers = self._credentials.sent_on(request, backend.spec)
            told[backend.url] = self._health.ollama_models_of(backend.url + path, headers)

        ask_all(self._pool, ask, self._patience)
        return [each for url in sorted(told) for each in told[url]]


def _count(model: Dict[str, Any], key: str) -> int:
    value = model.get(key)
    return value if isinstance(value, int) else 0
