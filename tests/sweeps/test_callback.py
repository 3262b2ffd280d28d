"""The sweep files, and that a sweep skips, retries and goes on."""

from __future__ import annotations

import io
import json
import os
import time

import pytest
import yaml

from et.results import paper
from et.runs import experiments
from et.runs.config_check import check_config
from et.runs.identity import config_of
from et.runs.record import run_id
from et.sweeps.callback import end_if_others_wait
from et.sweeps.cells import jobs
from et.utils.errors import UserError
from et.utils.paths import CONF, ROOT
from hydra_plugins.energy_transformer.optuna_sweeper import read_overrides
from tests import fault_runs
from tests.configs import TINY

SWEEPS = sorted(path.stem for path in (CONF / "sweep").glob("table*.yaml"))
KNOWN = set(experiments.names())


def sweep_file(name: str) -> dict:
    return yaml.safe_load((CONF / "sweep" / f"{name}.yaml").read_text())


def experiments_of(name: str) -> set[str]:
    return {
        value for job in jobs(sweep_file(name)) for key, value in (o.split("=", 1) for o in job) if key == "experiment"
    }


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_is_called_like_its_file_and_fills_its_table(name):
    table = paper.load(int(name.removeprefix("table")))
    assert sweep_file(name)["sweep"]["name"] == name
    assert not experiments_of(name) - set(table.experiments()), "every run of a sweep has a place in the table"


METHODS = sweep_file("search_anomaly")["hydra"]["sweeper"]["methods"]
SPACES = {str(space): method for method, space in METHODS.items()}.values()  # one method for each space


@pytest.mark.parametrize("method", SPACES)
def test_a_search_varies_settings_that_exist(method):
    """Each dimension is a key of the experiments it is for; the first values compose, and validation AUPRC chooses."""
    space, fixed = read_overrides([f"{key}={value}" for key, value in METHODS[method].items()])
    first = {key: one.choices[0] if hasattr(one, "choices") else one.low for key, one in space.items()}
    experiment = f"experiment=tolokers_gadbench_{method}".rstrip("_")
    config = config_of(["sweep=search_anomaly", experiment, *fixed, *(f"{k}={v}" for k, v in first.items())])
    check_config(config)
    assert config["callbacks"]["monitor"] == "val/average_precision" and config["callbacks"]["mode"] == "max"


def test_a_search_names_experiments_that_exist():
    assert {f"tolokers_gadbench_{method}".rstrip("_") for method in METHODS} <= KNOWN


def test_the_search_of_table_6_has_its_ranges():
    params = sweep_file("optuna_anomaly")["hydra"]["sweeper"]["params"]
    assert params == {
        "model.head_dim": "choice(64, 128, 256)",  # Y
        "model.memories_per_dim": "choice(2, 3, 4, 5)",  # K / Y
        "model.steps": "choice(1, 2, 3)",  # T
        "model.num_heads": "choice(1, 2, 3)",  # H
    }


@pytest.mark.parametrize("name", SWEEPS)
def test_every_experiment_of_a_table_that_exists_is_in_its_sweep(name):
    table = paper.load(int(name.removeprefix("table")))
    assert not (set(table.experiments()) & KNOWN) - experiments_of(name)


def test_the_smoke_sweep_has_a_run_of_every_table_that_has_runs():
    measured = [number for number in paper.NUMBERS if any(metric.measured for metric in paper.load(number).metrics)]
    assert measured == [1, 2, 7, 12, 13, 14, 16]
    assert experiments_of("smoke") >= {f"smoke_table{number:02d}" for number in measured}


@pytest.mark.parametrize("name", SWEEPS)
def test_the_first_cell_of_a_sweep_composes(name):
    first = jobs(sweep_file(name))[0]
    config = config_of([*first, f"sweep={name}"])
    assert config["fidelity"] == config["sweep"]["fidelity"][config["protocol"]]
    assert run_id(config) == run_id(config_of([*first, f"fidelity={config['fidelity']}"]))


def test_released_runs_the_released_model():
    config = config_of(["experiment=amazon_1pct", "protocol=released", "sweep=table01"])
    assert config["fidelity"] == "released"


