"""Work on many graphs, over all cores where there is much of it, with a progress bar."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from threadpoolctl import threadpool_limits


def cores() -> int:
    """Number of cores available to this process, fewer than the machine has under Slurm or in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def mapped(function: Callable, *work: Sequence[Any], what: str, parallel: bool, bar: bool, together: int = 64) -> list:
    """``function`` of each of ``work``, in order.

    Args:
        function: At a module's top level, since processes import it.
        work: Sequences of equal length, one an argument of ``function``.
        what: Said beside the bar.
        parallel: In a process a core, each with one thread for its linear algebra.
        bar: Show how far it is.
        together: How many pieces of work a process is given at a time.
    """
    from rich.progress import track

    def collect(results) -> list:
        shown = track(results, description=what, total=len(work[0]), transient=True) if bar else results
        return list(shown)

    if not parallel or cores() == 1:
        return collect(map(function, *work))
    with ProcessPoolExecutor(cores(), get_context("spawn"), threadpool_limits, (1,)) as pool:
        return collect(pool.map(function, *work, chunksize=together))
