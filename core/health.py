"""The health thread, and what it asks a backend: is it well, how many slots has it, which models, which one is loaded.

    GET /health       our backends tell all: status, slots, model, pid; any server counts as up that answers no 5xx
    GET /props        llama-server's slots (total_slots), where /health has not told them
    GET /models       ours and llama-server's list;  GET /v1/models  that of vLLM, Ollama and others

A probe carries the balancer's own key, so that backends with keys tell it their models.
"""

import threading
from typing import Any, Callable, Dict, List, Optional, Tuple

from core.asking import read_body
from core.pool import Backend, Pool, Report
from core.upstream import Broken, Client, Slow, Unreachable


class Health:
    """The thread that probes each backend: at its interval while it is up, every second, backing off, while not.

    Each probe runs in a thread of its own, so that one that hangs delays no other. `on_up` is told the URL of each
    backend that comes up.
    """

    def __init__(
        self,
        pool: Pool,
        client: Client,
        interval: float,
        timeout: float,
        key: str = "",
        on_up: Callable[[str], None] = lambda url: None,
    ):
        self._pool = pool
        self._client = client
        self._interval = interval
        self._timeout = timeout
        self._headers = {"Authorization": "Bearer " + key} if key else {}
        self._on_up = on_up
        self._stopped = False

    def start(self) -> None:
        """Start probing; the first probes go out at once."""
        threading.Thread(target=self._run, name="health", daemon=True).start()

    def stop(self) -> None:
        """Send no more probes."""
        self._stopped = True

    def _run(self) -> None:
        while not self._stopped:
            self._pool.expire()
            for backend in self._pool.due(patience=1.0):
                threading.Thread(target=self._probe, args=(backend,), name="probe", daemon=True).start()

    def _probe(self, backend: Backend) -> None:
        report = Report(False, "the probe failed")
        try:
            report = self.ask(backend.url)
        except Slow as error:
            report = Report(False, str(error), timed_out=True)
        except (Unreachable, Broken) as error:
            report = Report(False, str(error))
        finally:
            if self._pool.probed(backend, report, self._interval):
                self._on_up(backend.url)

    def ask(self, url: str) -> Report:
        """Ask a backend how it is. Raises Unreachable, Broken, Slow."""
        status, facts = self._get(url + "/health", self._headers)
        if status >= 500:
            why = _reason(status, facts)
            return Report(False, why, not_ready=status == 503)
        slots = _positive(facts.get("slots")) or _positive(self._get_if_it_can(url + "/props").get("total_slots"))
        models = self.models_of(url, self._headers)
        model = facts.get("model") if isinstance(facts.get("model"), str) else _loaded(models)
        return Report(True, slots=slots, model=model, told=True, models=models, life=facts.get("pid"))

    def models_of(self, url: str, headers: Dict[str, str]) -> Optional[List[Dict[str, Any]]]:
        """Return a backend's models as it lists them, each with a "name"; None where it does not tell."""
        for path in ("/models", "/v1/models"):
            models = read_models(self._get_if_it_can(url + path, headers))
            if models is not None:
                return models
        return None

    def _get_if_it_can(self, url: str, headers: Optional[Dict[str, str]] = None) -> Dict[str, Any]:
        """Ask what not every server knows: an empty object where this one does not."""
        try:
            status, body = self._get(url, self._headers if headers is None else headers)
        except (Unreachable, Broken, Slow):
            return {}
        return body if status == 200 else {}

    def _get(self, url: str, headers: Dict[str, str]) -> Tuple[int, Dict[str, Any]]:
        answer = self._client.open(url, headers=headers, timeout=self._timeout)
        return answer.status, read_body(answer.read_and_close())


def read_models(body: Dict[str, Any]) -> Optional[List[Dict[str, Any]]]:
    """Return the models of {"models": [{"name"}]} or OpenAI's {"data": [{"id"}]}, each with a "name"; else None."""
    for field, key in (("data", "id"), ("models", "name")):
        models = body.get(field)
        if isinstance(models, list):
            named = [each for each in models if isinstance(each, dict) and isinstance(each.get(key), str)]
            return [dict(each, name=each[key]) for each in named]
    return None


def _positive(value: Any) -> Optional[int]:
    return value if isinstance(value, int) and value > 0 else None


def _loaded(models: Optional[List[Dict[str, Any]]]) -> Optional[str]:
    """Return the model that is loaded, where a list says so, or has only one."""
    loaded = [each["name"] for each in models or () if each.get("loaded", len(models or ()) == 1)]
    return loaded[0] if loaded else None


def _reason(status: int, facts: Dict[str, Any]) -> str:
    """Return what a /health answer says is wrong."""
    error = facts.get("error")
    message = error.get("message") if isinstance(error, dict) else None
    return str(message or facts.get("status") or "status %d" % status)
