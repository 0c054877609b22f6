"""Files and facts from other people's web servers, by urllib: proxies, redirects, a token, and failures in words.

    Web(endpoint, token)
      .open(url, headers) ── Response: urllib's own, whose status is 2xx
      .json(url)          ── a body that is JSON, of a bounded size

The proxies are those of the environment (http_proxy, https_proxy, no_proxy). The token is shown to the endpoint's
own scheme, host and port only: at a redirect to another place it is left out. From https nothing leads to http.
A failure is a WebError: its message says what to do, and `passing` says that the same request may work later.
"""

import email.message
import http.client
import json
import os
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
from typing import IO, Any, Dict, Optional, Tuple

from core.terminal import harmless

TIMEOUT = 30.0  # seconds without a byte
MOST_JSON = 64 << 20  # bytes
_PORTS = {"http": 80, "https": 443}
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses after which the same request may work later


class WebError(Exception):
    """A request failed. `passing`: it may work later; `wait`: after so many seconds, where the server says so."""

    def __init__(self, message: str, status: int = 0, passing: bool = False, wait: Optional[float] = None):
        super().__init__(message)
        self.status = status
        self.passing = passing
        self.wait = wait


class Web:
    """Opens URLs. `endpoint` is the place that the token belongs to; "" for no token."""

    def __init__(self, endpoint: str = "", token: str = "", timeout: float = TIMEOUT):
        self._timeout = timeout
        self._opener = urllib.request.OpenerDirector()
        redirects = _Redirects(origin(endpoint) if token else ("", "", 0), token)
        self._authorize = redirects.authorize
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.HTTPDefaultErrorHandler(),
            redirects,
        ):
            self._opener.add_handler(handler)

    def open(self, url: str, headers: Optional[Dict[str, str]] = None) -> Any:
        """Return urllib's response to GET, of which only the head has been read. Raises WebError."""
        check_url(url)
        request = urllib.request.Request(url, headers=dict(headers or {}, **{"Accept-Encoding": "identity"}))
        request.add_unredirected_header("User-Agent", "comeapi")
        self._authorize(request)
        try:
            response = self._opener.open(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            error.close()
            raise _refusal(error, url)
        except OSError as error:
            raise failure(error, url)
        except (http.client.HTTPException, ValueError) as error:
            raise WebError("%s sent no HTTP that can be read: %s" % (host_of(url), _words(error)), passing=True)
        if response is None:
            raise WebError("%s leads to something that is neither http nor https" % url)
        return response

    def json(self, url: str) -> Any:
        """Return what a URL's JSON says. Raises WebError."""
        with self.open(url) as response:
            try:
                body = response.read(MOST_JSON + 1)
                if len(body) > MOST_JSON:
                    raise WebError("%s sent more than %d bytes of JSON" % (host_of(url), MOST_JSON))
                return json.loads(body.decode("utf-8"))
            except OSError as error:
                raise failure(error, url)
            except http.client.HTTPException as error:
                raise WebError("the connection to %s was cut: %s" % (host_of(url), _words(error)), passing=True)
            except (ValueError, RecursionError):
                raise WebError("%s did not send JSON at %s" % (host_of(url), url))


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, 308 too (urllib does so from Python 3.11 on)."""

    def __init__(self, home: Tuple[str, str, int], token: str):
        self._home = home
        self._token = token

    def authorize(self, request: urllib.request.Request) -> None:
        """Put the token on a request to the place that it belongs to, so that no redirect takes it along."""
        if self._token and origin(request.full_url) == self._home:
            request.add_unredirected_header("Authorization", "Bearer " + self._token)

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> Optional[urllib.request.Request]:
        """Return the request that follows a redirect. Raises HTTPError."""
        if code == 308:
            code = 307
        check_url(newurl)
        if req.full_url.startswith("https:") and not newurl.lower().startswith("https:"):
            raise WebError("%s leads from https to http: %s; not followed" % (host_of(req.full_url), newurl))
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            self.authorize(request)
        return request

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        """Follow a redirect. Raises HTTPError, WebError, ValueError; the redirecting answer is closed then."""
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except BaseException:
            fp.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


# --------------------------------------------------------------------------------------------------- URLs


def check_url(url: str) -> None:
    """Raise WebError where a text is no http or https URL."""
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme.lower() in _PORTS and parts.hostname and (parts.port or 1)
    except ValueError:
        good = False
    if not good or harmless(url) != url or " " in url:
        raise WebError("%r is no http or https URL" % url[:200])


def origin(url: str) -> Tuple[str, str, int]:
    """Return a URL's scheme, host and port. Raises WebError."""
    check_url(url)
    parts = urllib.parse.urlsplit(url)
    scheme = parts.scheme.lower()
    return scheme, (parts.hostname or "").lower(), parts.port or _PORTS[scheme]


def host_of(url: str) -> str:
    """Return a URL's host, for messages; a user's name and password in it are left out."""
    return urllib.parse.urlsplit(url).netloc.rpartition("@")[2]


# ----------------------------------------------------------------------------------------------- failures


def failure(error: OSError, url: str) -> WebError:
    """Return what to say of a connection that failed."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, WebError):
        return reason
    if isinstance(reason, (socket.timeout, TimeoutError)):
        return WebError("%s sends nothing any more" % host_of(url), passing=True)
    if isinstance(reason, ssl.SSLCertVerificationError):
        message = "the certificate of %s can't be verified: %s. Behind a proxy that opens TLS, set SSL_CERT_FILE"
        return WebError(message % (host_of(url), _words(reason)))
    if isinstance(reason, socket.gaierror):
        return WebError("the name of %s is not known here%s" % (host_of(url), _proxy_advice()), passing=True)
    return WebError("no connection to %s: %s%s" % (host_of(url), _words(reason), _proxy_advice()), passing=True)


def _proxy_advice() -> str:
    given = any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "all_proxy"))
    return "" if given else "; if this network needs a proxy, set https_proxy"


def _refusal(error: urllib.error.HTTPError, url: str) -> WebError:
    """Return what to say of a status that is no success."""
    said = _header(error.headers, "X-Error-Message") or harmless(str(error.reason or ""))[:200]
    message = "%s answered %d%s" % (host_of(url), error.code, " (%s)" % said if said else "")
    return WebError(message, error.code, error.code in _PASSING, _retry_after(error.headers))


def _retry_after(headers: Optional[email.message.Message]) -> Optional[float]:
    text = _header(headers, "Retry-After")
    return float(text) if text.isdigit() and len(text) < 6 else None


def _header(headers: Optional[email.message.Message], name: str) -> str:
    return harmless(str(headers.get(name, "") if headers else ""))[:200].strip()


def _words(error: Any) -> str:
    text = getattr(error, "verify_message", "") or getattr(error, "strerror", "") or str(error)
    return harmless(str(text))[:200] or type(error).__name__
