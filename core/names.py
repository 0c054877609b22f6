"""One rule for the spellings of a model's name, for the balancer and the backends alike."""

_LONGEST = 4096  # characters, as a path may have: longer ones are no names, and folding megabytes takes a while


def plain_name(name: str) -> str:
    """Return a model's name without what makes no difference: `.gguf`, Ollama's `:latest`, and letters' case."""
    if len(name) > _LONGEST:
        return name
    name = name.casefold()
    for end in (":latest", ".gguf"):
        if name.endswith(end) and name != end:
            name = name[: -len(end)]
    return name
