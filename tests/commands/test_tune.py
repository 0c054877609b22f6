"""comeapi.py tune: it changes only what is clearly better, and survives settings that crash."""

import json
import os
import shutil

import pytest
from conftest import ROOT

from core.commands import tune
from core.commands.tune import Config, Tuning, score
from core.models import ModelFolder


@pytest.fixture
def model(tmp_path):
    shutil.copy(os.path.join(ROOT, "models", "demo.gguf"), str(tmp_path))
    return ModelFolder(str(tmp_path)).find("demo.gguf")


@pytest.fixture
def tuning(model, monkeypatch):
    """Return a Tuning for which settings are so fast as `speeds` says, by their JSON."""

    def make(speeds, seconds=1000):
        made = Tuning(model, Config(seconds=seconds))
        made.asked = []

        def measured(question, settings):
            made.asked.append(dict(settings))
            return {name: 100 * speeds.get(json.dumps(settings[question.name]), 1) for name in question.figures}

        monkeypatch.setattr(made, "_measured", measured)
        monkeypatch.setattr(made, "_ask_plan", lambda choices: {})
        return made

    return make


def test_nothing_changes_where_nothing_is_clearly_better(tuning):
    assert tuning({"true": 1.04, '"on"': 1.0, "512": 0.5}).run() == {}


def test_what_is_faster_is_chosen_and_what_follows_is_measured_with_it(tuning, capsys):
    made = tuning({"true": 1.2, '"on"': 1.3, "512": 0.9})
    assert made.run() == {"safe_mode": True, "flash_attn": "on"}
    assert made.asked[-1] == {"safe_mode": True, "flash_attn": "on", "ubatch_size": 512}
    assert [row["ratio"] for row in made.table] == [1.0, 1.2, 1.0, 1.3, 1.0, 0.9]
    assert capsys.readouterr().out.count("<-") == 3


def test_each_value_is_measured_in_turn(tuning):
    made = tuning({})
    made.run()
    assert [each["safe_mode"] for each in made.asked[:4]] == [False, True, False, True]


def test_a_setting_that_crashes_is_not_chosen(tuning):
    assert tuning({"true": 0.0}).run() == {}


def test_where_the_default_crashes_another_one_is_chosen(tuning):
    assert tuning({"false": 0.0}).run() == {"safe_mode": True}


def test_where_all_crash_the_program_ends_with_the_reason(tuning, capsys):
    made = tuning({"false": 0.0, "true": 0.0})
    made._failure = "measuring ended with status -11"
    with pytest.raises(SystemExit):
        made.run()
    assert "status -11" in capsys.readouterr().err


def test_it_ends_when_its_time_is_up(tuning, capsys):
    made = tuning({}, seconds=20)
    made._until = 0.0
    assert made.run() == {} and made.asked == []
    assert capsys.readouterr().out.count("not measured: the time is up") == 3


def test_a_figure_of_nothing_makes_a_score_of_nothing_and_the_best_round_counts():
    assert score([{"a": 1.0, "b": 0.0}], ("a", "b")) == 0.0
    assert score([{"a": 4.0}, {"a": 9.0}], ("a",)) == pytest.approx(9.0)


def test_it_measures_in_a_process_of_its_own(model):
    figures = Tuning(model, Config())._measured(tune._QUESTIONS[1], {"flash_attn": "off"})
    assert set(figures) == set(tune._QUESTIONS[1].figures) and all(each > 0 for each in figures.values())


def test_the_command_ends_with_one_line_where_there_is_no_model(start, tmp_path):
    program = start("comeapi.py", "tune", "--models", tmp_path)
    assert program.end() == 1 and len(program.errors) == 1
