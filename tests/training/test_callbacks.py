"""Callbacks that are added from the command line, and what a run's folder keeps of how it was started."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from omegaconf.errors import ReadonlyConfigError
from pytorch_lightning.callbacks import EarlyStopping

from et.runs.identity import config_of
from et.runs.loading import load_weights
from et.runs.record import run_id
from et.training import run
from et.training.evaluation import assemble
from et.training.run import train
from et.utils.errors import UserError
from tests.configs import compose_config
from tests.runs import Stop, stop_in, weights

ANOMALY = ("experiment=demo_anomaly", "model.head_dim=8", "model.num_memories=16", "trainer.accelerator=cpu")
EMA = "+callbacks.ema={_target_: pytorch_lightning.callbacks.EMAWeightAveraging, decay: 0.5}"


def test_a_training_ends_early_and_is_another_run(config):
    """mode=min on a score that rises: the first validation stays the best."""
    whole = train(config(*ANOMALY, "trainer.max_epochs=6"))
    stopped = train(
        config(
            *ANOMALY, "trainer.max_epochs=6", "callbacks.progress=false",
            "callbacks.mode=min", "callbacks.patience=1",
        )
    )  # fmt: skip
    assert any(isinstance(callback, EarlyStopping) for callback in stopped.trainer.callbacks)
    assert stopped.record["epochs"] < whole.record["epochs"] == 6
    assert stopped.record["run_id"] != whole.record["run_id"]


def test_a_run_that_stopped_early_stays_stopped(config, monkeypatch):
    """Interrupted in its test and started again, it does not train on."""
    stopping = [*ANOMALY, "trainer.max_epochs=9", "callbacks.monitor=val/f1_macro", "callbacks.mode=min"]
    stopping += ["callbacks.patience=1", "callbacks.save_every_n_epochs=1"]
    with monkeypatch.context() as patched, pytest.raises(Stop):

        def stop(*args):
            raise Stop

        patched.setattr(run, "test", stop)
        train(config(*stopping))
    again = train(config(*stopping))
    whole = train(config(*stopping, "force=true"))
    assert again.record["epochs"] == whole.record["epochs"] < 9
    assert again.record["metrics"] == whole.record["metrics"]


def test_averaged_weights_are_those_of_the_step_that_is_saved(tiny):
    callbacks = train(tiny(EMA, "trainer.max_epochs=1")).trainer.callbacks
    kinds = [type(callback).__name__ for callback in callbacks]
    assert kinds.index("EMAWeightAveraging") < kinds.index("StopOnSignal")


def test_an_epoch_is_counted_before_a_signal_saves_it(config):
    outcome = train(config(*ANOMALY, "trainer.max_epochs=1", "callbacks.monitor=val/auc", "callbacks.patience=2"))
    kinds = [type(callback).__name__ for callback in outcome.trainer.callbacks]
    assert kinds.index("StoppingEarly") < kinds.index("StopOnSignal")
    state = torch.load(outcome.folder / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    assert any(key.startswith("EarlyStopping{") for key in state), "as Lightning's own is named"


def test_added_callbacks_count_in_the_run_id_and_what_only_shows_does_not():
    plain = ["experiment=demo_graphs"]
    identity = run_id(config_of(plain))
    assert run_id(config_of([*plain, EMA])) != identity
    assert run_id(config_of([*plain, "callbacks=[graphs,ema]"])) != identity
    shown = "+callbacks.pictures={_target_: et.inpainting.pictures.Pictures}"
    for harmless in ("callbacks.progress=false", "logger=[csv,wandb,tensorboard]", shown, "callbacks=[graphs]"):
        assert run_id(config_of([*plain, harmless])) == identity, harmless


def test_averaged_weights_are_what_is_validated_tested_and_kept(tiny):
    outcome = train(tiny(EMA, "checkpoint=best", "callbacks.monitor=val/mse", "optim.schedule.warmup_epochs=0"))
    metrics = outcome.record["metrics"]
    # The demo tests on what it validates on: the averaged weights of the best epoch.
    assert metrics["test/mse"] == pytest.approx(metrics["val/mse"], rel=1e-5)
    last = torch.load(outcome.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert any(not torch.equal(value, last["current_model_state"][name]) for name, value in last["state_dict"].items())
    cfg, loaded, *_ = load_weights(outcome.folder, None)
    task, _ = assemble(cfg, loaded, outcome.folder)
    for name, value in outcome.task.network.state_dict().items():
        assert torch.equal(task.network.state_dict()[name], value), name


def test_averaging_goes_on_after_an_interruption(tiny, tmp_path, monkeypatch):
    whole = train(tiny(EMA, f"paths.runs={tmp_path}/whole"))
    with monkeypatch.context() as patched, pytest.raises(Stop):
        stop_in(patched, 2)
        train(tiny(EMA))
    resumed = train(tiny(EMA))
    for name, value in weights(whole.folder).items():
        assert torch.equal(weights(resumed.folder)[name], value), name


def test_pictures_stand_alone_or_among_others(tiny):
    for added in ("+callbacks.pictures={_target_: %s}", "+callbacks.pictures.all={_target_: %s}"):
        outcome = train(tiny(added % "et.inpainting.pictures.Pictures", "force=true", "trainer.max_epochs=1"))
        assert (outcome.folder / "pictures" / "completions.png").exists()


def test_a_run_keeps_its_log(tiny, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Stop):
        stop_in(patched, 2)
        train(tiny())
    outcome = train(tiny())
    text = (outcome.folder / "run.log").read_text()
    first, second = (text.index(f"from step {step}") for step in (0, 6))
    assert first < text.index("Traceback") < second < text.index("INFO finished")
    assert OmegaConf.load(outcome.folder / "overrides.yaml") == []  # no command line started it


def test_the_overrides_of_a_command_line_are_kept(tmp_path, monkeypatch):
    from tests.test_extending import run_command

    monkeypatch.setenv("ET_RUNS_DIR", str(tmp_path))
    run_command("train.py task=anomaly data=breast_cancer model=node_mlp", monkeypatch)
    (folder,) = (tmp_path / "anomaly-breast_cancer-node_mlp").iterdir()
    assert OmegaConf.load(folder / "overrides.yaml")[:2] == ["task=anomaly", "data=breast_cancer"]


def test_warnings_of_a_run_are_in_its_log_and_still_shown(tiny):
    options = ("checkpoint=best", "callbacks.monitor=val/mse", "+trainer.max_time='00:00:00:00'")
    with pytest.warns(UserWarning, match="before its first validation"):
        outcome = train(tiny(*options))
    assert "UserWarning: training ended before its first validation" in (outcome.folder / "run.log").read_text()


@pytest.mark.parametrize("name", ["fast", "overfit", "limit", "profiler"])
def test_debug_configurations(tiny, name):
    outcome = train(tiny(f"debug={name}", "trainer.max_epochs=2"))
    if name == "fast":
        assert not (outcome.folder / "result.json").exists()
    elif name == "overfit":
        assert outcome.record["steps"] == 2 * 2
    elif name == "limit":
        assert outcome.record["epochs"] == 2 and outcome.trainer.num_test_batches == [3]
    else:
        assert "run_training_epoch" in next(outcome.folder.glob("fit-profile*.txt")).read_text()


def test_the_configuration_that_a_run_reads_cannot_change(tiny, monkeypatch):
    def change(info):
        info.cfg.seed = 3

    monkeypatch.setattr(run, "build", change)
    with pytest.raises(ReadonlyConfigError):
        train(tiny())


def test_a_task_of_another_kind_is_refused(tiny):
    with pytest.raises(UserError, match=r"must derive from et\.training\.task\.Task"):
        cfg = compose_config("experiment=demo_inpainting")
        cfg.task = {"_target_": "pytorch_lightning.demos.boring_classes.BoringModel"}
        train(cfg)
