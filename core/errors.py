"""The errors that one package raises and another one handles. Imports nothing of the project.

    APIError      what a client is told: raised anywhere, rendered in one place
    HangUp        the client has gone: nobody is left to be told
    TimedOut      the client was too slow
    json_type     what JSON calls a value's type, for messages
    shown         what a client has sent, cut and cleaned, for messages

Source: the OpenAI API reference for the error object.
"""

import re
from typing import Any, Dict, Iterable, Optional, Tuple

_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    501: "not_supported_error",
    502: "upstream_error",
    503: "overloaded_error",
    504: "timeout_error",
}


_MOST = 2000  # characters of a message, which may quote what a client has sent


class APIError(Exception):
    """An error that the client is told: an HTTP status and the OpenAI error object's four fields.

    `type` defaults to the status' usual one; `headers` are added to the reply (Retry-After, Allow), `more` to the error
    object. The message and `param` may quote what a client has sent: they are cut, and their control characters are
    replaced.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: Optional[str] = None,
        param: Optional[str] = None,
        type: Optional[str] = None,
        headers: Iterable[Tuple[str, str]] = (),
        more: Optional[Dict[str, Any]] = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = shown(message, _MOST)
        self.code = code
        self.param = None if param is None else shown(param)
        self.type = type or _ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.headers = tuple(headers)
        self.more = more or {}

    def envelope(self) -> Dict[str, Any]:
        """Return the one error envelope: {"error": {"message", "type", "param", "code"}}."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": dict(error, **self.more)}


def prompt_too_long(tokens: int, context: int, at_least: bool = False) -> APIError:
    """Return the error of a prompt that a slot's context can't hold, with llama-server's type and numbers."""
    count = "at least %d" % tokens if at_least else "%d" % tokens
    message = "The prompt (%s tokens) exceeds the available context size (%d tokens, the answer included)."
    numbers = {"n_prompt_tokens": tokens, "n_ctx": context}
    return APIError(
        400, message % (count, context), "context_length_exceeded", "prompt", "exceed_context_size_error", more=numbers
    )


class HangUp(Exception):
    """The client has gone; there is nobody left to answer."""


class TimedOut(Exception):
    """The client was too slow."""


def shown(text: str, most: int = 200) -> str:
    """Return a text for a message: cut after `most` characters, its control characters (not line ends) replaced."""
    text = text if len(text) <= most else text[:most] + "…"
    return _CONTROL.sub("\ufffd", text)


_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def json_type(value: Any) -> str:
    """Return what JSON calls the type of `value`, with its article."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