def test_folds_and_protocols_of_table_2():
    cells = [dict(o.split("=", 1) for o in job) for job in jobs(sweep_file("table02"))]
    mutag = [(cell["protocol"], cell["data.fold"]) for cell in cells if cell["experiment"] == "tu_mutag"]
    assert sorted(mutag) == sorted([("held_out", str(fold)) for fold in range(10)] + [("released", "0")])


@pytest.mark.parametrize("name", ("../../escape", "/tmp/escape", ".."))
def test_a_sweeps_name_does_not_lead_out_of_the_runs_folder(run_sweep, tmp_path, name):
    before = set(tmp_path.rglob("*"))
    status, _ = run_sweep("sweep=smoke", f"sweep.name={name}")
    assert status == 1 and set(tmp_path.rglob("*")) == before and not (tmp_path.parent / "escape").exists()


def test_a_mistyped_key_is_told_before_a_sweep_runs_anything(run_sweep):
    status, printed = run_sweep("sweep=smoke", "experiment=smoke_table01", "+nonsense.key=3", "sweep.dry_run=true")
    assert status == 1 and "nonsense: there is no such key" in printed and not started(printed)


SMALL = (
    "seed=0", "trainer.max_epochs=1", "+trainer.limit_train_batches=1", "trainer.check_val_every_n_epoch=1",
    "+trainer.limit_val_batches=1", "+trainer.limit_test_batches=1", "callbacks.progress=false", "~callbacks.pictures",
    "data.mask_seeds=1", "data.batch_size=8", "model.dim=16", "model.num_memories=16", "model.steps=1",
)  # fmt: skip
ONE, OTHER = "experiment=demo_inpainting", "experiment=imagenette_inpainting"
BOTH = f"{ONE},imagenette_inpainting"


def started(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("-- ")]


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("tasks", "error", "ends"),
    (
        ("1", RuntimeError("out of memory"), False),
        ("2", RuntimeError("out of memory"), True),
        ("2", caused(UserError("a process of the data loader died"), RuntimeError()), True),
        ("2", UserError("the data are not there"), False),
    ),
)
def test_one_of_several_processes_that_fails_alone_ends(monkeypatch, tasks, error, ends):
    """srun and torchrun then end the others, which would wait for it."""
    statuses = []
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_NTASKS", tasks)
    monkeypatch.setattr(os, "_exit", statuses.append)
    end_if_others_wait(error)
    assert statuses == ([1] if ends else [])


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_failure_skips_what_is_finished_and_retries(run_sweep, tmp_path):
    """Two cells: the data of one are not there."""
    status, printed = run_sweep("sweep=table16", "experiment=imagenette_inpainting,demo_inpainting", *SMALL)
    assert status == 1
    assert "1 finished, 1 failed" in printed and len(started(printed)) == 2
    (failure,) = (tmp_path / "runs/imagenette_inpainting").glob("*/failure.json")
    assert "imagenette" in json.loads(failure.read_text())["message"]
    (result,) = (tmp_path / "runs/demo_inpainting").glob("*/result.json")
    written = result.stat().st_mtime_ns

    status, printed = run_sweep("sweep=table16", BOTH, *SMALL)
    assert status == 1
    (only,) = started(printed)
    assert "imagenette_inpainting" in only, "only the failed cell is tried again"
    assert result.stat().st_mtime_ns == written

    status, printed = run_sweep("sweep=table16", ONE, *SMALL)
    assert (status, started(printed)) == (0, [])
    assert "1 finished" in printed


@pytest.mark.slow
def test_a_part_of_a_sweep_that_has_no_runs_is_an_error(run_command):
    status, _, told = run_command("--multirun", "sweep=table02", "experiment=tu_mutag_gin", "protocol=released")
    assert status == 1 and "sweep table02 has no such run: its sweep.skip leaves out every combination" in told


