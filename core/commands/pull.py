"""Gets a model into the models folder: whole, checked, and resumed where an earlier try was cut.

    python comeapi.py pull Qwen/Qwen3-4B-GGUF:Q4_K_M             a repository on Hugging Face, and a quantization
    python comeapi.py pull Qwen/Qwen3-4B-GGUF                    what there is; the most sensible one is taken
    python comeapi.py pull https://example.com/model.gguf        any URL

A model in several files is fetched whole. It goes on where an earlier try was cut; size and SHA-256 are checked; the
file gets its name only when it is whole. http_proxy, https_proxy and no_proxy count. HF_ENDPOINT names a mirror of
Hugging Face, HF_TOKEN is the token for repositories that ask for one; no other host is shown it.
"""

import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import List, Optional, Sequence

from core import options
from core.commands.download import BadDownload, Download, Watcher, require_room
from core.commands.hub import HUGGING_FACE, Hub, Link, NoChoice, Offer, RemoteFile, label, link_file, parse, pick
from core.commands.web import TIMEOUT, Web, WebError
from core.models import BadModel, inspect, locate
from core.options import between, setting
from core.terminal import Live, Progress, bar, paint, size

_LINE_SECONDS = 10.0  # between two lines of progress where there is no terminal
_REDRAW_SECONDS = 0.1


@dataclass(frozen=True)
class Config:
    """What to get, and where to."""

    source: str = setting("", "a repository on Hugging Face, OWNER/NAME[:QUANTIZATION or :FILE], or a URL", "what")
    revision: str = setting("main", "the repository's branch, tag or commit", "what")
    list: bool = setting(False, "only say what there is", "what")
    models: str = setting("", "folder to put it in (default: models, beside this program)", "where", metavar="DIR")
    stall: float = setting(
        TIMEOUT, "seconds without a byte after which the connection is given up, and a new one made", "network",
        check=between(0.1, 3600, float),
    )  # fmt: skip


def main(argv: List[str]) -> None:
    """Get what the command line names. Ends the program with status 1 where that can't be done."""
    config = options.parse(Config, __doc__, ("source",), argv, program="comeapi.py pull")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not config.source:
        options.fail("which model? For example: python comeapi.py pull Qwen/Qwen3-4B-GGUF:Q4_K_M", 2)
    try:
        _pull(config)
    except (BadDownload, NoChoice, WebError, BadModel) as problem:
        options.fail(str(problem))
    except OSError as error:
        options.fail("%s: %s" % (error.filename or "the file can't be written", error.strerror or error))
    except KeyboardInterrupt:
        print("\nStopped. Repeat the command to go on.", flush=True)
        sys.exit(130)


def _pull(config: Config) -> None:
    endpoint = os.environ.get("HF_ENDPOINT", "").strip() or HUGGING_FACE
    web = Web(endpoint, os.environ.get("HF_TOKEN", "").strip(), config.stall)
    files = _files(config, web, endpoint)
    if not files:
        return
    folder = _folder(config.models)
    downloads = [Download(web, file, folder, watcher) for file, watcher in zip(files, _watchers(files))]
    lefts = [each.left for each in downloads]
    require_room(folder, sum(left or 0 for left in lefts), "the model")
    fetched = [each.run() for each in downloads]
    _say_what_is_there(os.path.join(folder, files[0].name), any(fetched), config.models)


def _files(config: Config, web: Web, endpoint: str) -> Sequence[RemoteFile]:
    """Return the files to fetch; none where only a list was wanted. Raises NoChoice, WebError."""
    wanted = parse(config.source, endpoint)
    if isinstance(wanted, Link):
        return [link_file(wanted)]
    offers = Hub(web, endpoint).offers(wanted.name, config.revision)
    if config.list or not wanted.wanted:
        chosen = pick(offers, wanted.wanted)
        _print_offers(offers, chosen)
        if config.list:
            return []
        print("Taking %s. Another one: python comeapi.py pull %s:NAME" % (label(chosen), wanted.name), flush=True)
        return chosen.files
    return pick(offers, wanted.wanted).files


def _print_offers(offers: Sequence[Offer], chosen: Offer) -> None:
    wide = max(len(label(each)) for each in offers)
    for each in sorted(offers, key=lambda offer: offer.size):
        parts = " in %d files" % len(each.files) if len(each.files) > 1 else ""
        line = "%s %-*s  %9s%s" % ("→" if each is chosen else " ", wide, label(each), size(each.size), parts)
        print(paint(line, "bold") if each is chosen else line, flush=True)


def _folder(models: str) -> str:
    """Return the models folder's path; one that the user names is made. Raises BadModel, OSError."""
    if models:
        os.makedirs(models, exist_ok=True)
    return locate(models, "")[0]


def _say_what_is_there(path: str, fetched: bool, models: str) -> None:
    model = inspect(path)
    if model.problem:
        raise BadDownload("%s is here, and is what the server has, but %s" % (model.name, model.problem))
    facts = ", ".join(part for part in (model.architecture, model.quantization, size(model.size)) if part)
    state = "is here" if fetched else "was here already, and is whole"
    print(paint("✅ %s %s (%s)." % (model.name, state, facts), "green"))
    folder = " --models %s" % models if models else ""
    print("   Start it: python comeapi.py%s --model %s" % (folder, model.name), flush=True)


# ------------------------------------------------------------------------------------------------ progress


class _Shown(Watcher):
    """Shows a download on one line that is written anew; where there is no terminal, as a line now and then."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._live = Live()
        self._progress: Optional[Progress] = None
        self._next = 0.0

    def begin(self, name: str, done: int, total: Optional[int]) -> None:
        """Begin to show."""
        now = time.monotonic()
        self._progress = Progress(total, done, now)
        self._next = now if self._live.works else now + _LINE_SECONDS
        if not self._live.works:
            what = "%s, " % size(total) if total is not None else ""
            print("⬇  %s: %s%s" % (self._title, what, "%s are here" % size(done) if done else "fetching"), flush=True)

    def reach(self, done: int) -> None:
        """Show how many bytes are here."""
        now, progress = time.monotonic(), self._progress
        if progress is None:
            return
        progress.reach(done, now)
        if done == progress.total:
            self._live.show([])
            return
        if now >= self._next:
            self._next = now + (_REDRAW_SECONDS if self._live.works else _LINE_SECONDS)
            self._show(progress)

    def note(self, sentence: str) -> None:
        """Say something."""
        self._live.say("🟠 " + sentence)

    def _show(self, progress: Progress) -> None:
        if not self._live.works:
            print("   %s: %s" % (self._title, progress.sentence()), flush=True)
            return
        gauge = bar(progress.share) + " " if progress.share is not None else ""
        self._live.show(["⬇  %s %s%s" % (self._title, gauge, progress.sentence())])


def _watchers(files: Sequence[RemoteFile]) -> List[_Shown]:
    titles = [each.name for each in files]
    if len(files) > 1:
        titles = ["%d of %d, %s" % (number + 1, len(files), title) for number, title in enumerate(titles)]
    return [_Shown(title) for title in titles]
