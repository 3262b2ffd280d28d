"""Shuffling that depends on (seed, epoch) alone, so that a resumed run sees the samples an uninterrupted one would."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch.distributed as dist
from torch.utils.data import Sampler


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) outside of distributed training."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Generator for everything random about one sample in one epoch, wherever and whenever it is loaded."""
    return np.random.default_rng((seed, epoch, index))


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) pairs, shared out over the processes of a distributed run.

    Process r of W takes every W-th index starting at r, so W processes with batches of G / W see, together, the batches
    of one process with batches of G.

    Args:
        length: Number of samples.
        seed: Seed of the order. The order of epoch e depends on (seed, e) only.
        shuffle: If True, the order is random.
        used: Number of samples per epoch, from :func:`whole_batches` or :func:`shared_batches`. If None, all: the
            processes' shares may then differ by one (evaluation).
    """

    def __init__(self, length: int, seed: int = 0, shuffle: bool = False, used: int | None = None):
        self.length, self.seed, self.shuffle, self.epoch = length, seed, shuffle, 0
        self.skip = (-1, 0)  # an epoch, and how many of this process's samples it has seen before it was interrupted
        self.used = length if used is None else used
        self.repeat = False  # whether every epoch has the samples of epoch 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rank, world = rank_and_world()
        drawn = 0 if self.repeat else self.epoch
        if self.shuffle:
            order = np.random.default_rng((self.seed, drawn)).permutation(self.length)[: self.used]
        else:
            order = np.arange(self.used)
        epoch, seen = self.skip
        return ((drawn, int(index)) for index in order[rank::world][seen if epoch == self.epoch else 0 :])

    def __len__(self) -> int:
        rank, world = rank_and_world()
        return len(range(rank, self.used, world))


def whole_batches(length: int, batch_size: int) -> int:
    """How many of ``length`` samples fill global batches; of fewer than one batch, what the processes share evenly."""
    _, world = rank_and_world()
    return length - length % (world if length < batch_size else batch_size)


def shared_batches(length: int, batch_size: int) -> int:
    """How many of ``length`` samples make batches of which each process has a share: all but a last one too small."""
    _, world = rank_and_world()
    rest = length % batch_size
    return length - rest if rest < world else length


def per_process(batch_size: int) -> int:
    """Share of a global batch that one process loads.

    Raises:
        ValueError: The batch does not divide evenly over the processes.
    """
    _, world = rank_and_world()
    if batch_size % world:
        raise ValueError(f"batch_size {batch_size} is the global batch; it must be a multiple of the {world} processes")
    return batch_size // world
