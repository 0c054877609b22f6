"""POST /infill: a gap in a file is filled, whole and as a stream, on a model that can."""

import pytest
from conftest import Program, call
from gguf import FIRST_MARK, write_filler

from core.apis.infill import read_infill
from core.ask import Infill
from core.errors import APIError

AROUND = {"input_prefix": "Once upon a time", "input_suffix": "The end."}
PRE, SUF, MID, REP, FILE = range(FIRST_MARK, FIRST_MARK + 5)


@pytest.fixture(scope="module")
def filler(tmp_path_factory):
    """A backend with a model that fills gaps, also of a project's files."""
    folder = tmp_path_factory.mktemp("models")
    write_filler(str(folder / "filler.gguf"), project=True)
    program = Program("backend.py", "--child", "--port=0", "--threads=1", "--models=%s" % folder)
    try:
        program.url = program.wait_for_event("listening")["url"]
        program.wait_for_event("ready")
        yield program
    finally:
        program.close()


def tokens(backend, text):
    return call(backend.url + "/tokenize", {"content": text, "parse_special": False}).json["tokens"]


def test_a_gap_is_filled_as_its_tokens_by_hand_are_continued(filler):
    how = {"temperature": 0, "n_predict": 12, "return_tokens": True}
    extra = [{"filename": "bear.txt", "text": "Ruby is a bear."}, {"text": "The ball is red."}]
    filled = call(filler.url + "/infill", dict(AROUND, prompt=" Ruby", input_extra=extra, **how)).json
    files = [REP, *tokens(filler, "myproject\n"), FILE, *tokens(filler, "bear.txt\n")]
    files += tokens(filler, extra[0]["text"])
    files += [FILE, *tokens(filler, "tmp\n"), *tokens(filler, extra[1]["text"]), FILE, *tokens(filler, "filename\n")]
    prefix = tokens(filler, AROUND["input_prefix"]) + tokens(filler, " Ruby")
    bos = call(filler.url + "/tokenize", {"content": "", "add_special": True}).json["tokens"]
    by_hand = files + bos + [PRE, *prefix, SUF, *tokens(filler, AROUND["input_suffix"]), MID]
    wanted = call(filler.url + "/completion", dict(prompt=by_hand, **how)).json
    assert filled["tokens"] == wanted["tokens"] and filled["tokens_evaluated"] == len(by_hand)
    assert filled["content"] == wanted["content"] and filled["stop"] is True


def test_a_gap_is_filled_as_a_stream(filler):
    body = dict(AROUND, temperature=0, n_predict=8)
    whole = call(filler.url + "/infill", body).json["content"]
    lines = call(filler.url + "/infill", dict(body, stream=True)).body.decode().split("\n\n")
    events = [line for line in lines if line.startswith("data: ")]
    assert len(events) > 3 and '"stop": true' in events[-1] and whole


def test_a_model_that_fills_no_gaps_says_so(backend):
    for stream in (False, True):
        refused = call(backend.url + "/infill", dict(AROUND, stream=stream))
        assert refused.status == 501 and refused.json["error"]["type"] == "not_supported_error"
        assert "middle token is missing" in refused.json["error"]["message"]


@pytest.mark.parametrize("more, param", [
    ({"input_prefix": None}, "input_prefix"), ({"input_suffix": None}, "input_suffix"),
    ({"input_prefix": 1}, "input_prefix"), ({"prompt": ["a"]}, "prompt"),
    ({"input_extra": {}}, "input_extra"), ({"input_extra": [{}]}, "input_extra[0]"),
    ({"input_extra": [{"text": "x"}, {"text": 1}]}, "input_extra[1]"), ({"input_extra": ["x"]}, "input_extra[0]"),
    ({"input_extra": [{"text": "x", "filename": 1}]}, "input_extra[0].filename"),
    ({"input_extra": [{"text": "x"}] * 5000}, "input_extra"),
])  # fmt: skip
def test_a_wrong_field_is_named(more, param):
    with pytest.raises(APIError) as refused:
        read_infill(dict(AROUND, **more))
    assert (refused.value.status, refused.value.param) == (400, param)


def test_empty_texts_are_texts():
    assert read_infill({"input_prefix": "", "input_suffix": ""}) == Infill("", "")


def test_a_file_whose_name_is_null_has_the_default_name():
    assert read_infill(dict(AROUND, input_extra=[{"text": "x", "filename": None}])).files == (("tmp", "x"),)
