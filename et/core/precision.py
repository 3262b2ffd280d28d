"""Which number format a computation runs in, how to leave autocast for it, and who looks at its operations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Whether this CPU multiplies matrices of bfloat16 (AVX512 or AMX, or their like elsewhere). Others are given it by
# torch through loops that take ten to a hundred times as long as float32.
CPU_HAS_BFLOAT16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype matrix products should run in: autocast's if it is on for ``x``'s device, else that of ``x``.

    Autocast to bfloat16 on a CPU without products in it leaves ``x`` as it is, which is faster and more precise there.
    """
    device = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x.dtype
    dtype = torch.get_autocast_dtype(device)
    return x.dtype if device == "cpu" and dtype == torch.bfloat16 and not CPU_HAS_BFLOAT16 else dtype


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is where it already has that precision or more."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def no_autocast(x: Tensor) -> torch.autocast:
    """Context in which operations keep the dtypes of their operands.

    The core chooses its dtypes itself: autocast would cast the weights at every step of the descent and would lift the
    softmax to float32, which costs more memory than all else in the step.
    """
    return torch.autocast(x.device.type, enabled=False)


def traced(x: Tensor) -> bool:
    """Whether something looks at the operations on ``x``, so that they must be plain ones without kernels of our own.

    It may be a compiler or exporter, a transform of torch.func, or forward mode differentiation with respect to ``x``.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad.unpack_dual(x).tangent is not None
    )


def watched(x: Tensor) -> bool:
    """Whether the operations on ``x`` are looked at, or autocast is on, which changes what they compute in."""
    return traced(x) or torch.is_autocast_enabled(x.device.type)


def differentiable_gradient(
    outputs: Tensor | tuple[Tensor, ...], inputs: tuple, needed: tuple[bool, ...], grads: Tensor | tuple[Tensor, ...]
) -> tuple:
    """Gradients of those ``inputs`` that are ``needed`` (None for the others), to be differentiated themselves."""
    wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True))
    return tuple(next(found) if need else None for need in needed)
