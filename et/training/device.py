"""The device of a run: which one, in what arithmetic, and how much of its memory was used."""

from __future__ import annotations

import gc
import resource
from contextlib import suppress
from pathlib import Path

import pytorch_lightning as pl
import torch


def accelerator(choice: str) -> str:
    """What to compute on: ``auto`` is a GPU of CUDA or the CPU; Apple's GPUs have no float64, which metrics need."""
    return "cpu" if choice == "auto" and not torch.cuda.is_available() else choice


def compute_exactly() -> None:
    """Let GPUs convolve in whole float32, as they multiply by default, and not in TF32.

    One convolution matters: where graphs are padded it makes ahat, which multiplies the scores of attention.
    """
    torch.backends.cudnn.allow_tf32 = False


def reset_peak_memory(device: torch.device) -> None:
    """Start the kernel's and CUDA's peak counters anew, so that a sweep in one process measures each run."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if device.type == "cuda":
        gc.collect()  # what the run before left in circles of references
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MB: of the GPU if the run was on one, else of this process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    try:
        status = Path("/proc/self/status").read_text()
        return round(int(status.split("VmHWM:")[1].split()[0]) / 1024, 1)
    except (OSError, IndexError):
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def device_name(trainer: pl.Trainer) -> str:
    """What the run was computed on, for example "2 x NVIDIA A100" or "cpu (2 threads)"."""
    if trainer.strategy.root_device.type == "cuda":
        return f"{trainer.world_size} x {torch.cuda.get_device_name()}"
    processes = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    return f"{processes}{trainer.strategy.root_device.type} ({torch.get_num_threads()} threads)"
