"""A run from its configuration to result.json: skipped if finished, resumed if interrupted, equal for equal seeds."""

import csv
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from et.inpainting.lit import InpaintingTask
from et.runs.folder import ResumePoint, find_resume_point
from et.runs.identity import resolve
from et.runs.record import RESULT_KEYS, read_result, run_id
from et.training import loggers
from et.training.callbacks import Checkpoints, FiniteLoss
from et.training.optim import warmup_cosine
from et.training.run import train
from et.utils.errors import UserError
from tests.configs import ROOT, TINY, compose_config
from tests.runs import Stop, assert_same_run, stop_in, weights


def test_a_run_leaves_what_the_contract_names(tiny):
    outcome = train(tiny("checkpoint=best", "callbacks.monitor=val/mse"))
    assert {"config.yaml", "metrics.csv", "result.json"} <= {path.name for path in outcome.folder.iterdir()}
    record = json.loads((outcome.folder / "result.json").read_text())
    assert set(RESULT_KEYS) <= set(record)
    assert record["task"] == "inpainting" and record["epochs"] == 3 and record["steps"] == 9
    assert record["num_params"] == sum(p.numel() for p in outcome.task.network.parameters())
    assert record["metrics"]["test/mse"] == pytest.approx(record["metrics"]["val/mse"], rel=1e-5)
    assert outcome.folder == Path(outcome.folder.parents[1]) / "demo_inpainting" / record["run_id"]
    with (outcome.folder / "metrics.csv").open() as file:
        epochs = {row["epoch"] for row in csv.DictReader(file)}
    assert {"0", "1", "2"} <= {epoch.split(".")[0] for epoch in epochs}


def test_a_run_names_the_commit_that_it_started_from(tiny, monkeypatch):
    """Whoever commits or edits while a run goes on changes nothing of its code."""
    commits = iter(["a" * 40, "b" * 40 + "+changes"])
    monkeypatch.setattr(loggers, "git_commit", lambda: next(commits))
    outcome = train(tiny())
    assert (outcome.record["git_commit"], outcome.record["uncommitted_changes"]) == ("a" * 40, False)
    assert next(commits).startswith("b"), "it is read once"


