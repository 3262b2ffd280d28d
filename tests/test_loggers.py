"""What wandb and TensorBoard are told of a run, alone and in a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from et.errors import UserError
from et.loggers import cell_of, extra_loggers, group_of, log_outcome, tags_of, tensorboard_place
from tests.configs import compose_config

FOLD = ("experiment=tu_mutag", "data.fold=3", "seed=1")


def test_a_run_on_its_own_has_no_group_and_the_tags_of_its_cell():
    cfg = compose_config("experiment=amazon_1pct", "seed=2", "protocol=released", "fidelity=released", "tags=[mine]")
    assert group_of(cfg) is None
    assert tags_of(cfg) == ["mine", "amazon_1pct", "released", "fidelity released", "seed 2"]


def test_runs_of_a_sweep_share_its_group_and_differ_in_their_tags():
    cfg = compose_config(*FOLD, "sweep=table02", "protocol=held_out")
    assert group_of(cfg) == "table02"
    assert tags_of(cfg) == ["tu_mutag", "held_out", "fidelity paper", "seed 1", "fold 3"]
    other = compose_config("experiment=tu_mutag", "data.fold=4", "seed=1", "sweep=table02", "protocol=held_out")
    assert set(tags_of(cfg)) ^ set(tags_of(other)) == {"fold 3", "fold 4"}


def test_wandb_gets_group_tags_name_and_configuration(monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr("et.loggers.WandbLogger", lambda **arguments: given.update(arguments))
    extra_loggers(compose_config(*FOLD, "sweep=table02", "protocol=held_out", "logger=wandb"), tmp_path, "abc123")
    assert given["group"] == "table02" and given["job_type"] == "held_out" and given["id"] == "abc123"
    assert given["name"] == "tu_mutag-held_out-paper-1-3" and "fold 3" in given["tags"]
    assert given["config"]["model"]["num_heads"] and given["config"]["protocol"] == "held_out"
    assert given["offline"] is True
    extra_loggers(compose_config(*FOLD, "logger=wandb"), tmp_path, "abc123")
    assert given["group"] == "tu_mutag"


def test_tensorboard_of_a_sweep_has_one_log_directory(tmp_path):
    alone = compose_config(*FOLD, f"paths.runs={tmp_path}")
    assert tensorboard_place(alone, Path("folder"), "abc123") == ("folder", "", "tensorboard")
    swept = compose_config(*FOLD, "sweep=table02", "protocol=held_out", f"paths.runs={tmp_path}")
    place = Path(*tensorboard_place(swept, Path("folder"), "abc123"))
    assert place == tmp_path / "sweeps/table02/tensorboard/tu_mutag/held_out-seed1-fold3-abc123"


def test_tensorboards_hparams_have_the_cell_and_its_test_metrics(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg = compose_config(
        *FOLD, "sweep=table02", "protocol=held_out", "logger=tensorboard", f"paths.runs={tmp_path}", "tags=[mine]"
    )
    loggers = extra_loggers(cfg, tmp_path / "run", "abc123")
    log_outcome(loggers, cfg, {"test/accuracy": 0.75})
    loggers[0].finalize("success")
    (events,) = (tmp_path / "sweeps/table02/tensorboard").glob("**/events.*")
    read = EventAccumulator(str(events.parent)).Reload()
    assert read.Scalars("test/accuracy")[0].value == 0.75
    start = read.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"tu_mutag" in start and b"held_out" in start and b"mine" in start
    assert cell_of(cfg)["sweep"] == "table02"


def test_a_logger_that_is_not_known(tmp_path):
    with pytest.raises(UserError, match="knows 'tensorboard' and 'wandb'"):
        extra_loggers(compose_config("experiment=tu_mutag", "logger.extra=[paper]"), tmp_path, "abc123")
