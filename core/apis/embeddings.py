"""Embeddings: texts in, vectors out.

POST /v1/embeddings               OpenAI's
POST /embeddings, /embedding      llama.cpp's own: a bare list; with pooling "none", a vector for each token

A text is read as the prompts of completions are. Vectors are cut and made of one length here, not in the engine.
"""

import base64
import math
import struct
from dataclasses import dataclass
from typing import Any, List, Optional, Tuple
from typing import Sequence as Many

from core import fields
from core.apis.dialect import Body, Call, Dialect
from core.apis.endpoint import Endpoint
from core.apis.host import Host
from core.apis.prompts import read_prompts
from core.ask import EMBEDDINGS, Ask, Prompt
from core.engine.outcome import Result
from core.errors import APIError
from core.http.routing import Route

EUCLIDEAN = 2
_MOST_NORM = 1000


@dataclass(frozen=True)
class EmbeddingsAsk:
    """What a request for embeddings asks for. `normalize` is llama.cpp's embd_normalize, see normalized()."""

    inputs: Tuple[Prompt, ...]
    model: Optional[str]
    dimensions: Optional[int]
    base64: bool
    normalize: int = EUCLIDEAN


def read_embeddings(body: Body, name: str = "input", normalize: int = EUCLIDEAN) -> EmbeddingsAsk:
    """Return what a body asks for; `name` is the field with the texts, `normalize` the default. Raises APIError 400."""
    encoding = fields.text(body, "encoding_format", "float")
    if encoding not in ("float", "base64"):
        raise APIError(400, "'encoding_format' must be float or base64.", "invalid_value", "encoding_format")
    return EmbeddingsAsk(
        inputs=read_prompts(body, name).each,
        model=fields.text(body, "model", None),
        dimensions=fields.integer(body, "dimensions", None, 1, 1 << 20),
        base64=encoding == "base64",
        normalize=fields.integer(body, "embd_normalize", normalize, -1, _MOST_NORM),
    )


def normalized(vector: Many[float], how: int) -> List[float]:
    """Return a vector of length 1 by the Euclidean norm, or as llama.cpp's embd_normalize says.

    -1: as it is; 0: its largest number becomes 32,760; other numbers p: of length 1 by the p-norm. A vector of zeros
    stays as it is.
    """
    if how < 0:
        return list(vector)
    largest = max(map(abs, vector), default=0.0)
    if how == 0:
        length = largest / 32760
    elif how == EUCLIDEAN:
        length = math.sqrt(sum(each * each for each in vector))
    else:  # divided by the largest first: powers of numbers above 1 may be too large for a float
        length = largest and largest * sum((abs(each) / largest) ** how for each in vector) ** (1 / how)
    return [each / length for each in vector] if length else list(vector)


def vector_of(ask: EmbeddingsAsk, vector: Many[float]) -> List[float]:
    """Return a vector cut to as many dimensions as are wanted, and normalized. Raises APIError 400 if it has fewer."""
    if ask.dimensions and ask.dimensions > len(vector):
        message = "'dimensions' may be at most %d with this model." % len(vector)
        raise APIError(400, message, "invalid_value", "dimensions")
    return normalized(vector[: ask.dimensions], ask.normalize)


class Embeddings(Dialect):
    """A request of POST /v1/embeddings. Raises APIError 400, 404. `name` is what the model is called in the answer."""

    field = "input"

    def __init__(self, call: Call, host: Host):
        self.ask = ask = self.read(call, host)
        self._model = host.model(ask.model, EMBEDDINGS)
        self.name = host.name_of(self._model)
        self._single = host.pooling_of(self._model) != "none"
        self._check()
        super().__init__([Ask(self._model, text, gives=EMBEDDINGS) for text in ask.inputs])

    def read(self, call: Call, host: Host) -> EmbeddingsAsk:
        """Return what a body asks for. Raises APIError 400."""
        return read_embeddings(call.body, self.field, host.engine.settings.embd_normalize)

    def _check(self) -> None:
        """Raise APIError 400 for what this API can't answer."""
        if not self._single:
            message = "Pooling 'none' gives a vector for each token, which only POST /embeddings has a form for."
            raise APIError(400, message, "model_unsuitable", "model")

    def whole(self, results: List[Result]) -> Any:
        """Return a list of embeddings."""
        tokens = sum(each.end.prompt_tokens for each in results)
        data = [
            {"object": "embedding", "index": index, "embedding": self._written(each.end.vectors[0])}
            for index, each in enumerate(results)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": self.name, "usage": usage}

    def _written(self, vector: Many[float]) -> Any:
        """Return a vector as it is wanted: numbers, or in base64 the bytes of 32-bit floats, the lowest first."""
        numbers = vector_of(self.ask, vector)
        if not self.ask.base64:
            return numbers
        return base64.b64encode(struct.pack("<%df" % len(numbers), *numbers)).decode("ascii")


class NativeEmbeddings(Embeddings):
    """A request of POST /embeddings. Raises APIError 400, 404."""

    def __init__(self, call: Call, host: Host):
        self.field = "content" if "content" in call.body and "input" not in call.body else "input"
        super().__init__(call, host)

    def _check(self) -> None:
        if self.ask.base64:
            message = "'encoding_format' base64 is known to /v1/embeddings only."
            raise APIError(400, message, "unsupported", "encoding_format")

    def whole(self, results: List[Result]) -> Any:
        """Return each text's vectors: one, or with pooling "none" one for each token, as the model gives them."""
        return [{"index": index, "embedding": self._all(each.end.vectors)} for index, each in enumerate(results)]

    def _all(self, vectors: List[Any]) -> List[List[float]]:
        if self._single:
            return [vector_of(self.ask, vector) for vector in vectors]
        return [list(vector[: self.ask.dimensions]) for vector in vectors]


def routes(endpoint: Endpoint) -> List[Route]:
    """Return the routes."""
    return [
        endpoint.route("/v1/embeddings", Embeddings),
        endpoint.route("/embeddings", NativeEmbeddings),
        endpoint.route("/embedding", NativeEmbeddings),
    ]
