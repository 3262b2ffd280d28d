"""The paper's numbers as data: shapes, spot values, and what the paper says of itself."""

from __future__ import annotations

import pytest

from et.results import paper
from et.utils.errors import UserError

RESULTS = (1, 2, 7, 12, 13, 14, 15, 16)


@pytest.mark.parametrize("number", paper.NUMBERS)
def test_every_table_loads_and_says_what_it_is(number):
    table = paper.load(number)
    assert table.number == number
    assert table.title
    assert table.cells or table.settings
    assert (table.kind == "configuration") == bool(table.settings)
    assert (table.kind == "results") == bool(table.deviation)


def test_a_table_that_is_not_there_is_an_error_for_people():
    with pytest.raises(UserError, match="there is no table 3"):
        paper.load(3)


@pytest.mark.parametrize(
    ("number", "methods", "conditions", "cells"),
    [(1, 7, 8, 112), (2, 12, 8, 51), (7, 6, 6, 27), (12, 3, 4, 24), (13, 3, 8, 48), (14, 5, 1, 10), (15, 3, 1, 6),
     (16, 2, 1, 6), (5, 1, 4, 16), (8, 1, 8, 40)],
)  # fmt: skip
def test_counts_of_rows_columns_and_cells(number, methods, conditions, cells):
    table = paper.load(number)
    assert sum(m.in_paper for m in table.methods) == methods
    assert sum(c.in_paper for c in table.conditions) == conditions
    assert len(table.cells) == cells


@pytest.mark.parametrize(
    ("number", "metric", "condition", "method", "mean", "std", "bold"),
    [
        (1, "f1_macro", "amazon_1pct", "BWGNN", 90.9, 0.7, True),
        (1, "auc", "tfinance_40pct", "ET (Ours)", 95.0, 3.0, True),
        (1, "auc", "tsocial_40pct", "PC-GNN", 68.4, None, False),
        (2, "accuracy", "tu_mutag", "ET (Ours)", 96.6, 0.2, False),
        (2, "accuracy", "tu_enzymes", "ET (Ours)", 99.8, None, False),
        (2, "accuracy", "tu_frankenstein", "ASAP", 66.3, 0.5, False),
        (7, "accuracy", "gnnbench_pattern", "ET (Ours)", 90.690, 0.013, True),
        (7, "mae", "zinc", "GT", 0.226, 0.014, False),
        (7, "mae", "zinc_full", "ET (Ours)", 0.096, 0.0, True),
        (12, "auc", "yelp_40pct", "BWGNN (Heterogenous)", 90.54, None, True),
        (13, "f1_macro", "tsocial_1pct", "ATT ✗ / HN ✓", 72.7, 1.0, False),
        (14, "mse", "imagenet", "ET-NoATT", 0.825, 0.20, False),
        (15, "params", "imagenet", "ET", 4.87, None, True),
        (16, "ssim", "imagenet", "ViT", 0.715, None, True),
        (5, "edges", "tsocial", "counted", 73105508, None, False),
        (8, "node_attr", "tu_enzymes", "counted", 21, None, False),
    ],
)
def test_exact_cells(number, metric, condition, method, mean, std, bold):
    cell = paper.load(number).cell(metric, condition, method)
    assert (cell.mean, cell.std, cell.bold) == (mean, std, bold)


@pytest.mark.parametrize("number", RESULTS)
def test_bold_is_best(number):
    """Where the paper prints bold at all, the bold value is the best of its column (table 2: only EvoG is bold).

    Its column ZINC is two conditions here: the bold value of ET is of full ZINC, the others are of the 12k subset.
    """
    table = paper.load(number)
    for metric in table.metrics:
        for condition in table.conditions:
            cells = [c for c in table.cells if (c.metric, c.condition) == (metric.name, condition.name)]
            bold = [c.mean for c in cells if c.bold]
            if bold:
                assert bold == [(max if metric.direction == "max" else min)(c.mean for c in cells)]
            else:
                assert not cells or number == 2 or metric.direction == "none" or condition.name == "zinc"


def test_the_full_model_of_table_13_is_that_of_table_1():
    first, ablation = paper.load(1), paper.load(13)
    for cell in (c for c in ablation.cells if c.method == "full model (Ours)"):
        assert first.cell(cell.metric, cell.condition, "ET (Ours)").printed == cell.printed


def test_an_energy_transformer_is_ours_and_a_baseline_is_not():
    ours = {method.name for number in RESULTS for method in paper.load(number).methods if method.ours}
    assert {"ET (Ours)", "ET, tuned", "ET", "MaxPool", "ET-Full (Ours)", "full model (Ours)"} == ours - {
        "Concatenation"
    }
    assert not {"GT", "ViT", "GIN", "BWGNN", "EGT", "ET-NoHN"} & ours


def test_experiments_of_a_table_are_unique_names():
    for number in RESULTS:
        table = paper.load(number)
        named = [m.experiment_for(c.name) for c in table.conditions for m in table.methods if m.experiment]
        assert len(table.experiments()) == len(set(named))


@pytest.mark.parametrize(
    ("printed", "parsed"),
    [("63.0 ± 0.6 bold", (63.0, 0.6, True)), (71.7, (71.7, None, False)), ("18 + 3", (21.0, None, False))],
)
def test_printed_values(printed, parsed):
    assert paper.parse_printed(printed) == parsed


@pytest.mark.parametrize("printed", ["", "63.0±", "-", "n/a", "63,0 ± 0.6"])
def test_what_is_no_value_is_refused(printed):
    with pytest.raises(ValueError, match="not a printed value"):
        paper.parse_printed(printed)
