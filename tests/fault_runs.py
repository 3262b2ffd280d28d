"""Runs in processes of their own that start in no time: forked from a server that has imported everything."""

from __future__ import annotations

import io
import multiprocessing
import os

import torch

from et.training import launched
from et.training.run import train
from tests.configs import compose_config


def context() -> multiprocessing.context.BaseContext:
    """Where such processes come from; the server starts with the first of them."""
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["tests.fault_runs", "et.inpainting.lit", "et.graphs.lit", "et.anomaly.lit"])
    return forkserver


def run(overrides: tuple[str, ...]) -> None:
    """Train what ``overrides`` say."""
    torch.set_num_threads(1)
    train(compose_config("callbacks.progress=false", *overrides))


class Forked:
    """A process of a run over several, in the place of the ``subprocess.Popen`` that the launcher makes."""

    def __init__(self, command: list[str], env: dict[str, str], **options: object):
        self.process, self.stdin = context().Process(target=launch, args=(env,)), io.BytesIO()
        self.process.start()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.process.pid, signum)

    def kill(self) -> None:
        self.process.kill()

    def wait(self) -> None:
        self.process.join()


def launch(environment: dict[str, str]) -> None:
    """What ``python -m et.training.launched`` does, with ``environment``."""
    os.environ.update(environment)
    os.setsid()
    os.dup2(os.pipe()[0], 0)  # whose end does not come: the test ends this process
    torch.set_num_threads(1)
    launched.main()
