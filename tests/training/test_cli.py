import os
import re
import runpy
import signal
import sys

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from et.anomaly.lit import AnomalyTask
from et.graphs.lit import GraphTask
from et.inpainting.lit import InpaintingTask
from et.runs.identity import config_of
from et.training.cli import (
    print_record,
    run_evaluation,
    run_training,
    summary_rows,
    summary_sentence,
)
from et.training.task import Task
from et.utils.errors import UserError, exit_on_user_error
from et.utils.startup import SIGNALS
from tests.configs import ROOT


def failing(error):
    def function():
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "message"),
    (
        (UserError("no folder x: put it there"), "error: no folder x: put it there\n"),
        (
            UserError("Caught UserError in DataLoader worker process 0.\nTraceback ...\net.errors.UserError: bad.jpg"),
            "error: bad.jpg\n",
        ),
        (UserError("weights do not fit RUN:\n\tMissing key"), "error: weights do not fit RUN:\n\tMissing key\n"),
    ),
)
def test_errors_for_people_have_no_traceback(error, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        exit_on_user_error(failing(error))
    assert stopped.value.code == 1
    assert capsys.readouterr().err == message


def test_ctrl_c_has_the_promised_status(capsys):
    with pytest.raises(SystemExit) as stopped:
        exit_on_user_error(failing(KeyboardInterrupt()))
    assert stopped.value.code == 130 and capsys.readouterr().err == "error: interrupted\n"


def test_values_that_a_constructor_refuses_are_told_and_bugs_keep_their_traceback(capsys):
    for cause, raised in ((ValueError("no multiple"), SystemExit), (TypeError("a bug"), InstantiationException)):
        wrapped = InstantiationException("Error in call to target")
        wrapped.__cause__ = cause
        with pytest.raises(raised):
            exit_on_user_error(failing(wrapped))
    assert capsys.readouterr().err == "error: no multiple\n"
    with pytest.raises(ZeroDivisionError):
        exit_on_user_error(lambda: 1 / 0)


def test_what_was_not_chosen_is_asked_for(capsys):
    for run, key in ((run_training, "name"), (run_evaluation, "run")):
        with pytest.raises(SystemExit):
            run(OmegaConf.create({key: "???"}))
    assert "no experiment chosen" in capsys.readouterr().err


def test_a_record_is_printed_with_its_data(capsys):
    record = {
        "experiment": "demo", "protocol": "held_out", "fidelity": "paper", "seed": 0, "seconds": 3.0, "epochs": 2,
        "dataset": {"name": "photos", "variant": "embedded"}, "metrics": {"test/mse": 0.25}, "num_params": 1234,
    }  # fmt: skip
    print_record(record, "runs/demo/abc", skipped=True, task=InpaintingTask)
    printed = capsys.readouterr().out
    print_record(record, "runs/demo/abc", skipped=True, task=Task)
    assert "et.results.figures" in printed and "et.results.figures" not in capsys.readouterr().out
    assert all(
        part in printed for part in ("photos (embedded)", "0.2500", "1,234 parameters", "force=true", "runs/demo/abc")
    )
    assert "next:" in printed and "python evaluate.py run=runs/demo/abc" in printed


def test_a_summary_has_four_rows_the_main_ones_first_and_a_sentence():
    metrics = {"test/auc": 0.9, "test/f1_macro": 0.8, "val/f1_macro": 0.7, "test/threshold": 0.5, "val/auc": 0.1}
    assert summary_rows(metrics, AnomalyTask.main_metrics) == [
        "test/f1_macro", "test/auc", "test/threshold", "val/f1_macro"
    ]  # fmt: skip
    record = {"metrics": metrics, "dataset": {"name": "yelp"}, "protocol": "held_out"}
    assert summary_sentence(record, AnomalyTask) == "Macro-F1 80.0% and AUC 90.0% on yelp's test nodes."
    assert summary_sentence(record, Task) == "test/auc 0.9000 on yelp."
    record["metrics"] = {"test/mae": 0.2, "test/mae_constant": 1.5}
    sentence = summary_sentence(record, GraphTask)
    assert "0.2000" in sentence and "a constant answer has 1.5000" in sentence
    record["metrics"] = {"test/accuracy": 0.75}
    assert summary_sentence(record, GraphTask) == "Accuracy 75.0% on test data of yelp."
    record["metrics"] = {}
    assert {summary_sentence(record, task) for task in (AnomalyTask, GraphTask, InpaintingTask, Task)} == {
        "Nothing was measured on yelp."
    }


def test_a_failing_evaluation_does_not_end_a_multirun(tmp_path, monkeypatch, capsys):
    """Two runs that are not there: both are told, and the exit status says so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--multirun", "run=nowhere,neither"])
    handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
    try:
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(ROOT / "evaluate.py"), run_name="__main__")
    finally:
        GlobalHydra.instance().clear()
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    told = capsys.readouterr().err
    assert left.value.code == 1 and "Traceback" not in told
    assert "nowhere" in told and "error: 2 jobs failed: run=nowhere; run=neither" in told


@pytest.mark.parametrize(
    ("overrides", "message"),
    (
        (["experiment=demo_inpaintin"], "no experiment 'demo_inpaintin'; the nearest: demo_inpainting, "),
        (["experiment=tu_mutag_gin", "optim.schedule.warmup_epochs=3"], "warmup_cosine takes warmup_epochs, start_lr"),
        (["experiment=demo_graphs", "modle.dim=3"], "modle: there is no such key; did you mean model?"),
        (["experiment=demo_graphs", "trainer.limit_val_batches=3"], "write +trainer.limit_val_batches=..."),
        (["experiment=demo_graphs", "data=photo"], "there is no data 'photo'; the nearest: photos"),
    ),
)
def test_a_configuration_that_does_not_compose_is_told_in_a_sentence(overrides, message, monkeypatch, capsys):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py", *overrides])
    try:
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    finally:
        GlobalHydra.instance().clear()
    told = capsys.readouterr().err
    assert left.value.code == 1 and message in told and told.count("\n") == 1
    assert "HYDRA_FULL_ERROR" not in os.environ
    with pytest.raises(UserError, match=re.escape(message)):
        config_of(overrides)


def test_a_multirun_says_how_to_set_what_only_its_experiments_have(monkeypatch, capsys):
    """Hydra composes once without the swept values, where the key is missing."""
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    arguments = ["--multirun", "experiment=demo_anomaly_mlp,demo_anomaly_trees", "data.drop_features=[1]"]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    try:
        with pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    finally:
        GlobalHydra.instance().clear()
    told = "data.drop_features has no value until experiment has one: in a multirun write "
    assert capsys.readouterr().err == f"error: {told}'data.drop_features=choice(VALUE)'\n"


@pytest.mark.parametrize("sweep", [[], ["sweep=search_anomaly"]])
def test_a_dry_run_of_something_without_a_plan_names_the_sweeps_that_have_one(monkeypatch, run_command, sweep):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    _, _, told = run_command(
        "--multirun", *sweep, "experiment=demo_anomaly_mlp,demo_anomaly_trees", "sweep.dry_run=true"
    )
    assert told.startswith("error: only a sweep file has sweep.dry_run: --multirun sweep=NAME, NAME one of gadbench, ")
    assert "search" not in told and "table16" in told


def test_a_mistyped_option_of_evaluation_is_told_with_the_right_one(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "run=x", "chekpoint=best"])
    try:
        with pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / "evaluate.py"), run_name="__main__")
    finally:
        GlobalHydra.instance().clear()
    assert capsys.readouterr().err == "error: chekpoint: there is no such key; did you mean checkpoint?\n"


def test_a_mistyped_experiment_is_told_with_five_names_and_where_all_are():
    with pytest.raises(UserError) as caught:
        config_of(["experiment=tu_mutagg"])
    nearest = str(caught.value).partition("the nearest: ")[2].partition(". `")[0].split(", ")
    assert len(nearest) == 5 and nearest[0] == "tu_mutag" and "python -m et.runs.experiments" in str(caught.value)
