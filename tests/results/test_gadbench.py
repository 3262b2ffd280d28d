"""The comparison under GADBench's protocol: validation of trial 0 chooses, test nodes of all trials are shown."""

from __future__ import annotations

import json
import re

import pytest
from omegaconf import OmegaConf

from et.results.collect import collect
from et.results.gadbench import BLEND, COLUMNS, FOLDER, METHODS, SCORE, blended, main, mean, render, rows
from et.runs.identity import Key
from et.utils.errors import UserError
from et.utils.paths import ROOT

AUPRC = COLUMNS["AUPRC"]


def key(experiment: str, trial: int) -> Key:
    return Key(experiment, trial, "gadbench", "paper")


def metrics(on_validation: float, on_test: float) -> dict[str, float]:
    return {"test/auc": 0.8, "test/recall_at_k": 0.25, SCORE: on_validation, AUPRC: on_test}


def test_the_winner_of_trial_0_is_shown_on_all_its_trials(make_run, tmp_path, capsys):
    """The other setting has the better test score and more trials."""
    for trial, on_test in enumerate((0.5, 0.6)):
        make_run(key("tolokers_gadbench_mlp", trial), metrics(0.7, on_test), "model.hidden=128")
    for trial in range(3):
        make_run(key("tolokers_gadbench_mlp", trial), metrics(0.6, 0.9), "model.hidden=32")
    for trial, on_test in enumerate((0.55, 0.58)):
        make_run(key("tolokers_gadbench_encoded", trial), metrics(0.5, on_test))
    make_run(key("tolokers_gadbench_encoded_labels", 0), metrics(0.5, 0.4))
    make_run(key("tolokers_gadbench_gcn", 1), metrics(0.9, 0.9))  # no trial 0: nothing was chosen
    make_run(Key("tolokers_40pct_mlp", 0, "held_out", "paper"), metrics(0.9, 0.9))
    arguments = ["--runs", str(tmp_path / "runs"), "--folder", str(tmp_path / "gadbench")]
    assert main(arguments) == 0
    assert '"held_out"' not in (tmp_path / "gadbench/results.jsonl").read_text(), (
        "runs of other protocols are not recorded"
    )
    features, known = (tmp_path / "gadbench/table.md").read_text().split("known labels\n", 1)
    assert "| ET, encoded input | 1 | 2 | 56.5 ± 2.1 | 80.0 ± 0.0 | 25.0 ± 0.0 |  |  |" in features
    assert "| MLP | 2 | 2 | 55.0 ± 7.1 | 80.0 ± 0.0 | 25.0 ± 0.0 | +1.5 (n = 2) |  |" in features
    assert "| ET, encoded input | 1 | 1 | 40.0 |" in known and "GCN" not in features + known
    capsys.readouterr()
    assert main([*arguments, "--left"]) == 0
    left = [line for line in capsys.readouterr().out.splitlines() if "tolokers_gadbench_mlp" in line]
    assert left == [
        "python train.py --multirun experiment=tolokers_gadbench_mlp protocol=gadbench fidelity=paper "
        f"'model.hidden=128' 'seed=choice(2,3,4,5,6,7,8,9)' paths.runs={tmp_path / 'runs'}"
    ]


def test_an_incomplete_record_and_a_wrong_folder_are_named(make_run, tmp_path, capsys):
    make_run(key("tolokers_gadbench_mlp", 0), metrics(0.7, 0.5))
    folder, runs = tmp_path / "gadbench", str(tmp_path / "runs")
    assert main(["--runs", runs, "--folder", str(folder)]) == 0
    line = json.loads((folder / "results.jsonl").read_text())
    del line["metrics"]["test/auc"], line["record_sha256"]
    (folder / "results.jsonl").write_text(json.dumps(line) + "\n")
    capsys.readouterr()
    assert main(["--folder", str(folder)]) == 0
    assert "lacks test/auc; left out" in capsys.readouterr().out
    assert "MLP" not in (folder / "table.md").read_text()
    assert main(["--folder", str(tmp_path / "new")]) == 0
    with pytest.raises(UserError, match="there is no folder"):
        main(["--runs", runs + "x", "--folder", str(folder)])


