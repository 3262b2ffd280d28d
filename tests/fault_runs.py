"""Runs in processes of their own that start in no time: forked from a server that has imported everything."""

from __future__ import annotations

import multiprocessing

import torch

from et.training.run import train
from tests.configs import compose_config


def context() -> multiprocessing.context.BaseContext:
    """Where such processes come from; the server starts with the first of them."""
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["tests.fault_runs", "et.inpainting.data", "et.inpainting.lit"])
    return forkserver


def run(overrides: tuple[str, ...]) -> None:
    """Train what ``overrides`` say."""
    torch.set_num_threads(1)
    train(compose_config("callbacks.progress=false", *overrides))
