"""The benchmarks at tiny sizes: every form computes the same descent, and what is measured is recorded and shown."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from et.core import precision
from et.inpainting.model import InpaintingET
from scripts import bench, bench_data, bench_epochs, bench_report

TINY = bench.Size(steps=2, batch=1, tokens=9, dim=64)


@pytest.mark.parametrize("bf16", (False, True))
def test_all_forms_of_et_compute_the_same(bf16):
    outputs, gradients = [], []
    for form in ("et", "et_checkpoint", "autograd", "func"):
        case = bench.Case(form, TINY, bf16, training=True)
        case.run()
        gradients.append(case.module.hopfield.memories.grad)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs.append(case.function(case.tokens).detach())
    for found, reference in ((outputs, outputs[0]), (gradients, gradients[0])):
        for other in found:
            assert (other - reference).norm() < (0.05 if bf16 else 1e-4) * reference.norm()


def test_record_table_and_plot(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench.Size.__init__, "__defaults__", (1, 1, 9, 64))
    monkeypatch.setattr(bench, "SCALING", {axis: [bench.Size(), bench.Size(steps=2)] for axis in bench.SCALING})
    monkeypatch.setattr(bench, "LONGEST", 16)
    monkeypatch.setattr(bench, "gc", SimpleNamespace(collect=int))  # dozens of collections of all that pytest holds
    compile_for_real = torch.compile  # what the compiler makes of it is not the point here
    monkeypatch.setattr(torch, "compile", lambda *a, **options: compile_for_real(*a, **options, backend="eager"))
    record, plot = tmp_path / "record.json", tmp_path / "plot.png"
    options = ["--rounds", "1", "--json", str(record), "--plot", str(plot)]
    bench.main(["--parts", "fp32", "bf16", "compile", "scaling", "memory", "profile", *options])
    bench.main(["--parts", "render", *options])
    found = json.loads(record.read_text())
    rows = found["fp32"]["training"]["rows"]
    assert set(rows) == {"vit", "et", "et_checkpoint", "autograd", "func"}
    assert rows["et"]["gflops"] == pytest.approx(3 * bench.Size().operations("et") / rows["et"]["seconds"] / 1e9)
    assert all(row["updated_seconds"] >= row["seconds"] > 0 and row["update_seconds"] > 0 for row in rows.values())
    assert found["fp32"]["inference"]["rows"]["et"]["update_seconds"] < 1e-3  # nothing to update
    assert set(found["memory"]["tensors"]) == {"vit", "et", "et_checkpoint", "autograd", "func", "et_compiled"}
    assert found["bf16"]["native"] == precision.CPU_HAS_BFLOAT16 and found["fp32"]["product_gflops"] > 1
    assert set(found["compile"]["inference"]["rows"]) == {"vit", "et", "et_compiled"}
    beside = (found["compile"].get("bf16"), found["memory"]["base_bf16"], found["scaling"]["N"][0].get("in_bf16"))
    assert [bool(part) for part in beside] == [precision.CPU_HAS_BFLOAT16] * 3
    assert sum(found["profile"]["et"]["share"].values()) <= 1
    assert set(found["memory"]["against_steps"]) == {"1", "4", "12", "24"}
    assert found["fp32"]["environment"]["threads"] == torch.get_num_threads()
    assert "**ET-Base**" in bench_report.table(found) and "ViT-Base" in capsys.readouterr().out
    assert plot.stat().st_size > 10_000


def test_checkpointed_steps_hold_a_third_of_the_tensors_at_most():
    size = bench.Size(steps=12, batch=2, tokens=50, dim=128)
    assert 3 * bench.live_peak("et_checkpoint", size) <= bench.live_peak("et", size)


def test_tensors_held_do_not_depend_on_what_was_measured_before():
    size = bench.Size(steps=2, batch=1, tokens=20, dim=64)
    alone = bench.live_peak("et", size)
    bench.live_peak("vit", size)
    assert bench.live_peak("et", size) == alone


def test_operations_are_those_of_the_products():
    """12 N D^2 + 3 N^2 D multiply-adds a step of ET, and 12 N D^2 a block of ViT around its attention."""
    from torch.utils.flop_counter import FlopCounterMode

    size = bench.Size(steps=2, batch=3, tokens=10, dim=128)
    # torch's counter knows no operations of the fused attention that timm's ViT has on a CPU.
    uncounted = {"et": 0, "vit": 2 * 2 * size.steps * size.batch * size.tokens**2 * size.dim}
    for form, missing in uncounted.items():
        case = bench.Case(form, size, False, training=False)
        counter = FlopCounterMode(display=False)
        with counter:
            case.run()
        assert counter.get_total_flops() == pytest.approx(size.operations(form) - missing)


def test_loader_and_step_are_measured(capsys, monkeypatch):
    small = {
        "image_size": 224,
        "patch_size": 16,
        "dim": 16,
        "num_heads": 1,
        "head_dim": 4,
        "num_memories": 8,
        "steps": 1,
    }
    monkeypatch.setattr(bench_data, "InpaintingET", partial(InpaintingET, **small))
    monkeypatch.setattr(bench_data, "PHOTOGRAPHS", 8)
    bench_data.main(["--batch", "2", "--steps", "2", "--seconds", "0.1"])
    assert "images/s" in capsys.readouterr().out


def test_epochs_are_differences_of_runs(monkeypatch, capsys):
    """Runs with a start of 7 s, a second an epoch by gather and scatter and a tenth of it by the kernels."""

    def run(experiment: str, epochs: int, backend: str) -> tuple[float, float]:
        each, memory = {"auto": (0.1, 1200), "reference": (1.0, 3000)}[backend]
        return 7 + each * epochs, 1000 if experiment == "demo_anomaly" else memory

    monkeypatch.setattr(bench_epochs, "run", run)
    bench_epochs.main(["--rounds", "2", "--only", "tolokers_40pct"])
    _, reference, kernels = [line for line in capsys.readouterr().out.splitlines() if "|" in line][1:]
    assert "1.00 (1.00-1.00) | 1/1.0 | 3000" in reference
    assert "0.10 (0.10-0.10) | 1/10.0 | 1200 | 1/2.5 | 200 | 1/10.0" in kernels
