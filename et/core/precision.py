"""Dtypes of the core's computations, and whether plain operations are required in place of custom kernels."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

# True if this CPU has instructions (AVX512 or AMX, or their like elsewhere) for matrix products in the dtype. On others
# torch emulates them, ten to a hundred times slower than float32.
CPU_HAS_BFLOAT16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
CPU_HAS_FLOAT16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_fp16_supported()


def autocast_enabled(x: Tensor) -> bool:
    """True if autocast is enabled for the device of ``x``; the meta device has no autocast."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Dtype for matrix products: autocast's if enabled for the device of ``x``, else that of ``x``.

    It is float32 instead of a half precision that this CPU has no instructions for, which is faster and more precise.
    float64 stays float64.
    """
    device, dtype = x.device.type, x.dtype
    if dtype == torch.float64:
        return dtype
    if autocast_enabled(x):
        dtype = torch.get_autocast_dtype(device)
    supported = {torch.bfloat16: CPU_HAS_BFLOAT16, torch.float16: CPU_HAS_FLOAT16}.get(dtype, True)
    return torch.float32 if device == "cpu" and not supported else dtype


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32 if it is in half precision, else unchanged."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def restore_dtype(result: Tensor, x: Tensor) -> Tensor:
    """``result`` in the dtype of the input ``x``, as from any layer; unchanged (float32) under autocast."""
    return result if autocast_enabled(x) else result.to(x.dtype)


def no_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Context that disables autocast on the device of ``x``.

    The core chooses its dtypes itself: autocast would cast the weights at every step of the descent and would run the
    softmax in float32, which costs more memory than everything else in the step.
    """
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def is_traced(x: Tensor) -> bool:
    """True under torch.compile, export, torch.func, or forward-mode differentiation with respect to ``x``.

    Custom kernels cannot run there; plain operations replace them.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad.unpack_dual(x).tangent is not None
    )


def needs_plain_operations(x: Tensor) -> bool:
    """True if :func:`is_traced`, or under autocast, which acts on plain operations only."""
    return is_traced(x) or autocast_enabled(x)


def differentiable_gradient(
    outputs: Tensor | tuple[Tensor, ...],
    inputs: tuple[Tensor, ...],
    needed: tuple[bool, ...],
    grads: Tensor | tuple[Tensor, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of the ``inputs`` that are ``needed`` (None for the others), with a graph of their own."""
    selected = [x for x, need in zip(inputs, needed, strict=True) if need]
    found = iter(torch.autograd.grad(outputs, selected, grads, create_graph=True))
    return tuple(next(found) if need else None for need in needed)
