"""Synthetic runs: folders with a configuration that composes today and a record that claims to be of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from et.runs.identity import Key, config_of
from et.runs.record import load_record, run_id, write_result


def write_run(
    runs: Path,
    key: Key,
    metrics: Mapping[str, float],
    extra: Iterable[str] = (),
    dataset: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A finished run's folder; ``extra`` are overrides beyond the key's, ``changes`` replace parts of the record."""
    config = config_of([*key.overrides(), *extra])
    folder = runs / key.experiment / run_id(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    described = {"name": "amazon", "variant": "exact", "sha256": "0" * 64, "split_sha256": f"split-{key.seed}"}
    record = {
        "experiment": key.experiment, "run_id": run_id(config), "seed": key.seed, "fidelity": key.fidelity,
        "protocol": key.protocol, "task": "anomaly", "dataset": {**described, **(dataset or {})},
        "metrics": dict(metrics), "num_params": 1, "epochs": 100, "seconds": 10.0, "peak_memory_mb": 1.0,
        "device": "cpu", "git_commit": "a" * 40, "versions": {}, **changes,
    }  # fmt: skip
    write_result(folder, record)
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """write_run into this test's own run folders."""

    def build(key: Key, metrics: Mapping[str, float], *extra: str, **changes: Any) -> Path:
        return write_run(tmp_path / "runs", key, metrics, extra, **changes)

    return build


@pytest.fixture
def line_of() -> Callable[[Path, Iterable[str]], str]:
    """A results.jsonl line made by hand, of a run's record and of any overrides."""

    def build(folder: Path, overrides: Iterable[str]) -> str:
        return json.dumps({**load_record(folder / "result.json"), "overrides": list(overrides)})

    return build
