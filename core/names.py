"""One rule for the spellings of a model's name, for the balancer and the backends alike."""

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
