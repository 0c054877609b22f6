"""Embeddings in OpenAI's shape and in llama.cpp's, through the balancer."""

import base64
import math
import struct

import pytest
from conftest import balanced_backend, call
from gguf import write_embedder

from core.apis.embeddings import normalized

TEXTS = ["The fox went home.", "A fox is going home. " * 60]


@pytest.fixture(scope="module", params=["mean", "none"])
def system(request, tmp_path_factory):
    """A balancer in front of a backend with an embedding model. Its batches are far smaller than a long text."""
    folder = tmp_path_factory.mktemp("models")
    write_embedder(str(folder / "embedder.gguf"))
    options = ["--models=%s" % folder, "--batch-size=32", "--ctx-size=1024", "--pooling=" + request.param]
    with balanced_backend(*options) as balancer:
        balancer.pooling = request.param
        yield balancer


@pytest.fixture
def pooled(system):
    return system if system.pooling == "mean" else pytest.skip("of one vector for each text")


@pytest.fixture
def bare(system):
    return system if system.pooling == "none" else pytest.skip("of a vector for each token")


def length(vector):
    return math.sqrt(sum(each * each for each in vector))


def test_the_api_of_openai_gives_numbers_or_their_bytes(pooled):
    answer = call(pooled.url + "/v1/embeddings", {"input": TEXTS}).json
    vectors = [each["embedding"] for each in answer["data"]]
    assert answer["usage"]["prompt_tokens"] > 300 and all(length(vector) == pytest.approx(1) for vector in vectors)
    encoded = call(pooled.url + "/v1/embeddings", {"input": TEXTS, "encoding_format": "base64"}).json["data"][1]
    data = base64.b64decode(encoded["embedding"])
    assert struct.unpack("<%df" % (len(data) // 4), data) == pytest.approx(vectors[1], abs=1e-4)


def test_a_vector_can_be_cut_and_is_of_length_1_again(pooled):
    whole, cut = (
        call(pooled.url + "/v1/embeddings", dict({"input": TEXTS[0]}, **more)).json["data"][0]["embedding"]
        for more in ({}, {"dimensions": 8})
    )
    assert len(cut) == 8 and cut == pytest.approx([each / length(whole[:8]) for each in whole[:8]])
    refused = call(pooled.url + "/v1/embeddings", {"input": TEXTS[0], "dimensions": 100000})
    assert refused.status == 400 and refused.json["error"]["param"] == "dimensions"


def test_ollamas_own_client_gets_vectors_in_both_forms(pooled):
    ollama = pytest.importorskip("ollama")
    client = ollama.Client(host=pooled.url)
    expected = [each["embedding"] for each in call(pooled.url + "/v1/embeddings", {"input": TEXTS}).json["data"]]
    several = client.embed(model="embedder", input=TEXTS)
    assert several.model == "embedder.gguf" and several.prompt_eval_count > 300
    for vector, same in zip(several.embeddings, expected):
        assert list(vector) == pytest.approx(same, abs=1e-4)
    cut = client.embed(model="embedder:latest", input=TEXTS[0], dimensions=8)
    assert len(cut.embeddings) == 1 and len(cut.embeddings[0]) == 8 and length(cut.embeddings[0]) == pytest.approx(1)
    old = list(client.embeddings(model="embedder", prompt=TEXTS[0]).embedding)
    assert [each / length(old) for each in old] == pytest.approx(expected[0], abs=1e-4)
    assert length(old) != pytest.approx(1)  # as the model gives it
    assert list(client.embeddings(model="embedder").embedding) == [] == list(client.embed("embedder", []).embeddings)
    shown = client.show("embedder")
    assert shown.capabilities == ["embedding"] and shown.modified_at.year > 2000
    client._client.close()


@pytest.mark.parametrize("body, param", [
    ({"input": 7}, "input"), ({"input": ["a", 7]}, "input"), ({"input": TEXTS[1] * 20}, "input"),
    ({"input": "a", "truncate": "x"}, "truncate"), ({"input": "a", "dimensions": -1}, "dimensions"),
    ({"input": ["a"] * 3000}, "input"),
])  # fmt: skip
def test_what_can_not_be_embedded_for_ollama_gets_400(pooled, body, param):
    answer = call(pooled.url + "/api/embed", dict(body, model="embedder"))
    assert answer.status == 400 and answer.json["error"]["param"] == param
    assert call(pooled.url + "/api/embed", {"input": "a", "model": "nobody.gguf"}).status in (200, 404)


def test_the_api_of_llama_cpp_gives_a_bare_list_and_any_norm(pooled):
    for path in ("/embeddings", "/embedding"):
        answer = call(pooled.url + path, {"content": TEXTS, "embd_normalize": -1}).json
        assert [each["index"] for each in answer] == [0, 1] and all(len(each["embedding"]) == 1 for each in answer)
    whole = call(pooled.url + "/v1/embeddings", {"input": TEXTS[0]}).json["data"][0]["embedding"]
    [raw] = answer[0]["embedding"]
    assert length(raw) > 1.5 and [each / length(raw) for each in raw] == pytest.approx(whole)
    refused = call(pooled.url + "/embeddings", {"input": "a", "encoding_format": "base64"})
    assert refused.status == 400 and refused.json["error"]["param"] == "encoding_format"


def test_without_pooling_llama_cpps_api_gives_a_vector_for_each_token_and_openais_refuses(bare):
    [answer] = call(bare.url + "/embeddings", {"input": TEXTS[0]}).json
    tokens = call(bare.url + "/tokenize", {"content": TEXTS[0], "add_special": True}).json["tokens"]
    assert len(answer["embedding"]) == len(tokens) > 4 and length(answer["embedding"][0]) > 1.5
    refused = call(bare.url + "/v1/embeddings", {"input": TEXTS[0]})
    assert refused.status == 400 and "none" in refused.json["error"]["message"]


def test_a_text_may_come_in_the_parts_of_a_message(pooled):
    parts = {"content": [{"type": "text", "text": "The fox "}, {"type": "text", "text": "went home."}]}
    answer = call(pooled.url + "/v1/embeddings", {"input": [TEXTS[0], parts]}).json
    assert answer["data"][0]["embedding"] == pytest.approx(answer["data"][1]["embedding"], abs=1e-4)
    for wrong in ({"content": "x"}, {"content": [{"type": "image_url"}]}, [{"content": [1]}]):
        refused = call(pooled.url + "/v1/embeddings", {"input": wrong})
        assert refused.status == 400 and refused.json["error"]["param"].startswith("input")


def test_a_text_that_does_not_fit_is_too_large(system):
    refused = call(system.url + "/embeddings", {"input": TEXTS[1] * 100})
    assert refused.status == 400 and "too large" in refused.json["error"]["message"]


@pytest.mark.parametrize("how, wanted", [
    (-1, [3, -4]), (0, [24570, -32760]), (1, [3 / 7, -4 / 7]), (2, [0.6, -0.8]), (3, [0.66698, -0.88931]),
    (1000, [0.75, -1]),
])  # fmt: skip
def test_vectors_are_normalized_as_llama_cpp_does(how, wanted):
    assert normalized([3, -4], how) == pytest.approx(wanted, rel=1e-3)
    assert normalized([0.0, 0.0], how) == [0, 0] and normalized([1e30, 0.0], how)[1] == 0
