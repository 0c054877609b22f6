"""How a request to another server can fail. There are three names, because callers must act differently.

    Unreachable   no connection: the server has seen nothing of the request; Untrusted is one that TLS does not allow
    Broken        the connection ended early, or what came is no answer; TooLarge is one that was larger than wanted
    Slow          no byte came in time, or not all of them
"""


class Unreachable(Exception):
    """No connection could be made; the request was not sent."""


class Untrusted(Unreachable):
    """One side does not trust the other one's certificate, or misses it."""


class Broken(Exception):
    """The connection ended before the whole answer came, or what came is no answer."""


class TooLarge(Broken):
    """The answer's body is larger than its reader wants."""


class Slow(Exception):
    """The server did not answer in time."""
