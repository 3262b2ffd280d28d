"""The benchmark of scoring at a tiny size: both forms compute the same, and their times are recorded."""

from __future__ import annotations

import json

from scripts import bench_scoring
from scripts.make_synthetic_graph import main as make_graph
from tests.configs import ROOT


def test_both_forms_agree(tmp_path):
    folder = tmp_path / "graph"
    make_graph([str(folder), "--nodes", "300", "--edges", "2000"])
    found = bench_scoring.measure(folder, heads=2, width=70, rounds=1)
    assert (found["nodes"], found["edges"]) == (300, 4000)
    assert found["difference"] < 1e-5
    assert found["ratio"] == found["projected"][0] / found["gathered_once"][0]


def test_the_numbers_of_the_page_are_those_on_record():
    page = (ROOT / "docs" / "reference" / "benchmarks.md").read_text()
    for record in json.loads((ROOT / "docs" / "scoring.json").read_text()):
        old, new = (sum(record[form]) / len(record[form]) for form in ("projected", "gathered_once"))
        size = f"| {record['nodes']:,} | {record['edges'] // 2:,} | {len(record['projected'])} |"
        assert f"{size} {old:.1f} s | {new:.1f} s | {record['ratio']:.1f}x | {record['difference']:.0e} |" in page
