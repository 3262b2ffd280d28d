"""The folder of a run: exclusive access, and the checkpoint to resume from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from et.runs.checkpoint_files import RESUME_KEYS, best_of, load_best, load_checkpoint
from et.runs.record import FORCED, read_result
from et.utils.errors import UserError

SCORES = "scores.json"  # scores of a repeated test, kept in the run folder until the run is finished
MOVING = ".moving"  # is there while the files of a former run are renamed
REPLACED = ".replaced"  # ends the names of the files of a former run, until a forced one has something to keep


@dataclass(frozen=True)
class ResumePoint:
    """Where a run starts.

    Attributes:
        checkpoint: Checkpoint to resume from. If None, the run starts from the beginning.
        step: Number of optimizer steps taken before.
    """

    checkpoint: Path | None = None
    step: int = 0


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of the run folder.

    If the work fails before the first checkpoint, what :func:`start_over` set aside is put back. If there is nothing,
    the folder is removed.

    A requeued Slurm job may start while its previous process is still ending: it waits up to a minute for the lock.

    Raises:
        UserError: The folder cannot be written, or another process holds it.
    """
    patience = 60 if int(os.environ.get("SLURM_RESTART_COUNT", "0")) else 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=patience).acquire(poll_interval=1)
    except Timeout as error:
        raise UserError(f"another process is running {folder}; wait for it, or change the seed") from error
    except OSError as error:
        raise UserError(f"cannot write the run folder {folder}: {error.strerror}; set paths.runs elsewhere") from error
    with lock:
        _put_back(folder)  # after a process that was killed while this one waited
        try:
            yield
        except BaseException:
            if not _put_back(folder) and not _holds_work(folder):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        _put_back(folder)


def _holds_work(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("*.ckpt")) or read_result(folder) is not None


def _set_aside(folder: Path) -> list[Path]:
    return [*folder.glob(f"*{REPLACED}"), *(folder / "checkpoints").glob(f"*{REPLACED}")]


def _put_back(folder: Path) -> bool:
    """Put the files of a former run back where they were, or remove them if the new run has a checkpoint or a result.

    A process that is killed while it renames leaves some of the old files under their own names, which are no work of
    the new run: :data:`MOVING` tells, and the next process puts the others back.

    Returns:
        True if they were put back.
    """
    aside, moving = _set_aside(folder), folder / MOVING
    back = moving.exists() or (bool(aside) and not _holds_work(folder))
    if back:
        moving.touch()
    for path in aside:
        if back:
            path.replace(path.with_name(path.name.removesuffix(REPLACED)))
        else:
            path.unlink(missing_ok=True)
    if back:
        (folder / FORCED).unlink(missing_ok=True)  # a requeued job starts it over again
        moving.unlink()
    return back


def settle(folder: Path) -> None:
    """Put back what a forced run that was killed has set aside, unless another process is at work in the folder."""
    if (folder / MOVING).exists() or _set_aside(folder):
        with suppress(Timeout, OSError), FileLock(folder / ".lock", timeout=0):
            _put_back(folder)


def find_resume_point(folder: Path, identity: str, needs_best: bool = False) -> ResumePoint:
    """Find the newest of ``last.ckpt`` and ``previous.ckpt`` that loads and belongs to the run ``identity``.

    A checkpoint that is damaged, incomplete, holds more than plain tensors (nothing in it is executed), or belongs to
    another run is reported and skipped.

    Args:
        folder: The run's folder of checkpoints.
        identity: Id of the run.
        needs_best: Skip a checkpoint whose best epoch's weights are lost, unless training from there reaches that epoch
            again.

    Returns:
        The resume point; the beginning if there is no usable checkpoint.
    """
    for name in ("last.ckpt", "previous.ckpt"):
        path = folder / name
        if not path.exists():
            continue
        try:
            saved = load_checkpoint(path, RESUME_KEYS, identity)
            if needs_best:
                _check_best(folder, identity, saved)
        except UserError as error:
            print(f"warning: {error}; trying the one before it")
            continue
        return ResumePoint(path, int(saved["global_step"]))
    return ResumePoint()


def _check_best(folder: Path, identity: str, saved: Mapping[str, Any]) -> None:
    """Raise UserError unless ``best.ckpt`` is of the best epoch in ``saved``, or of a later epoch that will be reached
    again.
    """
    epoch, step = best_of(saved)
    if epoch is None:
        return
    best = load_best(folder, identity, None)
    if best["epoch"] <= saved["epoch"]:
        load_best(folder, identity, epoch, step)


def start_over(folder: Path) -> None:
    """Set the results of a former run aside before a forced one. :func:`locked` removes them or puts them back."""
    if "SLURM_JOB_ID" in os.environ:
        (folder / FORCED).write_text(os.environ["SLURM_JOB_ID"])
    (folder / MOVING).touch()
    for path in (
        *map(folder.joinpath, ("result.json", SCORES, "metrics.csv")),
        *(folder / "checkpoints").glob("*.ckpt*"),
    ):
        if path.exists():
            path.replace(path.with_name(path.name + REPLACED))
    (folder / MOVING).unlink()
