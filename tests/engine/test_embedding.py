"""Embeddings and ranks: texts of any length, side by side, give what llama.cpp's own pooling of one text gives."""

import ctypes

import llama_cpp
import numpy
import pytest
from conftest import PATIENCE
from engines import DEMO, launch
from gguf import write_bert, write_embedder, write_last_ranker

from core.ask import EMBEDDINGS, RANKS, Ask, Pair
from core.engine.generation import Generation
from core.engine.outcome import Channel
from core.errors import APIError
from core.models import inspect
from core.settings import EngineSettings

STORY = "Once upon a time there was a kind bear called Ruby. She found a red ball and ran home. "
TEXTS = ["A fox.", STORY * 20, "The fox went home.", STORY, "x", STORY * 7, "Ruby ran."]
EXACT = {"cache_type_k": "f32", "cache_type_v": "f32", "flash_attn": "off"}
NEAR = 0.005  # of numbers of about 1: quantized weights are multiplied otherwise in batches of other sizes
POOLINGS = {"mean": 1, "cls": 2, "last": 3}


@pytest.fixture
def start():
    """Start engines that end with the test."""
    engines = []

    def starter(path, **settings):
        engines.append(launch(inspect(str(path)), **dict(EXACT, **settings)))
        return engines[-1]

    yield starter
    for engine in engines:
        engine.stop()


def embed(engine, texts, gives=EMBEDDINGS):
    """Return the last event of each text, all of which are submitted at once."""
    channel = Channel()
    model = engine._running.resident.model.file
    for index, text in enumerate(texts):
        engine.submit(Generation(Ask(model, text, gives=gives), channel, index))
    events = dict(channel.get(PATIENCE) for _ in texts)
    assert all(not isinstance(event, APIError) for event in events.values()), events
    return [events[index] for index in range(len(texts))]


def vectors(engine, texts, gives=EMBEDDINGS):
    return [numpy.array(each.vectors[0]) for each in embed(engine, texts, gives)]


def reference(path, tokens, pooling):
    """Return what llama.cpp itself pools of one text that is one piece, alone in a context."""
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = params.n_outputs_max = 1024
    params.embeddings, params.pooling_type, params.n_threads = True, pooling, 1
    params.type_k = params.type_v = 0
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama_cpp.llama_init_from_model(model, params)
    kept = (ctypes.c_int32 * len(tokens))(*tokens)
    assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(kept, len(tokens))) == 0
    size = 1 if pooling == 4 else llama_cpp.llama_model_n_embd(model)
    found = numpy.ctypeslib.as_array(llama_cpp.llama_get_embeddings_seq(context, 0), (size,)).copy()
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return found


def tokens_of(engine, text):
    return engine._running.resident.model.prompt_tokens(text, 10000)


@pytest.mark.parametrize("pooling", sorted(POOLINGS))
def test_texts_of_unequal_lengths_are_embedded_as_llama_cpp_embeds_each_alone(tmp_path, start, pooling):
    path = write_embedder(str(tmp_path / "embedder.gguf"), POOLINGS[pooling])
    engine = start(path, batch_size=32, ctx_size=1024)  # most texts take several batches, and share them
    assert engine._running.resident.context.in_pieces
    for text, vector in zip(TEXTS, vectors(engine, TEXTS)):
        assert vector == pytest.approx(reference(path, tokens_of(engine, text), POOLINGS[pooling]), abs=NEAR)


@pytest.mark.parametrize("pooling", sorted(POOLINGS))
def test_a_model_whose_tokens_see_all_others_takes_each_text_in_one_piece(tmp_path, start, pooling):
    path = write_embedder(str(tmp_path / "embedder.gguf"), POOLINGS[pooling], llama_attention_causal=False)
    engine = start(path, batch_size=32, ctx_size=1024)
    assert not engine._running.resident.context.in_pieces
    for text, vector in zip(TEXTS, vectors(engine, TEXTS)):
        assert vector == pytest.approx(reference(path, tokens_of(engine, text), POOLINGS[pooling]), abs=NEAR)


