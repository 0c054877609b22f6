"""POST /slots/{id}: what a slot has evaluated is kept in a file, and used again, after a restart, too."""

import os
import random
import struct

import pytest
from conftest import RAMBLE, Program, Streaming, call, in_parallel

from core.apis.slots import check_filename
from core.errors import APIError

STORY = "Once upon a time in a magical forest, there was a kind bear called Ruby. "
ASKED = {"prompt": STORY * 3, "n_predict": 8, "temperature": 0}


def launch(folder, *options):
    program = Program("backend.py", "--child", "--port=0", "--threads=1", "--slot-save-path=%s" % folder, *options)
    program.url = program.wait_for_event("listening")["url"]
    program.wait_for_event("ready")
    return program


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("slots")


@pytest.fixture(scope="module")
def keeper(folder):
    """A backend of one slot that may save it."""
    program = launch(folder, "--slots=1")
    yield program
    program.close()


def act(backend, action, slot=0, **body):
    return call("%s/slots/%d?action=%s" % (backend.url, slot, action), body, method="POST")


def complete(backend, **more):
    """Return an answer's text, how many tokens of the prompt were evaluated, and how many were there."""
    answer = call(backend.url + "/completion", dict(ASKED, **more)).json
    return answer["content"], answer["timings"]["prompt_n"], answer["timings"]["cache_n"]


def test_what_a_slot_holds_is_saved_and_restored(keeper, folder):
    act(keeper, "erase")
    text, evaluated, _ = complete(keeper)
    saved = act(keeper, "save", filename="story.bin").json
    assert saved["id_slot"] == 0 and saved["filename"] == "story.bin" and saved["timings"]["save_ms"] > 0
    assert saved["n_saved"] == evaluated + 7  # the last token of the answer is not evaluated
    assert saved["n_written"] == os.path.getsize(str(folder / "story.bin")) > 1000
    assert act(keeper, "erase").json == {"id_slot": 0, "n_erased": saved["n_saved"]}
    assert complete(keeper, prompt="Something else.", n_predict=1)[2] == 0
    restored = act(keeper, "restore", filename="story.bin").json
    assert restored["n_restored"] == saved["n_saved"] and restored["n_read"] == saved["n_written"]
    assert complete(keeper) == (text, 1, evaluated - 1)


def test_an_erased_slot_begins_anew(keeper):
    text, evaluated, cached = complete(keeper)
    act(keeper, "erase")
    assert complete(keeper) == (text, evaluated + cached, 0)


def test_a_file_serves_another_process_with_another_number_of_slots(keeper, folder):
    act(keeper, "erase")
    text, evaluated, _ = complete(keeper)
    act(keeper, "save", filename="shared.bin")
    other = launch(folder, "--slots=3")
    try:
        assert act(other, "restore", slot=2, filename="shared.bin").status == 200
        assert complete(other) == (text, 1, evaluated - 1)
        assert act(other, "save", slot=2, filename="back.bin").status == 200
    finally:
        other.close()
    act(keeper, "erase")
    assert act(keeper, "restore", filename="back.bin").status == 200
    assert complete(keeper) == (text, 1, evaluated - 1)


def test_a_file_with_the_plain_tokens_of_older_servers_is_restored(keeper, folder):
    act(keeper, "erase")
    text, evaluated, _ = complete(keeper)
    saved = act(keeper, "save", filename="new.bin").json["n_saved"]
    data = (folder / "new.bin").read_bytes()
    end = 12 + 4 * struct.unpack_from("<I", data, 8)[0]
    old = data[:8] + struct.pack("<I", saved) + data[24 : 24 + 4 * saved] + data[end:]
    (folder / "old.bin").write_bytes(old)
    act(keeper, "erase")
    assert act(keeper, "restore", filename="old.bin").json["n_restored"] == saved
    assert complete(keeper) == (text, 1, evaluated - 1)


def test_another_models_file_is_refused(keeper, folder):
    complete(keeper)
    act(keeper, "save", filename="mine.bin")
    other = launch(folder, "--slots=1", "--rope-freq-scale=0.5")
    try:
        refused = act(other, "restore", filename="mine.bin")
        assert refused.status == 400 and "another model" in refused.json["error"]["message"]
    finally:
        other.close()


def test_it_waits_until_nobody_has_the_slot(keeper):
    act(keeper, "erase")
    stream = Streaming(keeper.url + "/completion", dict(RAMBLE, prompt="Once", n_predict=120))
    [saved] = in_parallel(lambda name: act(keeper, "save", filename=name), ["busy.bin"])
    assert saved.json["n_saved"] > 119
    assert stream.end().status == 200


def test_a_broken_file_is_refused_and_breaks_nothing(keeper, folder):
    act(keeper, "erase")
    text, evaluated, _ = complete(keeper)
    act(keeper, "save", filename="good.bin")
    data = (folder / "good.bin").read_bytes()
    size = struct.unpack_from("<I", data, len(data) - 12)[0]
    chance = random.Random(7)
    broken = [data[:count] for count in (0, 3, 11, 40, 400, len(data) // 2, len(data) - 1)]
    for whole in (data, data[: -12 - size]):  # as it is, with its checksum; and as another server writes it
        start = struct.unpack_from("<I", whole, 8)[0] * 4 + 12
        for place in [0, 4, 8, 12, 16, 20, start, start + 4, start + 8, start + 12, start + 16] + chance.sample(
            range(start), 12
        ):
            for value in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF):
                changed = whole[:place] + struct.pack("<I", value) + whole[place + 4 :]
                broken += [changed] if changed != whole else []
        broken += [whole[: start + cut] for cut in (0, 4, 8, 200, 3000)] + [whole + b"x" * 9]
    refused = 0
    for bad in broken:
        (folder / "bad.bin").write_bytes(bad)
        answer = act(keeper, "restore", filename="bad.bin")
        assert answer.status in (200, 400), answer.json
        refused += answer.status == 400
    assert refused > 0.8 * len(broken)
    act(keeper, "erase")
    assert complete(keeper) == (text, evaluated, 0)


@pytest.mark.parametrize("name", [
    None, 1, "", ".", "..", "a/b", "../x", "a\\b", "a..b", ".hidden", "x.", " x", "x ", "a:b", "a\0b", "a\nb", "C:x",
    "\ufffd", "\ud800", "x" * 300, "/etc/passwd", "．．",
])  # fmt: skip
def test_a_name_that_is_no_files_is_refused(name):
    with pytest.raises(APIError) as refused:
        check_filename(name)
    assert (refused.value.status, refused.value.param) == (400, "filename")


def test_other_names_are_taken():
    assert [check_filename(name) for name in ("slot1.bin", "名前", "a b")] == ["slot1.bin", "名前", "a b"]


def test_what_is_wrong_is_said(keeper, backend):
    assert act(keeper, "save", slot=7, filename="x").json["error"]["param"] == "id_slot"
    assert act(keeper, "dance").json["error"]["param"] == "action"
    assert act(keeper, "restore", filename="nobody.bin").status == 400
    assert call(keeper.url + "/slots/x?action=erase", {}, method="POST").status == 400
    act(keeper, "erase")
    assert act(keeper, "save", filename="empty.bin").json["error"]["code"] == "slot_empty"
    refused = act(backend, "erase")
    assert refused.status == 501 and "--slot-save-path" in refused.json["error"]["message"]
