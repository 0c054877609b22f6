"""Reranking in the shapes of Jina, Cohere and Hugging Face, through the balancer."""

import shutil

import pytest
from conftest import ROOT, balanced_backend, call, in_parallel
from gguf import write_bert

DOCUMENTS = ["A red ball.", "Ruby ran home to the forest.", "The bear sang.", "Nothing at all, really."]
ASKED = {"model": "ranker", "query": "Who ran home?", "documents": DOCUMENTS}


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """A balancer in front of a backend with a model that ranks, and one that does not."""
    folder = tmp_path_factory.mktemp("models")
    write_bert(str(folder / "ranker.gguf"), ranks=True)
    shutil.copy(ROOT + "/models/demo.gguf", str(folder))
    with balanced_backend("--models=%s" % folder, "--model=ranker.gguf") as balancer:
        yield balancer


@pytest.fixture
def rerank(system):
    return lambda path="/v1/rerank", **more: call(system.url + path, dict(ASKED, **more))


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/v1/reranking", "/rerank", "/reranking"])
def test_the_best_document_comes_first(rerank, path):
    answer = rerank(path).json
    scores = [each["relevance_score"] for each in answer["results"]]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 4
    assert sorted(each["index"] for each in answer["results"]) == [0, 1, 2, 3]
    assert answer["object"] == "list" and answer["model"] == "ranker.gguf" and answer["id"]
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 20
    assert all("document" not in each for each in answer["results"])


def test_only_the_best_are_told_and_with_their_texts_where_that_is_wanted(rerank):
    documents = [{"text": text, "title": "x"} for text in DOCUMENTS]
    results = rerank(top_n=2, return_documents=True, documents=documents).json["results"]
    assert [each["index"] for each in results] == [each["index"] for each in rerank().json["results"][:2]]
    assert [each["document"] for each in results] == [{"text": DOCUMENTS[each["index"]]} for each in results]


def test_the_shape_of_hugging_face_is_a_bare_list(system, rerank):
    answer = call(system.url + "/rerank", {"query": ASKED["query"], "texts": DOCUMENTS, "return_text": True}).json
    results = rerank().json["results"]
    assert [each["text"] for each in answer] == [DOCUMENTS[each["index"]] for each in results]
    assert [each["score"] for each in answer] == pytest.approx([each["relevance_score"] for each in results], rel=1e-3)
    assert all(set(each) == {"index", "score", "text"} for each in answer)


def test_a_score_does_not_depend_on_what_else_is_ranked(rerank):
    together = {each["index"]: each["relevance_score"] for each in rerank().json["results"]}
    alone = in_parallel(lambda text: rerank(documents=[text]).json["results"][0]["relevance_score"], DOCUMENTS)
    assert alone == pytest.approx([together[index] for index in range(4)], rel=1e-3)


@pytest.mark.parametrize("more, param", [
    ({"documents": None}, "documents"), ({"documents": []}, "documents"), ({"documents": "x"}, "documents"),
    ({"documents": [1, 2]}, "documents[0]"), ({"documents": ["x", {"title": "y"}]}, "documents[1]"),
    ({"documents": ["x"] * 3000}, "documents"), ({"query": None}, "query"), ({"query": ["x"]}, "query"),
    ({"top_n": 0}, "top_n"), ({"max_tokens_per_doc": 9}, "max_tokens_per_doc"), ({"rank_fields": ["a"]}, "rank_fields"),
    ({"documents": ["x " * 5000]}, "documents"),
])  # fmt: skip
def test_a_wrong_field_is_named(rerank, more, param):
    refused = rerank(**more)
    assert refused.status == 400 and refused.json["error"]["param"] == param


def test_a_model_that_does_not_rank_says_so_by_name(rerank, system):
    refused = rerank(model="demo")
    assert refused.status == 501 and refused.json["error"]["type"] == "not_supported_error"
    assert "demo.gguf" in refused.json["error"]["message"] and "--reranking" in refused.json["error"]["message"]
    refused = call(system.url + "/v1/embeddings", {"model": "ranker", "input": "x"})
    assert refused.status == 400 and "gives ranks" in refused.json["error"]["message"]
