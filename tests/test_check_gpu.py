"""The check for a GPU: every part at a tiny size on the CPU, and what becomes of rows that find nothing."""

from __future__ import annotations

import json

import pytest
import torch

from scripts import check_gpu
from scripts.check_gpu_record import SMOKE, Check, floors, need, table

BYTES, OPERATIONS = 1e12, 1e15


@pytest.mark.slow
def test_every_part_runs_on_the_cpu(tmp_path, monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: Triton's kernels are not interpreted")
    path = tmp_path / "gpu.json"
    assert check_gpu.main(["--cpu-smoke", "--json", str(path)]) == 0
    assert not torch.are_deterministic_algorithms_enabled()
    record = json.loads(path.read_text())
    rows = record["rows"]
    assert {row["part"] for row in rows} == {
        "rates",
        "errors",
        "attention",
        "step",
        "recipe",
        "edges",
        "graphs",
        "tests",
    }
    assert not [row for row in rows if "failed" in row]
    skipped = {row["skipped"] for row in rows if "skipped" in row}
    assert skipped <= {"needs dgl", "needs a GPU"} and record["environment"]["triton"] != "absent"
    errors = [row for row in rows if row["part"] == "errors"]
    assert {row["dtype"] for row in errors} == {"float32", "float16", "bfloat16"}
    assert {row["form"] for row in errors} == {"triton", "chunked", "torch"}
    assert all(row["seconds"] > 0 and row["share"] > 0 for row in rows if row["part"] == "attention")
    assert table(record).count("\n") == len(rows) + 1  # and two lines of header
    assert table(record).splitlines()[-1] in capsys.readouterr().out


def test_an_error_beyond_its_bound_is_marked_and_fails_the_command(tmp_path, capsys):
    def wrong(q: torch.Tensor) -> torch.Tensor:
        return q * 1.001

    found = check_gpu.measure_error(wrong, lambda q: q * 1, [torch.randn(50)], False)
    assert not found["ok"] and found["error"] == pytest.approx(1e-3, rel=0.1)
    assert check_gpu.measure_error(wrong, lambda q: q * 1, [torch.randn(50).bfloat16()], False)["ok"]
    row = {"part": "errors", "case": "", "form": ""} | found
    assert "EXCEEDED" in table({"rates": {}, "rows": [row]})


def test_an_exceeded_bound_is_the_exit_status(monkeypatch):
    wrong = {"error": 1.0, "bound": 0.1, "ok": False}
    for rows, status in (([wrong, wrong | {"ok": True}], 1), ([wrong | {"ok": True}, {"skipped": "needs dgl"}], 0)):
        part = lambda check, rows=rows: [check.add("errors", "", "", lambda row=row: row) for row in rows]  # noqa: E731
        monkeypatch.setitem(check_gpu.PARTS, "errors", part)
        assert check_gpu.main(["--cpu-smoke", "--parts", "errors"]) == status


def test_what_is_missing_fails_or_comes_too_late_costs_only_its_row():
    check = Check(SMOKE)

    def fail() -> dict:
        raise RuntimeError("out of memory\nand more")

    assert check.add("a", "b", "c", need, "no_such_package")["skipped"] == "needs no_such_package"
    assert check.add("a", "b", "c", fail)["failed"] == "RuntimeError: out of memory"
    check.deadline = 0
    assert check.add("a", "b", "c", fail)["skipped"] == "out of time"
    assert len(check.rows) == 3


def test_the_floor_is_the_longer_of_bytes_and_operations():
    row = {"seconds": 4e-3, "flops": 1e12, "bytes": 2e9, "dtype": "bfloat16"}
    found = floors(row, {"bytes": BYTES, "bfloat16": OPERATIONS})
    assert found == pytest.approx({"by_bytes": 2e-3, "by_flops": 1e-3, "share": 0.5})
    assert floors(row | {"flops": 0, "bytes": 0}, {}) == {} and floors({"error": 1.0}, {}) == {}
