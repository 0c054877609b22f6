"""One rule for the names of models, for the balancer and the backends alike.

    plain_name    the plain spelling of a name
    Names         further names of models, as --alias gives them
"""

from typing import Dict, Iterable, List, Tuple

ANY = "*"  # as an alias: any name that no model has

_LONGEST = 4096  # characters of a path; a longer text is no model's name, and casefold() of megabytes takes long


def plain_name(name: str) -> str:
    """Return a model's name in its plain spelling: without `.gguf` and Ollama's `:latest`, and in lower case."""
    if len(name) > _LONGEST:
        return name
    name = name.casefold()
    for end in (":latest", ".gguf"):
        if name.endswith(end) and name != end:
            name = name[: -len(end)]
    return name.replace(".gguf:", ":")  # what follows is a LoRA adapter's name


def check_alias(text: str) -> str:
    """Check a further name of a model, NAME=MODEL. Raises ValueError."""
    name, _, model = text.partition("=")
    if not name or not model:
        raise ValueError("%r is not NAME=MODEL" % text)
    return text


class Names:
    """Further names of models: each is NAME=MODEL, or *=MODEL for all names that no model has.

    `own` are names of the one model called `model`: answers tell the first of them, by the alphabet, as its name.
    """

    def __init__(self, aliases: Iterable[str] = (), own: Iterable[str] = (), model: str = ""):
        parts = [text.partition("=") for text in aliases]
        self.pairs: List[Tuple[str, str]] = [(name, real) for name, _, real in parts]
        self.own = sorted(set(own))
        self.model = model
        every = self.pairs + [(name, model) for name in self.own]
        self.any_other = dict(every).get(ANY, "")
        self._real: Dict[str, str] = {plain_name(name): real for name, real in every if name != ANY}

    def real(self, name: str) -> str:
        """Return the name of the model that a name stands for; itself where it is no further name."""
        return self._real.get(plain_name(name), name)

    def has(self, name: str) -> bool:
        """Whether this is a further name."""
        return plain_name(name) in self._real

    def of(self, model: str) -> List[str]:
        """Return the further names of a model."""
        return [name for name, real in self.pairs if real == model and name != ANY] + (
            self.own if model == self.model else []
        )

    def shown(self, name: str) -> str:
        """Return the name by which a model is told."""
        return self.own[0] if self.own and name == self.model else name
