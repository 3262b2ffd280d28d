"""Which number format a computation runs in, and how to leave autocast for it."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype matrix products should run in: autocast's if it is on for ``x``'s device, else that of ``x``."""
    device = x.device.type
    if x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is where it already has that precision or more."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def no_autocast(x: Tensor) -> torch.autocast:
    """Context in which operations keep the dtypes of their operands.

    The core chooses its dtypes itself: autocast would cast the weights at every step of the descent and would lift the
    softmax to float32, which costs more memory than all else in the step.
    """
    return torch.autocast(x.device.type, enabled=False)
