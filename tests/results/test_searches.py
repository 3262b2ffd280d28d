"""A search leaves every trial on record, and the tuned experiments are the best of what is there."""

from __future__ import annotations

import pytest
import yaml

from et.results.collect import collect, from_folder
from et.results.searches import FILE, SCORE, main, settings, trials
from et.runs.identity import Key, config_of
from et.utils.paths import CONF, EXPERIMENTS

KEY = Key("tolokers_40pct_mlp", 0, "held_out", "paper")
BUDGET = "trainer.max_epochs=7"


@pytest.fixture
def search(make_run):
    """Three trials and a run of the experiment's own configuration."""
    make_run(KEY, {SCORE: 0.99})
    for hidden, score in ((64, 0.61), (128, 0.68), (256, 0.65)):
        make_run(KEY, {SCORE: score}, f"model.hidden={hidden}", "data.standardize=train", BUDGET)


def test_the_best_trial_becomes_an_experiment(search, tmp_path, capsys):
    file, folder = tmp_path / "searches.jsonl", tmp_path / "conf"
    folder.mkdir()
    arguments = ["--runs", str(tmp_path / "runs"), "--file", str(file), "--experiments", str(folder)]
    assert main(arguments) == 0
    assert f"3 settings, {SCORE} 0.6100 to 0.6800" in capsys.readouterr().out
    written = yaml.safe_load((folder / "tolokers_40pct_mlp_tuned.yaml").read_text())
    assert written == {
        "defaults": ["tolokers_40pct_mlp", "_self_"], "name": "tolokers_40pct_mlp_tuned",
        "data": {"standardize": "train"}, "model": {"hidden": 128},
    }  # fmt: skip
    recorded = file.read_text()
    assert main(arguments) == 0 and file.read_text() == recorded, "nothing is recorded twice"


def test_a_trials_budget_is_not_a_setting(make_run):
    run = from_folder(make_run(KEY, {SCORE: 0.5}, BUDGET, "model.dropout=0.5"))
    assert settings(run) == {"model": {"dropout": 0.5}}


def test_a_run_without_a_score_is_an_error_for_people(make_run, tmp_path, capsys):
    make_run(KEY, {"test/auc": 0.5}, BUDGET)
    arguments = ["--runs", str(tmp_path / "runs"), "--file", str(tmp_path / "searches.jsonl")]
    assert main([*arguments, "--experiments", str(tmp_path)]) == 1
    assert SCORE in capsys.readouterr().err


def test_the_tuned_experiments_of_the_repository_are_the_best_recorded_trials():
    found = trials(collect(lines=[FILE]).runs.values())
    files = {path.stem.removesuffix("_tuned") for path in (CONF / "experiment").glob("*_tuned.yaml")}
    assert files == set(found), f"{FILE.relative_to(EXPERIMENTS.parent)} and conf/experiment/*_tuned.yaml differ"
    for name, runs in found.items():
        of_file = config_of([f"experiment={name}_tuned"])
        of_trial = config_of([*runs[0].overrides])
        differing = {
            key
            for key in of_file.keys() | of_trial.keys()
            if of_file.get(key) != of_trial.get(key) and key not in ("name", "trainer", "tags")
        }
        assert not differing, name
