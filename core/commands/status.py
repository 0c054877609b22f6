"""How the running service is: its backends, its queue, as a table.

    python comeapi.py status             once
    python comeapi.py status --watch     every two seconds, until Ctrl-C

Exit status: 0 when all backends are up, 1 when some are not, 2 when none is, or nothing answers.
"""

import signal
import sys
import time
from dataclasses import dataclass
from typing import Any, Dict, List

from core import options
from core.commands.service import Service, ServiceError, ServiceSettings
from core.options import between, setting
from core.terminal import Live, columns, one_line, paint

WELL, PARTLY, DOWN = 0, 1, 2
_HEAD = ("BACKEND", "STATE", "MODEL", "BUSY", "FIRST BYTE", "REQUESTS", "ERRORS")
_COLOURS = {"up": "green", "new": "yellow", "loading": "yellow", "stalled": "yellow", "draining": "yellow"}


@dataclass(frozen=True)
class Config(ServiceSettings):
    """What to show."""

    watch: bool = setting(False, "show it again and again, until Ctrl-C", "status")
    interval: float = setting(2.0, "seconds between two looks", "status", check=between(0.1, 3600, float))


def main(argv: List[str]) -> None:
    """Show the service's state, and end the program with an exit status that tells it."""
    config = options.parse(Config, __doc__, argv=argv, program="comeapi.py status")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    service, live, code = Service(config), Live(), DOWN
    try:
        while True:
            lines, code = _look(service)
            if not config.watch:
                print("\n".join(lines), flush=True)
                break
            if live.works:
                live.show(lines)
            else:
                print("\n".join(lines) + "\n", flush=True)
            time.sleep(config.interval)
    except KeyboardInterrupt:
        print(flush=True)
    sys.exit(code)


def _look(service: Service) -> Any:
    """Return the lines to show, and the exit status."""
    try:
        facts = service.get("/status")
        backends = facts.get("backends")
        if not isinstance(backends, list):
            raise ServiceError("what answers at %s is one backend, not a balancer" % service.url)
    except ServiceError as problem:
        return [paint("❌ " + str(problem), "red")], DOWN
    backends = [each for each in backends if isinstance(each, dict)]
    code = state_of(backends)
    return [_summary(service.url, facts, backends, code)] + table(backends), code


def state_of(backends: List[Dict[str, Any]]) -> int:
    """Return the exit status that says how the backends are."""
    up = [bool(each.get("healthy")) for each in backends]
    return DOWN if not any(up) else WELL if all(up) else PARTLY


def _summary(url: str, facts: Dict[str, Any], backends: List[Dict[str, Any]], code: int) -> str:
    up = sum(bool(each.get("healthy")) for each in backends)
    busy = sum(_number(each, "in_flight") for each in backends)
    slots = sum(_number(each, "capacity") for each in backends)
    mark = {WELL: paint("🟢", "green"), PARTLY: paint("🟠", "yellow"), DOWN: paint("🔴", "red")}[code]
    figures = (mark, url, up, len(backends), busy, slots, _number(facts, "queued"))
    return "%s %s: %d of %d backends up, %d of %d slots busy, %d waiting" % figures


def table(backends: List[Dict[str, Any]]) -> List[str]:
    """Return the lines of a table of backends, and below it why some are not up."""
    rows = [_HEAD] + [_row(each) for each in backends]
    widths = [max(columns(row[index]) for row in rows) for index in range(len(_HEAD))]
    lines = []
    for number, row in enumerate(rows):
        cells = [cell + " " * (wide - columns(cell)) for cell, wide in zip(row, widths)]
        cells[1] = paint(cells[1], _COLOURS.get(row[1], "red")) if number else cells[1]
        lines.append("  ".join(cells).rstrip())
    lines[0] = paint(lines[0], "dim")
    whys = [(each.get("url"), each.get("why")) for each in backends if each.get("why") and not each.get("healthy")]
    return lines + ["%s: %s" % (one_line(str(url)), one_line(str(why))) for url, why in whys]


def _row(backend: Dict[str, Any]) -> Any:
    return (
        one_line(str(backend.get("url", "?"))),
        one_line(str(backend.get("state", "?"))),
        one_line(str(backend.get("model") or "-")),
        "%d of %d" % (_number(backend, "in_flight"), _number(backend, "capacity")),
        "%d ms" % (_number(backend, "avg_response_time") * 1e3) if _number(backend, "requests") else "-",
        "%d" % _number(backend, "requests"),
        "%d" % _number(backend, "error_count"),
    )


def _number(facts: Dict[str, Any], name: str) -> float:
    value = facts.get(name)
    return value if isinstance(value, (int, float)) else 0
