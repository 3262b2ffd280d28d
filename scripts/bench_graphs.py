"""One training epoch of the graph model: sparse against dense padded, seconds and peak memory.

    python scripts/bench_graphs.py                                # ENZYMES and DD, both layouts, whole epochs
    python scripts/bench_graphs.py --batches 8                    # only so many batches of each (the same in all)
    python scripts/bench_graphs.py --data MUTAG PROTEINS --precision bf16

Both layouts compute the same numbers (``fidelity=paper``, the model of table 9, batches of 32, the step of AdamW
included, gradients not centralised); ``padded`` pads every graph of a batch to its largest and computes all pairs. DD's
largest graph has 5,748 nodes, for which a padded batch needs 47 GB a tensor: for DD both are also run on graphs cut to
their first 500 nodes, as the released code does, and that pair is compared. Each measurement runs in a process of its
own, one after the other, on the same batches; data and eigenvectors are made beforehand. Seconds are those of the
clock; beside them those of all processors together, which tell more on a machine that is busy with other work, and what
the matrix products of the sparse layout's steps would take alone, at the highest rate of such a product here: with
these products no kernels can be faster. Memory is the highest resident set of the whole process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

# name: features, edge features, classes, standardized
DATA = {
    "MUTAG": (7, 4, 2, False),
    "ENZYMES": (21, 0, 6, True),
    "PROTEINS": (4, 0, 2, True),
    "DD": (89, 0, 2, False),
}
CASES = {"DD": [("sparse", None), ("sparse", 500), ("padded", 500)]}


def load(name: str, limit: int | None):
    """The data set with its eigenvectors, as in training on fold 0."""
    from et.graphs.data import GraphData

    features, edge_features, classes, standardize = DATA[name]
    root = os.environ.get("ET_DATA_DIR", "data")
    data = GraphData(
        name, "tu", root, features, edge_features, classes, standardize=standardize, max_nodes=limit,
        fidelity="released" if limit else "paper",
    )  # fmt: skip
    data.setup()
    return data


def product_rate() -> float:
    """Highest of twenty rates of the product that makes a batch's queries, (1250, 128) x (128, 768), in FLOP/s."""
    import torch

    left, right = torch.randn(1250, 128), torch.randn(128, 768)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(20):
            left @ right
        seconds.append((time.perf_counter() - start) / 20)
    return 2 * 1250 * 128 * 768 / min(seconds)


def measure(name: str, layout: str, limit: int | None, batches: int | None, precision: str) -> dict:
    """Seconds of one epoch (or of the first ``batches``) and the peak memory of this process."""
    import torch
    import torch.nn.functional as F
    from torch.utils.flop_counter import FlopCounterMode

    from et.graphs.model import GraphEnergyTransformer

    data = load(name, limit)
    torch.manual_seed(0)
    features, edge_features, classes, _ = DATA[name]
    model = GraphEnergyTransformer(features, edge_features, classes, layout=layout)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    def step(batch) -> None:
        with autocast:
            loss = F.cross_entropy(model(batch).float(), batch.y, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step(data.graphs.select(torch.arange(2)))  # compiles the kernels
    loader = data.train_dataloader()
    timed = list(itertools.islice(loader, batches))
    start, cpu_start = time.perf_counter(), time.process_time()
    for batch in timed:
        step(batch)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 2**20
    counts = {"batches": len(timed), "of": len(loader), "nodes": sum(batch.num_nodes for batch in timed)}
    if layout == "sparse":
        with FlopCounterMode(display=False) as counter:
            for batch in timed:
                step(batch)
        counts["products"] = counter.get_total_flops() / product_rate()
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_gb": peak, **counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["ENZYMES", "DD"], choices=sorted(DATA))
    parser.add_argument("--batches", type=int, help="batches of each measurement; default: all of an epoch")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(**json.loads(options.one))))
        return
    heads = f"{'seconds':>9} {'CPU s':>8} {'products':>8} {'us/node':>8} {'peak GB':>8}"
    print(f"{'data':<9} {'layout':<8} {'limit':>6} {'batches':>8} {heads}")
    for name in options.data:
        seconds = {}
        for layout, limit in CASES.get(name, [("sparse", None), ("padded", None)]):
            load(name, limit)
            case = {"name": name, "layout": layout, "limit": limit, "batches": options.batches}
            command = [sys.executable, __file__, "--one", json.dumps(case | {"precision": options.precision})]
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode:
                reason = (run.stderr.strip().splitlines() or [f"ended with {run.returncode} (out of memory?)"])[-1]
                print(f"{name:<9} {layout:<8} {limit or '-':>6} failed: {reason}")
                continue
            found = json.loads(run.stdout.strip().splitlines()[-1])
            seconds[layout] = found["seconds"]
            products = f"{found['products']:.2f}" if "products" in found else "-"
            done = f"{found['batches']:>4}/{found['of']:<3}"
            cost = f"{1e6 * found['seconds'] / found['nodes']:>8.0f} {found['peak_gb']:>8.2f}"
            print(
                f"{name:<9} {layout:<8} {limit or '-':>6} {done} {found['seconds']:>9.2f} "
                f"{found['cpu_seconds']:>8.2f} {products:>8} {cost}",
                flush=True,
            )
        if len(seconds) == 2:
            print(f"{name}: sparse is {seconds['padded'] / seconds['sparse']:.1f} times as fast on the same graphs")


if __name__ == "__main__":
    from et.utils.errors import exit_on_user_error

    exit_on_user_error(main)
