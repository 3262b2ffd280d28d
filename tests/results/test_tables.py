"""Whole tables from synthetic records, in every format."""

from __future__ import annotations

import csv
import io
import json

import pytest
from markdown_it import MarkdownIt

from et.results import paper, tables
from et.runs.identity import Key
from tests.results.checks import compile_latex, html_faults, latex_faults


def rows_of(text: str, caption: str) -> list[list[str]]:
    """Entries of the markdown table under a heading."""
    start = f"## {caption}" if f"## {caption}" in text else f"<summary>{caption}</summary>"
    section = text.split(start)[1].split("\n## ")[0].split("<details>")[0].split("</details>")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[entry.strip() for entry in line.strip("|").split(" | ")] for line in lines]


def render(number: int, tmp_path) -> str:
    arguments = [str(number), "--runs", str(tmp_path / "runs"), "--experiments", str(tmp_path / "experiments")]
    (tmp_path / "runs").mkdir(exist_ok=True)
    assert tables.main(arguments) == 0
    return (tmp_path / f"experiments/table{number:02d}/table.md").read_text()


@pytest.fixture
def amazon(make_run):
    for seed, (et, gt) in enumerate([(0.90, 0.89), (0.91, 0.92), (0.95, 0.90)]):
        make_run(Key("amazon_1pct", seed, "held_out", "paper"), {"test/f1_macro": et, "test/auc": 0.9})
        make_run(Key("amazon_1pct", seed, "released", "released"), {"test/f1_macro": 0.99, "test/auc": 0.99})
        make_run(Key("amazon_1pct_gt", seed, "held_out", "paper"), {"test/f1_macro": gt, "test/auc": 0.95})
    make_run(Key("amazon_1pct", 0, "held_out", "paper"), {"test/f1_macro": 0.5}, "trainer.max_epochs=3")
    make_run(Key("amazon_upu_1pct", 0, "held_out", "paper"), {"test/f1_macro": 0.8}, dataset={"variant": "a part"})


def test_measured_paper_difference_protocol_and_variant(amazon, tmp_path):
    text = render(1, tmp_path)
    rows = rows_of(text, "Macro-F1 (%), higher is better")
    head = rows[0]
    assert head[:7] == ["Dataset", "Train", "Data", "Method", "Paper", "held_out", "released"]
    found = {tuple(row[:4]): dict(zip(head, row, strict=True)) for row in rows[2:]}
    et = found["Amazon", "1%", "exact", "ET (Ours)"]
    assert et["Paper"] == "89.3 ± 0.7"
    assert et["held_out"] == "**92.0 ± 2.6 (n = 3 of 5)**"
    assert et["released"] == "99.0 ± 0.0 (n = 3 of 5)"
    assert (et["Δ held_out"], et["Δ released"]) == ("+2.7", "+9.7")
    assert et["against baseline, held_out"].startswith("+1.7 to GT (p = ")
    gt = found["Amazon", "1%", "exact", "GT (quoted)"]
    assert gt["held_out"].startswith("90.3 ± 1.5") and gt["Paper"] == "88.6 ± 0.5"
    other = found["Amazon", "1%", "exact", "ET (Ours) (max_epochs=3)"]
    assert (other["Paper"], other["held_out"], other["Δ held_out"]) == ("–", "50.0 (n = 1)", "–")
    variant = found["Amazon-UPU", "1%", "variant 1", "ET (Ours)"]
    assert (variant["Paper"], variant["held_out"]) == ("–", "80.0 (n = 1 of 5)")
    assert found["Yelp", "1%", "", "ET (Ours)"]["held_out"] == "missing"
    folded = rows_of(text, "Macro-F1: quoted or not measured")
    quoted = {tuple(row[:4]): row for row in folded[2:]}["Amazon", "1%", "", "GraphConsis (quoted)"]
    assert quoted[folded[0].index("held_out")] == "–"
    assert not any("GraphConsis" in row[3] for row in rows)
    assert "- variant 1: a part" in text
    assert "held_out: seeds" in text
    assert "python train.py --multirun sweep=table01 experiment=yelp_1pct" in text


def test_a_baseline_that_wins_is_the_bold_one(amazon, tmp_path):
    rows = rows_of(render(1, tmp_path), "AUC (%), higher is better")
    amazon_rows = [row for row in rows if row[:2] == ["Amazon", "1%"]]
    assert [row[3] for row in amazon_rows if row[5].startswith("**")] == ["GT (quoted)"]


def test_measured_data_sets_come_first_and_of_each_the_energy_transformer(amazon, tmp_path):
    rows = rows_of(render(1, tmp_path), "Macro-F1 (%), higher is better")[2:]
    names = [row[0] for row in rows]
    assert names[:4] == ["Amazon"] * 3 + ["Amazon-UPU"], "what was measured, then ET where nothing was"
    assert [row[3] for row in rows[:3]] == ["ET (Ours)", "ET (Ours) (max_epochs=3)", "GT (quoted)"]
    assert all(row[3] == "ET (Ours)" and "missing" in row for row in rows[4:])