def test_clipping_and_schedule_act_on_every_step(tiny, monkeypatch):
    seen = []

    def before_zero_grad(self, trainer, pl_module, optimizer):
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        seen.append(
            (optimizer.param_groups[0]["lr"], torch.cat([g.flatten() for g in grads]).norm().item() if grads else 0)
        )

    monkeypatch.setattr(FiniteLoss, "on_before_zero_grad", before_zero_grad)
    outcomes = {}
    for clip in (1e-3, None):
        seen.clear()
        overrides = ("optim.schedule.warmup_epochs=1", f"optim.clip_norm={'null' if clip is None else clip}")
        outcomes[clip] = (train(tiny(*overrides)), list(seen))
    steps = 9
    schedule = outcomes[None][0].trainer.lr_scheduler_configs[0]
    assert schedule.interval == "step"
    optim = compose_config(*TINY, "optim.schedule.warmup_epochs=1").optim
    peak, start, end = optim.optimizer.lr, optim.schedule.start_lr, optim.schedule.end_lr
    for _, observed in outcomes.values():
        rates = [warmup_cosine(step, steps, steps // 3, peak, start, end) for step in range(steps)]
        assert [rate for rate, _ in observed] == pytest.approx(rates)
    # What is left when the next step begins are the gradients that the last one was made with.
    assert all(norm <= 1e-3 * (1 + 1e-4) for _, norm in outcomes[1e-3][1])
    assert max(norm for _, norm in outcomes[None][1]) > 1e-3


def test_the_best_epoch_is_the_best_of_metrics_csv_and_validation_is_of_the_weights_that_are_tested(tiny):
    outcome = train(tiny("checkpoint=last", "callbacks.monitor=val/mse", "optim.optimizer.lr=0.1"))
    with (outcome.folder / "metrics.csv").open() as file:
        curve = [float(row["val/mse"]) for row in csv.DictReader(file) if row["val/mse"]]
    assert curve.index(min(curve)) == outcome.record["best_epoch"]
    metrics = outcome.record["metrics"]
    assert outcome.record["best_epoch"] < 2  # else there is nothing to tell apart
    # The demo tests on what it validates on.
    assert metrics["test/mse"] == pytest.approx(metrics["val/mse"], rel=1e-5)


def test_what_validation_said_of_other_weights_is_not_recorded(tiny):
    outcome = train(tiny("checkpoint=last", "callbacks.monitor=val/mse", "trainer.check_val_every_n_epoch=2"))
    assert "test/mse" in outcome.record["metrics"] and "val/mse" not in outcome.record["metrics"]


def test_a_killed_run_remembers_the_best_epoch_whose_weights_it_has(tiny, monkeypatch, tmp_path):
    overrides = ("checkpoint=best", "callbacks.monitor=val/mse", "callbacks.save_every_n_epochs=10")
    with monkeypatch.context() as patched, pytest.raises(Stop):
        stop_in(patched, 2)
        train(tiny(*overrides))
    folder = next((tmp_path / "runs" / "demo_inpainting").iterdir()) / "checkpoints"
    best, last = (torch.load(folder / name, weights_only=True) for name in ("best.ckpt", "last.ckpt"))
    state = next(state for state in last["callbacks"].values() if "best_epoch" in state)
    assert state["best_epoch"] == best["epoch"]


def test_a_run_that_ends_within_an_epoch_keeps_the_weights_that_it_tests(tiny):
    overrides = ("trainer.max_epochs=10", "callbacks.save_every_n_epochs=10")
    outcome = train(tiny("+trainer.max_steps=7", *overrides))  # of three steps an epoch
    assert outcome.record["steps"] == 7
    trained = outcome.task.state_dict()
    for name, value in weights(outcome.folder).items():
        assert torch.equal(value, trained[name]), name


@pytest.mark.parametrize("epochs", ["null", "-1"])
def test_a_training_without_a_number_of_epochs_is_refused(tiny, epochs):
    with pytest.raises(UserError, match=r"trainer\.max_epochs must be a number of epochs"):
        train(tiny(f"trainer.max_epochs={epochs}"))


def test_equally_good_epochs_are_told_apart_by_the_tie_break(tmp_path):
    epochs = [(0.8, 0.5), (0.9, 0.7), (0.9, 0.4), (0.9, 0.6), (0.7, 0.1)]
    for tie_break, best in (("val/loss", 2), (None, 1)):
        checkpoints = Checkpoints(tmp_path, "val/accuracy", "max", tie_break=tie_break)
        for epoch, (accuracy, loss) in enumerate(epochs):
            trainer = SimpleNamespace(
                callback_metrics={"val/accuracy": accuracy, "val/loss": loss}, current_epoch=epoch, global_step=epoch,
                fast_dev_run=True, sanity_checking=False, state=SimpleNamespace(fn="fit"),
                strategy=SimpleNamespace(broadcast=lambda metrics: metrics),
            )  # fmt: skip
            checkpoints.on_validation_end(trainer, None)
        assert checkpoints.best_epoch == best


def test_a_finished_run_is_not_run_again_unless_forced(tiny):
    first = train(tiny("trainer.max_epochs=1"))
    stamp = (first.folder / "result.json").stat().st_mtime_ns
    again = train(tiny("trainer.max_epochs=1"))
    assert again.skipped and again.record == first.record
    assert (first.folder / "result.json").stat().st_mtime_ns == stamp
    forced = train(tiny("trainer.max_epochs=1", "force=true"))
    assert not forced.skipped and forced.record["metrics"] == first.record["metrics"]


def test_equal_seeds_agree_bit_for_bit_and_others_do_not(tiny, whole_run):
    first = whole_run(*TINY)
    second = train(tiny())
    other = train(tiny("seed=1"))
    assert first.record["run_id"] == second.record["run_id"] != other.record["run_id"]
    assert first.record["metrics"] == second.record["metrics"] != other.record["metrics"]
    for name, value in weights(first.folder).items():
        assert torch.equal(value, weights(second.folder)[name]), name


def test_determinism_fills_no_memory(tiny, monkeypatch):
    """By default torch writes NaN to every new tensor where algorithms are to be deterministic."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    seen = []
    original = InpaintingTask.training_step

    def step(self, batch, batch_index):
        seen.append((torch.are_deterministic_algorithms_enabled(), torch.empty(100).isnan().all().item()))
        return original(self, batch, batch_index)

    monkeypatch.setattr(InpaintingTask, "training_step", step)
    train(tiny("trainer.max_epochs=1"))
    assert set(seen) == {(True, False)}


@pytest.mark.parametrize(
    "options", [(), ("task.steps_range=[1,4]", "task.loss_steps=2", "task.rest_steps=3", "data.occluded_range=[0.2,1]")]
)
def test_an_interrupted_run_resumes_and_ends_as_an_uninterrupted_one(tiny, whole_run, monkeypatch, options):
    whole = whole_run(*TINY, *options)
    with monkeypatch.context() as patched, pytest.raises(Stop):
        stop_in(patched, 2)
        train(tiny(*options))
    resumed = train(tiny(*options))
    assert_same_run(whole, resumed)
    assert whole.record["steps"] == 9
    table = (resumed.folder / "metrics.csv").read_text().splitlines()
    assert len({line.split(",")[0] for line in table}) == len(table)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tiny, whole_run, monkeypatch, capsys, tmp_path):
    whole = whole_run(*TINY)
    with monkeypatch.context() as patched, pytest.raises(Stop):
        stop_in(patched, 2)
        train(tiny())
    folder = next((tmp_path / "runs" / "demo_inpainting").iterdir())
    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    resumed = train(tiny())
    assert "last.ckpt does not load" in capsys.readouterr().out
    assert resumed.record["metrics"] == whole.record["metrics"]


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch hostile_code_ran",))


def test_a_hostile_checkpoint_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Hostile(), "global_step": 1}, tmp_path / "last.ckpt")
    assert find_resume_point(tmp_path, "a run") == ResumePoint()
    assert not (tmp_path / "hostile_code_ran").exists()


def test_a_full_disk_keeps_the_checkpoint_before(tiny, monkeypatch, tmp_path):
    """The second checkpoint finds no room; the first stays whole and the run resumes from it."""
    from pytorch_lightning.strategies import Strategy

    original, written = Strategy.save_checkpoint, []

    def save(self, checkpoint, path, *args, **kwargs):
        written.append(path)
        if len(written) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return original(self, checkpoint, path, *args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(UserError, match="the disk is full"):
        patched.setattr(Strategy, "save_checkpoint", save)
        train(tiny())
    folder = next((tmp_path / "runs" / "demo_inpainting").iterdir()) / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]
    assert train(tiny()).record["epochs"] == 3


def test_two_processes_do_not_share_a_run(tiny, tmp_path):
    cfg = tiny()
    folder = tmp_path / "runs" / "demo_inpainting" / run_id(resolve(cfg))
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process"):
            train(cfg)


def test_a_run_folder_that_cannot_be_written(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the run folder"):
        train(tiny(f"paths.runs={tmp_path}/file/runs"))


def test_errors_of_the_configuration(tiny):
    with pytest.raises(UserError, match="checkpoint must be"):
        train(tiny("checkpoint=first"))
    with pytest.raises(UserError, match=r"precision must be 32-true.*64-true, not bf16-true"):
        train(tiny("trainer.precision=bf16-true"))
    with pytest.raises(UserError, match=r"needs callbacks\.monitor"):
        train(tiny("checkpoint=best"))
    with pytest.raises(UserError, match="needs a validation"):
        train(tiny("checkpoint=best", "callbacks.monitor=val/mse", "trainer.check_val_every_n_epoch=5"))
    with pytest.raises(UserError, match=r"tie_break is 'val/f1', but validation logs val/mse"):
        train(tiny("checkpoint=best", "callbacks.monitor=val/mse", "+callbacks.tie_break=val/f1"))


def test_a_metric_that_validation_does_not_log_is_refused_before_any_work(tiny, tmp_path):
    for name in ("val/msee", "test/mse"):
        with pytest.raises(UserError, match=rf"monitor is '{name}', but validation logs val/mse, val/mse_masked"):
            train(tiny(f"callbacks.monitor={name}"))
    assert not list(tmp_path.rglob("result.json")) and not list(tmp_path.rglob("*.ckpt"))


def test_where_nothing_was_trained_nothing_is_left(config, tmp_path):
    with pytest.raises(Exception, match=r"nowhere.*which is not there"):
        train(config("experiment=imagenette_inpainting", "paths.data=nowhere"))
    assert not any((tmp_path / "runs").rglob("*.*"))


def test_read_result_treats_half_written_files_as_absent(tmp_path):
    assert read_result(tmp_path) is None
    (tmp_path / "result.json").write_text('{"experiment": "x", ')
    assert read_result(tmp_path) is None
    (tmp_path / "result.json").write_text('{"experiment": "x"}')
    assert read_result(tmp_path) is None


def test_best_follows_the_mode(tmp_path):
    with pytest.raises(UserError, match="min' or 'max"):
        Checkpoints(tmp_path, "val/mse", mode="lowest")


def test_tensorboard_and_offline_wandb_are_written_beside_the_metrics(tiny):
    """No network, no key: both loggers still leave their files in the run's folder."""
    pytest.importorskip("wandb")
    outcome = train(tiny("trainer.max_epochs=1", "logger=[tensorboard,wandb]"))
    assert list((outcome.folder / "tensorboard").glob("events.*"))
    assert list((outcome.folder / "wandb").glob("offline-run-*"))
    assert (outcome.folder / "metrics.csv").exists()


def test_the_command_line_answers_plainly(run_command):
    assert "experiment" in run_command("--help")[1]
    for arguments, message in (
        (["experiment=no_such_thing"], "demo_inpainting"),
        (["experiment=demo_inpainting", "model.dmi=3"], "model.dmi"),
        ([], "error: no experiment chosen"),
        (["experiment=demo_inpainting", "data.patch_size=7"], "not a multiple"),
        (["experiment=imagenet_inpainting", "trainer=default", "trainer.devices=1"], "image-net.org"),
    ):
        status, _, told = run_command(*arguments)
        assert status == 1 and message in told and "Traceback" not in told, arguments


@pytest.mark.slow
def test_importing_torch_geometric_prints_no_warning():
    """A module warns when it is first imported, so this takes a process."""
    code = "from et.training.trainer import quiet_libraries; quiet_libraries(); import torch_geometric.nn"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and done.stderr == "", done.stderr
