"""LoRA adapters by request: what is said depends on a request's own set, whoever else runs."""

from dataclasses import replace

import pytest
from engines import DEMO, asked, launch, result, run
from gguf import write_adapter, write_embedder

from core.ask import EMBEDDINGS
from core.models import inspect
from core.sampling import Sampling

EXACT = {"cache_type_k": "f32", "cache_type_v": "f32", "flash_attn": "off"}
SETS = [(), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (-1.0, 0.0)]
GREEDY = Sampling(temperature=0, ignore_eos=True)
LONG = "There was a kind bear called Ruby. She found a red ball and ran home. " * 20


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return tuple("%s=%s" % (name, write_adapter(str(folder / name), seed)) for seed, name in enumerate(["one", "two"]))


@pytest.fixture
def start(adapters):
    """Start engines with both adapters that end with the test."""
    engines = []

    def starter(model=DEMO, **settings):
        engines.append(launch(model, **dict(EXACT, lora=adapters, **settings)))
        return engines[-1]

    yield starter
    for engine in engines:
        engine.stop()


def with_set(adapters, **ask):
    return asked(**dict({"model": replace(DEMO, adapters=adapters), "sampling": GREEDY, "max_tokens": 30}, **ask))


def text(engine, adapters, **ask):
    generation = with_set(adapters, **ask)
    engine.submit(generation)
    return result(generation)[0]


def test_each_set_says_something_of_its_own_alone_and_in_company(start):
    alone = [text(start(slots=1), adapters) for adapters in SETS]
    assert len(set(alone)) == len(SETS)
    engine = start(slots=10)
    generations = [with_set(adapters) for adapters in SETS * 2]
    for each in generations:
        engine.submit(each)
    assert [result(each)[0] for each in generations] == alone * 2


def test_without_adapters_the_model_is_itself(start):
    plain = launch(**EXACT)
    assert text(start(), ()) == run(plain, sampling=GREEDY, max_tokens=30)[0]
    plain.stop()


def test_cells_are_used_again_by_the_same_set_alone(start):
    engine = start(slots=2, siding="off")
    wanted = {adapters: text(engine, adapters, prompt=LONG) for adapters in SETS}
    cached = []
    for adapters in (SETS[0], SETS[1], SETS[1], SETS[0], SETS[2], SETS[2]):
        generation = with_set(adapters, prompt=LONG)
        engine.submit(generation)
        found, _, end = result(generation)
        assert found == wanted[adapters]
        cached.append(end.cached_tokens > 300)
    assert cached == [False, False, True, True, False, True]


def test_a_long_prompt_is_evaluated_aside_with_its_set(start):
    wanted = [text(start(siding="off"), adapters, prompt=LONG) for adapters in SETS[:3]]
    engine = start(siding="on")
    generations = [with_set(adapters, prompt=LONG) for adapters in SETS[:3]]
    for each in generations:
        engine.submit(each)
    assert [result(each)[0] for each in generations] == wanted
    assert engine.tally.counts["prompts_aside"] == 3


def test_embeddings_depend_on_the_set(start, tmp_path):
    model = inspect(write_embedder(str(tmp_path / "embedder.gguf"), 1))
    engine = start(model)
    vectors = []
    for adapters in SETS[:2] * 2:
        generation = asked(model=replace(model, adapters=adapters), prompt=LONG, gives=EMBEDDINGS)
        engine.submit(generation)
        vectors.append(list(generation.channel.get(60)[1].vectors[0]))
    assert vectors[0] == pytest.approx(vectors[2], abs=1e-3) and vectors[1] == pytest.approx(vectors[3], abs=1e-3)
    assert vectors[0] != pytest.approx(vectors[1], abs=0.05)
