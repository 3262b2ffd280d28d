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


def test_a_table_shows_the_trial_that_validation_chose(make_run, tmp_path, capsys):
    """The best test score is another trial's; regimes are apart; nothing is written."""
    score, test = "val/average_precision", "test/average_precision"
    make_run(KEY, {score: 0.99, test: 0.99})  # the experiment's own configuration is no trial
    for hidden, on_validation, on_test in ((64, 0.3, 0.9), (128, 0.5, 0.2), (256, 0.4, 0.8)):
        make_run(KEY, {score: on_validation, test: on_test}, f"model.hidden={hidden}", BUDGET)
    other = Key("tolokers_40pct_mlp_labels", 0, "held_out", "paper")
    make_run(other, {score: 0.6, test: 0.7}, "optim.optimizer.lr=0.0123456", "callbacks.patience=7")
    arguments = ["--runs", str(tmp_path / "runs"), "--file", str(tmp_path / "none.jsonl"), "--table"]
    assert main(arguments) == 0
    features, known = capsys.readouterr().out.split("Known labels:")
    rows = [line for line in features.splitlines() if line.startswith("| tolokers")]
    assert rows == ["| tolokers_40pct_mlp | 3 | 50.0 | nan | 20.0 | nan | model.hidden=128 |"]
    assert "| tolokers_40pct_mlp_labels | 1 | 60.0 | nan | 70.0 | nan | optim.optimizer.lr=0.01235 |" in known
    assert main([*arguments, "all"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| tolokers_40pct_mlp |")]
    assert [row.split(" | ")[2] for row in rows] == ["50.0", "40.0", "30.0"]
    assert not (tmp_path / "none.jsonl").exists()


def test_the_other_seeds_of_a_setting_are_no_trials(make_run, tmp_path):
    """One of them has the luckiest split."""
    for seed, score in ((0, 0.3), (1, 0.9), (2, 0.8)):
        make_run(Key(KEY.experiment, seed, "held_out", "paper"), {SCORE: score}, "model.hidden=48")
    make_run(KEY, {SCORE: 0.2}, "model.hidden=32")
    make_run(KEY, {SCORE: 0.7}, "model.hidden=16", dataset={"variant": "user data", "name": "mine"})
    found = trials(collect([tmp_path / "runs"]).runs.values())
    assert {name: [run.record["metrics"][SCORE] for run in runs] for name, runs in found.items()} == {
        KEY.experiment: [0.3, 0.2], f"{KEY.experiment} on mine": [0.7],
    }  # fmt: skip


def test_only_searches_by_macro_f1_become_experiments(make_run, tmp_path, capsys):
    make_run(Key("tolokers_gadbench_mlp", 0, "gadbench", "paper"), {SCORE: 0.5}, "model.hidden=64")
    arguments = ["--runs", str(tmp_path / "runs"), "--file", str(tmp_path / "s.jsonl"), "--experiments", str(tmp_path)]
    assert main(arguments) == 0
    assert "left out: tolokers_gadbench_mlp: searches by average precision" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*arguments, "--score", "val/average_precision"])
    assert "--score goes with --table" in capsys.readouterr().err and not (tmp_path / "s.jsonl").exists()


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
