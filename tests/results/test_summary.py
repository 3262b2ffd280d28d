"""The page of results at a glance, from synthetic records."""

from __future__ import annotations

import re

from et.results import summary
from et.results.collect import collect
from et.runs.identity import Key
from et.utils.paths import EXPERIMENTS


def test_rows_counts_and_figure(make_run, tmp_path):
    for seed, (et, gt) in enumerate([(0.90, 0.89), (0.92, 0.95)]):
        make_run(Key("amazon_1pct", seed, "held_out", "paper"), {"test/f1_macro": et, "test/auc": 0.9})
        make_run(Key("amazon_1pct_gt", seed, "held_out", "paper"), {"test/f1_macro": gt, "test/auc": 0.95})
    make_run(Key("amazon_1pct", 0, "held_out", "paper"), {"test/f1_macro": 0.5}, "trainer.max_epochs=3")
    make_run(Key("amazon_1pct_gt", 0, "held_out", "paper"), {"test/f1_macro": 0.4}, "trainer.max_epochs=3")
    make_run(Key("amazon_40pct", 0, "held_out", "paper"), {"test/f1_macro": 0.5}, "trainer.max_epochs=3")
    make_run(Key("yelp_1pct", 0, "held_out", "paper"), {"test/f1_macro": 0.5}, dataset={"variant": "a part"})
    make_run(Key("amazon_upu_1pct", 0, "held_out", "paper"), {"test/f1_macro": 0.8}, dataset={"variant": "a part"})
    path = summary.write_summary(collect([tmp_path / "runs"]), tmp_path / "experiments")
    text = path.read_text()
    papers, others = re.split(r"## Table 1, .*: on other data", text)
    (own,) = [line for line in papers.splitlines() if line.startswith("| Amazon | 1% | ET (Ours) |")]
    assert "89.3 ± 0.7" in own and "91.0 ± 1.4 (n = 2 of 5)" in own and "92.0 ± 4.2 (n = 2) GT" in own
    (short,) = [line for line in papers.splitlines() if "| Amazon | 1% | ET (Ours) (max_epochs=3)" in line]
    assert "50.0 (n = 1)" in short and "40.0 (n = 1) GT" in short and "89.3" not in short, "equal budgets are compared"
    assert "| Amazon-UPU | 1% | ET (Ours) |" in others and "Paper" not in others.split("\n## ")[0]
    (missing,) = re.findall(r"^- Table 1: (.*)$", text, re.MULTILINE)
    assert "Amazon 40% 92.8 ± 0.3*," in missing and "Amazon 1%" not in missing, "it has a row beside it"
    assert "Yelp 1% 63.0 ± 0.6," in missing, "other data are no other settings"
    assert "numbers of the paper are measured here, with its data and settings" in text
    drawing = (tmp_path / "experiments/summary.svg").read_text()
    assert drawing.startswith("<?xml")
    summary.write_summary(collect([tmp_path / "runs"]), tmp_path / "again")
    assert (tmp_path / "again/summary.svg").read_text() == drawing, "rendering is reproducible"


def test_the_committed_page_is_rendered_from_the_committed_records(tmp_path):
    runs = collect(lines=sorted(EXPERIMENTS.glob("table*/results.jsonl")))
    page = summary.write_summary(runs, tmp_path).read_text()
    assert page == (EXPERIMENTS / "summary.md").read_text(), "run: python -m et.results.tables"