def test_other_data_splits_and_few_labels_have_tables_of_their_own(make_run, tmp_path):
    """A search may vary the scale of the features, and not the graph or the labels."""
    make_run(key("reddit_gadbench", 0), metrics(0.5, 0.5))
    make_run(key("reddit_gadbench", 0), metrics(0.4, 0.4), "data.scaling=quantiles")
    make_run(key("reddit_gadbench", 0), metrics(0.9, 0.9), "data.inductive=true")
    make_run(key("reddit_gadbench", 0), metrics(0.9, 0.9), "data.seed=1", dataset={"name": "gadbench_weibo"})
    few = {"semi_supervised": True}
    make_run(key("reddit_gadbench_semi_mlp", 0), metrics(0.9, 0.9), dataset=few)
    make_run(key("reddit_gadbench_mlp", 0), metrics(0.8, 0.8), "data.semi_supervised=true", dataset=few)
    runs = collect([tmp_path / "runs"]).runs.values()
    found = {(row.data, row.method): row.searched for row in rows(runs)}
    assert found == {
        ("amazon", ""): 2,
        ("amazon, data.inductive=true", ""): 1,
        ("gadbench_weibo", ""): 1,
        ("amazon, semi-supervised", "mlp"): 2,
    }


def test_labels_over_two_steps_are_a_regime_of_their_own(make_run, tmp_path):
    """Methods with equal knowledge are compared, and the trees of a blend read labels as its network does."""
    two = "model.label_hops=2"
    for experiment in ("reddit_gadbench_encoded_labels", "reddit_gadbench_trees_labels"):
        make_run(key(experiment, 0), metrics(0.5, 0.5))
        make_run(key(experiment, 0), metrics(0.4, 0.4), two)
    found = {(row.data, row.method): row for row in rows(collect([tmp_path / "runs"]).runs.values())}
    data = sorted({data for data, _ in found})
    assert data == ["amazon", f"amazon, {two}"] and all(row.searched == 1 for row in found.values())
    settings = blended(found[data[1], "encoded"], found[data[1], "trees"])
    assert settings == [two]
    make_run(key("reddit_gadbench_encoded_blend_labels", 0), metrics(0.6, 0.6), *settings)
    table = rows(collect([tmp_path / "runs"]).runs.values())
    assert [row.data for row in table if row.method == "encoded_blend"] == [data[1]]


def test_the_sweep_has_every_method():
    """Ten trials of each on Reddit and Tolokers, on features only and with known labels."""
    sweep = OmegaConf.load(ROOT / "conf/sweep/gadbench.yaml").hydra.sweeper.params
    found = sweep.experiment.replace("\n", " ").replace(" ", "").split(",")
    variants = ("no_attention", "two_blocks", "energies", "ensemble", "bagged", BLEND)
    methods = [method for method in METHODS if not method.endswith(variants)]
    for data in ("reddit", "tolokers"):
        features = {"_".join(filter(None, (f"{data}_gadbench", method))) for method in methods if method != "pmp"}
        known = {"_".join(filter(None, (f"{data}_gadbench", method, "labels"))) for method in methods}
        assert {name for name in found if name.startswith(data)} == features | known
    assert len(found) == len(set(found))


def test_et_is_chosen_by_validation_as_everything_is(make_run, tmp_path):
    make_run(key("reddit_gadbench", 0), metrics(0.3, 0.9))
    make_run(key("reddit_gadbench_encoded", 0), metrics(0.5, 0.5))
    make_run(key("reddit_gadbench_mlp", 0), metrics(0.5, 0.4))
    table = render(rows(collect([tmp_path / "runs"]).runs.values()))
    assert "| MLP | 1 | 1 | 40.0 | 80.0 | 25.0 | +10.0 (n = 1) |  |" in table


