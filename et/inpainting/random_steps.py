"""Trainings whose number of steps varies, so that the completion is where the descent rests, not a point on the way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from et.core import descend
from et.inpainting.model import InpaintingET
from et.inpainting.patches import patchify
from et.utils.errors import UserError


class RandomStepCounts:
    """The numbers of steps after which a training descent is compared with the image; drawn for each batch.

    Args:
        steps_range: Smallest and largest number of steps.
        loss_steps: How many different numbers of steps are drawn from the range; one descent passes through all.
        rest_steps: If above 0, the descent goes on: up to ``rest_steps`` further steps without gradient, then as many
            as the range begins with, and one more reconstruction.

    Raises:
        UserError: The range is empty, or has fewer numbers than are to be drawn.
    """

    def __init__(self, steps_range: Sequence[int], loss_steps: int = 1, rest_steps: int = 0):
        if len(steps_range) != 2 or not 1 <= steps_range[0] <= steps_range[1]:
            raise UserError(f"task.steps_range must be two numbers of steps, the smaller first, not {steps_range}")
        self.low, self.high, self.rest_steps = *map(int, steps_range), rest_steps
        if not 1 <= loss_steps <= self.high - self.low + 1 or rest_steps < 0:
            raise UserError(
                f"task.loss_steps must be from 1 to the length of task.steps_range, {self.high - self.low + 1}, and "
                f"task.rest_steps at least 0, not {loss_steps} and {rest_steps}"
            )
        self.loss_steps = loss_steps

    def reconstructions(
        self, network: InpaintingET, images: Tensor, masked: Tensor, rng: np.random.Generator
    ) -> list[Tensor]:
        """Reconstructions of every patch, (B, N, P) each, along one descent; gradients as the class says.

        Args:
            network: A network of one block.
            images: Images, (B, C, H, W).
            masked: Mask of the hidden patches, (B, N) bool.
            rng: Draws the numbers of steps.
        """
        numbers = sorted(self.low + rng.choice(self.high - self.low + 1, self.loss_steps, replace=False))
        free = int(rng.integers(self.rest_steps + 1))
        sizes = network.step_sizes(self.high + self.rest_steps + self.low)

        def onward(x: Tensor, start: int, end: int) -> Tensor:
            size = sizes[start:end] if isinstance(sizes, Tensor) else sizes
            return descend(network.block, x, end - start, size, checkpoint=network.checkpoint).x

        x, taken, found = network.embed(patchify(images, network.patch_size), masked), 0, []
        for number in map(int, numbers):
            x, taken = onward(x, taken, number), number
            found.append(network.decode(x[:, 1:]))
        if self.rest_steps:
            with torch.no_grad():
                x = onward(x, taken, taken + free)
            x = onward(x.detach(), taken + free, taken + free + self.low)
            found.append(network.decode(x[:, 1:]))
        return found


def check_random_steps(network: torch.nn.Module) -> None:
    """Raise UserError unless ``network`` descends in steps whose number can vary."""
    if not isinstance(network, InpaintingET) or len(network.later_blocks):
        raise UserError("task.steps_range and task.rest_steps need an Energy Transformer of one block")
