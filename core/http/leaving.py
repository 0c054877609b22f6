"""How a server that is to stop tells those first that check its health, so that they send new clients elsewhere.

    serving ── leave() ──> leaving ── drain() ──> draining
                           /health says 503,      no new connections
                           all else is served
"""

import time
from typing import Optional

from core.errors import APIError

CHECKED_SECONDS = 60.0  # /health was asked for so lately: something goes by it


class Leaving:
    """Whether a server is leaving, and whether somebody goes by its health."""

    def __init__(self) -> None:
        self.begun = False
        self._asked = float("-inf")  # when somebody has asked for its health last

    def answer(self) -> Optional[APIError]:
        """Return what /health is to say because of this, or None; note that it was asked for."""
        self._asked = time.monotonic()
        if not self.begun:
            return None
        return APIError(503, "The server is stopping.", "draining", headers=[("Retry-After", "1")])

    def is_watched(self) -> bool:
        """Whether somebody has asked for the health lately."""
        return time.monotonic() - self._asked < CHECKED_SECONDS
