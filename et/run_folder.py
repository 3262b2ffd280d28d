"""A run's folder: held by one run at a time, taken up from its newest checkpoint that is whole and its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from et.errors import UserError
from et.record import read_result

SCORES = "scores.json"  # what a repeated test keeps in the run's folder until the run is finished


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        checkpoint: what it resumes from; None: the beginning.
        step: optimizer steps taken by then.
    """

    checkpoint: Path | None = None
    step: int = 0


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder; where the work fails before there is a checkpoint to resume from, it is removed again.

    A requeued Slurm job may start while its former life is still ending: it waits up to a minute for the folder.

    Raises:
        UserError: the folder cannot be written, or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"cannot write the run folder {folder}: {error.strerror}; set paths.runs elsewhere") from error
    with file:
        patience = time.monotonic() + (60 if int(os.environ.get("SLURM_RESTART_COUNT", "0")) else 0)
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() >= patience:
                    message = f"another process is running {folder}; wait for it, or change the seed"
                    raise UserError(message) from error
                time.sleep(1)
        try:
            yield
        except BaseException:
            if not any((folder / "checkpoints").glob("*.ckpt")) and read_result(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)
            raise


def find_start(folder: Path, identity: str) -> Start:
    """The newest of ``last.ckpt`` and ``previous.ckpt`` in ``folder`` that loads and belongs to the run ``identity``.

    One that is damaged, holds more than plain tensors (nothing in it is executed), or is another run's is reported
    and passed over.
    """
    for name in ("last.ckpt", "previous.ckpt"):
        path = folder / name
        if not path.exists():
            continue
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            step, owner = int(saved["global_step"]), saved.get("run_id")
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            print(f"warning: {path} does not load ({type(error).__name__}: {reason}); trying the one before it")
            continue
        if owner not in (None, identity):
            print(f"warning: {path} is of another configuration (run {owner}); trying the one before it")
            continue
        return Start(path, step)
    return Start()


def start_over(folder: Path) -> None:
    """Remove what a former run left, so that a forced one cannot be taken for it."""
    for path in (folder / "result.json", folder / SCORES, *(folder / "checkpoints").glob("*.ckpt")):
        path.unlink(missing_ok=True)
