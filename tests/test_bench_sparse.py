"""The benchmark of sparse attention at a tiny size: its numbers, its record, and graphs that do not fit."""

from __future__ import annotations

import json

import pytest

from scripts import bench_sparse


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("bench") / "record.json"
    bench_sparse.SIZES["tiny"] = {"nodes": 300, "edges": 60_000, "heads": 2, "width": 16, "dim": 8}
    try:
        bench_sparse.main(["--size", "tiny", "--repeats", "1", "--json", str(path)])
    finally:
        del bench_sparse.SIZES["tiny"]
    return json.loads(path.read_text())


def test_record_holds_times_memory_and_ratios(record):
    (run,) = record["runs"]
    reference, fast = run["results"]["reference"], run["results"]["numba"]
    assert reference["seconds_ratio"] == 1.0 and fast["agrees"]
    assert fast["seconds_ratio"] == pytest.approx(fast["seconds"] / reference["seconds"])
    assert fast["extra_memory_bytes"] < reference["extra_memory_bytes"]
    # The reference keeps at least the gathered rows of queries and keys, and the products: three tensors of E x H x Y.
    assert reference["extra_memory_bytes"] > 3 * 60_000 * 2 * 16 * 4
    assert record["environment"]["torch"]


def test_backends_that_do_not_fit_are_measured_on_less(monkeypatch, capsys, tmp_path):
    def run_apart(backend: str, size: dict, repeats: int, limit: float) -> dict:
        if backend == "reference" and size["edges"] > 100_000:
            return {"failure": "needs more than 18.0 GiB"}
        seconds = size["edges"] * (8e-6 if backend == "reference" else 1e-6)
        return {"seconds": seconds, "extra_memory_bytes": 8, "prepare_seconds": 0.0, "fingerprint": [1.0]}

    monkeypatch.setattr(bench_sparse, "run_apart", run_apart)
    bench_sparse.main(["--size", "small", "--json", str(tmp_path / "record.json")])
    runs = json.loads((tmp_path / "record.json").read_text())["runs"]
    assert [run["size"]["edges"] for run in runs] == [200_000, 100_000]
    assert runs[1]["results"]["numba"]["seconds_ratio"] == pytest.approx(1 / 8)
    assert "half the edges" in capsys.readouterr().out


def test_nothing_that_fits_ends_the_benchmark(monkeypatch, capsys):
    monkeypatch.setattr(bench_sparse, "run_apart", lambda *_: {"failure": "needs more than 1.0 GiB"})
    bench_sparse.main(["--size", "small"])
    assert "no comparison" in capsys.readouterr().out