@pytest.mark.parametrize("ranks", [False, True], ids=["embeds", "ranks"])
def test_a_model_without_cells_embeds_and_ranks(tmp_path, start, ranks):
    path = write_bert(str(tmp_path / "bert.gguf"), ranks)
    engine = start(path, batch_size=32, ctx_size=1024)
    texts = [Pair("Who ran?", text) for text in TEXTS] if ranks else TEXTS
    found = vectors(engine, texts, RANKS if ranks else EMBEDDINGS)
    for text, vector in zip(texts, found):
        assert vector == pytest.approx(reference(path, tokens_of(engine, text), 4 if ranks else 2), abs=NEAR)
    assert len({vector.tobytes() for vector in found}) == len(texts)


def test_a_model_that_ranks_by_the_last_row_does_so_in_pieces(tmp_path, start):
    path = write_last_ranker(str(tmp_path / "ranker.gguf"))
    engine = start(path, batch_size=32, ctx_size=1024)
    assert engine._running.resident.context.in_pieces
    pairs = [Pair("Who ran?", text) for text in TEXTS]
    scores = vectors(engine, pairs, RANKS)
    for pair, score in zip(pairs, scores):
        assert score[0] == pytest.approx(reference(path, tokens_of(engine, pair), 4)[0], abs=1e-4)
    assert max(scores, key=lambda score: score[0])[0] - min(scores, key=lambda score: score[0])[0] > 0.01


def test_a_model_that_ranks_by_the_first_row_takes_each_pair_in_one_piece(tmp_path, start):
    engine = start(write_embedder(str(tmp_path / "ranker.gguf"), 4), batch_size=32, ctx_size=1024)
    assert not engine._running.resident.context.in_pieces and engine._running.resident.context.longest_text == 1024


def test_without_pooling_each_token_has_its_vector(tmp_path, start):
    path = write_embedder(str(tmp_path / "embedder.gguf"), 1)
    whole = vectors(start(path, ctx_size=1024), [STORY * 7])[0]
    [event] = embed(start(path, ctx_size=1024, batch_size=32, pooling="none"), [STORY * 7])
    assert len(event.vectors) == event.prompt_tokens > 32
    assert numpy.mean(event.vectors, axis=0) == pytest.approx(whole, abs=NEAR)


@pytest.mark.parametrize("causal", [True, False], ids=["in pieces", "whole"])
def test_a_text_may_fill_the_context_and_no_more(tmp_path, start, causal):
    path = write_embedder(str(tmp_path / "embedder.gguf"), 1, llama_attention_causal=causal)
    engine = start(path, ctx_size=256, batch_size=32, slots=2)
    [event] = embed(engine, [(5,) * 256])
    assert event.prompt_tokens == 256
    for text in ((5,) * 257, "Once upon a time. " * 100000):
        with pytest.raises(APIError) as refused:
            embed(engine, [text])
        assert (refused.value.status, refused.value.code) == (400, "context_length_exceeded")
        assert "too large" in refused.value.message and "at most 256" in refused.value.message


def test_a_text_that_is_given_up_in_the_middle_leaves_nothing_behind(tmp_path, start):
    path = write_embedder(str(tmp_path / "embedder.gguf"), 1)
    engine = start(path, ctx_size=1024, batch_size=32, slots=1)
    alone = vectors(engine, ["The fox went home."])[0]
    left = Generation(Ask(engine._running.resident.model.file, STORY * 20, gives=EMBEDDINGS))
    engine.submit(left)
    engine.cancel(left)
    assert vectors(engine, ["The fox went home."])[0] == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize("settings, pooling", [
    ({}, ""), ({"pooling": "last"}, ""), ({"embedding": True}, "none"), ({"reranking": True}, "rank"),
    ({"embedding": True, "pooling": "last"}, "last"),
])  # fmt: skip
def test_a_model_that_gives_text_embeds_or_ranks_where_the_options_say_so(settings, pooling):
    assert EngineSettings(**settings).pooling_of(DEMO) == pooling