def test_a_dry_run_says_what_there_is_to_do_and_does_nothing(run_sweep, tmp_path):
    status, printed = run_sweep("sweep=table16", BOTH, "sweep.dry_run=true", *SMALL)
    assert status == 0
    assert "2 not run yet" in printed and "missing data" in printed and "needed by imagenette_inpainting" in printed
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_an_experiment_that_does_not_exist_does_not_keep_the_others_from_running(run_sweep):
    status, printed = run_sweep("sweep=table16", f"{ONE},no_such_experiment", *SMALL)
    assert status == 1
    assert "1 finished, 1 cannot be composed" in printed
    assert "there is no experiment 'no_such_experiment'" in printed
    (only,) = started(printed)
    assert "demo_inpainting" in only


@pytest.mark.slow
def test_a_killed_sweep_runs_only_what_is_missing(run_sweep, tmp_path):
    """kill -9 after the first of two cells; the second start runs the second one."""
    arguments, printed = ("--multirun", "sweep=table16", ONE, *SMALL, "seed=0,1"), tmp_path / "printed"
    process = fault_runs.context().Process(
        target=fault_runs.run_command, args=(arguments, dict(os.environ), printed), daemon=True
    )
    process.start()
    while not (printed.exists() and any("seed=1" in line for line in started(printed.read_text()))):
        assert process.exitcode is None
        time.sleep(0.01)
    process.kill()
    process.join()
    (result,) = (tmp_path / "runs/demo_inpainting").glob("*/result.json")
    written = result.stat().st_mtime_ns
    status, printed = run_sweep(*arguments[1:])
    assert status == 0 and "2 finished" in printed
    (only,) = started(printed)
    assert "seed=1" in only
    assert result.stat().st_mtime_ns == written


@pytest.mark.slow
def test_every_cell_of_the_smoke_sweep_finishes(run_sweep, tmp_path):
    status, printed = run_sweep("sweep=smoke", "callbacks.progress=false")
    assert status == 0, printed
    finished = {path.parents[1].name for path in (tmp_path / "runs").glob("*/*/result.json")}
    assert finished == experiments_of("smoke")


@pytest.mark.slow
def test_a_multirun_without_a_sweep_leaves_hydras_notes_below_the_runs(run_sweep, tmp_path):
    assert run_sweep(*TINY, "trainer.max_epochs=1")[0] == 0
    assert (tmp_path / "runs/sweeps/multirun/multirun.yaml").exists()
    assert not (ROOT / "multirun.yaml").exists()


@pytest.mark.slow
def test_a_failing_job_does_not_end_a_multirun(run_sweep, tmp_path):
    """Of four jobs one diverges and one is refused; the exit status and a report say so at the end."""
    jobs = ("optim.optimizer.lr=1e30,0.001", "data.patch_size=7,40", "optim.schedule.warmup_epochs=0")
    status, printed = run_sweep(*TINY, *jobs)
    assert status == 1
    assert len(list((tmp_path / "runs").rglob("result.json"))) == 1
    assert "multirun: 1 finished, 3 failed" in printed
    failures = [json.loads(path.read_text())["message"] for path in (tmp_path / "runs").rglob("failure.json")]
    assert sum("not a multiple" in message for message in failures) == 2
    assert sum("the loss is" in message for message in failures) == 1


def test_slurm_that_is_not_there_is_one_sentence(run_sweep, monkeypatch, capsys):
    monkeypatch.setattr("et.sweeps.slurm.shutil.which", lambda name: None)
    monkeypatch.setattr("sys.stderr", (told := io.StringIO()))
    status, _ = run_sweep(*TINY, "hydra/launcher=slurm")
    assert status == 1
    assert told.getvalue().startswith("error: hydra/launcher=slurm: Slurm does not answer")
    assert len(told.getvalue().splitlines()) == 1


def test_a_sweep_without_multirun_says_what_is_wrong(run_command):
    status, _, told = run_command("sweep=table01")
    assert status == 1 and "--multirun sweep=table01" in told


def test_an_error_in_planning_ends_the_sweep_instead_of_starting_it(run_sweep, monkeypatch, tmp_path):
    """Hydra would make a warning of it and start every cell."""

    def broken(config):
        raise RuntimeError("no plan")

    monkeypatch.setattr("et.sweeps.callback.plan", broken)
    status, _ = run_sweep("sweep=smoke", "sweep.dry_run=true")
    assert status == 1 and not list((tmp_path / "runs").rglob("*.*"))
