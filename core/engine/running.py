"""What runs on the model that is loaded, and the one way out of it. The engine's thread's."""

from typing import Optional

from core.engine.admission import close_sampler
from core.engine.generation import Generation, State
from core.engine.outcome import Event, Finished
from core.engine.resident import Resident
from core.engine.scheduler import Scheduler
from core.engine.tally import Tally
from core.settings import EngineSettings


class Running:
    """The scheduler's generations, the resident model that computes them, and the tally of it."""

    def __init__(self, settings: EngineSettings):
        self.settings = settings
        self.scheduler = Scheduler(settings.slots, settings.rows)
        self.tally = Tally()
        self.resident: Optional[Resident] = None

    @property
    def model(self) -> Resident:
        """What is loaded, for those who run only while something is. Raises RuntimeError where nothing is."""
        if self.resident is None:
            raise RuntimeError("no model is loaded")
        return self.resident

    @property
    def path(self) -> Optional[str]:
        """The path of the model that is loaded."""
        return self.resident.model.file.path if self.resident else None

    def end(self, generation: Generation, event: Optional[Event]) -> None:
        """End a generation, with its last event; with None where nobody reads it. Its slot is free at once."""
        siding = self.resident.siding if self.resident else None
        if siding and siding.generation is generation:
            siding.abandon()
        self.scheduler.release(generation)
        generation.become(State.ENDED)
        close_sampler(generation)
        self.tally.counts["cancelled" if event is None else "ended"] += 1
        if isinstance(event, Finished):
            self.tally.count_ended(event.prompt_tokens + event.completion_tokens, event.timings)
        if event is not None:
            generation.tell(event)

    def forget(self, slot: int) -> None:
        """Give up the cells of a slot that nobody has."""
        self.model.context.forget(slot)
        self.scheduler.forget(slot)
