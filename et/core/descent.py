"""Descent of the block's energy in discrete time: the forward pass (paper eq. 6, 19 and 27)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute_in_backward

from et.core.block import EnergyTransformerBlock
from et.core.precision import at_least_float32, compute_dtype, no_autocast, restore_dtype
from et.core.topology import Topology


@dataclass(frozen=True)
class Descent:
    """Result of :func:`descend`: final tokens and, if recorded, the energies and states of every step.

    Attributes:
        x: Final tokens, shaped like the initial ones and in their dtype (float32 under autocast).
        energies: Total energy before the first and after each step, (steps + 1, B), or (steps + 1,) for tokens (N, D);
            detached. None unless recorded.
        attention_energies, hopfield_energies: The two parts of ``energies``; 0 for a module that is left out.
        states: Tokens before the first and after each step, (steps + 1, ...), in at least float32, with gradients.
            None unless recorded.
        steps: Number of steps that each sample took, (B,) or (). None unless ``tol`` was given; the recorded energies
            and states then end with the slowest sample.
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
    """Speed of each sample: the root mean square of dg/dt of its fastest token.

    The tokens x themselves need not come to rest where the energy does: the layer norm ignores the direction x -
    mean(x), so a step along it changes nothing.

    Args:
        before, after: Layer-normalised tokens g around a step, (B, N, D) or (N, D).
        step_size: Size alpha of that step.

    Returns:
        Speeds, (B,) or (); 0 without tokens.
    """
    of_token = (after - before).square().mean(-1).sqrt()  # (..., N)
    if of_token.shape[-1] == 0:
        return of_token.sum(-1)
    return of_token.amax(-1) / step_size


