"""What comeapi.py shows: lines, those below them that are written anew, and a command to try the service with.

Nothing here waits for the terminal (core/output.py): a log that can't be written stops no restart.
"""

import json
import os
from typing import Sequence

from core.terminal import Live, paint

_TOLD, _TOLD_SELDOM = 6, 20  # how often in a row a cause of death is told; after that, every 20th time


_COLOURS = {"🔴": "red", "❌": "red", "🟠": "yellow", "🛟": "yellow", "🪜": "yellow", "🚀": "bold"}


class Console:
    """The terminal: whole lines, and below them, where it is a terminal, some that are written anew."""

    def __init__(self) -> None:
        self._lines = Live()

    @property
    def live(self) -> bool:
        """Whether lines can be written anew."""
        return self._lines.works

    def say(self, line: str) -> None:
        """Print a line; on a terminal, in the colour of the sign that it begins with."""
        colour = _COLOURS.get(line[:1])
        self._lines.say(paint(line, colour) if colour else line)

    def say_death(self, name: str, cause: str, times: int, delay: float) -> None:
        """Say why a child died, for the `times`th time in a row, and when it is started again (in seconds).

        A cause is told in full once, then shortly, then seldom.
        """
        if times == 1:
            when = "in %g s" % delay if delay else "at once"
            self.say("🔴 %s died: %s. Starting it again %s." % (name, cause, when))
        elif times <= _TOLD or times % _TOLD_SELDOM == 0:
            line = "🔴 %s died in the same way, %d times in a row now. Starting it again in %g s."
            self.say(line % (name, times, delay))

    def show(self, lines: Sequence[str]) -> None:
        """Show what is going on, in place of what was shown before; none takes it away."""
        self._lines.show(lines)


def curl_command(url: str, model: str, key: bool) -> str:
    """Return a command to paste that sends a first request, quoted so that every shell takes it."""
    body = json.dumps({"model_name": model, "prompt": "Once upon a time in a magical forest,"})
    header = " -H 'Authorization: Bearer YOUR_KEY'" if key else ""
    quoted = "'%s'" % body if os.name != "nt" else '"%s"' % body.replace('"', '\\"')
    return "curl %s/generate%s -d %s" % (url, header if os.name != "nt" else header.replace("'", '"'), quoted)
