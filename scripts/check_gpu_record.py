"""What scripts/check_gpu.py measures with: sizes, timing, rows and their table.

``python scripts/check_gpu_record.py docs/gpu.json`` prints the table of a record.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Plan:
    """Sizes of all parts."""

    device: str = "cuda"
    seconds: float = 420.0  # no measurement starts later
    warmups: int = 2
    runs: int = 20
    product: int = 8192  # rows, columns and inner dimension of the matrix product
    copied: int = 1 << 30  # bytes
    tokens: tuple[int, ...] = (2, 197, 333)  # in the table of errors
    leaves: int = 3000  # of the hub there
    heads: int = 12
    width: int = 64
    lengths: tuple[tuple[int, int], ...] = ((64, 197), (8, 1024), (2, 4096))  # batch, N
    # name, nodes, directed edges, heads, width; with "hubs" in the name the degrees follow a power law
    graphs: tuple[tuple[str, int, int, int, int], ...] = (
        ("Amazon", 11_944, 8_800_000, 1, 64), ("Amazon, hubs", 11_944, 8_800_000, 1, 64),
        ("T-Finance", 39_357, 42_000_000, 3, 128), ("T-Social", 5_781_065, 146_211_016, 3, 128),
    )  # fmt: skip
    steps: int = 12
    dim: int = 768
    image: int = 224
    batches: tuple[int, ...] = (64, 256)
    # name, graphs, nodes and directed edges of each, features, classes
    data_sets: tuple[tuple[str, int, int, int, int, int], ...] = (
        ("ENZYMES", 600, 33, 124, 21, 6), ("DD", 1178, 284, 1432, 89, 2),
    )  # fmt: skip
    compiler: str = "inductor"


SMOKE = Plan(
    device="cpu", warmups=0, runs=1, product=64, copied=1 << 16, tokens=(9,), leaves=4, heads=1, width=16,
    lengths=((1, 9),), graphs=(("tiny, hubs", 4, 12, 1, 16),), steps=1, dim=64, image=32, batches=(1,),
    data_sets=(("tiny", 4, 5, 8, 3, 2),), compiler="eager",
)  # fmt: skip


class Missing(Exception):
    """Something that a row needs is absent."""


def need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise Missing(f"needs {package}")


class Check:
    """Rows of results, and what measures them."""

    def __init__(self, plan: Plan):
        self.plan, self.gpu, self.deadline = plan, plan.device == "cuda", time.monotonic() + plan.seconds
        self.rows: list[dict] = []
        self.rates: dict[str, float] = {}  # "bytes" and dtypes, a second

    def add(self, part: str, case: str, form: str, measure: Callable[..., dict], *arguments: Any) -> dict:
        """Record what ``measure(*arguments)`` finds, or why it finds nothing."""
        row = {"part": part, "case": case, "form": form}
        try:
            row |= {"skipped": "out of time"} if time.monotonic() > self.deadline else measure(*arguments)
        except Missing as missing:
            row["skipped"] = str(missing)
        except Exception as error:  # one form that fails must not cost the others
            row["failed"] = f"{type(error).__name__}: {error}".split("\n")[0][:200]
        if self.gpu:
            torch.cuda.empty_cache()
        self.rows.append(row)
        print(table_row(row, self.rates), flush=True)
        return row

    def timed(self, run: Callable[[], Any], flops: float = 0, moved: float = 0, dtype: str = "bfloat16") -> dict:
        """Median seconds of ``run`` and its peak memory, beside the least ``flops`` and bytes ``moved``."""
        synchronize = torch.cuda.synchronize if self.gpu else lambda: None
        for _ in range(self.plan.warmups):
            run()
        synchronize()
        held = torch.cuda.memory_allocated() if self.gpu else 0
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds, end = [], time.monotonic() + 2
        while len(seconds) < self.plan.runs and (not seconds or time.monotonic() < end):
            begin = time.perf_counter()
            run()
            synchronize()
            seconds.append(time.perf_counter() - begin)
        peak = torch.cuda.max_memory_allocated() - held if self.gpu else None
        found = {"seconds": statistics.median(seconds), "fastest": min(seconds), "runs": len(seconds)}
        return found | {"peak_bytes": peak, "flops": flops, "bytes": moved, "dtype": dtype}


HEADER = (
    "| part | case | form | ms | floor by bytes, ms | floor by operations, ms | share of floor | peak MiB | |\n"
    "|---|---|---|---:|---:|---:|---:|---:|---|"
)


def floors(row: dict, rates: dict[str, float]) -> dict[str, float]:
    """Least seconds by bytes and by operations at the measured ``rates``, and the longer one's share of the time."""
    if "seconds" not in row or not (row["flops"] or row["bytes"]):
        return {}
    by_bytes = row["bytes"] / rates.get("bytes", float("inf"))
    by_flops = row["flops"] / rates.get(row["dtype"], float("inf"))
    return {"by_bytes": by_bytes, "by_flops": by_flops, "share": max(by_bytes, by_flops) / row["seconds"]}


def table_row(row: dict, rates: dict[str, float]) -> str:
    """One measurement as a row of Markdown."""
    numbers = [""] * 5
    if "seconds" in row:
        floor = floors(row, rates)
        numbers[0] = f"{1e3 * row['seconds']:.3f}"
        numbers[1:3] = [f"{1e3 * floor[key]:.3f}" if floor.get(key) else "" for key in ("by_bytes", "by_flops")]
        numbers[3] = f"{floor['share']:.2f}" if floor.get("share") else ""
        numbers[4] = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"
    notes = [f"{key}: {row[key]}" for key in ("skipped", "failed", "summary") if key in row]
    if "error" in row:
        notes.append(f"error {row['error']:.1e}, bound {row['bound']:.1e}{'' if row['ok'] else ' EXCEEDED'}")
    if row.get("samples"):
        notes.append(f"{row['samples'] / row['seconds']:.0f} samples/s")
    if "hours" in row:
        notes.append(f"{row['hours']:.1f} h for the whole training")
    if "gathered_bytes" in row:
        notes.append(f"gathers {row['gathered_bytes'] / row['seconds'] / 1e9:.0f} GB/s")
    return "| " + " | ".join([row["part"], row["case"], row["form"], *numbers, "; ".join(notes)]) + " |"


def table(record: dict) -> str:
    """All measurements of a record as a table of Markdown."""
    return "\n".join([HEADER, *(table_row(row, record["rates"]) for row in record["rows"])])


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
