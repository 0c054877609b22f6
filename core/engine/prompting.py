"""What tokens a prompt is, in one model's vocabulary. No llama_cpp.

    a text, token ids      as they are, after what the vocabulary adds at the beginning
    a Gap                  between the vocabulary's marks for filling in (FIM)
    an Infill              the same, after the project's other files
    a Pair                 by the model's own template for reranking, else with the marks that separate two texts

The forms of gaps and pairs are those of llama.cpp's server (format_prompt_infill, format_prompt_rerank).
"""

from typing import Callable, List, NamedTuple, Tuple
from typing import Sequence as Many

from core.ask import Gap, Infill, Pair, Part, Plain, Prompt, Wanted
from core.engine.tokenizing import TooLong
from core.errors import APIError

FILLING_TOKENS = 2048  # of a gap's prefix and suffix: three quarters and one
_LONG_TOKEN = 16  # characters; of long texts around a gap, so many for each token are looked at
_SNIPPET = "\n\n--- snippet ---\n\n"  # between files, where the vocabulary has no token for that
_BYTES = 4  # that a character may take, and so as many tokens
_FILLING = (("pre", "prefix"), ("suf", "suffix"), ("mid", "middle"))  # marks without which no gap can be filled


class Marks(NamedTuple):
    """A vocabulary's special tokens, -1 where it has none, and which of them it adds to a text by itself."""

    bos: int
    eos: int
    sep: int
    pre: int
    suf: int
    mid: int
    rep: int
    file: int
    adds_bos: bool
    adds_eos: bool
    adds_sep: bool


