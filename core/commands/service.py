"""The running service, as comeapi.py's commands talk to it: where it is, its key, and its failures in words.

    ServiceSettings   --url, --api-key, --ca-file
    Service           .get(path), .stream(path, body), both raise ServiceError
"""

import json
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Optional, Tuple

from core.http.answers import Answer
from core.http.client import Client
from core.http.failures import Broken, Slow, TooLarge, Unreachable
from core.http.tls import ClientTLS
from core.options import setting
from core.terminal import harmless, one_line

_MOST = 16 << 20  # bytes of an answer
_SECONDS = 10.0
_STREAM_SECONDS = 600.0  # without a byte: a long queue, a long prompt
_FAILURES = (Unreachable, Broken, Slow, TooLarge)


def _url(text: str) -> str:
    """Check a service's URL; http:// may be left out. Raises ValueError."""
    text = text.rstrip("/") if "://" in text else "http://" + text.rstrip("/")
    scheme, _, rest = text.partition("://")
    if scheme not in ("http", "https") or not rest or harmless(text) != text or " " in text:
        raise ValueError("%r is no http or https URL" % text[:200])
    return text


@dataclass(frozen=True)
class ServiceSettings:
    """Where the service is."""

    url: str = setting("http://127.0.0.1:9000", "the balancer's URL (a backend's works, too)", "service", check=_url)
    api_key: Tuple[str, ...] = setting(
        (), "the service's API key, or @FILE; the first one counts", "service", secret=True, many=True, metavar="KEY"
    )
    ca_file: str = setting("", "certificates to check an https service by (default: the system's)", "service")


class ServiceError(Exception):
    """The service can't be reached, or refuses; the message says why, and what to do. `status` is 0 or HTTP's."""

    def __init__(self, message: str, status: int = 0):
        super().__init__(message)
        self.status = status


class Service:
    """The service at a URL. Any thread may use it."""

    def __init__(self, settings: ServiceSettings):
        self.url = settings.url
        self._client = Client(tls=ClientTLS(settings.ca_file))
        self._headers = {"Authorization": "Bearer " + settings.api_key[0]} if settings.api_key else {}

    def get(self, path: str) -> Any:
        """Return the JSON at a path. Raises ServiceError."""
        try:
            answer = self._client.open(self.url + path, headers=self._headers, timeout=_SECONDS)
            return self._read(answer)
        except _FAILURES as error:
            raise self._unreachable(error)

    def stream(self, path: str, body: Dict[str, Any]) -> "Stream":
        """Return the events that answer a body. Raises ServiceError."""
        headers = dict(self._headers, **{"Content-Type": "application/json"})
        data = json.dumps(body).encode("ascii")
        try:
            answer = self._client.open(self.url + path, "POST", headers, data, timeout=_STREAM_SECONDS)
            if answer.status != 200 or not answer.header("content-type").startswith("text/event-stream"):
                self._read(answer)
                raise ServiceError("%s answers, but not with a stream" % self.url)
        except _FAILURES as error:
            raise self._unreachable(error)
        return Stream(answer, self)

    def _read(self, answer: Answer) -> Any:
        """Return an answer's JSON. Raises ServiceError where it is an error, or no JSON, and the client's failures."""
        body = answer.read_and_close(_MOST, _SECONDS)
        try:
            facts = json.loads(body.decode("utf-8"))
        except (ValueError, RecursionError):
            facts = None
        if answer.status != 200:
            raise ServiceError(self._refusal(answer.status, facts), answer.status)
        if not isinstance(facts, dict):
            raise ServiceError("what answers at %s is no ComeAPI" % self.url)
        return facts

    def _refusal(self, status: int, facts: Any) -> str:
        error = facts.get("error") if isinstance(facts, dict) else None
        said = error.get("message") if isinstance(error, dict) else error
        advice = "; give the key by --api-key, or by COMEAPI_API_KEY" if status == 401 else ""
        return "%s answers %d: %s%s" % (self.url, status, one_line(str(said or "no reason given"))[:1000], advice)

    def _unreachable(self, error: Exception) -> ServiceError:
        if isinstance(error, Unreachable):
            advice = "Start it with: python comeapi.py; or say where it is with --url"
            return ServiceError("nothing answers at %s (%s). %s" % (self.url, error, advice))
        return ServiceError("%s broke off: %s" % (self.url, error))

    def broken(self, error: Exception) -> ServiceError:
        """Return what to say of a stream that broke."""
        return self._unreachable(error)


class Stream:
    """An answer's server-sent events, as they come. close() it where it is not read to its end."""

    def __init__(self, answer: Answer, service: Service):
        self._answer = answer
        self._service = service
        self.backend = answer.header("x-comeapi-backend")

    def events(self) -> Iterator[Dict[str, Any]]:
        """Yield each event's JSON, up to [DONE]. Raises ServiceError."""
        try:
            for data in _data(self._answer):
                if data == b"[DONE]":
                    return
                yield self._parsed(data)
        except _FAILURES as error:
            raise self._service.broken(error)
        finally:
            self.close()

    def close(self) -> None:
        """Give up on the rest: the service stops the answer."""
        self._answer.close()

    def _parsed(self, data: bytes) -> Dict[str, Any]:
        try:
            event = json.loads(data.decode("utf-8"))
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict):
            raise ServiceError("%s sent an event that is no JSON" % self._service.url)
        error = event.get("error")
        if error:
            said = error.get("message") if isinstance(error, dict) else error
            raise ServiceError("the answer ended: %s" % one_line(str(said))[:1000])
        return event


def _data(answer: Answer) -> Iterator[bytes]:
    """Yield the data of each event of a stream (WHATWG HTML, section 9.2); comments and other fields are left out."""
    begun = b""
    lines: List[bytes] = []
    for piece in answer.pieces():
        *whole, begun = (begun + piece).split(b"\n")
        for line in whole:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                lines.append(line[len(b"data:") :].lstrip(b" "))
            elif not line and lines:
                yield b"\n".join(lines)
                lines = []


def text_of(event: Dict[str, Any], field: str) -> str:
    """Return what a chat's event adds to a field of its first answer, "" for nothing."""
    choices = event.get("choices")
    choice: Optional[Any] = choices[0] if isinstance(choices, list) and choices else None
    delta = choice.get("delta") if isinstance(choice, dict) else None
    text = delta.get(field) if isinstance(delta, dict) else None
    return text if isinstance(text, str) else ""
