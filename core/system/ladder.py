"""What is left of a backend that can't run as it is configured: less, rung by rung, rather than nothing. Pure.

    LADDER      the rungs, from the top
    Ladder      where one backend stands; why; and what it is started with there

    as configured                              a crash in the first test of a model → in safe mode
        │                                      lack of memory → the next rung on which it needs less
    in safe mode
        │
    half of the slots                          lack of memory → the next rung
        │
    a quarter of the slots, half the context
        │
    unusable: started again every 30 s as on the last rung, while the others serve; also after 6 deaths of any kind
              in a row without being ready once. It is over as soon as it is ready.

What counts as lack of memory: the kernel has killed the process for that (memory.oom_kills counts it), or the process
itself says so, by an announcement or its last words. A SIGKILL alone does not count, however often: a person may have
sent it. Where the kernel tells nothing (not on Linux), only the process' own word counts.

Why slots before context: with fewer slots everything that was possible still is, later. With less context, long
prompts are refused. Safe mode comes first where the weights would then be mapped and shared instead of copied
(quantized ones). Elsewhere it spares nothing and is left out. A backend does not climb again while comeapi.py runs:
what took the memory may come back, and each try would cost the answers that run there at that moment. A person who
has made room restarts it.
"""

from typing import List, NamedTuple, Tuple

LEAST_CONTEXT = 512  # tokens of a slot; less serves nobody
TOO_OFTEN = 6  # deaths in a row without being ready; the waits between them have grown to 30 s


class Rung(NamedTuple):
    """What a backend is started with: in safe mode or not, and which parts of its slots and its context."""

    safe: bool
    slots: float
    context: float


LADDER = (
    Rung(False, 1.0, 1.0),
    Rung(True, 1.0, 1.0),
    Rung(False, 0.5, 1.0),
    Rung(False, 0.25, 0.5),
)


class Ladder:
    """One backend's place on the ladder, and what it is to be started with there.

    `slots` and `context` (tokens of a slot; 0: unknown) are as configured. `sparing`: safe mode spares memory.
    """

    def __init__(self, slots: int, context: int, sparing: bool):
        self.unusable = ""  # why it is; "" while it is usable
        self._slots = slots
        self._context = context
        self._sparing = sparing
        self._rung = 0
        self._fault = ""  # what brought it here
        self._vain = 0  # deaths in a row without being ready

    @property
    def note(self) -> str:
        """What people should know of it; nothing while it runs as configured. Safe mode is told elsewhere."""
        if self.unusable:
            return "unusable, tried again every 30 s: " + self.unusable
        return "%s, for lack of memory: %s" % (self.shape, self._fault) if self._fault else ""

    @property
    def shape(self) -> str:
        """What it is started with, in words."""
        slots, context = self._size(self._rung)
        sizes = "%d slot%s" % (slots, "" if slots == 1 else "s") + (" of %d tokens" % context if context else "")
        return "in safe mode" if LADDER[self._rung].safe else "with " + sizes

    def starve(self, fault: str) -> List[str]:
        """It lacked memory: go down. Returns further options for it; none where this was the last rung."""
        for rung in range(self._rung + 1, len(LADDER)):
            options = self._options(rung)
            if options:
                self._rung, self._fault = rung, fault
                return options
        self.unusable = self.unusable or "%s, %s" % (fault, self.shape)
        return []

    def protect(self) -> None:
        """It was started in safe mode, since it or another one has crashed."""
        self._sparing = False

    def died(self, was_ready: bool, fault: str) -> bool:
        """Note a death. Returns whether it is unusable from now on: told once."""
        self._vain = 1 if was_ready else self._vain + 1
        if self._vain < TOO_OFTEN or self.unusable:
            return False
        self.unusable = "it died %d times in a row, the last time of: %s" % (self._vain, fault)
        return True

    def ready(self) -> None:
        """It works."""
        self._vain, self.unusable = 0, ""

    def _size(self, rung: int) -> Tuple[int, int]:
        step = LADDER[rung]
        context = max(int(self._context * step.context), min(LEAST_CONTEXT, self._context))
        return max(int(self._slots * step.slots), 1), context

    def _options(self, rung: int) -> List[str]:
        """Return the options that a rung needs beyond those where it stands; none where it would spare nothing."""
        if LADDER[rung].safe:
            return ["--safe-mode"] if self._sparing else []
        slots, context = self._size(rung)
        options = []
        if slots < self._size(self._rung)[0]:
            options.append("--slots=%d" % slots)
        if context < self._size(self._rung)[1]:
            options.append("--ctx-size=%d" % context)
        return options
