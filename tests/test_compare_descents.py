"""scripts/compare_descents.py on runs of a second: whose curves they are, and what is said of them."""

import importlib.util
import json
import sys

import pytest
import torch

from et.inpainting.patches import patchify
from et.inpainting.scores import masked_mse
from et.training.run import train
from tests.configs import ROOT, TINY


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("compare_descents", ROOT / "scripts" / "compare_descents.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_excess_is_of_the_largest_error_from_t_on(script):
    found = script.flatness([9.0, 4.0, 2.0, 2.1, 3.0], 2)
    assert found["best_step"] == found["mse_at_T"] == 2 and found["mse_at_end"] == 3
    assert found["excess"] == pytest.approx(0.5)
    assert script.flatness([9.0, 1.0, 2.0], 2)["excess"] == pytest.approx(1.0)  # the best is before T


def test_curves_of_several_runs(script, config, tmp_path, monkeypatch):
    options = [*TINY, "trainer.max_epochs=1", "data.patch_size=20"]
    fixed = train(config(*options, "data.num_occluded=8", "data.num_kept=0"))
    varying = train(config(*options, "task.steps_range=[1,3]", "data.occluded_range=[0.1,0.9]"))
    runs = [str(outcome.folder) for outcome in (fixed, varying)]
    monkeypatch.setattr(sys, "argv", ["compare_descents.py", str(tmp_path / "out"), *runs, "--count=8", "--steps=6"])
    script.main()
    found = json.loads((tmp_path / "out" / "fixed_points.json").read_text())
    first, second = found["runs"]
    assert first["occluded"] == 0.5 and first["steps_range"] is None and second["steps_range"] == [1, 3]
    assert (first["run_id"], first["T"]) == (fixed.record["run_id"], 2)
    assert [curve["hidden"] for curve in first["curves"]] == [0.125, 0.25, 0.5, 0.75]  # 2, 4, 8, 12 of 16 patches
    assert all(len(curve["mse"]) == 7 and curve["images"] == 8 for run in found["runs"] for curve in run["curves"])
    titles = [script.title(run) for run in (first, second, {**first, "from_weights": True})]
    assert titles[0].endswith("50% occluded") and titles[1].endswith("T varies")
    assert titles[2] == titles[0] + ", from weights"  # a control that trained on is not the training it started from
    batch = script.examples(config(*options), 8, 0.5)
    with torch.no_grad():
        prediction = fixed.task.network.eval()(batch["image"], batch["masked"])
    error = masked_mse(prediction, patchify(batch["image"], 20), batch["masked"]).mean()
    assert first["curves"][2]["mse_at_T"] == pytest.approx(error.item(), rel=1e-3)
    assert (tmp_path / "out" / "fixed_points.png").stat().st_size > 5000


@pytest.mark.parametrize("record", sorted(path.name for path in (ROOT / "docs").glob("fixed_points*.json")))
def test_the_numbers_of_the_page_are_those_on_record(record):
    found = json.loads((ROOT / "docs" / record).read_text())
    page = (ROOT / "docs" / "explanation" / "fixed_points.md").read_text()
    assert all(run["git_commit"] and "+" not in run["git_commit"] for run in found["runs"])
    assert all(f"{run['test_mse']:.3f}" in page for run in found["runs"] if run.get("test_mse") is not None)
    for curve in (curve for run in found["runs"] for curve in run["curves"]):
        assert f"{curve['best_mse']:.3f} / {curve['mse_at_T']:.3f} / {curve['mse_at_end']:.3f}" in page
        assert f" {100 * curve['excess']:.0f} % |" in page


def test_the_costs_of_imagenette_are_those_of_the_curves():
    runs = json.loads((ROOT / "docs" / "fixed_points_imagenette.json").read_text())["runs"]
    page = (ROOT / "docs" / "explanation" / "fixed_points.md").read_text()
    best = [[curve["best_mse"] for curve in run["curves"]] for run in runs]
    few, half, many = best[:3]
    for values in best[3:]:
        others = (few[0], *half[1:3], many[3])
        costs = " | ".join(f"{100 * (value / other - 1):+.0f} %" for value, other in zip(values, others, strict=True))
        assert f"| {costs} |" in page


def test_the_costs_of_the_page_are_those_of_the_curves():
    runs = json.loads((ROOT / "docs" / "fixed_points.json").read_text())["runs"]
    page = (ROOT / "docs" / "explanation" / "fixed_points.md").read_text()
    best = {(r["name"], r["from_weights"], round(r["occluded"], 2)): [c["best_mse"] for c in r["curves"]] for r in runs}
    once = [best["questions", False, hidden][i] for i, hidden in enumerate((0.11, 0.25, 0.5, 0.75))]
    twice = [*best["questions", True, 0.5][:3], best["questions", True, 0.75][3]]
    varying = {from_weights: values for (name, from_weights, _), values in best.items() if name == "fixed_points"}
    for values, others in ((varying[False], once), (varying[True], once), (varying[True], twice)):
        for value, other in zip(values, others, strict=True):
            assert f"{100 * (value / other - 1):+.0f} % |" in page
