"""Long texts are tokenized in pieces: the same tokens, in time that grows with the text, and nobody waits for it."""

import os
import random
import threading
import time

import pytest
from conftest import PATIENCE, ROOT, in_parallel
from gguf import write_byte_pairs

from core.engine import tokenizing
from core.engine.llama.model import Model
from core.engine.tokenizing import PIECE, Closed, Cutter, LongTexts, Readers, TooLong
from core.errors import APIError
from core.models import inspect
from core.settings import EngineSettings

WORDS = (
    "the The don't it's I'LL 1 23 456 7890 . , ... !! ? ( ) / // ' \" 。 、 次の 漢字 かな カナ é ñandú e\u0301 😀 abc XYZ "
    "fooBar a1b2 _ __ – ² ½ ß Ω привет مرحبا สวัสดี 한국어 <|im_end|> <s> <b> # $5 % \u2581 \ufffd \x01"
).split(" ") + [" ", " ", " ", "  ", "\n", "\n", "\n\n", "\r\n", "\t", " \n", "\n ", "\u00a0", "\u3000", "\0"]


def load(path):
    return Model(inspect(str(path)), EngineSettings(), lambda share: True)


KINDS = ["sentencepiece", "gpt-2", "llama-bpe", "qwen2", "tekken", "deepseek-v3", "superbpe"]


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    if request.param == "sentencepiece":
        model = load(os.path.join(ROOT, "models", "demo.gguf"))
    else:
        path = tmp_path_factory.mktemp("vocabularies") / (request.param + ".gguf")
        with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
            model = load(write_byte_pairs(str(path), request.param, file.read(10000), merges=150))
    yield model
    model.close()


@pytest.fixture
def short_pieces(monkeypatch):
    """Let texts be cut as often as they can be."""
    monkeypatch.setattr(tokenizing, "PIECE", 160)
    monkeypatch.setattr(tokenizing, "_SEARCHED", 158)


def pieces(model, text, special=True, most=10**6):
    """Return a text's tokens, made piece by piece."""
    model._tokenize(" " * (PIECE + 1), False, True, 10**6)  # makes what it takes
    return model._long_texts.tokenize(text, special, True, most, lambda: None)


@pytest.mark.parametrize("special", [True, False])
def test_a_text_in_pieces_has_the_tokens_of_the_whole_text(model, short_pieces, special):
    rng = random.Random(2)
    pieces(model, "")
    tried = 0
    for _ in range(60):
        text = "".join(rng.choice(WORDS) + rng.choice(["", " ", " "]) for _ in range(200))
        if all_safe(model, text):
            tried += 1
            assert pieces(model, text, special) == model.native_tokens(text, special, True), text
    assert tried >= 20


def all_safe(model, text):
    """Whether every cut of a text is at a safe place."""
    cutter, start = model._long_texts._cutter, 0
    for piece in list(cutter.pieces(text))[:-1]:
        start += len(piece)
        if start not in list(cutter._places(text, start)) or not cutter._apart(text[start - 1], text[start]):
            return False
    return start > 0


@pytest.mark.parametrize("char", ["\n", " ", "a", "A", "aB", ".", "漢", "é", "\0", "1", "😀", "<|im_end|>"])
def test_a_long_run_takes_no_time_and_spells_the_same_text(model, char):
    text = char * (20000 // len(char))
    started = time.monotonic()
    tokens = model.tokenize(text, False, True)
    assert time.monotonic() - started < 10
    assert model.detokenize(tokens).decode("utf-8").lstrip(" ") == text.lstrip(" ")
    if char == "<|im_end|>":
        assert len(set(tokens)) == 1 and len(tokens) == 2000


def test_a_prompt_that_does_not_fit_is_refused_before_it_is_tokenized_whole(model, monkeypatch):
    pieces(model, "")
    native, taken = model.native_tokens, []
    monkeypatch.setattr(model._long_texts, "_native", lambda text, *how: taken.append(text) or native(text, *how))
    for text, most_pieces in (("One two. " * 10**6, 0), ("One two. " * 20000, 5)):
        del taken[:]
        with pytest.raises(TooLong) as refused:
            model.prompt_tokens(text, 1000)
        assert refused.value.least > 1000 and len(taken) <= most_pieces


def test_what_is_asked_for_as_a_list_of_tokens_is_bounded(model):
    with pytest.raises(APIError) as refused:
        model.tokenize("a.\n" * 200000, False, True)
    assert refused.value.param == "content" and "250000 tokens" in refused.value.message


def test_a_place_that_no_token_reaches_across_is_found_in_a_text_without_words():
    cutter = Cutter(["a", "b", "c", "ab", "ba", "<ca>"], ["<ca>"], bpe=False)
    text = "ab" * PIECE + "bb" + "ab" * PIECE
    assert list(map(len, cutter.pieces("a" * 5000))) == [PIECE, PIECE, 5000 - 2 * PIECE]
    assert all(piece.endswith("b") or piece.startswith("a") for piece in cutter.pieces(text))
    cut = list(cutter.pieces("b" * (PIECE - 2) + "<ca>" + "b" * PIECE))
    assert any("<ca>" in piece for piece in cut), "a special token's text is in one piece"


def test_a_blank_that_a_vocabulary_writes_before_texts_is_not_written_before_pieces():
    blank, text = ord("\u2581"), "ab" * PIECE

    def native(text, add_special, parse_special):
        return [blank] + list(map(ord, text))

    tokens = ["<0x01>", "<0x02>", "a\1b"]  # so \1 is no guard: a token holds it
    long_texts = LongTexts(native, "llama", tokens, [], [1], [2])
    assert long_texts.tokenize(text, True, True, 10**6, lambda: None) == [1] + native(text, False, True) + [2]
    unguarded = LongTexts(native, "llama", ["a"], [], [], [])
    assert unguarded.tokenize(text, True, True, 10**6, lambda: None) == native(text, True, True), "taken whole"


def test_what_is_read_is_closed_when_its_last_reader_has_left():
    readers, inside, leave = Readers(), threading.Event(), threading.Event()

    def read(_):
        with readers:
            inside.set()
            leave.wait(PATIENCE)
            readers.check()

    def close(_):
        inside.wait(PATIENCE)
        assert not readers.close(0.01), "somebody reads"
        leave.set()
        return readers.close(PATIENCE)

    results = in_parallel(lambda role: role(None), [read, read, close])
    assert [type(result) for result in results[:2]] == [Closed, Closed] and results[2] is True
    with pytest.raises(Closed):
        with readers:
            pass


def test_a_model_is_freed_in_the_middle_of_a_long_text_and_its_reader_is_told():
    model = load(os.path.join(ROOT, "models", "demo.gguf"))
    native, begun = model.native_tokens, threading.Event()
    pieces(model, "")
    model._long_texts._native = lambda *text: (native(*text), begun.set(), time.sleep(0.001))[0]
    results = []
    reader = threading.Thread(target=lambda: results.append(model.prompt_tokens("Hi. " * 10**6, 10**9)))
    reader.start()
    assert begun.wait(PATIENCE)
    started = time.monotonic()
    model.close()
    assert time.monotonic() - started < 5
    reader.join(PATIENCE)
    assert results == [None] and model.prompt_tokens("Hi.", 100) is None
    for read in (lambda: model.tokenize("Hi.", True, True), lambda: model.detokenize([5])):
        with pytest.raises(APIError) as refused:
            read()
        assert refused.value.status == 503