def test_columns_without_an_entry_are_left_out(tmp_path):
    head = rows_of(render(1, tmp_path), "Macro-F1 (%), higher is better")[0]
    assert head == ["Dataset", "Train", "Data", "Method", "Paper", "held_out", "released"]


def test_the_papers_data_and_other_data_are_counted_apart(amazon, tmp_path):
    text = render(1, tmp_path)
    # ET and GT with F1 and AUC on Amazon 1 %; ET under both protocols, and once with other settings (F1 alone).
    assert "4 of 64 numbers of the paper are measured here, with its data and settings" in text
    assert "Measured cells: 7 on the paper's data, 1 on other data." in text


def test_rendering_a_table_prints_its_own_rows_and_only_counts_remarks(amazon, tmp_path, capsys):
    render(1, tmp_path)
    printed = capsys.readouterr().out
    assert "ET (Ours)" in printed and "92.0 ± 2.6" in printed and "GraphConsis" not in printed
    assert "duplicate" not in printed and "GT (quoted)" not in printed


def test_the_csv_has_every_number_and_its_runs(amazon, tmp_path):
    render(1, tmp_path)
    text = (tmp_path / "experiments/table01/table.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    (et,) = [
        row for row in rows
        if (row["experiment"], row["protocol"], row["metric"], row["configuration"])
        == ("amazon_1pct", "held_out", "f1_macro", "")
    ]  # fmt: skip
    assert float(et["mean"]) == pytest.approx(92.0)
    assert (et["n"], et["paper_mean"], et["best"], et["baseline"]) == ("3", "89.3", "True", "GT")
    assert len(et["runs"].split()) == 3
    assert sum(row["mean"] == "" and row["method"] == "GraphConsis" for row in rows) == 32


def test_rendering_from_committed_lines_alone_gives_the_same(amazon, tmp_path):
    from et.results import collect

    first = render(1, tmp_path)
    arguments = ["--runs", str(tmp_path / "runs"), "--experiments", str(tmp_path / "experiments")]
    assert collect.main(["1", *arguments]) == 0
    assert tables.main(["1", "--experiments", str(tmp_path / "experiments")]) == 0
    assert (tmp_path / "experiments/table01/table.md").read_text() == first


def test_problems_are_counted_and_stand_in_the_table(amazon, tmp_path, capsys):
    folder = tmp_path / "runs" / "amazon_1pct" / "half"
    folder.mkdir()
    (folder / "result.json").write_text('{"experiment": "amaz')
    text = render(1, tmp_path)
    printed = capsys.readouterr().out
    assert "treated as missing" in text and "treated as missing" not in printed
    assert "1 remark on the records under Reports" in printed


@pytest.mark.parametrize("number", paper.NUMBERS)
def test_every_table_renders_in_every_format_from_nothing(number, tmp_path):
    text = render(number, tmp_path)
    folder = tmp_path / f"experiments/table{number:02d}"
    assert MarkdownIt("commonmark").enable("table").render(text).count("<table>") == text.count("\n| ---")
    assert html_faults((folder / "table.html").read_text()) == []
    latex = (folder / "table.tex").read_text()
    assert latex_faults(latex) == []
    assert len({len(row) for row in csv.reader((folder / "table.csv").open())}) == 1
    compile_latex(latex, tmp_path)


def test_folds_and_protocols_of_table_2(tmp_path, make_run):
    experiment = "tu_mutag"
    from et.results.settings import has_experiment

    if not has_experiment(experiment):
        pytest.skip(f"no experiment {experiment} yet")
    for fold in range(10):
        make_run(Key(experiment, 0, "held_out", "paper", fold), {"test/accuracy": 0.8 + fold / 100})
    rows = rows_of(render(2, tmp_path), "Accuracy (%), higher is better")
    (mutag,) = [row for row in rows if row[0] == "MUTAG" and row[2] == "ET (Ours)"]
    assert "84.5 ± 3.0 (n = 10" in mutag[4]
    assert rows[0][4:7] == ["held_out", "released", "released, on all its training graphs"]
    assert "all its training graphs" not in "".join(rows[0][7:])  # held_out has no such number
    assert "held_out: folds" in (tmp_path / "experiments/table02/table.md").read_text()


def test_statistics_beside_the_papers(tmp_path):
    folder = tmp_path / "experiments/table08"
    folder.mkdir(parents=True)
    counted = {"graphs": 188, "avg_nodes": 17.9, "avg_edges": 19.79, "node_attr": 7, "classes": 2}
    entry = {"dataset": {"name": "MUTAG", "variant": "exact", "sha256": ""}, "metrics": counted, "git_commit": "a"}
    (folder / "statistics.json").write_text(json.dumps({"tu_mutag": entry}))
    rows = rows_of(render(8, tmp_path), "Counted from the data")
    assert rows[2] == ["MUTAG", "exact", "188", "188", "17.93", "**17.90**", "19.79", "19.79", "7", "7", "2", "2"]
    assert rows[3][:4] == ["ENZYMES", "not here", "600", "–"]


def test_bad_arguments_are_errors_for_people(tmp_path, capsys):
    assert tables.main(["3"]) == 1
    assert tables.main(["1", "--runs", str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err.count("error: there is no") == 2
