"""How the project's Triton kernels are launched, and how the edges of a graph are shared out among their programs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
import triton
from torch import Tensor

from et.core.csr import SortedEdges

P = ParamSpec("P")
R = TypeVar("R")
SPLIT = 1024  # edges that one program takes at most


@cache
def _autotuned(kernel: Any, configs: tuple, key: tuple[str, ...]) -> Any:
    return triton.autotune(configs=list(configs), key=list(key))(kernel)


def launch(kernel: Any, grid: Callable[[dict], tuple], *args: Any, configs: list, key: tuple, **constants: Any) -> None:
    """Launch ``kernel`` with the fastest of ``configs`` for the arguments ``key``; the first launch measures them.

    The first of ``configs`` is taken, unmeasured, in the interpreter and where torch is to be deterministic: another
    block size is another order of summation.

    Args:
        grid: The constants of a launch -> the numbers of programs.
        args, constants: What the kernel takes, except the constants of ``configs``.
    """
    if torch.are_deterministic_algorithms_enabled() or not isinstance(kernel, triton.JITFunction):
        first = configs[0]
        kernel[grid](*args, **constants, **first.kwargs, num_warps=first.num_warps, num_stages=first.num_stages)
    else:
        _autotuned(kernel, tuple(configs), key)[grid](*args, **constants)


def on_its_device(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` with the device of its first argument as the current one, on which Triton launches."""

    @wraps(function)
    def launched(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0] if args else next(iter(kwargs.values()))
        with torch.cuda.device_of(first):
            return function(*args, **kwargs)

    return launched


class Pieces(NamedTuple):
    """Rows of edges, cut into W pieces of at most ``split`` edges; S pieces belong to the R rows that are cut.

    Attributes:
        start: (N + 1,) int64, the first edge of each row, and E.
        row: (W,) int32, the row of each piece.
        low: (W,) int64, its first edge.
        slot: (W,) int32, where its result is kept, 0 .. S - 1; -1 for a row that is not cut.
        split: SPLIT at the time.
        cut: (R,) int64, the rows that are cut.
        offsets: (R + 1,) int64, their first slots, and S.
        slots: S.
    """

    start: Tensor
    row: Tensor
    low: Tensor
    slot: Tensor
    split: int
    cut: Tensor
    offsets: Tensor
    slots: int

    def sums(self, partial: Tensor) -> Tensor:
        """Sums over the pieces of each row that is cut: (S, ...) -> (R, ...), in a fixed order."""
        return torch.segment_reduce(partial.flatten(1), "sum", offsets=self.offsets).view(-1, *partial.shape[1:])

    def peaks(self, partial: Tensor) -> Tensor:
        """Largest of the pieces of each row that is cut: (S, ...) -> (R, ...)."""
        return torch.segment_reduce(partial, "max", offsets=self.offsets)


def cut_rows(start: Tensor, split: int) -> Pieces:
    """Cut the rows that ``start`` (N + 1,) points to into pieces of at most ``split`` edges; an empty row is one."""
    count = ((start.diff() + split - 1) // split).clamp(min=1)
    row = torch.arange(len(count), device=start.device).repeat_interleave(count)
    number = torch.arange(len(row), device=start.device) - (count.cumsum(0) - count)[row]
    several = count > 1
    in_cut = several[row]
    cut = several.nonzero().flatten()
    offsets = torch.cat([start.new_zeros(1), count[cut].cumsum(0)])
    slot = torch.where(in_cut, in_cut.cumsum(0) - 1, -1).int()
    return Pieces(start, row.int(), start[row] + number * split, slot, split, cut, offsets, int(offsets[-1]))


_PIECES: WeakKeyDictionary[SortedEdges, dict[tuple[bool, int], Pieces]] = WeakKeyDictionary()


def pieces_of(edges: SortedEdges, by_key: bool = False) -> Pieces:
    """The pieces of the edges' queries, or of their keys; made once for each graph."""
    known = _PIECES.setdefault(edges, {})
    if (by_key, SPLIT) not in known:
        known[by_key, SPLIT] = cut_rows(edges.by_key[0] if by_key else edges.row_start, SPLIT)
    return known[by_key, SPLIT]