def descend(
    block: EnergyTransformerBlock,
    x: Tensor,
    steps: int,
    step_size: float | Sequence[float] | Tensor,
    topology: Topology | None = None,
    noise_std: float = 0.0,
    record: bool | Literal["energy", "states"] = False,
    checkpoint: bool = False,
    tol: float | None = None,
    query_index: Tensor | None = None,
    until: float | None = None,
) -> Descent:
    r"""Descend the energy of a block, as in `Energy Transformer <https://arxiv.org/abs/2302.07253>`_ (eq. 6, 27).

    .. math::
        x_{t+1} = x_t - \alpha \frac{\partial E}{\partial g}\Big|_{g = \mathrm{LayerNorm}(x_t)} + \sqrt{\alpha}\,
        \epsilon_t, \qquad \epsilon_t \sim \mathcal{N}(0, \sigma^2)

    Matrix products run in the dtype of ``x``, or in autocast's, with the weights cast once. Tokens, layer norm and
    energies are kept in at least float32 during the descent.

    Args:
        block: Block whose energy is descended.
        x: Initial tokens, (B, N, D), or (N, D) with a topology of edges.
        steps: Number of steps T, at least 0.
        step_size: Step size alpha = dt / tau: one for all steps, or one for each, (steps,). A tensor can be trained.
        topology: Which tokens attend to which. If None, all pairs.
        noise_std: Standard deviation sigma of the noise; 0 for a deterministic descent.
        record: If True, keep the energies and states of all steps; if ``"energy"`` or ``"states"``, only these.
        checkpoint: If True, keep only the tokens of each step for the backward pass and compute the rest again: memory
            of T states instead of T steps, for a third more time.
        tol: Tolerance: a sample stops once its :func:`speed` is at most this, and ``steps`` is the maximum. Tokens
            (N, D) are one sample. If None, all samples take ``steps`` steps.
        query_index: Indices of the tokens to return, (n,), for instance of a CLS token. The last step updates only
            these. If None, all tokens.
        until: Deprecated name of ``tol``.

    Returns:
        The :class:`Descent`; its ``x`` is (B, n, D) or (n, D) with ``query_index``.

    Raises:
        ValueError: ``steps`` is negative; the number of step sizes is not ``steps``; ``record`` is unknown; ``tol``
            with noise; ``query_index`` with ``record`` or ``tol``.
        TypeError: ``topology`` is a tensor.
    """
    if until is not None:
        warnings.warn("descend: until was renamed to tol", FutureWarning, stacklevel=2)
        tol = until
    _check_arguments(steps, topology, noise_std, record, tol, query_index)
    sizes = step_sizes(step_size, steps)
    dtype, initial = compute_dtype(x), x
    x = at_least_float32(x)
    energies: list[tuple[Tensor, Tensor]] = []
    states: list[Tensor] = []
    # Which samples still move, and the steps they took; only with a tolerance.
    moving = None if tol is None else torch.ones(x.shape[:-2], dtype=torch.bool, device=x.device)
    taken = None if tol is None else torch.zeros(x.shape[:-2], dtype=torch.long, device=x.device)

    def observe() -> None:
        if record in (True, "energy"):
            with torch.no_grad():
                energies.append(block.module_energies(block.norm(x), topology))
        if record in (True, "states"):
            states.append(x)

    def step(x: Tensor, size: float | Tensor, query_index: Tensor | None = None) -> Tensor:
        update = block(x, topology, weights, query_index)  # (..., n, D)
        x = x if query_index is None else x.index_select(-2, query_index)
        x = x + size * update if isinstance(size, Tensor) else torch.add(x, update, alpha=size)
        return x + size**0.5 * noise_std * torch.randn_like(x) if noise_std > 0 else x

    with no_autocast(x):
        weights = block.stacked_weights(dtype)
        observe()
        for number, size in enumerate(sizes, start=1):
            arguments = (x, size, query_index if number == steps else None)
            moved = recompute_in_backward(step, *arguments, use_reentrant=False) if checkpoint else step(*arguments)
            if tol is None or moving is None or taken is None:
                x = moved
            else:
                with torch.no_grad():
                    taken += moving
                    still_moving = moving & (speed(block.norm(x), block.norm(moved), size) > tol)
                x, moving = torch.where(moving[..., None, None], moved, x), still_moving
            observe()
            if moving is not None and not moving.any():
                break
    if query_index is not None and steps == 0:
        x = x.index_select(-2, query_index)
    final = restore_dtype(x, initial)
    recorded = torch.stack(states) if states else None
    if not energies:
        return Descent(final, states=recorded, steps=taken)
    attention, hopfield = (torch.stack(parts) for parts in zip(*energies, strict=True))
    return Descent(final, attention + hopfield, attention, hopfield, recorded, taken)


def _check_arguments(
    steps: int,
    topology: Topology | None,
    noise_std: float,
    record: bool | str,
    tol: float | None,
    query_index: Tensor | None,
) -> None:
    """Raise if arguments of :func:`descend` are invalid or contradict each other."""
    if record not in (True, False, "energy", "states"):
        raise ValueError(f"record must be True, False, 'energy' or 'states', not {record!r}")
    if isinstance(topology, Tensor):
        raise TypeError("topology must be an EdgeTopology(edge_index, num_nodes) or another Topology, not a tensor")
    if steps < 0:
        raise ValueError(f"steps must be 0 or more, not {steps}")
    if tol is not None and noise_std > 0:
        raise ValueError("a descent with noise never comes to rest: use tol without noise_std")
    if query_index is not None and (record or tol is not None):
        raise ValueError("a descent that is recorded, or ends at a tolerance, needs all tokens: leave out query_index")


def step_sizes(step_size: float | Sequence[float] | Tensor, steps: int) -> list[float | Tensor]:
    """Step size alpha of each step.

    Raises:
        ValueError: There are several, but not ``steps`` of them.
    """
    if isinstance(step_size, Tensor) and step_size.dim() == 0:
        return [step_size] * steps
    if not isinstance(step_size, Tensor) and not isinstance(step_size, Sequence):
        return [step_size] * steps
    if len(step_size) != steps:
        raise ValueError(f"{len(step_size)} step sizes for {steps} steps")
    return list(step_size)
