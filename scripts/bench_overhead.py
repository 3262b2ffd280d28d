"""What the framework costs beside the training itself.

    python scripts/bench_overhead.py steps       # demo_inpainting: the bare loop against train(), steps a second
    python scripts/bench_overhead.py processes   # the same run on one process and on two
    python scripts/bench_overhead.py start       # a cell in a process of its own, and in one that runs already

Ratios are of numbers measured in one run, alternately. Beside the seconds of the clock, which need a machine without
other work, `steps` gives those of the processor, which other work disturbs little.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hydra import compose, initialize_config_dir  # noqa: E402
from hydra.utils import instantiate  # noqa: E402

from et.training import optim  # noqa: E402
from et.training import run as training  # noqa: E402
from et.training.run import build_network, train  # noqa: E402


def configuration(*overrides: str):
    """demo_inpainting in float32, without pictures and without validations."""
    settings = (
        "experiment=demo_inpainting", "trainer.precision=32-true", "trainer.accelerator=cpu", "~callbacks.pictures",
        "trainer.check_val_every_n_epoch=100", "+trainer.limit_test_batches=1",
    )  # fmt: skip
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", [*settings, *overrides])


class Steps:
    """Stands for the trainer where a schedule asks for the number of steps."""

    def __init__(self, cfg, batches: int):
        self.max_epochs = cfg.trainer.max_epochs
        self.estimated_stepping_batches = self.max_epochs * batches


def bare_loop(cfg) -> tuple[float, float]:
    """Seconds (clock, processor) of the loop one would write by hand: same data, network, loss, optimizer, schedule."""
    torch.manual_seed(cfg.seed)
    data, network = instantiate(cfg.data), build_network(cfg)
    task = instantiate(cfg.task, network=network, optim=cfg.optim)
    task.log = lambda *args, **kwargs: None
    loader = data.train_dataloader()
    found = optim.configure(cfg.optim, task, Steps(cfg, len(loader)))
    optimizer, scheduler = found["optimizer"], found["lr_scheduler"]["scheduler"]
    started = now()
    for epoch in range(cfg.trainer.max_epochs):
        loader.sampler.set_epoch(epoch)
        for index, batch in enumerate(loader):
            loss = task.training_step(batch, index)
            optimizer.zero_grad()
            loss.backward()
            if cfg.optim.clip_norm:
                torch.nn.utils.clip_grad_norm_(task.parameters(), cfg.optim.clip_norm)
            optimizer.step()
            scheduler.step()
    return since(started)


def framework(cfg) -> tuple[float, float]:
    """Seconds (clock, processor) of train()'s fitting: Lightning, callbacks, progress bar, checkpoints, metrics.csv."""
    found: list[tuple[float, float]] = []
    original = training.fit

    def timed(*args):
        started = now()
        original(*args)
        found.append(since(started))

    training.fit = timed
    try:
        train(cfg)
    finally:
        training.fit = original
    return found[0]


def now() -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    return time.perf_counter(), time.process_time()


def since(started: tuple[float, float]) -> tuple[float, float]:
    """Seconds of the clock and of the processor since then."""
    return tuple(end - start for start, end in zip(started, now(), strict=True))


def steps(options: argparse.Namespace) -> None:
    times: dict[str, list[tuple[float, float]]] = {"bare": [], "train": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.repeats + 1):
            settings = (
                f"data.source.crops_per_epoch={96 * options.batches}", "trainer.max_epochs=2",
                f"paths.runs={folder}/{number}",
            )  # fmt: skip
            bare = bare_loop(configuration(*settings))
            whole = framework(configuration(*settings, "callbacks.progress=true"))
            if number:  # the first round warms up
                times["bare"].append(bare)
                times["train"].append(whole)
    count = 2 * options.batches
    for which, name in enumerate(("clock", "processor")):
        middle = {loop: statistics.median(pair[which] for pair in pairs) for loop, pairs in times.items()}
        lost = [whole[which] / bare[which] - 1 for bare, whole in zip(times["bare"], times["train"], strict=True)]
        rounds = ", ".join(f"{ratio:.1%}" for ratio in lost)
        print(
            f"{name:<9} bare loop {count / middle['bare']:.3f} steps/s, train() {count / middle['train']:.3f} steps/s; "
            f"lost to the framework: {statistics.median(lost):.1%} (rounds: {rounds})"
        )


def processes(options: argparse.Namespace) -> None:
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in (("one", ("trainer.devices=1",)), ("two", ("trainer.devices=2", "trainer.strategy=ddp"))):
            # One thread a process, so that the second process is the only difference.
            os.environ["OMP_NUM_THREADS"] = "1"
            torch.set_num_threads(1)
            cfg = configuration(f"data.source.crops_per_epoch={96 * options.batches}", "trainer.max_epochs=2",
                                f"paths.runs={folder}/{name}", "callbacks.progress=false", *settings)  # fmt: skip
            started = time.perf_counter()
            seconds = train(cfg).record["seconds"]
            found[name] = seconds
            print(f"{name} process{'' if name == 'one' else 'es'} of one thread: {seconds:.1f} s of fitting, "
                  f"{time.perf_counter() - started:.1f} s in all")  # fmt: skip
    print(f"two processes fit {found['one'] / found['two']:.2f} times as fast as one")


def start(options: argparse.Namespace) -> None:
    tiny = ("experiment=demo_anomaly", "trainer.max_epochs=1", "callbacks.progress=false")
    with tempfile.TemporaryDirectory() as folder:
        alone = []
        for number in range(options.repeats):
            started = time.perf_counter()
            subprocess.run([sys.executable, "train.py", *tiny, f"paths.runs={folder}/{number}"], cwd=ROOT, check=True,
                           stdout=subprocess.DEVNULL)  # fmt: skip
            alone.append(time.perf_counter() - started)
        sweep = []
        for cells in (1, 6):
            started = time.perf_counter()
            seeds = ",".join(map(str, range(cells)))
            subprocess.run([sys.executable, "train.py", "--multirun", "sweep=table01", *tiny, "protocol=held_out",
                            f"seed={seeds}", f"paths.runs={folder}/sweep{cells}"], cwd=ROOT, check=True,
                           stdout=subprocess.DEVNULL)  # fmt: skip
            sweep.append(time.perf_counter() - started)
    print(f"a run of one epoch of demo_anomaly in a process of its own: {statistics.median(alone):.1f} s {alone}")
    print(f"one more cell in a sweep's process: {(sweep[1] - sweep[0]) / 5:.2f} s (sweeps of 1 and 6 cells: {sweep})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("steps", "processes", "start"))
    parser.add_argument("--repeats", type=int, default=5, help="rounds of `steps`, processes of `start`")
    parser.add_argument("--batches", type=int, default=30, help="batches of 96 images an epoch; two epochs")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
          f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
    {"steps": steps, "processes": processes, "start": start}[options.what](options)


if __name__ == "__main__":
    main()