def test_a_blend_is_of_the_winners_and_counts_the_settings_of_both(make_run, tmp_path, capsys):
    make_run(key("reddit_gadbench_encoded_labels", 0), metrics(0.4, 0.4))
    make_run(key("reddit_gadbench_encoded_labels", 0), metrics(0.5, 0.5), "optim.optimizer.lr=0.005")
    for rounds in (50, 200):
        make_run(key("reddit_gadbench_trees_labels", 0), metrics(rounds / 1000, 0.5), f"model.rounds={rounds}")
    make_run(key("reddit_gadbench_trees_labels", 0), metrics(0.3, 0.5), "model.rounds=400", "model.hops=3")
    arguments = ["--runs", str(tmp_path / "runs"), "--folder", str(tmp_path / "gadbench")]
    assert main([*arguments, "--left"]) == 0
    [left] = [line for line in capsys.readouterr().out.splitlines() if "encoded_blend" in line]
    assert left == (
        "python train.py --multirun experiment=reddit_gadbench_encoded_blend_labels protocol=gadbench fidelity=paper "
        "'optim.optimizer.lr=0.005' 'model.trees.rounds=400' 'seed=choice(0,1,2,3,4,5,6,7,8,9)' "
        f"paths.runs={tmp_path / 'runs'}"
    )
    blend = key("reddit_gadbench_encoded_blend_labels", 0)
    make_run(blend, metrics(0.6, 0.6), "optim.optimizer.lr=0.005", "model.trees.rounds=400")

    make_run(blend, metrics(0.7, 0.7), "model.trees.rounds=50")  # not of the winners
    found = {row.method: row for row in rows(collect([tmp_path / "runs"]).runs.values())}
    assert found["encoded_blend"].searched == 2 + 3 and found["encoded_blend"].values(AUPRC) == [60.0]
    make_run(key("reddit_gadbench_trees_labels", 0), metrics(0.4, 0.5), "model.rounds=50", "model.l2=1.0")  # wins
    assert "encoded_blend" not in {row.method for row in rows(collect([tmp_path / "runs"]).runs.values())}
    main([*arguments, "--left"])
    [left] = [line for line in capsys.readouterr().out.splitlines() if "encoded_blend" in line]
    assert "'model.trees.l2=1.0' 'model.trees.rounds=50'" in left


@pytest.mark.parametrize(
    ("of_trees", "expected"),
    [
        ([], "model.trees.hops=2"),
        (["model.hops=3", "model.degrees=true"], "model.trees.hops=3 +model.trees.degrees=true"),
    ],
)
def test_trees_of_a_blend_have_their_hops_where_the_network_reads_no_means(make_run, tmp_path, of_trees, expected):
    make_run(key("reddit_gadbench_trees_labels", 0), metrics(0.8, 0.5), *of_trees)
    network = ["data.neighbour_hops=0", "data.num_features=64"]
    make_run(key("reddit_gadbench_encoded_labels", 0), metrics(0.9, 0.5), *network)
    of = {row.method: row for row in rows(collect([tmp_path / "runs"]).runs.values())}
    settings = blended(of["encoded"], of["trees"])
    assert settings[:2] == network and settings[-len(expected.split()) :] == expected.split()
    blend = key("reddit_gadbench_encoded_blend_labels", 0)
    assert make_run(blend, metrics(0.7, 0.7), *settings).name  # the settings compose
    assert "encoded_blend" in {row.method for row in rows(collect([tmp_path / "runs"]).runs.values())}


def test_runs_on_a_file_of_ones_own_are_left_out(make_run, tmp_path):
    make_run(key("reddit_gadbench_mlp", 0), metrics(0.5, 0.5))
    make_run(key("reddit_gadbench_mlp", 0), metrics(0.9, 0.9), "model.hidden=32", dataset={"variant": "user data"})
    make_run(key("reddit_gadbench_mlp", 0), {"test/auc": 0.5}, "model.hidden=48")
    (row,) = rows(collect([tmp_path / "runs"]).runs.values())
    assert (row.searched, row.settings) == (1, [])


def test_the_committed_table_is_rendered_from_the_committed_records():
    found = collect(lines=[FOLDER / "results.jsonl"])
    assert not found.problems
    assert (FOLDER / "table.md").read_text() == render(rows(found.runs.values()))


PAGE = (ROOT / "docs/explanation/anomaly.md").read_text()
RESULTS = (ROOT / "docs/explanation/results.md").read_text()


