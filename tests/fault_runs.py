"""Runs in processes of their own that start in no time: forked from a server that has imported everything."""

from __future__ import annotations

import io
import multiprocessing
import os
import runpy
import sys
from pathlib import Path

import torch

from et.training import launched
from et.training.run import train
from tests.configs import ROOT, compose_config


def context() -> multiprocessing.context.BaseContext:
    """Where such processes come from; the server starts with the first of them."""
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["tests.fault_runs", "et.inpainting.lit", "et.graphs.lit", "et.anomaly.lit"])
    return forkserver


def run(overrides: tuple[str, ...]) -> None:
    """Train what ``overrides`` say."""
    torch.set_num_threads(1)
    train(compose_config("callbacks.progress=false", *overrides))


def run_command(arguments: tuple[str, ...], environment: dict[str, str], output: Path) -> None:
    """``python train.py ARGUMENTS`` with ``environment``; what it prints goes to the file ``output``."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), 1)
    sys.argv = ["train.py", *arguments]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


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
