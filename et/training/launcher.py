"""The processes of a distributed run: how many, which one this is, and starting them on this machine.

srun and torchrun start every process themselves. Without them, :func:`run_processes` starts the ones a configuration
asks for and waits; each reads the configuration from a file, so it does not matter what started the run: a command
line, a sweep, a test.

Not torch's elastic_launch. Its agent ends all workers with SIGTERM as soon as one fails, which here means "save and
stop"; it dies of SIGUSR1 and SIGUSR2 instead of passing them on; and its workers outlive it if it is killed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from et.sweeps.slurm import device_count
from et.training.graceful_stop import hand_on
from et.training.run_log import OVERRIDES, command_overrides
from et.utils.errors import Interrupted, UserError
from et.utils.startup import SIGNALS

T = TypeVar("T")
OWN = "ET_PROCESS_FOLDER"  # set in the processes that run_processes started
GRACE = 10.0  # seconds the others get to end by themselves after one has failed


def local_processes(trainer: Mapping[str, Any]) -> int:
    """Processes on each node that a trainer's configuration asks for: one a device."""
    return device_count(trainer["devices"], max(1, usable_gpus(trainer)))


def usable_gpus(trainer: Mapping[str, Any]) -> int:
    """GPUs of this machine that a trainer's configuration may use."""
    return torch.cuda.device_count() if trainer["accelerator"] in ("auto", "gpu", "cuda") else 0


