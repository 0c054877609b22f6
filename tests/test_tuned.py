"""What `comeapi.py tune` has found out is used with the same machine, model and llama.cpp, and nowhere else."""

import json
import os
import shutil
from dataclasses import dataclass

import pytest
from conftest import ROOT

from core import hardware, tuned
from core.models import ModelFolder


@dataclass(frozen=True)
class Config:
    flash_attn: str = "auto"
    backends: int = 0
    safe_mode: bool = False
    port: int = 9000


@pytest.fixture
def model(tmp_path):
    shutil.copy(os.path.join(ROOT, "models", "demo.gguf"), str(tmp_path))
    return ModelFolder(str(tmp_path)).find("demo.gguf")


def test_what_is_kept_is_read_again_and_said(model):
    path = tuned.save(model, "0.3", {"flash_attn": "off", "backends": 1}, [])
    assert os.path.dirname(path) == os.path.dirname(model.path)
    choices, note = tuned.read(model, "0.3")
    assert choices == {"flash_attn": "off", "backends": 1}
    assert note == "Tuned: backends 1, flash_attn off (%s)." % path


def test_without_a_file_nothing_is_said(model):
    assert tuned.read(model, "0.3") == ({}, "")


def test_another_version_machine_or_file_makes_it_void(model, monkeypatch):
    path = tuned.save(model, "0.3", {"flash_attn": "off"}, [])
    choices, note = tuned.read(model, "0.4")
    assert choices == {} and "another llama-cpp-python (0.3): tune again" in note
    monkeypatch.setattr(hardware, "processor", lambda: hardware.Processor("Another", ()))
    assert tuned.read(model, "0.3")[0] == {} and "another machine" in tuned.read(model, "0.3")[1]
    monkeypatch.undo()
    with open(path) as file:
        kept = json.load(file)
    with open(path, "w") as file:
        json.dump(dict(kept, size=1), file)
    assert "another model file" in tuned.read(model, "0.3")[1]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"choices": []}', '{"choices": {"port": 1}}', "\xff"], ids=lambda text: text or "empty"
)
def test_a_broken_file_is_told_and_ignored(model, text):
    with open(tuned.path_of(model), "w", encoding="latin-1") as file:
        file.write(text)
    choices, note = tuned.read(model, "0.3")
    assert choices == {} and "can't be read" in note


def test_what_the_user_asks_for_wins():
    config, choices = Config(flash_attn="on", port=1), {"flash_attn": "off", "backends": 1, "safe_mode": True}
    assert tuned.apply(config, choices, {"flash_attn", "port"}) == Config("on", 1, True, 1)


def test_what_the_user_asks_for_wins_if_it_is_the_default_too():
    assert tuned.apply(Config(), {"flash_attn": "off", "backends": 1}, {"flash_attn"}) == Config("auto", 1)
