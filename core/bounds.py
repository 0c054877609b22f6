"""How much one request may hold: the table of all bounds, and the check that names one in its error.

A small body can ask for much work: 100,000 prompts are 400 kB. Each bound is far above what an honest client sends. A
request that reaches it still takes no more than megabytes of memory and seconds of time. Bounds in tokens (of a prompt,
by the context) are in core/engine/tokenizing.py.
"""

from typing import NamedTuple

from core.errors import APIError


class Bound(NamedTuple):
    """The most of something that a request may hold: how many, of what (errors say it), and the reason."""

    most: int
    of: str
    why: str

    def check(self, count: int, field: str) -> None:
        """Raise APIError 400 that names the field and the bound, where there are more."""
        if count > self.most:
            message = "'%s' may hold at most %d %s, not %d." % (field, self.most, self.of, count)
            raise APIError(400, message, "invalid_value", field)


# A body, as JSON
VALUES = Bound(250000, "values and names", "Python's reader keeps all other threads waiting while it reads them: 50 ms")
DEPTH = Bound(200, "levels", "values are walked through by recursion")
NUMBER = Bound(1000, "characters of a number", "old Pythons take quadratic time: a million digits are a minute")

# What is asked for
PROMPTS = Bound(2048, "prompts", "each is a job of its own, 3 kB; OpenAI's bound for embeddings")
DOCUMENTS = Bound(2048, "documents", "each is a job of its own; Cohere advises 1,000 at most")
FILES = Bound(1024, "files", "each is made tokens for itself, as far as the context has room")
ADAPTERS = Bound(64, "adapters", "more are never loaded")
VECTORS = Bound(1 << 22, "numbers of embeddings", "JSON of so many takes 300 MB: 2,048 texts' vectors of 2,048 numbers")
ANSWERS = Bound(128, "answers", "OpenAI's bound of n")
ALL_ANSWERS = Bound(2048, "answers in sum", "each is a job of its own, and all are held until the last has ended")
MESSAGES = Bound(4096, "messages", "a template takes 20 µs for each, and looks at some of them again and again")
CALLS = Bound(128, "tool calls", "as many as there may be tools")
TOOLS = Bound(128, "tools", "OpenAI's bound; each may add a schema to the grammar")
TOKENS = Bound(250000, "tokens", "of POST /tokenize: each is an element of the answer's JSON")

# How it is answered
STOPS = Bound(16, "strings", "each is looked for after each token")
STOP_LENGTH = Bound(256, "characters in a string", "so much text is held back, and compared after each token")
LOGIT_BIAS = Bound(1024, "biases", "each is looked up after each token; OpenAI takes 300")
BIAS_LENGTH = Bound(256, "characters in a text", "each of its tokens is looked up after each token")
BUDGET_MESSAGE = Bound(1024, "characters", "each of its tokens takes a step; the longest that are known have 100")
FIELDS = Bound(64, "names of fields", "each is looked up in each answer")
BREAKERS = Bound(16, "strings", "llama.cpp looks for each in the whole vocabulary: 30 ms of 150,000 tokens")
BREAKER_LENGTH = Bound(40, "characters in a string", "llama.cpp cuts longer ones")
