"""Stored answers: who finds them, what goes when there are too many, and what a folder that can't be used costs."""

import json
import logging
import os
import stat
import sys

import pytest

from core.apis.response_store import SLACK, Record, ResponseStore
from core.owners import NOBODY, asking, is_owned, owner_of

RECORD = Record([{"id": "msg_1", "type": "message"}], {"id": "resp", "output": []})
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes")


def name(number):
    return "resp_%032x" % number


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state" / "responses"


def test_an_answer_is_found_by_another_process(folder):
    assert ResponseStore(str(folder)).keep(name(1), NOBODY, RECORD)
    assert ResponseStore(str(folder)).find(name(1), NOBODY) == RECORD


@posix
def test_only_the_folders_user_can_read_it(folder):
    ResponseStore(str(folder)).keep(name(1), NOBODY, RECORD)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()] == [0o600]


def test_an_answer_is_its_owners_alone(folder):
    store = ResponseStore(str(folder))
    store.keep(name(1), owner_of("a key"), RECORD)
    assert store.find(name(1), owner_of("a key")) == RECORD
    for stranger in (owner_of("another"), NOBODY, ""):
        assert store.find(name(1), stranger) is None and not store.forget(name(1), stranger)
    assert store.forget(name(1), owner_of("a key")) and store.find(name(1), owner_of("a key")) is None


def test_a_file_tells_neither_the_key_nor_whose_else_it_is(folder):
    store = ResponseStore(str(folder))
    for number in (1, 2):
        store.keep(name(number), owner_of("a key"), RECORD)
    owners = {json.loads(path.read_text())["owner"] for path in folder.iterdir()}
    assert len(owners) == 2 and owner_of("a key") not in owners


def test_a_balancer_says_whose_a_request_is():
    assert asking({"x-comeapi-owner": owner_of("client's")}, "balancer's") == owner_of("client's")
    assert asking({}, "client's") == owner_of("client's") and asking({}, "") == NOBODY
    assert is_owned("/v1/responses/resp_1") and not is_owned("/v1/chat/completions")


@pytest.mark.parametrize(
    "id",
    ["", "resp_", "../secret", "resp_/../../secret", name(1) + "\n", name(1) + "/", name(1).upper(), "resp_" + "٠" * 32,
     "resp_" + "0" * 31 + "/", "..\\x", "resp_\0" + "0" * 31, "a" * 10000],
)  # fmt: skip
def test_what_is_no_id_names_no_file(folder, id):
    store = ResponseStore(str(folder))
    store.keep(name(1), NOBODY, RECORD)
    (folder.parent / "secret.json").write_text('{"owner": "", "items": [], "response": {}}')
    assert store.find(id, NOBODY) is None and not store.forget(id, NOBODY)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"owner": 1}', '{"owner": "x", "items": 1, "response": []}', "[" * 100000, "\xff"]
)
def test_a_file_that_is_none_of_ours_is_no_answer(folder, text):
    store = ResponseStore(str(folder))
    store.keep(name(1), NOBODY, RECORD)
    (folder / (name(1) + ".json")).write_text(text, encoding="latin-1")
    assert store.find(name(1), NOBODY) is None


def fill(store, count, start=0):
    """Store answers, each a second later than the one before."""
    for number in range(start, start + count):
        assert store.keep(name(number), NOBODY, RECORD)
        os.utime(os.path.join(store._folder, name(number) + ".json"), (1e9 + number, 1e9 + number))


def test_the_oldest_go_first_where_there_are_too_many(folder):
    store = ResponseStore(str(folder), most=20, days=36500)
    fill(store, 40)
    found = [number for number in range(40) if store.find(name(number), NOBODY)]
    assert found[-1] == 39 and 20 <= len(found) <= 22 and found == list(range(found[0], 40))


def test_the_oldest_go_first_where_they_take_too_many_bytes(folder):
    store = ResponseStore(str(folder), most_bytes=3000, days=36500)
    fill(store, 60)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 3000 * 1.1
    assert store.find(name(59), NOBODY) and not store.find(name(0), NOBODY)


def test_several_processes_keep_to_one_limit(folder):
    stores = [ResponseStore(str(folder), most=1000, days=36500) for _ in range(2)]
    for number in range(0, 1200, 50):
        fill(stores[number // 50 % 2], 50, number)
    assert 1000 <= len(list(folder.iterdir())) <= 1000 + 2 * SLACK


def test_what_is_too_old_is_gone_at_once_and_its_file_later(folder):
    now = [1e9]
    store = ResponseStore(str(folder), most=16, days=1, clock=lambda: now[0])
    fill(store, 1)
    assert store.find(name(0), NOBODY)
    now[0] += 86400 + 1
    assert store.find(name(0), NOBODY) is None and len(list(folder.iterdir())) == 1
    store.keep(name(1), NOBODY, RECORD)
    assert [path.name for path in folder.iterdir()] == [name(1) + ".json"]


def test_what_was_never_finished_is_removed_and_others_files_are_not(folder):
    folder.mkdir(parents=True)
    for file in ("0123.draft", "notes.txt"):
        (folder / file).write_text("x")
        os.utime(str(folder / file), (1e9, 1e9))
    store = ResponseStore(str(folder))
    store.keep(name(1), NOBODY, RECORD)
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", name(1) + ".json"]


def test_nothing_is_kept_where_nothing_may_be(folder):
    assert not ResponseStore(str(folder), most=0).keep(name(1), NOBODY, RECORD)
    assert not ResponseStore(str(folder), most_bytes=10).keep(name(1), NOBODY, RECORD)
    assert not folder.exists()


def test_a_folder_that_cant_be_used_is_told_once_and_costs_nothing(folder, caplog):
    folder.parent.mkdir(parents=True)
    folder.write_text("a file stands in the way")
    store = ResponseStore(str(folder))
    with caplog.at_level(logging.WARNING, "comeapi.responses"):
        assert [store.keep(name(number), NOBODY, RECORD) for number in range(3)] == [False] * 3
        assert store.find(name(1), NOBODY) is None
        assert len(caplog.records) == 1 and str(folder) in caplog.text
        folder.unlink()
        assert store.keep(name(1), NOBODY, RECORD)
        (folder / (name(1) + ".json")).unlink()
        folder.rmdir()
        folder.write_text("again")
        assert not store.keep(name(1), NOBODY, RECORD)
        assert len(caplog.records) == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a disk that is always full is Linux's")
def test_a_full_disk_leaves_nothing_half_done(folder, monkeypatch):
    store = ResponseStore(str(folder))
    store.keep(name(1), NOBODY, RECORD)
    monkeypatch.setattr(os, "fdopen", lambda descriptor, mode: os.close(descriptor) or open("/dev/full", "wb", 0))
    assert not store.keep(name(2), NOBODY, RECORD)
    assert [path.name for path in folder.iterdir()] == [name(1) + ".json"]
