"""Files of a run folder are damaged, cut short, swapped and removed at random: nothing wrong comes of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from et.runs.folder import settle, start_over
from et.runs.loading import load_run
from et.runs.record import read_result
from et.training import run as run_module
from et.training.run import train
from et.utils.errors import UserError
from tests.configs import TINY, compose_config

SETTINGS = (*TINY, "checkpoint=best", "callbacks.monitor=val/mse", "callbacks.progress=false")
FAULT = st.tuples(
    st.sampled_from(("flip", "cut", "swap", "delete", "foreign", "empty")),
    st.integers(0, 99), st.integers(0, 99), st.floats(0, 1, exclude_max=True),
)  # fmt: skip
BOUNDED = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run and one of another seed."""
    root = tmp_path_factory.mktemp("damage")
    return [train(compose_config(*SETTINGS, f"seed={seed}", f"paths.runs={root}/{seed}")) for seed in (0, 1)]


def damage(folder: Path, other: Path, faults) -> None:
    for kind, which, second, place in faults:
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
        if not files:
            return
        path, partner = files[which % len(files)], files[second % len(files)]
        content = bytearray(path.read_bytes())
        if kind == "delete":
            path.unlink()
        elif kind == "empty":
            path.write_bytes(b"")
        elif kind == "swap":
            path.write_bytes(partner.read_bytes())
            partner.write_bytes(content)
        elif kind == "foreign":
            source = other / path.relative_to(folder)
            if source.exists():
                path.write_bytes(source.read_bytes())
        elif content:
            position = int(place * len(content))
            if kind == "cut":
                path.write_bytes(content[:position])
            else:
                content[position] ^= 1 << (which + second) % 8
                path.write_bytes(content)


def copied(runs, target: Path, finished: bool) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(runs[0].folder.parents[1], target)
    folder = target / runs[0].folder.parent.name / runs[0].folder.name
    if not finished:
        (folder / "result.json").unlink()
    return folder


@settings(max_examples=75, **BOUNDED)
@given(st.lists(FAULT, min_size=1, max_size=3))
def test_what_is_read_is_right_or_refused(runs, tmp_path, faults):
    truth = torch.load(runs[0].folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    folder = copied(runs, tmp_path / "copy", finished=True)
    damage(folder, runs[1].folder, faults)
    record = read_result(folder, runs[0].record["run_id"])
    assert record is None or record == read_result(runs[0].folder)
    try:
        _, network = load_run(folder)
    except UserError:
        return
    for name, value in network.state_dict().items():
        # Without a record nothing says which run it was: then the other one may be loaded, as what it is.
        if not torch.equal(value, truth[f"network.{name}"]):
            assert record is None and any(kind == "foreign" for kind, *_ in faults), name
            other = torch.load(runs[1].folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
            assert torch.equal(value, other[f"network.{name}"])


@settings(max_examples=8, **BOUNDED)
@given(st.lists(FAULT, min_size=1, max_size=3), st.booleans())
def test_the_same_command_ends_with_the_right_record(runs, tmp_path, faults, finished):
    folder = copied(runs, tmp_path / "copy", finished)
    damage(folder, runs[1].folder, faults)
    try:
        again = train(compose_config(*SETTINGS, "seed=0", f"paths.runs={tmp_path}/copy"))
    except UserError:
        return
    assert again.record["metrics"] == runs[0].record["metrics"]
    assert again.record["best_epoch"] == runs[0].record["best_epoch"]
    assert read_result(folder, again.record["run_id"])["metrics"] == runs[0].record["metrics"]


@pytest.mark.parametrize("fault", ("foreign", "cut", "delete", "flip"))
def test_a_best_checkpoint_that_is_lost_is_trained_anew(runs, tmp_path, fault, capsys):
    folder = copied(runs, tmp_path / "copy", finished=False)
    path = folder / "checkpoints" / "best.ckpt"
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    damage(folder, runs[1].folder, [(fault, files.index(path), 0, 0.5)])
    with pytest.raises(UserError, match=r"best\.ckpt"):
        load_run(folder)
    again = train(compose_config(*SETTINGS, "seed=0", f"paths.runs={tmp_path}/copy"))
    assert "best.ckpt" in capsys.readouterr().out
    assert again.record["metrics"] == runs[0].record["metrics"]


def test_an_older_versions_folder_without_digests_still_loads(runs, tmp_path):
    folder = copied(runs, tmp_path / "copy", finished=False)
    for digest in folder.rglob("*.sha256"):
        digest.unlink()
    _, network = load_run(folder)
    truth = torch.load(runs[0].folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, truth[f"network.{name}"]) for name, value in network.state_dict().items())
    again = train(compose_config(*SETTINGS, "seed=0", f"paths.runs={tmp_path}/copy"))
    assert again.record["metrics"] == runs[0].record["metrics"]
    shutil.copy(runs[1].folder / "checkpoints" / "best.ckpt", folder / "checkpoints" / "best.ckpt")
    for digest in folder.rglob("*.sha256"):
        digest.unlink()
    with pytest.raises(UserError, match=r"best\.ckpt belongs to another configuration"):
        load_run(folder)


def test_a_forced_run_that_fails_at_once_leaves_the_old_one(runs, tmp_path, monkeypatch):
    """Before its first checkpoint. So does one that is killed there."""
    folder = copied(runs, tmp_path / "copy", finished=True)
    kept = [folder / "result.json", folder / "metrics.csv", *(folder / "checkpoints").iterdir()]
    files = {path: path.read_bytes() for path in kept}
    cfg = compose_config(*SETTINGS, "seed=0", f"paths.runs={tmp_path}/copy", "force=true")

    def fails(*arguments, **options):
        raise UserError("no data")

    with monkeypatch.context() as patched, pytest.raises(UserError, match="no data"):
        patched.setattr(run_module, "fit", fails)
        train(cfg)
    assert all(path.read_bytes() == content for path, content in files.items())
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    start_over(folder)
    assert read_result(folder, folder.name) is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    requeued = train(cfg)
    assert not requeued.skipped and requeued.record["metrics"] == runs[0].record["metrics"]
    monkeypatch.delenv("SLURM_JOB_ID")
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    start_over(folder)
    again = train(compose_config(*SETTINGS, "seed=0", f"paths.runs={tmp_path}/copy"))
    assert again.skipped and again.record == requeued.record
    forced = train(cfg)
    assert forced.record["metrics"] == runs[0].record["metrics"] and not list(folder.rglob("*.replaced"))


@pytest.mark.parametrize("renames", range(8))
@pytest.mark.parametrize("killed_in", [start_over, settle])
def test_a_kill_among_the_renames_of_a_forced_run_loses_nothing(runs, tmp_path, monkeypatch, killed_in, renames):
    folder = copied(runs, tmp_path / "copy", finished=True)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    if killed_in is settle:
        start_over(folder)
    real, done = Path.replace, []

    def replace(self, target):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(self)
        return real(self, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", replace)
        killed_in(folder)
    settle(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"} == files


def test_a_requeued_job_forces_a_run_once(runs, tmp_path, monkeypatch):
    copied(runs, tmp_path / "copy", finished=True)
    cfg = compose_config(*SETTINGS, "seed=0", f"paths.runs={tmp_path}/copy", "force=true")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert not train(cfg).skipped
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert train(cfg).skipped
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert not train(cfg).skipped
