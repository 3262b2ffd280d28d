"""The forward pass: descent of the block's energy in discrete time (paper eq. 6, 19 and 27)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute_in_backward

from et.core.block import EnergyTransformerBlock
from et.core.precision import at_least_float32, compute_dtype, no_autocast
from et.core.topology import Topology


@dataclass(frozen=True)
class Descent:
    """What a descent leaves behind.

    Attributes:
        x: final tokens, shaped like the initial ones.
        energies: total energy before the first and after each step, (steps + 1, B), or (steps + 1,) for tokens (N, D);
            None unless recorded. Recorded energies are detached: they are for looking at, not for training on.
        attention_energies, hopfield_energies: its two parts, shaped alike; zero for a module that is left out.
        states: tokens before the first and after each step, (steps + 1, ...), with their gradients where there are any;
            None unless recorded.
        steps: how many steps each sample took, (B,) or (); None unless the descent was to end at a tolerance. What is
            recorded then ends with the slowest sample.
    """

    x: Tensor
    energies: Tensor | None = None
    attention_energies: Tensor | None = None
    hopfield_energies: Tensor | None = None
    states: Tensor | None = None
    steps: Tensor | None = None


def decreasing(step_size: float, steps: int, power: float = 0.5) -> Tensor:
    """Step sizes alpha / (1 + t)^power for t = 0 .. steps - 1, (steps,): large steps first, small ones to settle."""
    return step_size / (1 + torch.arange(steps)) ** power


def speed(before: Tensor, after: Tensor, step_size: float | Tensor) -> Tensor:
    """How fast a sample moves: the root mean square of dg/dt of its fastest token, (B, N, D) twice -> (B,).

    ``before`` and ``after`` are normalised tokens g around a step. The tokens x themselves need not come to rest where
    the energy does: along x - mean(x), which the layer norm does not see, a step changes nothing.
    """
    return (after - before).square().mean(-1).sqrt().amax(-1) / step_size


def descend(
    block: EnergyTransformerBlock,
    x: Tensor,
    steps: int,
    step_size: float | Sequence[float] | Tensor,
    topology: Topology | None = None,
    noise_std: float = 0.0,
    record: bool | Literal["energy"] = False,
    checkpoint: bool = False,
    until: float | None = None,
    wanted: Tensor | None = None,
) -> Descent:
    """Take ``steps`` steps x <- x - alpha dE/dg + sqrt(alpha) eps, eps ~ N(0, sigma^2) (eq. 27; eq. 6 without noise).

    Under autocast the products run in its dtype, with the weights cast once; tokens, layer norm and energies stay in
    float32.

    Args:
        block: the energy.
        x: initial tokens, (B, N, D), or (N, D) with a topology of edges.
        steps: T, at least 0.
        step_size: alpha = dt / tau: a number for all steps or one for each, (steps,), which may be trained.
        topology: who attends to whom; all pairs where not given.
        noise_std: sigma; 0 for a deterministic descent.
        record: keep energies and states of all steps (``True``), only the energies (``"energy"``), or neither.
        checkpoint: keep only the tokens of each step for the backward pass, which computes the rest of the step again:
            memory of T token states instead of T steps, for a third more time.
        until: tolerance at which a sample has arrived: it takes no further step once its :func:`speed` is at most this.
            ``steps`` is then the most that any sample may take. Tokens (N, D) are one sample.
        wanted: (n,) numbers of the tokens that are wanted in the end, a CLS token for instance: ``x`` holds only these,
            and the last step is computed for them alone.

    Raises:
        ValueError: negative ``steps``, another number of step sizes than of steps, a tolerance for a noisy descent,
            ``wanted`` with a record or a tolerance.
        TypeError: a tensor as ``topology``.
    """
    _check_arguments(steps, topology, noise_std, record, until, wanted)
    sizes = step_sizes(step_size, steps)
    dtype = compute_dtype(x)
    x = at_least_float32(x)
    energies: list[tuple[Tensor, Tensor]] = []
    states: list[Tensor] = []
    # Which samples still move, and the steps they took; nobody asks unless there is a tolerance.
    moving = None if until is None else torch.ones(x.shape[:-2], dtype=torch.bool, device=x.device)
    taken = None if until is None else torch.zeros(x.shape[:-2], dtype=torch.long, device=x.device)

    def observe() -> None:
        if record:
            with torch.no_grad():
                energies.append(block.module_energies(block.norm(x), topology))
        if record is True:
            states.append(x)

    def step(x: Tensor, size: float | Tensor, wanted: Tensor | None = None) -> Tensor:
        update = block.update(block.norm(x).to(dtype), topology, weights, wanted)
        x = x if wanted is None else x.index_select(-2, wanted)
        x = x + size * update if isinstance(size, Tensor) else torch.add(x, update, alpha=size)
        return x + size**0.5 * noise_std * torch.randn_like(x) if noise_std > 0 else x

    with no_autocast(x):
        weights = block.stacked_weights(dtype)
        observe()
        for number, size in enumerate(sizes, start=1):
            arguments = (x, size, wanted if number == steps else None)
            moved = recompute_in_backward(step, *arguments, use_reentrant=False) if checkpoint else step(*arguments)
            if moving is None:
                x = moved
            else:
                with torch.no_grad():
                    taken += moving
                    still_moving = moving & (speed(block.norm(x), block.norm(moved), size) > until)
                x, moving = torch.where(moving[..., None, None], moved, x), still_moving
            observe()
            if moving is not None and not moving.any():
                break
    if wanted is not None and steps == 0:
        x = x.index_select(-2, wanted)
    if not record:
        return Descent(x, steps=taken)
    attention, hopfield = (torch.stack(parts) for parts in zip(*energies, strict=True))
    return Descent(x, attention + hopfield, attention, hopfield, torch.stack(states) if states else None, taken)


def _check_arguments(
    steps: int,
    topology: Topology | None,
    noise_std: float,
    record: bool | str,
    until: float | None,
    wanted: Tensor | None,
) -> None:
    """What :func:`descend` says about arguments that do not go together."""
    if isinstance(topology, Tensor):
        raise TypeError("topology says who attends to whom: EdgeTopology(edge_index, num_nodes); there are no masks")
    if steps < 0:
        raise ValueError(f"steps must be 0 or more, not {steps}")
    if until is not None and noise_std > 0:
        raise ValueError("a descent with noise never comes to rest: use until without noise_std")
    if wanted is not None and (record or until is not None):
        raise ValueError("a descent that is recorded, or ends at a tolerance, needs all tokens: leave out wanted")


def step_sizes(step_size: float | Sequence[float] | Tensor, steps: int) -> list[float | Tensor]:
    """alpha of each step.

    Raises:
        ValueError: there are several, but not ``steps`` of them.
    """
    several = step_size.dim() > 0 if isinstance(step_size, Tensor) else isinstance(step_size, Sequence)
    if not several:
        return [step_size] * steps
    if len(step_size) != steps:
        raise ValueError(f"{len(step_size)} step sizes for {steps} steps")
    return list(step_size)
