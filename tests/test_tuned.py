"""What `comeapi.py tune` has found out is used with the same machine, model and llama.cpp, and nowhere else."""

import json
import os
import shutil

import pytest
from conftest import ROOT

from core import hardware, tuned
from core.models import ModelFolder


@pytest.fixture
def model(tmp_path):
    shutil.copy(os.path.join(ROOT, "models", "demo.gguf"), str(tmp_path))
    return ModelFolder(str(tmp_path)).find("demo.gguf")


def test_what_is_kept_is_read_again_and_said(model):
    path = tuned.save(model, "0.3", {"flash_attn": "off", "backends": 1}, [])
    assert os.path.dirname(path) == os.path.dirname(model.path)
    choices, note = tuned.read(model, "0.3", set())
    assert choices == {"flash_attn": "off", "backends": 1}
    assert note == "Tuned: backends 1, flash_attn off (%s)." % path


def test_without_a_file_nothing_is_said(model):
    assert tuned.read(model, "0.3", set()) == ({}, "")


def test_another_version_machine_or_file_makes_it_void(model, monkeypatch):
    path = tuned.save(model, "0.3", {"flash_attn": "off"}, [])
    choices, note = tuned.read(model, "0.4", set())
    assert choices == {} and "another llama-cpp-python (0.3): tune again" in note
    monkeypatch.setattr(hardware, "processor", lambda: hardware.Processor("Another", ()))
    assert tuned.read(model, "0.3", set())[0] == {} and "another machine" in tuned.read(model, "0.3", set())[1]
    monkeypatch.undo()
    with open(path) as file:
        kept = json.load(file)
    with open(path, "w") as file:
        json.dump(dict(kept, size=1), file)
    assert "another model file" in tuned.read(model, "0.3", set())[1]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"choices": []}', '{"choices": {"port": 1}}', "\xff"], ids=lambda text: text or "empty"
)
def test_a_broken_file_is_told_and_ignored(model, text):
    with open(tuned.path_of(model), "w", encoding="latin-1") as file:
        file.write(text)
    choices, note = tuned.read(model, "0.3", set())
    assert choices == {} and "can't be read" in note


CELLS = {"cache_type_k": "bf16", "cache_type_v": "bf16"}
PLAN = {"backends": 1, "slots": 8}


@pytest.mark.parametrize(
    "named, left",
    [
        ({"port"}, dict(CELLS, **PLAN, flash_attn="off")),
        ({"flash_attn"}, dict(CELLS, **PLAN)),
        ({"backends"}, dict(CELLS, flash_attn="off")),
        ({"cache_type_v", "slots"}, {"flash_attn": "off"}),
    ],
)
def test_what_the_user_names_wins_over_it_and_over_what_was_chosen_together_with_it(model, named, left):
    tuned.save(model, "0.3", dict(CELLS, **PLAN, flash_attn="off"), [])
    choices, note = tuned.read(model, "0.3", named)
    assert choices == left
    assert all(("%s %s" % each in note) for each in left.items()) and not any(each in note for each in named)


def test_where_nothing_is_left_to_choose_nothing_is_said(model):
    tuned.save(model, "0.3", {"flash_attn": "off"}, [])
    assert tuned.read(model, "0.3", {"flash_attn"}) == ({}, "")
