"""The benchmark of weighted attention on many graphs, on toy graphs."""

from __future__ import annotations

import pytest

from scripts import bench_graphs


@pytest.mark.parametrize("layout", ["sparse", "padded"])
def test_a_measurement_has_times_memory_and_what_products_alone_would_take(make_tu, tmp_path, monkeypatch, layout):
    make_tu(tmp_path)
    monkeypatch.setenv("ET_DATA_DIR", str(tmp_path))
    monkeypatch.setitem(bench_graphs.DATA, "TOY", (3, 2, 2, False))
    found = bench_graphs.measure("TOY", layout, None, batches=1, precision="fp32")
    assert found["batches"] == 1 and found["nodes"] > 32 * 4
    assert found["seconds"] > 0 and found["cpu_seconds"] > 0 and found["peak_gb"] > 0.1
    assert ("products" in found) == (layout == "sparse")
