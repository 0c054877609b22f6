"""One request's choice of tokens: biases, llama.cpp's samplers, and a grammar beside them.

    Sampler.make      in any thread: reads the grammar, and goes by the tokens that are generated already
    Sampler.sample    the next token, from a row of logits
    Sampler.follow    the same where the token is known: the samplers learn what choosing it would have taught them

Where a thought has used up its budget (thought.py), its end comes next, whatever the logits are.

The grammar stays out of the chain: testing the one chosen token takes microseconds, masking a whole vocabulary takes
milliseconds, and is done only when the chosen token is refused. llama.cpp ends the process where no token is left to
choose, so that is looked for before. One thread at a time uses a Sampler; llama/ says which.
"""

import math
from typing import Any, Dict, List, Optional, Tuple
from typing import Sequence as Many

import numpy

from core.ask import Budget
from core.engine.llama.chain import Chain
from core.engine.llama.context import Context
from core.engine.llama.model import Model
from core.engine.thought import Thought
from core.engine.tokenizing import Closed
from core.errors import APIError
from core.grammar import gbnf, masks
from core.grammar.elements import Token
from core.grammar.masks import Texts
from core.grammar.stacks import TOO_AMBIGUOUS, Stacks
from core.sampling import Sampling


class Sampler:
    """Chooses the tokens of one generation."""

    def __init__(
        self,
        model: Model,
        sampling: Sampling,
        seed: int,
        longest: int,
        guide: Optional["Guide"] = None,
        thought: Optional[Thought] = None,
    ):
        """`longest` is how many tokens the context holds: nothing looks back further."""
        self.model = model
        self._thought = thought
        self._biases = _arrays(biases_of(model, sampling))
        self._guide = guide
        self._chain = Chain(model, sampling, seed, longest)
        # Where only cuts can take tokens away, llama.cpp may choose by itself: the fastest way where all tokens count,
        # and most of what a grammar gets is right. But it also lets its samplers learn from the choice, which a grammar
        # may yet refuse.
        learns = sampling.penalizes or sampling.learns
        asks_more = sampling.dynatemp_range or sampling.post_sampling_probs
        self._plain = not (self._chain.narrow or self._biases or asks_more or (guide and learns))

    @property
    def narrow(self) -> bool:
        """Whether it looks at few tokens, and so is fast."""
        return self._chain.narrow

    @classmethod
    def make(
        cls,
        model: Model,
        sampling: Sampling,
        seed: int,
        longest: int,
        begun: Many[int] = (),
        budget: Optional[Budget] = None,
    ) -> Optional["Sampler"]:
        """Return a sampler, made in any thread; None if the model has been unloaded.

        The grammar and the budget go on after the tokens `begun`, if the grammar takes them. Raises APIError 400.
        """
        try:
            guide = Guide.make(model, sampling.grammar) if sampling.grammar else None
            with model.readers:
                made = cls(model, sampling, seed, longest, guide, _thought(model, budget) if budget else None)
        except Closed:
            return None
        try:
            made._go_by(begun)
        except APIError:
            made.close()
            raise
        return made

    def _go_by(self, tokens: Many[int]) -> None:
        if self._guide and not all(self._guide.take(token) for token in tokens):
            raise gbnf.refusal("The answer so far does not follow the grammar.")
        if self._thought:
            for token in tokens:
                self._thought.take(token)

    def remember(self, tokens: Many[int]) -> None:
        """Let penalties count tokens that were not sampled here, such as a prompt's."""
        for token in tokens:
            self._chain.accept(token)

    def sample(self, context: Context, row: int, number: int) -> Optional[int]:
        """Choose the generated token number `number` from a row that has logits.

        None where the grammar and the biases leave none. Raises APIError 500 where the model's logits are no numbers.
        """
        token = self._end_thought()
        if token is None:
            token = self._sample(context, row, number)
        if self._thought and token is not None:
            self._thought.take(token)
        return token

    def _end_thought(self) -> Optional[int]:
        """Return the next token of the end of a thought that has used up its budget, None where none is due."""
        token = self._thought.due if self._thought else None
        if token is None or (self._guide and not self._guide.take(token)):
            return None
        self._chain.accept(token)
        self._chain.left = numpy.array([token]), numpy.ones(1)
        return token

    def _sample(self, context: Context, row: int, number: int) -> Optional[int]:
        logits = self._logits(context, row)
        self._chain.turn_to(number)
        guide = self._guide
        if self._plain and not guide:
            return self._chain.sample(context, row)
        logits = self._biased(logits)
        token = self._chain.sample(context, row) if self._plain else self._choose(logits)
        if token is not None and guide and not guide.take(token):
            token = self._choose(numpy.where(guide.allowed(), logits, numpy.float32(-math.inf)))
            if token is not None and not guide.take(token):
                raise gbnf.refusal(TOO_AMBIGUOUS)
        if token is not None and not self._plain:
            self._chain.accept(token)
        return token

    def follow(self, context: Context, row: int, token: int) -> int:
        """Go by a token that is known, as if it had been chosen from the row; return it. Raises APIError 400, 500."""
        if not self._thought or self._thought.due is None:
            self._choose(self._biased(self._logits(context, row)))
        self._go_by([token])
        self._chain.accept(token)
        return token

    def _logits(self, context: Context, row: int) -> Any:
        logits = context.logits(row, self.model.vocabulary)
        if not math.isfinite(logits.max()):
            raise APIError(500, "%s gives no numbers for logits." % self.model.file.name, "model_broken")
        return logits

    def _biased(self, logits: Any) -> Any:
        if self._biases:
            logits = logits.copy()
            logits[self._biases[0]] += self._biases[1]
        return logits

    def _choose(self, logits: Any) -> Optional[int]:
        """Choose a token; the likeliest, should the chain leave none; None where there is none to begin with."""
        best = int(logits.argmax())
        if logits[best] == -math.inf:
            return None
        token = self._chain.choose(logits)
        return best if token is None else token

    def likeliest(self, token: int, most: int) -> Tuple[float, List[Tuple[int, float]]]:
        """Return the probability that the samplers left to a chosen token, and the `most` likeliest with theirs.

        For requests with post_sampling_probs, after sample().
        """
        ids, probabilities = self._chain.left
        top = numpy.argsort(-probabilities, kind="stable")[:most]
        chosen = float(probabilities[ids == token].sum())
        return chosen, [(int(ids[each]), float(probabilities[each])) for each in top if probabilities[each] > 0]

    def close(self) -> None:
        """Free the samplers."""
        self._chain.close()


