"""Apply a function to many graphs, on all cores if there are many, with a progress bar.

Not joblib: its loky workers stay alive for minutes after the last call and keep their memory during training; its
multiprocessing backend forks, which is unsafe once torch has started threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from threadpoolctl import threadpool_limits

from et.utils.errors import UserError


def cores() -> int:
    """Number of cores available to this process, fewer than the machine has under Slurm or in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel_map(
    function: Callable, *work: Sequence[Any], what: str, parallel: bool, bar: bool, together: int = 64
) -> list:
    """Like ``map(function, *work)``, as a list, in several processes if asked.

    Args:
        function: A function at the top level of a module, which worker processes import.
        work: Sequences of equal length, one per argument of ``function``.
        what: Label of the progress bar.
        parallel: If True, use one process per core, each with one thread for its linear algebra.
        bar: If True, show a progress bar.
        together: Number of items that a process gets at a time.

    Raises:
        UserError: A process was killed.
    """
    from rich.progress import track

    def collect(results) -> list:
        shown = track(results, description=what, total=len(work[0]), transient=True) if bar else results
        return list(shown)

    if not parallel or cores() == 1:
        return collect(map(function, *work))
    try:
        with ProcessPoolExecutor(cores(), get_context("spawn"), threadpool_limits, (1,)) as pool:
            return collect(pool.map(function, *work, chunksize=together))
    except BrokenProcessPool as error:
        raise UserError(
            f"{what}: a process was killed (out of memory?): free some memory and start the same command again"
        ) from error
