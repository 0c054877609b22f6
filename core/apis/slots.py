"""llama.cpp's endpoint that keeps what a slot has evaluated: in a file of --slot-save-path, for any later start.

POST /slots/{id}?action=save       {"filename"}: writes the slot's tokens and cells
POST /slots/{id}?action=restore    {"filename"}: puts them into a slot; a prompt that begins so goes on from there
POST /slots/{id}?action=erase

They wait until nobody has the slot. The files are those of llama.cpp's server (core/engine/statefile.py).
"""

import os
import re
import secrets
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional

from core.apis.dialect import Body
from core.apis.endpoint import Endpoint
from core.errors import APIError
from core.http.messages import Request, json_reply
from core.http.routing import Route
from core.jsonbody import read_json
from core.models import ModelFile

if TYPE_CHECKING:  # they need llama_cpp
    from core.engine.keeping import Kept

_LOOK_SECONDS = 1.0  # between two looks whether the engine still runs
_LONGEST_NAME = 200  # bytes; a file system takes 255, and what is being written has a longer name
# Control characters, separators and what means one, what Windows does not take, half characters
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f/\\\\:*?\"<>|\uff0e\u2215\u2216\ufffd\ufeff\ud800-\udfff]")


def check_filename(name: Any) -> str:
    """Return the name of a file in the folder. Raises APIError 400 for one that may lead out of it, or not be there."""
    good = isinstance(name, str) and name and not _FORBIDDEN.search(name) and ".." not in name
    if not good or name[0] in " ." or name[-1] in " ." or len(name.encode("utf-8")) > _LONGEST_NAME:
        message = "'filename' must be a file's name, without a folder, of at most %d bytes." % _LONGEST_NAME
        raise APIError(400, message, "invalid_value", "filename")
    return str(name)


class Slots:
    """The endpoint. `folder` is where the files are, "" if nothing may be saved."""

    def __init__(self, endpoint: Endpoint):
        self._host = endpoint.host
        self._engine = endpoint.host.engine
        self._folder = self._engine.settings.slot_save_path
        self._actions: Dict[str, Callable[[Request, int], Body]] = {
            "save": self._save, "restore": self._restore, "erase": self._erase,
        }  # fmt: skip

    def act(self, request: Request) -> Any:
        """POST /slots/{id}. Raises APIError 400, 404, 500, 501, 503, and HangUp."""
        if not self._folder:
            message = "This server does not save slots. Start it with --slot-save-path."
            raise APIError(501, message, "not_supported")
        slot = request.params["id"]
        if not slot.isascii() or not slot.isdigit() or not int(slot[:9]) < self._engine.settings.slots:
            message = "Invalid slot ID: there are slots 0 to %d." % (self._engine.settings.slots - 1)
            raise APIError(400, message, "invalid_value", "id_slot")
        action = self._actions.get(request.query.get("action", ""))
        if action is None:
            raise APIError(400, "Invalid action: it must be save, restore or erase.", "invalid_value", "action")
        return json_reply(dict({"id_slot": int(slot)}, **action(request, int(slot))))

    def _save(self, request: Request, slot: int) -> Body:
        from core.engine import keeping, statefile

        name = check_filename(read_json(request.body).get("filename"))
        started = time.monotonic()
        kept: "Kept" = self._done(request, keeping.SlotTask(slot, keeping.save))
        pieces = statefile.written(kept.tokens, kept.cells, self._facts(kept.model))
        size = _write(os.path.join(self._folder, name), pieces)
        return {
            "filename": name, "n_saved": len(kept.tokens), "n_written": size,
            "timings": {"save_ms": _milliseconds(started)},
        }  # fmt: skip

    def _restore(self, request: Request, slot: int) -> Body:
        from core.engine import keeping, statefile

        name = check_filename(read_json(request.body).get("filename"))
        started = time.monotonic()
        data = _read(os.path.join(self._folder, name))
        try:
            file = statefile.read(data)
        except statefile.BadStateFile as problem:
            raise _unable(str(problem))
        model = self._engine.vocabulary()
        kept = keeping.Kept(self._model_of(file.facts, model.file), file.tokens, file.cells)
        if not file.tokens or any(not 0 <= token < model.vocabulary for token in file.tokens):
            raise _unable("it holds tokens that the model does not have")
        count = self._done(request, keeping.SlotTask(slot, keeping.restore(kept)))
        return {
            "filename": name, "n_restored": count, "n_read": len(data),
            "timings": {"restore_ms": _milliseconds(started)},
        }  # fmt: skip

    def _erase(self, request: Request, slot: int) -> Body:
        from core.engine import keeping

        return {"n_erased": self._done(request, keeping.SlotTask(slot, keeping.erase))}

    def _facts(self, model: ModelFile) -> Body:
        return {"model": self._host.fingerprint_of(model), "lora": list(model.adapters)}

    def _model_of(self, facts: Optional[Body], model: ModelFile) -> ModelFile:
        """Return a model with the LoRA adapters that a file's cells are of. Raises APIError 400 for another model's."""
        if facts is None:
            return model
        scales = facts.get("lora")
        if isinstance(scales, list) and all(isinstance(each, float) for each in scales):
            model = replace(model, adapters=tuple(scales))
            if len(scales) in (0, len(self._engine.lora_scales)) and facts == dict(facts, **self._facts(model)):
                return model
        raise _unable("another model has written it, or the same with other options")

    def _done(self, request: Request, task: Any) -> Any:
        """Return what a task returns, once the slot is free. Raises its APIError, and HangUp."""
        self._engine.enqueue(task)
        try:
            while True:
                outcome = request.wait(task.outcome, _LOOK_SECONDS)
                if outcome is not None:
                    return outcome[0]
                if self._engine.status in ("failed", "stopped"):
                    raise APIError(503, "The engine has %s." % self._engine.status, "engine_down")
        finally:
            task.cancelled = True


def _milliseconds(started: float) -> float:
    return round((time.monotonic() - started) * 1e3, 3)


def _unable(why: str) -> APIError:
    return APIError(400, "Unable to restore slot: %s." % why, "bad_state", "filename")


def _read(path: str) -> bytes:
    """Return a file's bytes. Raises APIError 400 where there is none, or it can't be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise _unable("the file can't be read (%s)" % (error.strerror or error))


def _write(path: str, pieces: List[Any]) -> int:
    """Write a file, whole or not at all. Returns its size. Raises APIError 500 where it can't be written."""
    new = "%s.%s" % (path, secrets.token_hex(8))
    try:
        try:
            with open(new, "xb") as file:
                size = sum(file.write(piece) for piece in pieces)
            os.replace(new, path)
            return size
        finally:
            if os.path.lexists(new):
                os.unlink(new)
    except OSError as error:
        raise APIError(500, "Unable to save slot: %s." % (error.strerror or error), "not_written", "filename")


def routes(endpoint: Endpoint) -> List[Route]:
    """Return the routes."""
    return [Route("POST", "/slots/{id}", Slots(endpoint).act)]
