"""Long texts are tokenized in pieces, which changes no token: why that is needed, and where a text may be cut.

llama_tokenize takes a text as a whole. Of a sentencepiece vocabulary (SPM) it takes time that grows with the square of
the bytes without a token of their own: a minute for a megabyte of line breaks. Of many byte-pair vocabularies (BPE) it
looks for words with std::regex, which recurses for each character of a word, and ends the process when the stack is
full. It can't be stopped, and tells how many tokens there are only at the end. Other vocabularies need no cuts.

    LongTexts.tokenize    a text ── Cutter.pieces ── llama_tokenize, each ──> tokens, until they are too many
    Readers               keeps a vocabulary from being freed while it is read

Between two characters that follow each other in no token of the vocabulary, no token can begin before and end after:
every merge makes a token. That is all that SPM needs. BPE first divides a text into words, by a regular expression of
the vocabulary's own. All that llama.cpp knows (llama-vocab.cpp) end a word between a letter and a blank or line break,
and between a line break after something else than white space and a letter. Both conditions together are safe.

Where there is no safe place in half a piece (a run of one character, a page of Chinese without a line break) a text is
cut where no token reaches across, if there is such a place, else anywhere but within a special token's text. The tokens
next to such a cut may then be others than those of the whole text; they spell the same text.
"""

import re
import threading
from operator import add
from typing import Callable, FrozenSet, Iterable, Iterator, List, Sequence, Set

PIECE = 2048  # characters; std::regex takes a third of a kB of stack for each, and some systems give a thread but 1 MB
_SEARCHED = PIECE // 2  # so far back from a piece's end a safe place is looked for
_LETTER = r"[^\W\d_]"
_WORDS_END = re.compile(r"(?<={0})(?=[ \n])|(?<=\S\n)(?={0})".format(_LETTER))
Tokens = Sequence[int]
Native = Callable[[str, bool, bool], Tokens]
_SPACE = "\u2581"  # as SPM vocabularies write a blank


class TooLong(Exception):
    """A text has more tokens than its reader can use: `least` or more."""

    def __init__(self, least: int):
        super().__init__("at least %d tokens" % least)
        self.least = least


class Closed(Exception):
    """What was to be read has been freed."""


class Readers:
    """Counts who reads something that must not be freed meanwhile. A context manager; raises Closed after close()."""

    def __init__(self) -> None:
        self._changed = threading.Condition()  # guards the two below
        self._count = 0
        self.closed = False

    def __enter__(self) -> None:
        with self._changed:
            self.check()
            self._count += 1

    def __exit__(self, *problem: object) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def check(self) -> None:
        """Raise Closed where whoever reads should stop, because somebody waits for that."""
        if self.closed:
            raise Closed

    def close(self, timeout: float) -> bool:
        """Let nobody in any more, and wait for those who are in; returns whether all have left."""
        with self._changed:
            self.closed = True
            return self._changed.wait_for(lambda: not self._count, timeout)


class Cutter:
    """Where texts may be cut, for one vocabulary.

    `texts` are all tokens' as the vocabulary has them; `specials` those that are looked for in a text before anything
    else. `bpe` tells a byte-pair vocabulary from a sentencepiece one.
    """

    def __init__(self, texts: Sequence[str], specials: Sequence[str], bpe: bool):
        self.longest = max(map(len, texts), default=1)  # characters: a text has no fewer tokens than this allows
        self._bpe = bpe
        self._pairs = _pairs(texts)
        self._special_pairs = _pairs(specials)

    def pieces(self, text: str) -> Iterator[str]:
        """Yield the pieces of a text, each made when it is asked for."""
        start = 0
        while len(text) - start > PIECE:
            end = self._cut(text, start + PIECE)
            yield text[start:end]
            start = end
        yield text[start:]

    def _cut(self, text: str, end: int) -> int:
        """Return the last good place to cut a text at, not after `end`; the best kind of place wins."""
        kinds = (
            (self._places(text, end), self._apart),
            (range(end, end - _SEARCHED, -1), self._apart),
            (range(end, end - _SEARCHED, -1), self._no_special),
        )
        return next((at for places, good in kinds for at in places if good(text[at - 1], text[at])), end)

    def _places(self, text: str, end: int) -> Iterable[int]:
        """Return the places where words end, the last one first."""
        found = [match.start() for match in _WORDS_END.finditer(text, end - _SEARCHED, end + 1)]
        if self._bpe:
            return [at for at in reversed(found) if (text[at - 1] if text[at] in " \n" else text[at]).isalpha()]
        return (at for at in range(end, end - _SEARCHED, -1) if text[at - 1].isalnum())  # far from special tokens

    def _apart(self, left: str, right: str) -> bool:
        """Whether two characters follow each other in no token, however the vocabulary writes them."""
        if left + right in self._pairs or _escaped(left) + _escaped(right) in self._pairs:
            return False
        return not self._bpe or _byte(left, -1) + _byte(right, 0) not in self._pairs

    def _no_special(self, left: str, right: str) -> bool:
        return left + right not in self._special_pairs


