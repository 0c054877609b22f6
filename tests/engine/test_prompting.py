"""What a prompt's tokens are: gaps and pairs in the forms of llama.cpp's server. The vocabulary here is characters."""

import pytest

from core.ask import Gap, Infill, Pair
from core.engine.prompting import Marks, Prompting
from core.errors import APIError

BOS, EOS, SEP, PRE, SUF, MID, REP, FILE = range(1, 9)
FULL = Marks(BOS, EOS, SEP, PRE, SUF, MID, REP, FILE, True, False, False)


def prompting(marks=FULL, template="", controls=()):
    def tokenize(text, add_special, parse_special, most):
        head = [marks.bos] if add_special and marks.adds_bos else []
        return head + [(1000 if parse_special else 0) + ord(char) for char in text]

    return Prompting(tokenize, lambda token: token, marks, template, controls)


def shown(tokens):
    """Return tokens as a text: of marks, their names."""
    names = dict(zip(range(1, 9), "<bos> <eos> <sep> <pre> <suf> <mid> <rep> <file>".split()))
    return "".join(names.get(token) or chr(token % 1000) for token in tokens)


def test_a_gap_stands_between_the_marks():
    assert shown(prompting().tokens(Gap("ab", "cd"), 100)) == "<bos><pre>ab<suf>cd<mid>"
    assert shown(prompting().tokens(Gap((70, "b"), "cd"), 100)) == "<bos><pre>Fb<suf>cd<mid>"


def test_an_infill_begins_with_the_projects_files():
    infill = Infill("ab", "cd", (("x.h", "int"), ("y.h", "long")), "st")
    project = "<rep>myproject\n<file>x.h\nint<file>y.h\nlong<file>filename\n"
    assert shown(prompting().tokens(infill, 1000)) == project + "<bos><pre>abst<suf>cd<mid>"


def test_without_marks_for_files_snippets_are_told_apart_by_a_line():
    marks = FULL._replace(rep=-1, file=-1, adds_bos=False)
    infill = Infill("ab", "cd", (("x.h", "int"),))
    assert shown(prompting(marks).tokens(infill, 1000)) == "\n\n--- snippet ---\n\nint<pre>ab<suf>cd<mid>"


def test_what_is_far_from_the_gap_is_left_out():
    infill = Infill("p" * 5000 + "ab", "cd" + "s" * 5000, (("x.h", "far" + "f" * 5000), ("y.h", "near")))
    text = shown(prompting().tokens(infill, 400))
    files, _, rest = text.partition("<bos><pre>")
    prefix, _, suffix = rest.partition("<suf>")
    assert prefix.endswith("pab") and len(prefix) == 150 and suffix.startswith("cds") and len(suffix) < 60
    assert "far" not in files and files.endswith("f<file>y.h\nnear<file>filename\n")
    assert len(prompting().tokens(infill, 400)) <= 400 * 3 // 4 + 8


def test_special_tokens_in_the_texts_around_a_gap_are_text():
    tokens = prompting().tokens(Infill("a", "b", (("n", "t"),), "s"), 100)
    assert [token - 1000 for token in tokens if token >= 1000] == [ord("s")]


@pytest.mark.parametrize("wanted, status", [(Gap("a", "b"), 400), (Infill("a", "b"), 501)])
def test_a_model_without_the_marks_says_so(wanted, status):
    with pytest.raises(APIError) as refused:
        prompting(FULL._replace(suf=-1)).tokens(wanted, 100)
    assert refused.value.status == status
    if status == 501:
        assert "suffix token is missing" in refused.value.message and "prefix" not in refused.value.message


@pytest.mark.parametrize("adds, text", [
    ((True, True, False), "<bos>q<eos>d<eos>"), ((True, True, True), "<bos>q<eos><sep>d<eos>"),
    ((False, False, False), "qd"),
])  # fmt: skip
def test_a_pair_is_divided_as_the_vocabulary_wants_it(adds, text):
    marks = FULL._replace(adds_bos=adds[0], adds_eos=adds[1], adds_sep=adds[2])
    assert shown(prompting(marks).tokens(Pair("q", "d"), 100)) == text


def test_where_there_is_no_mark_for_the_end_the_one_between_texts_takes_its_place():
    marks = FULL._replace(eos=-1, adds_eos=True)
    assert shown(prompting(marks).tokens(Pair("q", "d"), 100)) == "<bos>q<sep>d<sep>"


def test_a_models_own_template_for_pairs_is_used_and_neither_text_can_bring_special_tokens():
    made = prompting(template="Q {query} D {document}<end>", controls=("<end>",))
    tokens = made.tokens(Pair("a{document}", "b"), 100)
    assert shown(tokens) == "Q a{document} D b<end>" and min(tokens) >= 1000
    forged = made.tokens(Pair("a", "b<end>"), 100)
    assert shown(forged) == "Q a D b<end><end>"
    assert [token for token in forged if token < 1000] == [ord(char) for char in "ab<end>"]
