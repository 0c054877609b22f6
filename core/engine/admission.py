"""Making a generation ready to be evaluated: its prompt's tokens, checked against the context, and its sampler.

In the thread that submits it, where its model is loaded: a long prompt or a large grammar would stall every stream if
the engine's thread did this. Else, in the engine's thread, once the model is.
"""

import contextlib

from core.ask import EMBEDDINGS, RANKS, TEXT, Ask
from core.engine.generation import Generation
from core.engine.outcome import Piece
from core.engine.resident import Resident
from core.engine.sampler import Sampler
from core.engine.text import TextOut
from core.engine.tokenizing import Closed, TooLong
from core.errors import APIError, prompt_too_long


def make_ready(generation: Generation, resident: Resident) -> None:
    """Give a generation its tokens and its sampler, as far as it has none for this model. Raises APIError 400.

    Leaves it as it is where the model is being unloaded: it will be loaded again.
    """
    gives = resident.model.gives
    if generation.ask.gives != gives:
        does = "gives %s, not %s" % (gives, generation.ask.gives)
        raise APIError(400, "%s %s." % (resident.model.file.name, does), "model_unsuitable", "model")
    with contextlib.suppress(Closed), resident.model.readers:
        if not generation.tokens:
            _give_tokens(generation, resident)
        sampler = generation.sampler
        if generation.tokens and gives == TEXT and not (sampler and sampler.model is resident.model):
            _give_sampler(generation, resident)


def _give_tokens(generation: Generation, resident: Resident) -> None:
    ask = generation.ask
    try:
        prompt = resident.model.prompt_tokens(ask.prompt, _room(ask, resident))
    except TooLong as problem:
        raise _too_long(ask, problem.least, resident, at_least=True)
    for token in generation.begun:
        resident.model.known(token, "tokens")
    if prompt is not None:
        # One begun in the middle may have reached the end of the context: its last token is evaluated, too.
        begun = 0 if resident.settings.context_shift else len(generation.begun)
        _check_size(ask, len(prompt) + max(0, begun - 1), resident)
        generation.begin(prompt)


def _give_sampler(generation: Generation, resident: Resident) -> None:
    """Give a generation its sampler, and let that and the text go by the tokens that are generated already."""
    close_sampler(generation)
    known = () if generation.stepwise else generation.begun
    model, sampling = resident.model, generation.ask.sampling
    n_ctx, budget = resident.context.n_ctx, generation.ask.budget
    sampler = Sampler.make(model, sampling, generation.seed, n_ctx, known, budget)
    if sampler is None:
        return
    if sampling.penalizes:
        sampler.remember(generation.tokens)
    generation.sampler = sampler
    generation.shown = model.markers(generation.ask.markers)
    told = TextOut(generation.ask.stop)
    pieces = [model.piece(token, token in generation.shown) for token in generation.begun]
    generation.replayed = [Piece(told.push(piece), [token]) for token, piece in zip(generation.begun, pieces)]
    generation.text = TextOut(generation.ask.stop) if generation.stepwise else told


def close_sampler(generation: Generation) -> None:
    """Free a generation's sampler, if it has one."""
    if generation.sampler:
        generation.sampler.close()
        generation.sampler = None


def _room(ask: Ask, resident: Resident) -> int:
    """Return how many tokens a prompt may have."""
    return resident.context.longest_text if ask.gives != TEXT else resident.context.n_ctx - 1


def _check_size(ask: Ask, tokens: int, resident: Resident) -> None:
    """Raise APIError 400 where a prompt is empty, or leaves no room for an answer."""
    if not tokens:
        raise APIError(400, "The prompt holds no tokens.", "empty_prompt", _FIELDS[ask.gives])
    if tokens > _room(ask, resident):
        raise _too_long(ask, tokens, resident)


def _too_long(ask: Ask, tokens: int, resident: Resident, at_least: bool = False) -> APIError:
    if ask.gives == TEXT:
        return prompt_too_long(tokens, resident.context.n_ctx, at_least)
    count = "at least %d" % tokens if at_least else "%d" % tokens
    message = "The text is too large: it has %s tokens; at most %d fit." % (count, resident.context.longest_text)
    return APIError(400, message, "context_length_exceeded", _FIELDS[ask.gives])


_FIELDS = {TEXT: "prompt", EMBEDDINGS: "input", RANKS: "documents"}  # what the request's texts are called
