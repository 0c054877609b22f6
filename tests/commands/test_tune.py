"""comeapi.py tune: it changes only what is clearly better, and survives settings that crash."""

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
            changed = [name for choice in question.choices for name in choice if name in settings]
            speed = speeds.get(changed[-1] if changed else question.what, 1)
            return {name: 100 * speed for name in question.figures}

        monkeypatch.setattr(made, "_measured", measured)
        monkeypatch.setattr(made, "_ask_plan", lambda choices: {})
        return made

    return make


def test_nothing_changes_where_nothing_is_clearly_better(tuning):
    assert tuning({"safe_mode": 1.04, "flash_attn": 1.0, "cache_type_v": 0.5}).run() == {}


def test_what_is_faster_is_chosen_and_what_follows_is_measured_with_it(tuning, capsys):
    made = tuning({"safe_mode": 1.2, "flash_attn": 1.3, "cache_type_v": 0.96, "prompt_weights": 1.1})
    assert made.run() == {"safe_mode": True, "flash_attn": "on"}
    assert made.asked[-1] == {"safe_mode": True, "cache_type_k": "bf16", "cache_type_v": "bf16"}
    assert [row["ratio"] for row in made.table] == [1.0, 1.1, 1.1, 1.2, 1.0, 1.3, 0.96]
    assert capsys.readouterr().out.count("<-") == 2


def test_choices_are_measured_in_turn_and_what_is_clearly_slower_once(tuning):
    made = tuning({"safe_mode": 0.9})
    made.run()
    loaded, mapped, safe = {"prompt_weights": "loaded"}, {"prompt_weights": "mapped"}, {"safe_mode": True}
    assert made.asked[:7] == [{}, loaded, mapped, safe, {}, loaded, mapped]
    assert made.asked[7:10] == [{}, {"flash_attn": "on"}, {"cache_type_k": "bf16", "cache_type_v": "bf16"}]


def test_a_setting_that_crashes_is_not_chosen(tuning):
    assert tuning({"safe_mode": 0.0}).run() == {}


def test_where_the_default_crashes_another_one_is_chosen(tuning):
    assert tuning({"weights": 0.0, "prompt_weights": 0.0}).run() == {"safe_mode": True}


def test_where_all_crash_the_program_ends_with_the_reason(tuning, capsys):
    made = tuning({"weights": 0.0, "prompt_weights": 0.0, "safe_mode": 0.0})
    made._failure = "measuring ended with status -11"
    with pytest.raises(SystemExit):
        made.run()
    assert "status -11" in capsys.readouterr().err


def test_it_ends_when_its_time_is_up(tuning, capsys):
    made = tuning({}, seconds=20)
    made._until = 0.0
    assert made.run() == {} and made.asked == []
    assert capsys.readouterr().out.count("not measured: the time is up") == 2


def test_a_figure_of_nothing_makes_a_score_of_nothing_and_the_best_round_counts():
    assert score([{"a": 1.0, "b": 0.0}], ("a", "b")) == 0.0
    assert score([{"a": 4.0}, {"a": 9.0}], ("a",)) == pytest.approx(9.0)


@pytest.mark.parametrize("siding", ["on", "off"])
def test_it_measures_in_a_process_of_its_own(model, siding):
    figures = Tuning(model, Config())._measured(tune._QUESTIONS[1], {"flash_attn": "off", "siding": siding})
    assert set(figures) == set(tune._QUESTIONS[1].figures) and all(each > 0 for each in figures.values())


def test_the_command_ends_with_one_line_where_there_is_no_model(start, tmp_path):
    program = start("comeapi.py", "tune", "--models", tmp_path)
    assert program.end() == 1 and len(program.errors) == 1
