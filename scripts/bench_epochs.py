"""An epoch of the authors' settings for node anomaly detection: kernels along edges against gather and scatter.

    OMP_NUM_THREADS=2 python scripts/bench_epochs.py                           # four settings, three rounds
    OMP_NUM_THREADS=2 python scripts/bench_epochs.py --rounds 1 --only tolokers_40pct

Each measurement is a run of its own (``protocol=released fidelity=released``, in a temporary folder), in turn with and
without the kernels: ``ET_SPARSE_BACKEND=reference`` is the same model with plain gather and scatter, which makes
tensors of edges x heads x head dimension, as dgl's message functions do in the authors' code. Seconds are the
difference between a longer and a shorter run over the difference in epochs, so start and data are not in them; the
median over rounds. Memory is the highest resident set of the whole process; beside it what exceeds that of
``experiment=demo_anomaly``, a graph of 569 nodes: the libraries take about a gigabyte whatever the graph.
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

ROOT = Path(__file__).parents[1]
SETTINGS = ("amazon_upu_1pct", "amazon_upu_40pct", "tolokers_40pct", "yelp_reviewers_40pct")
EPOCHS = {"auto": (5, 25), "reference": (1, 4)}  # of the shorter and the longer run


def run(experiment: str, epochs: int, backend: str) -> tuple[float, float]:
    """Seconds and highest resident memory in MiB of one training run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, str(ROOT / "train.py"), f"experiment={experiment}", "protocol=released",
            "fidelity=released", "seed=0", f"trainer.max_epochs={epochs}", f"paths.runs={folder}",
            "callbacks.progress=false",
        ]  # fmt: skip
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"ET_SPARSE_BACKEND": backend},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"failed with {process.returncode}: {' '.join(command)}; run it by hand to see why")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def epoch(experiment: str, backend: str) -> tuple[float, float]:
    """Seconds of an epoch and highest memory in MiB."""
    (short, _), (long, memory) = (run(experiment, epochs, backend) for epochs in EPOCHS[backend])
    return (long - short) / (EPOCHS[backend][1] - EPOCHS[backend][0]), memory


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    options = parser.parse_args(arguments)
    _, base = run("demo_anomaly", 1, "auto")
    print(f"a graph of 569 nodes: {base:.0f} MiB in all\n")
    print("| | backend | s an epoch (fastest-slowest) | | MiB in all | | beyond | |")
    print("|---|---|---:|---:|---:|---:|---:|---:|", flush=True)
    for experiment in options.only:
        rounds = [{backend: epoch(experiment, backend) for backend in EPOCHS} for _ in range(options.rounds)]
        times = {backend: [found[backend][0] for found in rounds] for backend in EPOCHS}
        memory = {backend: statistics.median(found[backend][1] for found in rounds) for backend in EPOCHS}
        for backend in ("reference", "auto"):
            middle, whole = statistics.median(times[backend]), statistics.median(times["reference"])
            cells = [
                f"{middle:.2f} ({min(times[backend]):.2f}-{max(times[backend]):.2f})", f"1/{whole / middle:.1f}",
                f"{memory[backend]:.0f}", f"1/{memory['reference'] / memory[backend]:.1f}",
                f"{memory[backend] - base:.0f}", f"1/{(memory['reference'] - base) / (memory[backend] - base):.1f}",
            ]  # fmt: skip
            print(f"| {experiment} | {backend} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