class Prompting:
    """Makes prompts' tokens.

    `tokenize(text, add_special, parse_special, most)` raises TooLong above `most` tokens of a long text; `known(token)`
    raises APIError 400 for a token that there is not. `pair_template` has {query} and {document}, "" if there is none;
    `controls` are the special tokens' texts.
    """

    def __init__(
        self,
        tokenize: Callable[[str, bool, bool, int], Many[int]],
        known: Callable[[int], int],
        marks: Marks,
        pair_template: str = "",
        controls: Tuple[str, ...] = (),
    ):
        self._tokenize = tokenize
        self._known = known
        self._marks = marks
        self._pair_template = pair_template
        self._controls = controls

    def tokens(self, wanted: Wanted, most: int) -> List[int]:
        """Return the tokens. Raises TooLong above `most`, as soon as that is certain, of a long text.

        Raises APIError 400 for an unknown token; 400 for a Gap and 501 for an Infill where the model fills no gaps.
        """
        if isinstance(wanted, Pair):
            return self._pair(wanted, most)
        if isinstance(wanted, Infill):
            return self._infill(wanted, most)
        room = most + 1  # for a first token that is there twice
        tokens = self._gap(wanted, room) if isinstance(wanted, Gap) else self._mixed(wanted, room, True)
        return tokens[1:] if self._begins_twice(tokens) else tokens

    def _mixed(self, prompt: Prompt, most: int, add_special: bool) -> List[int]:
        """Return the tokens of texts and token ids in turns; a first text gets what the model wants before it."""
        parts: Many[Part] = (prompt,) if isinstance(prompt, str) else prompt
        tokens: List[int] = []
        for index, part in enumerate(parts):
            if isinstance(part, int):
                tokens.append(self._known(part))
            else:
                text, plain = (part.text, True) if isinstance(part, Plain) else (part, False)
                tokens += self._tokenize(text, add_special and index == 0, not plain, most - len(tokens))
            if len(tokens) > most and index + 1 < len(parts):
                raise TooLong(len(tokens))
        return tokens

    def _begins_twice(self, tokens: List[int]) -> bool:
        """Whether a text brought its own first token: chat templates do, and the vocabulary adds it again."""
        return self._marks.adds_bos and tokens[:2] == [self._marks.bos] * 2

    # ---- gaps

    def _gap(self, gap: Gap, most: int) -> List[int]:
        """Return the tokens that ask a model to fill a gap."""
        if self._missing():
            raise APIError(400, "This model can't fill a gap: it has no tokens for that.", "no_infill", "suffix")
        marks = self._marks
        before = self._mixed(gap.prefix, most, False)
        after = self._tokenize(gap.suffix, False, True, most - len(before))
        return self._bos() + [marks.pre, *before, marks.suf, *after, marks.mid]

    def _infill(self, infill: Infill, most: int) -> List[int]:
        """Return the tokens of other files, as far as they fit, and of the gap. They leave a quarter for the answer."""
        missing = "".join(" %s token is missing." % name for name in self._missing())
        if missing:
            raise APIError(501, "Infill is not supported by this model:" + missing, "not_supported")
        marks, around = self._marks, min(FILLING_TOKENS, most // 2)
        start = self._tokenize(infill.start, False, True, most)
        prefix = self._plain(infill.prefix[-around * _LONG_TOKEN :])[-(3 * around // 4) :]
        suffix = self._plain(infill.suffix[: around * _LONG_TOKEN])[: max(0, around // 4 - 2 - len(start))]
        files = self._files(infill.files, max(0, most - around - most // 4))
        return files + self._bos() + [marks.pre, *prefix, *start, marks.suf, *suffix, marks.mid]

    def _missing(self) -> List[str]:
        """Return the names of the marks that filling a gap needs and the vocabulary lacks."""
        return [name for mark, name in _FILLING if getattr(self._marks, mark) < 0]

    def _files(self, files: Many[Tuple[str, str]], room: int) -> List[int]:
        """Return the last `room` tokens of other files, the last file's at the end."""
        marks = self._marks
        tokens = self._file("filename", "")
        for name, text in reversed(files):
            if len(tokens) >= room:
                break
            tokens = self._file(name, _SNIPPET) + self._plain(text[-room * _LONG_TOKEN :]) + tokens
        if marks.rep >= 0:
            tokens = [marks.rep] + self._plain("myproject\n") + tokens
        return tokens[max(0, len(tokens) - room) :]

    def _file(self, name: str, otherwise: str) -> List[int]:
        """Return what stands before a file's text; `otherwise` where the vocabulary has no token for that."""
        return [self._marks.file] + self._plain(name + "\n") if self._marks.file >= 0 else self._plain(otherwise)

    def _plain(self, text: str) -> List[int]:
        """Return a text's tokens, however many; special tokens' texts are text like any other."""
        return list(self._tokenize(text, False, False, _BYTES * len(text) + 1))

    def _bos(self) -> List[int]:
        return [self._marks.bos] if self._marks.adds_bos else []

    # ---- pairs

    def _pair(self, pair: Pair, most: int) -> List[int]:
        if self._pair_template:
            return self._mixed(self._from_template(pair), most, False)
        marks = self._marks
        eos = marks.eos if marks.eos >= 0 else marks.sep
        end = [eos] if marks.adds_eos else []
        query = self._tokenize(pair.query, False, False, most)
        document = self._tokenize(pair.document, False, False, most - len(query))
        return [*self._bos(), *query, *end, *([marks.sep] if marks.adds_sep else []), *document, *end]

    def _from_template(self, pair: Pair) -> Prompt:
        """Return the template's text with both texts in it. A text that holds special tokens' texts stays plain."""
        both = {"{query}": pair.query, "{document}": pair.document}
        plain = any(control in text for text in both.values() for control in self._controls)
        parts: List[Part] = [self._pair_template]
        for name, text in both.items():
            parts = [new for part in parts for new in _put(part, name, Plain(text))]
        return tuple(parts) if plain else "".join(part.text if isinstance(part, Plain) else str(part) for part in parts)


def _put(part: Part, name: str, text: Plain) -> List[Part]:
    """Return a template's part with a text in place of each `name` in it; what has been put in stays as it is."""
    if not isinstance(part, str):
        return [part]
    pieces = part.split(name)
    both: List[Part] = [each for piece in pieces for each in (piece, text)]
    return both[:-1]
