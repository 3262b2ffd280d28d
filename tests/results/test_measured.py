"""Means, deviations, comparisons and gaps, on synthetic records."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from scipy.stats import ttest_rel

from et.results import paper
from et.results.collect import collect
from et.results.measured import (
    best,
    comparisons,
    expected_runs,
    lines_of,
    measure,
    missing,
    mixed_commits,
)
from et.runs.identity import Key

TABLE = paper.load(1)
F1, AUC, *_ = TABLE.metrics
ET = [0.90, 0.91, 0.95, 0.93]
GT = [0.89, 0.92, 0.90, 0.91]


def key(experiment: str, seed: int, protocol: str = "held_out", fidelity: str = "paper") -> Key:
    return Key(experiment, seed, protocol, fidelity)


@pytest.fixture
def gathered(make_run, tmp_path):
    """ET and two baselines on amazon_1pct, four seeds each, and what does not belong beside them."""
    for seed, (et, gt) in enumerate(zip(ET, GT, strict=True)):
        make_run(key("amazon_1pct", seed), {"test/f1_macro": et, "test/auc": 0.9})
        make_run(key("amazon_1pct_gt", seed), {"test/f1_macro": gt, "test/auc": 0.9})
        make_run(key("amazon_1pct_mlp", seed), {"test/f1_macro": 0.5, "test/auc": 0.6})
    make_run(key("amazon_1pct", 0), {"test/f1_macro": 0.1, "test/auc": 0.1}, "trainer.max_epochs=3")
    make_run(key("amazon_1pct", 9), {"test/f1_macro": 0.2, "test/auc": 0.2}, dataset={"variant": "a part"})
    make_run(key("amazon_1pct", 0, "released", "released"), {"test/f1_macro": 0.99, "test/auc": 0.99})
    make_run(key("amazon_1pct", 0, "held_out", "released"), {"test/f1_macro": 0.7, "test/auc": 0.7})
    return collect([tmp_path / "runs"])


def line(lines, method, variant="", label="", condition="amazon_1pct"):
    wanted = (condition, method, variant, label)
    found = [at for at in lines if (at.condition.name, at.method.name, at.variant, at.label) == wanted]
    assert len(found) == 1
    return found[0]


def test_mean_and_deviation_over_the_cells_own_runs(gathered):
    measured = measure(TABLE, F1, line(lines_of(TABLE, gathered), "ET (Ours)"), "held_out")
    assert measured.n == 4
    assert measured.mean == pytest.approx(100 * sum(ET) / 4)
    assert measured.std == pytest.approx(100 * math.sqrt(sum((x - sum(ET) / 4) ** 2 for x in ET) / 3))
    assert measured.over.startswith("seeds")


def test_protocols_are_kept_apart(gathered):
    at = line(lines_of(TABLE, gathered), "ET (Ours)")
    released = measure(TABLE, F1, at, "released")
    assert (released.mean, released.std, released.n) == (pytest.approx(99.0), None, 1)


def test_variants_and_other_configurations_have_lines_of_their_own(gathered):
    lines = lines_of(TABLE, gathered)
    assert measure(TABLE, F1, line(lines, "ET (Ours)", variant="a part"), "held_out").mean == pytest.approx(20)
    other = line(lines, "ET (Ours)", label="trainer.max_epochs=3")
    assert measure(TABLE, F1, other, "held_out").mean == pytest.approx(10)
    odd_pair = line(lines, "ET (Ours)", label="fidelity=released")
    assert measure(TABLE, F1, odd_pair, "held_out").mean == pytest.approx(70)


def test_a_metric_that_is_not_finite_or_absent_is_missing(make_run, tmp_path):
    make_run(key("amazon_1pct", 0), {"test/f1_macro": float("nan")})
    at = line(lines_of(TABLE, collect([tmp_path / "runs"])), "ET (Ours)")
    assert measure(TABLE, F1, at, "held_out") is None
    assert measure(TABLE, AUC, at, "held_out") is None


def test_one_run_that_repeats_its_scoring_shows_that_spread(make_run, tmp_path):
    make_run(key("amazon_1pct", 0), {"test/f1_macro": 0.9, "test/f1_macro_std": 0.02})
    measured = measure(TABLE, F1, line(lines_of(TABLE, collect([tmp_path / "runs"])), "ET (Ours)"), "held_out")
    assert (measured.std, measured.n, measured.over) == (pytest.approx(2), 1, "scorings of one model")


def test_the_deviation_within_a_run_says_over_how_many_scorings_and_one_has_none(make_run, tmp_path):
    table, found = paper.load(2), {}
    metrics = {"test/accuracy": 0.9, "test/accuracy_std": 0.02, "test/accuracy_all": 0.8}
    for name, times in {"tu_mutag": None, "tu_nci1": 5, "tu_dd": 1}.items():
        make_run(key(name, 0, "released", "released"), metrics, *([f"task.repetitions={times}"] if times else []))
    accuracy, of_all = table.metrics
    for line in lines_of(table, collect([tmp_path / "runs"])):
        if line.runs:
            measured = measure(table, accuracy, line, "released")
            found[line.condition.name] = (measured.std and round(measured.std, 6), measured.over)
            assert measure(table, of_all, line, "released").mean == pytest.approx(80)
            assert measure(table, of_all, line, "held_out") is None
    assert found == {
        "tu_mutag": (2.0, "100 scorings of one model"),
        "tu_nci1": (2.0, "5 scorings of one model"),
        "tu_dd": (None, ""),
    }


def test_images_have_the_deviation_over_masking_seeds_and_that_over_images(make_run, tmp_path):
    table = paper.load(14)
    metrics = {"test/mse": 0.3, "test/mse_std_masks": 0.001, "test/mse_std_images": 0.1}
    make_run(key("imagenet_inpainting", 0), metrics)
    (line,) = [line for line in lines_of(table, collect([tmp_path / "runs"])) if line.runs]
    mse = next(metric for metric in table.metrics if metric.name == "mse")
    found = measure(table, mse, line, "held_out")
    assert (found.mean, found.std, found.over) == (0.3, 0.001, "masking seeds of one model")
    images = next(metric for metric in table.metrics if metric.name == "mse_std_images")
    assert measure(table, images, line, "held_out").mean == 0.1


def test_extra_conditions_show_only_once_measured(make_run, tmp_path):
    assert not [at for at in lines_of(TABLE, collect([])) if not at.condition.in_paper]
    make_run(key("amazon_upu_1pct", 0), {"test/f1_macro": 0.9}, dataset={"variant": "a part"})
    lines = [at for at in lines_of(TABLE, collect([tmp_path / "runs"])) if not at.condition.in_paper]
    assert {at.condition.name for at in lines} == {"amazon_upu_1pct"}
    assert "ET (Ours)" in {at.method.name for at in lines if at.runs}
    # Its missing baselines are shown as missing; methods that do not run here have no line.
    assert "GT" in {at.method.name for at in lines} and "CAREGNN" not in {at.method.name for at in lines}
    assert sum(at.method.name == "ET (Ours)" for at in lines) == 1


def test_the_comparison_is_with_the_best_baseline_on_shared_splits(gathered):
    lines = lines_of(TABLE, gathered)
    found = comparisons(TABLE, F1, lines, "held_out")
    at = line(lines, "ET (Ours)")
    comparison = next(c for index, c in found.items() if lines[index] is at)
    assert (comparison.baseline, comparison.n) == ("GT", 4)
    assert comparison.difference == pytest.approx(100 * (sum(ET) - sum(GT)) / 4)
    assert comparison.p_value == pytest.approx(ttest_rel(ET, GT).pvalue)
    assert len(found) == 1, "neither a variant nor another configuration is compared with this data's baseline"


def test_a_configuration_is_compared_with_baselines_of_its_settings(make_run, tmp_path):
    """Settings of the models, their schedules and what follows the number of epochs do not matter. Their input does."""
    scores = {
        ("amazon_1pct", "trainer.max_epochs=20", "trainer.check_val_every_n_epoch=2"): 0.7,
        ("amazon_1pct", "trainer.max_epochs=20", "model.steps=3"): 0.75,
        ("amazon_1pct", "trainer.max_epochs=30"): 0.8,
        ("amazon_1pct", "model.steps=3"): 0.85,
        ("amazon_1pct_gt", "trainer.max_epochs=20"): 0.6,
        ("amazon_1pct_gt", "trainer.max_epochs=20", "model.dropout=0.1"): 0.62,
        ("amazon_1pct_gt", "trainer.max_epochs=20", "optim.schedule.name=cosine"): 0.63,
        ("amazon_1pct_gt", "trainer.max_epochs=20", "data.self_loops=true"): 0.9,
        ("amazon_1pct_gt", "trainer.max_epochs=20", "model.known_labels=true"): 0.95,
        ("amazon_1pct_gt",): 0.65,
    }
    for (experiment, *overrides), score in scores.items():
        for seed in range(3):
            make_run(key(experiment, seed), {"test/f1_macro": score + seed / 100}, *overrides)
    lines = lines_of(TABLE, collect([tmp_path / "runs"]))
    found = comparisons(TABLE, F1, lines, "held_out")
    assert {lines[at].label: round(c.difference, 6) for at, c in found.items()} == {
        "trainer.check_val_every_n_epoch=2, trainer.max_epochs=20": 7.0,
        "model.steps=3, trainer.max_epochs=20": 12.0,
        "model.steps=3": 20.0,
    }


def test_tuned_methods_are_compared_with_tuned_baselines(make_run, tmp_path):
    scores = {"": 0.5, "_gt": 0.6, "_tuned": 0.7, "_trees_tuned": 0.9, "_bwgnn_tuned": 0.8}
    for ending, score in scores.items():
        for seed in range(3):
            make_run(key(f"tolokers_40pct{ending}", seed), {"test/f1_macro": score + seed / 100})
    lines = lines_of(TABLE, collect([tmp_path / "runs"]))
    found = comparisons(TABLE, F1, lines, "held_out")
    named = {lines[index].method.name: (c.baseline, round(c.difference, 6)) for index, c in found.items()}
    assert named == {"ET (Ours)": ("GT", -10.0), "ET, tuned": ("Trees, tuned", -20.0)}


def test_a_tuned_method_without_tuned_baselines_is_not_compared(make_run, tmp_path):
    for ending in ("_tuned", "_gt"):
        make_run(key(f"tolokers_40pct{ending}", 0), {"test/f1_macro": 0.5})
    assert comparisons(TABLE, F1, lines_of(TABLE, collect([tmp_path / "runs"])), "held_out") == {}


def test_runs_on_other_splits_are_no_pairs(make_run, tmp_path):
    for seed in range(3):
        make_run(key("amazon_1pct", seed), {"test/f1_macro": 0.9 + seed / 100})
        make_run(key("amazon_1pct_gt", seed), {"test/f1_macro": 0.8}, dataset={"split_sha256": "other"})
    lines = lines_of(TABLE, collect([tmp_path / "runs"]))
    assert comparisons(TABLE, F1, lines, "held_out") == {}


def test_too_few_or_equal_pairs_have_no_p_value(make_run, tmp_path):
    for seed in range(3):
        make_run(key("amazon_1pct", seed), {"test/f1_macro": 0.9, "test/auc": 0.5 + seed / 10})
        make_run(key("amazon_1pct_gt", seed), {"test/f1_macro": 0.8, **({"test/auc": 0.4} if seed < 2 else {})})
    lines = lines_of(TABLE, collect([tmp_path / "runs"]))
    (equal,) = comparisons(TABLE, F1, lines, "held_out").values()
    (few,) = comparisons(TABLE, AUC, lines, "held_out").values()
    assert (equal.n, equal.p_value) == (3, None)
    assert (few.n, few.p_value) == (2, None)


def test_best_follows_the_direction_and_keeps_ties(gathered):
    lines = [at for at in lines_of(TABLE, gathered) if at.condition.name == "amazon_1pct" and not at.label]
    measured = [(at, m) for at in lines if not at.variant and (m := measure(TABLE, AUC, at, "held_out"))]
    assert {at.method.name for at in best(measured, AUC)} == {"ET (Ours)", "GT"}
    mae = next(m for m in paper.load(7).metrics if m.name == "mae")
    assert {at.method.name for at in best(measured, mae)} == {"MLP"}
    assert best([], AUC) == []


def test_mixed_commits_are_reported(make_run, tmp_path):
    make_run(key("amazon_1pct", 0), {"test/auc": 0.9}, git_commit="a" * 40)
    make_run(key("amazon_1pct", 1), {"test/auc": 0.9}, git_commit="b" * 40)
    make_run(key("amazon_1pct_gt", 0), {"test/auc": 0.9}, git_commit="c" * 40 + "+changes")
    mixed, dirty = sorted(mixed_commits(lines_of(TABLE, collect([tmp_path / "runs"]))), reverse=True)
    assert mixed.startswith("no clean commit: amazon_1pct_gt")
    assert dirty.startswith("mixed commits: amazon_1pct (held_out)")


def test_gaps_name_the_command_that_fills_them(gathered):
    expected = Counter({("amazon_1pct", "held_out"): 5, ("amazon_1pct", "released"): 1, ("yelp_1pct", "held_out"): 5})
    assert missing(TABLE, lines_of(TABLE, gathered), expected) == [
        ("amazon_1pct: held_out 4 of 5 runs", "python train.py --multirun sweep=table01 experiment=amazon_1pct"),
        ("yelp_1pct: held_out 0 of 5 runs", "python train.py --multirun sweep=table01 experiment=yelp_1pct"),
    ]


def test_a_sweep_says_how_many_runs_a_cell_has():
    expected = expected_runs(1)
    assert expected["amazon_1pct", "held_out"] == 5
    assert expected["amazon_1pct_mlp", "released"] == 0
    assert expected_runs(15) == Counter()