def table_of_page(start: str, page: str = PAGE) -> list[list[str]]:
    """Cells of the page's first table whose heading starts with ``start``, without heading and rule."""
    lines = page[page.index(start) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_numbers_of_the_page_are_in_the_tables():
    tables = FOLDER.joinpath("table.md").read_text() + (FOLDER.parent / "table01/table.md").read_text()
    tables += render(rows(collect(lines=[FOLDER / "other.jsonl"]).runs.values()))
    numbers = re.findall(r"\d+\.\d ± \d+\.\d", re.sub(r"## Ensembles.*?(?=\n## )", "", PAGE, flags=re.DOTALL))
    assert len(numbers) > 70 and set(numbers) <= set(re.findall(r"\d+\.\d ± \d+\.\d", tables))


def test_ensembles_are_compared_on_the_trials_that_all_have():
    recorded = rows(collect(lines=[FOLDER / "results.jsonl"]).runs.values())
    found = {(row.method, row.known_labels): row.runs for row in recorded if row.data == "reddit"}
    methods = {name: method for method, name in METHODS.items()}
    table = table_of_page("| | features only | known labels |")
    assert len(table) == 8
    for name, *cells in table:
        for known, cell in enumerate(cells):
            values = [
                100 * run.record["metrics"][AUPRC] for run in found[methods[name], bool(known)] if run.key.seed < 3
            ]
            assert len(values) == 3 and cell == mean(values), (name, cell)


COMPARED = {
    "| | Reddit | n |": [("reddit", False), ("reddit", True), ("tolokers", False), ("tolokers", True)],
    "| | Amazon-UPU | n |": [
        ("amazon_upu", False), ("amazon_upu", True), ("yelp_reviewers", False), ("yelp_reviewers", True),
    ],
}  # fmt: skip


@pytest.mark.parametrize("start", COMPARED)
def test_the_comparison_on_the_page_is_that_of_the_records(start):
    of = {
        (row.data, row.known_labels, METHODS[row.method]): row
        for row in rows(collect(lines=[FOLDER / "results.jsonl"]).runs.values())
    }
    cells, columns = table_of_page(start), COMPARED[start]
    measured = {name for (*place, name), row in of.items() if tuple(place) in columns and len(row.runs) > 1}
    assert {method for method, *_ in cells} == measured
    for method, *found in cells:
        for place, shown in zip(columns, zip(found[::2], found[1::2], strict=True), strict=True):
            row = of.get((*place, method))
            assert shown == (
                ("", "") if row is None or len(row.runs) < 2 else (mean(row.values(AUPRC)), str(len(row.runs)))
            ), (method, place)


def test_the_short_comparison_is_that_of_the_records():
    of = {
        (row.data.capitalize(), row.method): row
        for row in rows(collect(lines=[FOLDER / "results.jsonl"]).runs.values())
        if not row.known_labels
    }
    for data, *shown in table_of_page("| | ET, encoded input |", RESULTS):
        those = [of[data, method] for method in ("encoded", "trees", "encoded_blend", "encoded_mlp_blend")]
        assert [len(row.runs) for row in those] == [10] * 4
        assert shown == [mean(row.values(AUPRC)) for row in those], data


OF_THE_LEAK = {
    "boosted trees, tuned": "trees_tuned", "XGBGraph": "xgbgraph", "RFGraph": "rfgraph", "MLP, tuned": "mlp_tuned",
    "BWGNN, tuned": "bwgnn_tuned", "GT, tuned": "gt_tuned", "ET, tuned": "tuned", "GraphSAGE": "sage", "GIN": "gin",
    "GCN, self-loops": "gcn", "GAT": "gat",
}  # fmt: skip


def test_the_leak_on_the_page_is_that_of_the_records():
    runs = collect(lines=[FOLDER.parent / "table01/results.jsonl"]).runs.values()
    cells, method = table_of_page("| method | columns 19 and 20 |"), ""
    assert {name for name, *_ in cells} - {""} == set(OF_THE_LEAK)
    for name, columns, *shown in cells:
        method = name or method
        those = [
            run.record["metrics"] for run in runs
            if run.key.experiment == f"amazon_upu_40pct_{OF_THE_LEAK[method]}" and run.key.protocol == "held_out"
            and any("drop_features" in setting for setting in run.overrides) == (columns == "without")
            and ("data.self_loops=true" in run.overrides) == ("self-loops" in method)
        ]  # fmt: skip
        keys = ("test/f1_macro", "test/auc", "test/average_precision", "test/recall_at_k")
        assert shown == [*(mean([100 * metrics[key] for metrics in those]) for key in keys), str(len(those))], method
