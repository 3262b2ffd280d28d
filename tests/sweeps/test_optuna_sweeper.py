"""The Optuna sweeper: what it searches, that a failure does not end it, and that a stored study resumes."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from et.results import searches
from et.sweeps.cells import chosen_experiments, method_of
from et.utils.errors import UserError
from et.utils.paths import CONF, EXPERIMENTS
from hydra_plugins.energy_transformer.optuna_sweeper import (
    OptunaSweeper,
    check_search,
    distribution,
    read_overrides,
)

optuna = pytest.importorskip("optuna")
distributions = optuna.distributions

SEARCH = (
    "experiment=demo_anomaly_trees", "sweep=search_anomaly", "callbacks.monitor=val/f1_macro",
    "hydra.sweeper.n_trials=4", "model.hops=choice(1,2)",
    "model.rounds=10", "model.max_leaf_nodes=7", "model.min_samples_leaf=5", "model.l2=0.0", "model.balanced=true",
)  # fmt: skip


def parsed(text):
    (override,) = OverridesParser.create().parse_overrides([text])
    return override


@pytest.mark.parametrize(
    ("text", "expected"),
    (
        ("x=choice(1, 2.5, true, word)", distributions.CategoricalDistribution([1, 2.5, True, "word"])),
        ("x=a,b", distributions.CategoricalDistribution(["a", "b"])),
        ("x=choice([1,2],[3])", distributions.CategoricalDistribution(["[1,2]", "[3]"])),
        ("x=range(1,8,3)", distributions.IntDistribution(1, 7, step=3)),
        ("x=range(0,1.0,0.25)", distributions.FloatDistribution(0.0, 0.75, step=0.25)),
        ("x=int(interval(1, 8))", distributions.IntDistribution(1, 8)),
        ("x=interval(1, 8)", distributions.FloatDistribution(1.0, 8.0)),
        ("x=tag(log, interval(1e-4, 1e-1))", distributions.FloatDistribution(1e-4, 1e-1, log=True)),
    ),
)
def test_a_sweep_as_a_distribution(text, expected):
    assert distribution(parsed(text)) == expected


def test_the_last_override_of_a_key_counts():
    given = ["a=choice(1,2)", "b=choice(1,2)", "c=3", "a=5", "c=choice(7,8)", "+d.e=1", "~f"]
    space, fixed = read_overrides(given)
    assert list(space) == ["b", "c"] and fixed == ["a=5", "+d.e=1", "~f"]
    with pytest.raises(UserError, match="nothing to search"):
        read_overrides(["a=5"])


def test_a_search_that_cannot_work_is_refused():
    def check(monitor="val/f1", mode="max", direction="maximize", n_trials=3, n_jobs=1, rate=0.0):
        config = OmegaConf.create({"callbacks": {"monitor": monitor, "mode": mode}})
        check_search(config, direction, n_trials, n_jobs, rate)

    check()
    for options, message in (
        ({"monitor": None}, r"needs callbacks\.monitor"),
        ({"direction": "up"}, "minimize or maximize"),
        ({"mode": "min"}, r"against callbacks\.mode=min"),
        ({"n_trials": 0}, "n_trials must be at least 1"),
        ({"n_jobs": 0}, "n_jobs must be at least 1"),
        ({"rate": 2.0}, "between 0 and 1"),
    ):
        with pytest.raises(UserError, match=message):
            check(**options)


class Jobs:
    """Stands for a launcher: scores a trial by its values; may fail, or be interrupted."""

    def __init__(self, score, stop_at=None):
        self.score, self.stop_at, self.seen = score, stop_at, []

    def launch(self, jobs, initial_job_idx):
        if self.stop_at is not None and len(self.seen) >= self.stop_at:
            raise SystemExit(143)
        self.seen += [tuple(job) for job in jobs]
        return [Returned(self.score, job) for job in jobs]


class Returned:
    def __init__(self, score, job):
        self.score, self.values = score, {k: float(v) for k, v in (o.split("=") for o in job) if k in ("x", "y")}

    @property
    def return_value(self):
        return self.score(self.values)


def sweeper(folder, jobs, **options):
    """A search over x and y with ``jobs`` in the place of the launcher."""
    config = OmegaConf.create(
        {"callbacks": {"monitor": "val/f1", "mode": "max"}, "hydra": {"sweep": {"dir": str(folder)}}}
    )
    options = {
        "sampler": OmegaConf.load(CONF / "hydra/sweeper/sampler/tpe.yaml"), "direction": "maximize", "storage": None,
        "study_name": "test", "n_trials": 16, "n_jobs": 1, "max_failure_rate": 0.0,
        "params": {"x": "interval(0.0, 1.0)", "y": "choice(1, 2, 3)"}, **options,
    }  # fmt: skip
    options["sampler"].seed = 0
    made = OptunaSweeper(**options)
    made.config, made.launcher = config, jobs
    made.hydra_context = OmegaConf.create({"config_loader": None})
    return made


def by_x(values):
    return values["x"] + values["y"]


def test_a_search_finds_the_best_and_is_reproducible(tmp_path, capsys):
    first, second = Jobs(by_x), Jobs(by_x)
    assert sweeper(tmp_path, first).search(["fixed=1"]) and sweeper(tmp_path, second).search(["fixed=1"])
    assert first.seen == second.seen and len(first.seen) == 16
    assert all(job[0] == "fixed=1" for job in first.seen)
    results = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    scores = [Returned(by_x, job).return_value for job in first.seen]
    assert results["best_value"] == max(scores) and results["best_params"]["y"] == 3
    assert "16 trials finished, 0 failed" in capsys.readouterr().out


def test_failed_trials_do_not_end_a_search(tmp_path, capsys):
    """One raises, one returns None, one returns NaN: the others count."""

    def score(values):
        return {1.0: float("nan"), 2.0: None, 3.0: values["x"]}[values["y"]]

    def broken(values):
        if values["y"] == 1.0:
            raise RuntimeError("diverged")
        return score(values)

    jobs = Jobs(broken)
    assert not sweeper(tmp_path, jobs, n_jobs=3).search([]), "failures are more than a rate of 0 allows"
    assert len(jobs.seen) == 16
    assert (tmp_path / "optimization_results.yaml").exists()
    assert "failed: trials" in capsys.readouterr().out
    assert sweeper(tmp_path, Jobs(score), max_failure_rate=1.0).search([])
    assert not sweeper(tmp_path, Jobs(lambda values: None), max_failure_rate=1.0).search([]), "nothing has a score"


def test_a_stored_search_resumes_where_it_was_interrupted(tmp_path):
    """It runs the trial that was running, then what an uninterrupted search would have run."""
    whole = Jobs(by_x)
    sweeper(tmp_path, whole).search([])
    storage = f"sqlite:///{tmp_path}/study.db"
    stopped, resumed = Jobs(by_x, stop_at=12), Jobs(by_x)
    with pytest.raises(SystemExit):
        sweeper(tmp_path, stopped, storage=storage).search([])
    assert sweeper(tmp_path, resumed, storage=storage).search([])
    assert stopped.seen + resumed.seen == whole.seen
    again = Jobs(by_x)
    assert sweeper(tmp_path, again, storage=storage).search([]) and not again.seen
    more = Jobs(by_x)
    assert sweeper(tmp_path, more, storage=storage, n_trials=18).search([]) and len(more.seen) == 2


def test_a_storage_that_does_not_fit_is_told(tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db"
    sweeper(tmp_path, Jobs(by_x), storage=storage, n_trials=1).search([])
    with pytest.raises(UserError, match=r"does not fit these values.*study_name"):
        sweeper(tmp_path, Jobs(by_x), storage=storage, params={"y": "choice(8, 9)"}).search([])
    other = sweeper(tmp_path, Jobs(by_x), storage=storage, direction="minimize")
    other.config.callbacks.mode = "min"
    with pytest.raises(UserError, match="made with direction maximize"):
        other.search([])
    with pytest.raises(UserError, match="cannot be opened"):
        sweeper(tmp_path, Jobs(by_x), storage="nonsense").search([])


def test_optuna_that_is_not_installed_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="needs Optuna"):
        sweeper(tmp_path, Jobs(by_x)).open_study("test")


def test_every_recorded_trial_lies_in_the_space_of_its_search():
    """What was drawn by an earlier version of Optuna is what the search file of today can draw."""
    methods = yaml.safe_load((CONF / "sweep" / "search_anomaly.yaml").read_text())["hydra"]["sweeper"]["methods"]
    for record in map(json.loads, (EXPERIMENTS / "table01" / "searches.jsonl").read_text().splitlines()):
        space = read_overrides([f"{k}={v}" for k, v in methods[method_of(record["experiment"], methods)].items()])[0]
        drawn = dict(override.lstrip("+").split("=") for override in record["overrides"])
        for key in space.keys() & drawn.keys():
            value = yaml.safe_load(drawn[key])
            assert space[key]._contains(space[key].to_internal_repr(value)), (key, value)


def test_each_experiment_is_a_study_of_equal_size(tmp_path):
    """Every one draws its own dimensions, starts anew, and has its result in a folder of its own."""
    jobs = Jobs(by_x)
    methods = {"": {"x": "interval(0.0, 1.0)"}, "mlp": {"x": "choice(2, 3)", "z": 1}}
    names = "reddit_40pct,reddit_40pct_mlp,tolokers_40pct_mlp"
    made = sweeper(tmp_path, jobs, n_trials=3, params={"y": "choice(1, 2, 3)"}, methods=methods, study_name=None)
    assert made.search([f"experiment={names}"])
    assert [f"experiment={name}" for name in names.split(",") for _ in range(3)] == [
        value for job in jobs.seen for value in job if value.startswith("experiment=")
    ]
    assert ["z=1" in job for job in jobs.seen] == [False] * 3 + [True] * 6
    assert [job[2:] for job in jobs.seen[3:6]] == [job[2:] for job in jobs.seen[6:]]
    for name in names.split(","):
        assert (tmp_path / name / "optimization_results.yaml").exists()


def test_experiments_of_a_search():
    methods = ["", "mlp", "labels", "mlp_labels", "pmp_labels"]
    assert chosen_experiments([], methods, "yelp_gadbench") == {"yelp_gadbench": "", "yelp_gadbench_mlp": "mlp"}
    assert list(chosen_experiments([], methods, "reddit_gadbench").values()) == methods
    assert chosen_experiments(["experiment=reddit_40pct_mlp_labels"], methods, None) == {
        "reddit_40pct_mlp_labels": "mlp_labels"
    }
    for arguments, cell in ((["experiment=reddit_40pct,nonsense"], None), ([], "nonsense"), ([], None)):
        with pytest.raises(UserError, match=r"no experiment (nonsense|None).*hydra\.sweeper\.cell"):
            chosen_experiments(arguments, methods, cell)
    with pytest.raises(UserError, match="no search space for reddit_40pct_mlp"):
        chosen_experiments(["experiment=reddit_40pct_mlp"], ["gcn"], None)


def test_an_experiment_file_of_ones_own_has_the_space_that_its_name_tells(monkeypatch):
    monkeypatch.setattr("et.sweeps.cells.files", lambda: ("mine", "mine_mlp"))
    assert [method_of(name, ["", "mlp"]) for name in ("mine", "mine_mlp")] == ["", "mlp"]


@pytest.mark.parametrize(
    "name", ["reddit_gadbench_encoded_blend", "reddit_gadbench_encoded_mlp_blend_labels", "tolokers_40pct_trees_tuned",
             "amazon_40pct_hetero_max", "reddit_gadbench_pmp"],
)  # fmt: skip
def test_a_variant_without_a_search_space_does_not_take_that_of_et(name):
    methods = ["", "labels", "encoded", "trees", "pmp_labels"]
    with pytest.raises(UserError, match=f"no search space for {name}, only for ET, labels"):
        method_of(name, methods)


@pytest.mark.slow
def test_a_search_of_real_runs_from_the_command_line(run_sweep, tmp_path):
    """A trial that raises is told and passed over; a search without a monitor never starts."""
    failing = ("model.learning_rate=choice(0.1,-1.0)", "hydra.sweeper.max_failure_rate=1.0")
    status, printed = run_sweep(*SEARCH, *failing)
    assert status == 0, printed
    assert "4 trials finished" not in printed and "best: trial" in printed
    results = tmp_path / "runs/sweeps/search_anomaly/demo_anomaly_trees/optimization_results.yaml"
    assert yaml.safe_load(results.read_text())["best_params"]["model.learning_rate"] == 0.1
    (failure, *_) = (tmp_path / "runs/demo_anomaly_trees").glob("*/failure.json")
    assert "model.learning_rate=-1.0" in json.loads(failure.read_text())["overrides"]
    status, _ = run_sweep(*SEARCH, failing[0])
    assert status == 1, "a failed trial shows in the exit status"
    shutil.rmtree(tmp_path / "runs")
    status, _ = run_sweep(*SEARCH, "callbacks.monitor=null", "checkpoint=last")
    assert status == 1 and not list((tmp_path / "runs").rglob("result.json"))


@pytest.mark.slow
def test_detectors_searched_together_make_one_table(run_sweep, tmp_path, capsys):
    status, printed = run_sweep(
        "sweep=search_anomaly", "experiment=demo_anomaly_mlp,demo_anomaly_trees", "hydra.sweeper.n_trials=2",
        "trainer.max_epochs=1",
    )  # fmt: skip
    assert status == 0, printed
    assert searches.main(["--runs", str(tmp_path / "runs"), "--table"]) == 0
    table = capsys.readouterr().out
    for name in ("demo_anomaly_mlp", "demo_anomaly_trees"):
        assert f"| {name} | 2 |" in table
        best = yaml.safe_load(
            (tmp_path / "runs/sweeps/search_anomaly" / name / "optimization_results.yaml").read_text()
        )
        assert f"| {name} | 2 | {100 * best['best_value']:.1f} |" in table, "what validation AUPRC chose"