def _pairs(texts: Iterable[str]) -> FrozenSet[str]:
    pairs: Set[str] = set()
    for text in texts:
        pairs.update(map(add, text, text[1:]))
    return frozenset(pairs)


def _escaped(char: str) -> str:
    return _SPACE if char == " " else char


def _byte(char: str, index: int) -> str:
    """Return how GPT-2's byte-level vocabularies write a character's first or last byte."""
    return _BYTES[char.encode("utf-8", "replace")[index]]


def _byte_letters() -> Sequence[str]:
    """Return GPT-2's letters of all bytes: itself where it can be printed, else one of those from U+0100 on."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printed else next(others)) for byte in range(256)]


_BYTES = _byte_letters()


class LongTexts:
    """Tokenizes long texts with one vocabulary, in pieces if it is of a kind that needs them.

    `native(text, add_special, parse_special)` is llama_tokenize; `kind` is the GGUF file's tokenizer.ggml.model;
    `begin` and `end` are the tokens that add_special puts around a text. `texts` and `specials` are Cutter's.
    """

    def __init__(
        self, native: Native, kind: str, texts: Sequence[str], specials: Sequence[str], begin: Tokens, end: Tokens
    ):
        self._native = native
        self._begin, self._end = begin, end
        bpe = kind in ("gpt2", "gemma4", "whitespace")
        self._guard = "" if bpe else _guard(texts)
        self._before = len(native(self._guard, False, False))  # tokens of it
        self._cutter = Cutter(texts, specials, bpe) if bpe or (kind == "llama" and self._guard) else None

    def tokenize(
        self, text: str, add_special: bool, parse_special: bool, most: int, check: Callable[[], None]
    ) -> List[int]:
        """Return a text's tokens. `check` is called before each piece. Raises what it raises, and TooLong."""
        if self._cutter is None:
            return list(self._native(text, add_special, parse_special))
        least = -(-len(text) // self._cutter.longest)
        if least > most:
            raise TooLong(least)
        tokens = list(self._begin) if add_special else []
        for index, piece in enumerate(self._cutter.pieces(text)):
            check()
            tokens += self._continued(piece, parse_special) if index else self._native(piece, False, parse_special)
            if len(tokens) > most:
                raise TooLong(len(tokens))
        return tokens + list(self._end) if add_special else tokens

    def _continued(self, piece: str, parse_special: bool) -> Tokens:
        """Tokenize a piece that is not a text's first.

        Before a text llama_tokenize writes a blank, where an SPM vocabulary wants that. It must not do so here, so
        there is a character before the piece that no token holds, and what became of it is left out.
        """
        return self._native(self._guard + piece, False, parse_special)[self._before :]


def _guard(texts: Sequence[str]) -> str:
    """Return a character that stands in no token and has a byte's, an empty text if there is none."""
    known, held = set(texts), set("".join(texts))
    return next((char for char in map(chr, range(1, 9)) if "<0x%02X>" % ord(char) in known and char not in held), "")
