"""What comeapi.py shows: lines, the progress below them, and a command to try the service with.

Nothing here waits for the terminal (core/output.py): a log that can't be written stops no restart.
"""

import json
import os
import sys

_TOLD, _TOLD_SELDOM = 6, 20  # how often in a row a cause of death is told; after that, every 20th time


class Console:
    """The terminal: whole lines, and below them, where it is a terminal, one that shows progress."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._shown = ""

    def say(self, line: str) -> None:
        """Print a line."""
        self._erase()
        print(line, flush=True)

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

    def progress(self, text: str) -> None:
        """Show what is going on, in place of what was shown before."""
        if self._live and text != self._shown:
            self._erase()
            sys.stdout.write(text)
            sys.stdout.flush()
            self._shown = text

    def _erase(self) -> None:
        if self._shown:
            sys.stdout.write("\r" + " " * (len(self._shown) + 4) + "\r")
            self._shown = ""


def curl_command(url: str, model: str, key: bool) -> str:
    """Return a command to paste that sends a first request, quoted so that every shell takes it."""
    body = json.dumps({"model_name": model, "prompt": "Once upon a time in a magical forest,"})
    header = " -H 'Authorization: Bearer YOUR_KEY'" if key else ""
    quoted = "'%s'" % body if os.name != "nt" else '"%s"' % body.replace('"', '\\"')
    return "curl %s/generate%s -d %s" % (url, header if os.name != "nt" else header.replace("'", '"'), quoted)
