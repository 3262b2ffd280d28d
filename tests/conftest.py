"""Fixtures shared by all tests: where real data is, golden numbers, composed configurations."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from tests.configs import ROOT, TINY, compose_config

# Triton reads this when it is first imported, which torch.compile may do in any test: without a GPU its kernels run in
# the interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The data root; tests that need real data are skipped where ET_DATA_DIR names none."""
    root = os.environ.get("ET_DATA_DIR", "")
    if not root or not Path(root).is_dir():
        pytest.skip("needs real data: set ET_DATA_DIR to a data root")
    return Path(root)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, torch.Tensor]]:
    """Arrays of tests/fixtures/NAME.npz as tensors."""

    def load(name: str) -> dict[str, torch.Tensor]:
        with np.load(FIXTURES / f"{name}.npz") as arrays:
            return {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files}

    return load


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., DictConfig]:
    """compose_config with the run folder in this test's own directory and nothing on the screen."""

    def build(*overrides: str) -> DictConfig:
        return compose_config(f"paths.runs={tmp_path}/runs", "callbacks.progress=false", *overrides)

    return build


@pytest.fixture
def tiny(config: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    """``config`` of the demo made so small that a run takes a second."""
    return lambda *overrides: config(*TINY, *overrides)


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """An uninterrupted run of some overrides, trained once per process. Its folder is to be read only."""
    from et.training.run import train  # late: Lightning takes seconds, and not every test needs it

    runs, outcomes = tmp_path_factory.mktemp("whole"), {}

    def run(*overrides: str) -> Any:
        if overrides not in outcomes:
            outcomes[overrides] = train(compose_config(f"paths.runs={runs}", "callbacks.progress=false", *overrides))
        return outcomes[overrides]

    return run


@pytest.fixture
def forked_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs over several processes fork them from a server that has imported everything, instead of starting Python."""
    from et.training import launcher
    from tests.fault_runs import Forked

    popen = SimpleNamespace(Popen=Forked, PIPE=subprocess.PIPE)
    monkeypatch.setattr(launcher, "subprocess", popen)


@pytest.fixture
def run_command(tmp_path, monkeypatch, capsys):
    """``python train.py ARGUMENTS`` in this process: (exit status, what it printed, its errors)."""
    from hydra.core.global_hydra import GlobalHydra

    from et.utils.startup import SIGNALS

    (tmp_path / "data").mkdir()
    monkeypatch.setenv("ET_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("ET_DATA_DIR", str(tmp_path / "data"))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
        try:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            GlobalHydra.instance().clear()
            for signum, handler in handlers.items():  # which train.py replaces
                signal.signal(signum, handler)
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def run_sweep(run_command):
    """``python train.py --multirun ARGUMENTS`` in this process: (exit status, what it printed)."""
    return lambda *arguments: run_command("--multirun", *arguments)[:2]
