"""The forward pass: descent of the block's energy in discrete time (paper eq. 6, 19 and 27)."""

from __future__ import annotations

import math
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
        states: tokens before the first and after each step, (steps + 1, ...); None unless recorded.
    """

    x: Tensor
    energies: Tensor | None = None
    attention_energies: Tensor | None = None
    hopfield_energies: Tensor | None = None
    states: Tensor | None = None


def descend(
    block: EnergyTransformerBlock,
    x: Tensor,
    steps: int,
    step_size: float,
    topology: Topology | None = None,
    noise_std: float = 0.0,
    record: bool | Literal["energy"] = False,
    checkpoint: bool = False,
) -> Descent:
    """Take ``steps`` steps x <- x - alpha dE/dg + sqrt(alpha) eps, eps ~ N(0, sigma^2) (eq. 27; eq. 6 without noise).

    Under autocast the products run in its dtype, with the weights cast once; tokens, layer norm and energies stay in
    float32.

    Args:
        block: the energy.
        x: initial tokens, (B, N, D), or (N, D) with a topology of edges.
        steps: T, at least 0.
        step_size: alpha = dt / tau.
        topology: who attends to whom; all pairs where not given.
        noise_std: sigma; 0 for a deterministic descent.
        record: keep energies and states of all steps (``True``), only the energies (``"energy"``), or neither.
        checkpoint: keep only the tokens of each step for the backward pass, which computes the rest of the step again:
            memory of T token states instead of T steps, for a third more time.
    """
    if steps < 0:
        raise ValueError(f"steps must be 0 or more, not {steps}")
    dtype = compute_dtype(x)
    x = at_least_float32(x)
    energies: list[tuple[Tensor, Tensor]] = []
    states: list[Tensor] = []

    def observe() -> None:
        if record:
            with torch.no_grad():
                energies.append(block.module_energies(block.norm(x), topology))
        if record is True:
            states.append(x)

    def step(x: Tensor) -> Tensor:
        x = x + step_size * block.update(block.norm(x).to(dtype), topology, weights)
        return x + math.sqrt(step_size) * noise_std * torch.randn_like(x) if noise_std > 0 else x

    with no_autocast(x):
        weights = block.stacked_weights(dtype)
        observe()
        for _ in range(steps):
            x = recompute_in_backward(step, x, use_reentrant=False) if checkpoint else step(x)
            observe()
    if not record:
        return Descent(x)
    attention, hopfield = (torch.stack(parts) for parts in zip(*energies, strict=True))
    return Descent(x, attention + hopfield, attention, hopfield, torch.stack(states) if states else None)