def under_srun(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether srun started this process as one of several tasks."""
    return "SLURM_STEP_ID" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1


def one_of_several() -> bool:
    """Whether srun or torchrun started this process as one of several of a run."""
    return under_srun() or (TorchElasticEnvironment.detect() and int(os.environ["WORLD_SIZE"]) > 1)


def must_start_processes(trainer: Mapping[str, Any]) -> bool:
    """Whether the run needs processes that nobody has started yet.

    Raises:
        UserError: Srun or torchrun started another number of them than the configuration asks for, or there are not
            as many GPUs.
    """
    local, nodes = local_processes(trainer), int(trainer["num_nodes"])
    if OWN in os.environ:
        return False
    if under_srun() or TorchElasticEnvironment.detect():
        started = int(os.environ["SLURM_NTASKS" if under_srun() else "WORLD_SIZE"])
        if started != local * nodes:
            raise UserError(
                f"{'srun' if under_srun() else 'torchrun'} started {started} processes, the run is for {nodes} nodes x "
                f"{local} devices: set trainer.num_nodes and trainer.devices, or the number of tasks"
            )
        return False
    if nodes > 1:
        raise UserError(f"trainer.num_nodes={nodes}: start the run on every node with srun or torchrun")
    gpus = usable_gpus(trainer)
    if gpus and local > gpus:
        raise UserError(
            f"trainer.devices={trainer['devices']}: there are {gpus} GPUs here; trainer.devices=-1 takes all"
        )
    return local > 1


def cluster_environment() -> ClusterEnvironment:
    """How Lightning learns ranks and addresses. Under Slurm it does not requeue: see graceful_stop.py."""
    if OWN not in os.environ:
        if TorchElasticEnvironment.detect():
            return TorchElasticEnvironment()
        if under_srun():
            return SLURMEnvironment(auto_requeue=False)
    return LightningEnvironment()


def broadcast_from_rank_zero(trainer: pl.Trainer, function: Callable[[], T]) -> T:
    """What ``function`` returns in the first process, in all of them.

    Raises:
        UserError: It was raised there.
    """
    if trainer.world_size == 1:
        return function()
    trainer.strategy.setup_environment()
    result, problem = None, None
    if trainer.is_global_zero:
        try:
            result = function()
        except UserError as error:
            problem = str(error)
    result, problem = trainer.strategy.broadcast((result, problem))
    if problem is not None:
        raise UserError(problem)
    return result


def run_processes(cfg: DictConfig) -> dict[str, Any]:
    """Train ``cfg`` in one process a device on this machine; the record of the run.

    Signals go on to the processes, once each. Where one process fails, the others are ended after :data:`GRACE`.

    Raises:
        Interrupted: A signal stopped the run.
        UserError: One of the processes raised it, or was killed.
        RuntimeError: One of the processes failed otherwise.
    """
    count = local_processes(cfg.trainer)
    with tempfile.TemporaryDirectory(prefix="et-") as name:
        folder = Path(name)
        OmegaConf.save(cfg, folder / "config.yaml")
        processes = [start_process(folder, rank, count) for rank in range(count)]
        try:
            signum = wait_for(processes)
            codes = [process.poll() for process in processes]  # before those that hang are killed below
        finally:
            for process in processes:
                process.kill()
                process.wait()
                process.stdin.close()
        if all(code == 0 for code in codes):
            return json.loads((folder / "record.json").read_text())
        raise_failure(folder, codes, signum)


def start_process(folder: Path, rank: int, count: int) -> subprocess.Popen:
    """One process of the run. It ends when its standard input does, and so with this process, however that ends."""
    if rank == 0:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            (folder / "port").write_text(str(probe.getsockname()[1]))
    threads = str(max(1, (os.cpu_count() or 1) // count))
    environment = {
        "OMP_NUM_THREADS": threads, **os.environ, OWN: str(folder), "LOCAL_RANK": str(rank), "NODE_RANK": "0",
        "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": (folder / "port").read_text(),
        OVERRIDES: json.dumps(command_overrides()),
    }  # fmt: skip
    # A session of its own: a Ctrl-C at the terminal reaches it through this process alone.
    return subprocess.Popen(
        [sys.executable, "-m", "et.training.launched"], env=environment, stdin=subprocess.PIPE, start_new_session=True
    )


def wait_for(processes: list[subprocess.Popen]) -> int | None:
    """Wait until all have ended; the signal that was passed on to them, if any."""
    passed: list[int] = []

    def forward(signum: int, frame: Any) -> None:
        passed.append(signum)
        for process in processes:
            process.send_signal(signum)

    former = {}
    if threading.current_thread() is threading.main_thread():
        former = {signum: signal.signal(signum, forward) for signum in SIGNALS}
    failed_at = None
    try:
        while any(process.poll() is None for process in processes):
            if failed_at is None and any(process.returncode for process in processes):
                failed_at = time.monotonic()
            if failed_at is not None and time.monotonic() - failed_at > GRACE:
                break
            time.sleep(0.05)
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)
    if passed:
        hand_on(former.get(passed[0]), passed[0])
    return passed[0] if passed else None


def raise_failure(folder: Path, codes: list[int | None], signum: int | None) -> NoReturn:
    """Raise what the processes' exit statuses and messages say.

    Args:
        folder: Where the processes left their messages.
        codes: Exit status of each process, by rank; None for one that did not end by itself.
        signum: Signal that was passed on to the processes, if any.
    """
    killed = next(((rank, -code) for rank, code in enumerate(codes) if code is not None and code < 0), None)
    if killed is not None and signum is None:  # what the others say follows from it: they lost a peer
        raise UserError(
            f"process {killed[0]} of {len(codes)} was killed by {signal_name(killed[1])} (SIGKILL often means out of "
            "memory); start the same command again to resume"
        )
    told = sorted(folder.glob("failure.*.json"), key=lambda path: path.stat().st_mtime_ns)
    failures = [json.loads(path.read_text()) for path in told]
    if failures and failures[0]["user"]:
        error = UserError(failures[0]["message"])
        error.stopped_by = signum
        raise error
    if signum is not None:
        raise Interrupted(signum)
    if failures:
        raise RuntimeError(failures[0]["message"])
    stopped = [code for code in codes if code is not None and (code == Interrupted.RESUMABLE or code > 128)]
    if stopped:
        raise Interrupted(signal.SIGUSR1 if stopped[0] == Interrupted.RESUMABLE else stopped[0] - 128)
    rank, code = next((rank, code) for rank, code in enumerate(codes) if code)
    raise UserError(
        f"process {rank} of {len(codes)} ended with status {code} (out of memory?); start the same command again to "
        "resume"
    )


def signal_name(number: int) -> str:
    """Name of a signal, such as SIGKILL."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
