"""Which handler answers a method and a path."""

import re
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, List, Optional, Pattern, Tuple
from urllib.parse import unquote

from core.errors import APIError, shown
from core.http.messages import Request

Handler = Callable[[Request], Any]


@dataclass(frozen=True)
class Route:
    """A method, a path and its handler. `{name}` in the path stands for one segment. GET answers HEAD too.

    A public route needs no API key; another one needs none for the requests that are `keyless`. What `counts` is false
    for does not count against its key's limits.
    """

    method: str
    path: str
    handler: Handler
    public: bool = False
    keyless: Callable[[Request], bool] = lambda request: False
    counts: bool = True


class Router:
    """The routing table. Exact paths are one dictionary look-up; patterns are tried in their order."""

    def __init__(self, routes: Iterable[Route], fallback: Optional[Handler] = None):
        self._exact: Dict[str, Dict[str, Route]] = {}
        self._patterns: List[Tuple[Pattern[str], Dict[str, Route]]] = []
        self._fallback = fallback and Route("*", "other", fallback)
        for route in routes:
            self._methods(route.path)[route.method] = route

    def methods(self) -> str:
        """Return the methods that any path takes, for an Allow header."""
        tables = list(self._exact.values()) + [methods for _, methods in self._patterns]
        return ", ".join(sorted({"OPTIONS"}.union(*tables)))

    def find(self, method: str, path: str) -> Tuple[Route, Dict[str, str]]:
        """Return the route and what its {names} stood for. Raises APIError 404, or 405 with Allow."""
        methods, params = self._match(path)
        route = methods.get("GET" if method == "HEAD" else method) or (not methods and self._fallback)
        if route:
            return route, params
        if methods:
            allow = ", ".join(sorted(methods))
            message = "%s does not take %s; it takes %s." % (shown(path), shown(method, 20), allow)
            raise APIError(405, message, "method_not_allowed", headers=[("Allow", allow)])
        raise APIError(404, "There is nothing at %s." % shown(path), "unknown_path")

    def _methods(self, path: str) -> Dict[str, Route]:
        if "{" not in path:
            return self._exact.setdefault(path, {})
        pattern = re.compile(re.sub(r"\\?\{(\w+)\\?\}", r"(?P<\1>[^/]+)", re.escape(path)))
        for known, methods in self._patterns:
            if known == pattern:
                return methods
        self._patterns.append((pattern, {}))
        return self._patterns[-1][1]

    def _match(self, path: str) -> Tuple[Dict[str, Route], Dict[str, str]]:
        if path in self._exact:
            return self._exact[path], {}
        for pattern, methods in self._patterns:
            match = pattern.fullmatch(path)
            if match:
                return methods, {name: unquote(text) for name, text in match.groupdict().items()}
        return {}, {}
