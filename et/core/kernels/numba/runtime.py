"""Compilation of kernels with numba, and their execution in threads.

The kernels release the interpreter's lock and run in plain Python threads that live for one call: there is no thread
pool that a fork could break, and there are never more threads than torch uses. Every row of a result belongs to one
task and is summed in a fixed order, so results do not depend on the run or the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

# Sums may be reordered and fused; infinities and NaN keep their meaning.
FAST_MATH = {"reassoc", "contract", "nsz", "arcp"}
SMALLEST_TASK, LARGEST_TASK = 1 << 15, 1 << 18  # edges; a task holds some 12 bytes of scratch an edge


def kernel(function: Callable[..., Any], fastmath: set[str] | bool = FAST_MATH) -> Callable[..., Any]:
    """Compile ``function`` without the interpreter's lock; cached on disk if a cache folder is writable."""
    options: dict[str, Any] = {"nogil": True, "fastmath": fastmath, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the source's folder nor the user's cache folder is writable
        return numba.njit(**options)(function)


exact_kernel = partial(kernel, fastmath=False)


def run(compiled: Callable[..., Any], row_start: np.ndarray, arguments: tuple[Any, ...]) -> None:
    """Call ``compiled(*arguments, low, high)`` on all rows, in tasks with about the same number of edges."""
    rows = len(row_start) - 1
    edges = int(row_start[rows])
    threads = max(1, min(torch.get_num_threads(), edges // SMALLEST_TASK))
    # More tasks than threads, handed out as threads become free: rows differ widely in their number of edges.
    tasks = max(1, edges // min(max(edges // (16 * threads), SMALLEST_TASK), LARGEST_TASK))
    bounds = np.searchsorted(row_start, edges * np.arange(1, tasks) // tasks)
    bounds = np.unique(np.concatenate(([0], bounds, [rows])))
    pieces = list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
    if threads == 1:
        for low, high in pieces:
            compiled(*arguments, low, high)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda piece: compiled(*arguments, *piece), pieces))


def arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(tensor.detach().contiguous().numpy() for tensor in tensors)