def _thought(model: Model, budget: Budget) -> Thought:
    """Return what keeps a budget. The caller keeps the model from being freed."""
    ending = model.native_tokens(budget.message + budget.closer, False, True)
    return Thought(budget, ending, lambda token: model.piece(token, True))


class Guide:
    """A grammar, and where an answer stands in it."""

    def __init__(self, model: Model, stacks: Stacks, texts: Texts):
        self._model = model
        self._stacks = stacks
        self._texts = texts

    @classmethod
    def make(cls, model: Model, source: str) -> "Guide":
        """Read a grammar in GBNF, in any thread. Raises APIError 400, and Closed where the model has been unloaded."""
        grammar = gbnf.read(source)
        texts = model.texts()
        with model.readers:
            tokens = {token.name: _token_id(model, token) for token in grammar.tokens}
        return cls(model, Stacks(grammar, tokens), texts)

    def take(self, token: int) -> bool:
        """Let the answer go on by a token, if the grammar takes it."""
        if self._model.ends(token):
            return self._stacks.may_end()
        after = self._stacks.after(token, self._model.piece(token, True))
        if after:
            self._stacks.move(after)
        return bool(after)

    def allowed(self) -> Any:
        """Return for each token of the vocabulary whether it may come next: an array of bool."""
        return masks.allowed(self._stacks, self._texts)


def _token_id(model: Model, token: Token) -> int:
    """Return the id of a token that a grammar names by its id or its text. Raises APIError 400 if there is none."""
    if isinstance(token.name, int):
        if token.name >= model.vocabulary:
            raise gbnf.refusal("The grammar names the token %d; the model has %d." % (token.name, model.vocabulary))
        return token.name
    ids = model.markers([token.name])
    if not ids:
        raise gbnf.refusal("The grammar names the token '%s'; the model has none." % token.name[:40])
    return next(iter(ids))


_FARTHEST = 1e6  # as far as a bias need go: no logit is near it, and float32 has digits left for the logit itself


def biases_of(model: Model, sampling: Sampling) -> Dict[int, float]:
    """Return what is added to tokens' logits; a text's is added to each of its tokens'.

    The caller keeps the model from being freed.
    """
    biases: Dict[int, float] = {}
    for wanted, bias in sampling.logit_bias:
        bias = bias if bias == -math.inf else max(-_FARTHEST, min(bias, _FARTHEST))
        for token in model.native_tokens(wanted, False, False) if isinstance(wanted, str) else [wanted]:
            if token < model.vocabulary:
                biases[token] = biases.get(token, 0.0) + bias
    if sampling.ignore_eos:
        biases.update((token, -math.inf) for token in model.ends_all())
    return biases


def _arrays(biases: Dict[int, float]) -> Any:
    """Return tokens and what is added to their logits, as two arrays; None if there are none."""
    if not biases:
        return None
    return numpy.array(list(biases), numpy.int64), numpy.array(list(biases.values()), numpy.float32)
