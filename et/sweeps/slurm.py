"""State of a sweep's jobs in Slurm's queue, by squeue alone: no accounting database is needed."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from et.utils.files import write_atomically

# States that a job does not come back from; every other one means that it waits, runs, or will run again.
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT",
}  # fmt: skip
NOTE = "slurm.json"  # in a run's folder: the job it was given to


@dataclass(frozen=True)
class Resources:
    """Resources of a cell's job; cells with equal resources can share a job and a job array."""

    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int | None = None


def resources(trainer: Mapping[str, Any], gpus_per_node: int | None = None) -> Resources:
    """One task per device, on the number of nodes in the trainer's configuration.

    Args:
        trainer: Section ``trainer`` of a cell's configuration.
        gpus_per_node: Launcher setting that replaces ``devices`` -1 and auto, which mean "all".
    """
    devices = device_count(trainer["devices"], gpus_per_node or 1)
    gpus = devices if trainer["accelerator"] in ("gpu", "cuda") or gpus_per_node else None
    return Resources(int(trainer["num_nodes"]), devices, gpus)


def device_count(devices: int | str | Sequence[int], every: int) -> int:
    """Number of devices in ``trainer.devices``: a number, ``auto`` or -1 (``every``), or a list, also as "0,2"."""
    if devices in ("auto", "-1", -1):
        return every
    if isinstance(devices, str) and "," in devices:
        return len([part for part in devices.split(",") if part.strip()])
    return int(devices) if isinstance(devices, int | str) else len(devices)


def queue() -> dict[str, str] | None:
    """State of each of the user's jobs by its id (``12`` or ``12_3``); None if Slurm does not answer.

    A job leaves the queue some minutes after its end.
    """
    if shutil.which("squeue") is None:
        return None
    command = ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%A|%T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else read_queue(done.stdout)


def read_queue(text: str) -> dict[str, str]:
    """Parse squeue's lines ``id|number|STATE`` for :func:`queue`."""
    states = {}
    for line in text.splitlines():
        identity, _, state = line.strip().split("|")
        states[identity] = state
    return states


def active(job: str, states: Mapping[str, str] | None) -> bool | None:
    """True if a job is pending, running or requeued; None if the queue is unknown."""
    if states is None:
        return None
    return job in states and states[job] not in ENDED


def note_job(folder: Path, job: str) -> None:
    """Record the job of a run in its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / NOTE, json.dumps({"job": job}) + "\n")


def noted_job(folder: Path) -> str | None:
    """The job last recorded for a run; None if there is none."""
    try:
        job = json.loads((folder / NOTE).read_text())["job"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return job if isinstance(job, str) else None


def packs(cells: Sequence[Any], size: int) -> list[list[Any]]:
    """Split ``cells`` into packs of ``size``, in order; the last one may be smaller."""
    if size < 1:
        raise ValueError(f"hydra.launcher.cells_per_job must be at least 1, not {size}")
    return [list(cells[start : start + size]) for start in range(0, len(cells), size)]


def ended_jobs(jobs: Iterable[str], states: Mapping[str, str] | None) -> dict[str, str]:
    """Jobs that have ended, with their final state ("gone" if Slurm no longer lists it)."""
    if states is None:
        return {}
    return {job: states.get(job, "gone") for job in jobs if not active(job, states)}
