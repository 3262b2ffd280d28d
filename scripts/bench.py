"""ET-Base against a plain ViT-Base and against autograd of the energy: time, memory, scaling; one program, one run.

    python scripts/bench.py                          # all parts: a quarter of an hour on two quiet cores
    python scripts/bench.py --parts fp32 memory      # some; the others keep what the json holds
    python scripts/bench.py --parts render           # only table and plot, from the json

Parts: ``fp32`` and ``bf16`` (training step and inference, all forms in turn, so that what disturbs one disturbs all),
``compile`` (torch.compile of ours against ours), ``scaling`` (against T, N, batch and D), ``memory``, ``profile``
(where the time of a step of three blocks goes), ``render``. Where the processor multiplies bfloat16, ``compile``,
``scaling`` and ``memory`` have it beside float32.

What is timed: the blocks from tokens to tokens. A training step is forward and backward with the gradients of tokens
and weights, and then AdamW's update (torch's fused one), which costs the ViT eighteen times as much as ET; both are
recorded, the first alone too. ViT is timm's vit_base_patch16_224 without patches and head. Rates are of forward and
backward; they count the multiply-adds of matrix products, twice: forward
T (12 N D^2 + 3 N^2 D) for ET, 12 N D^2 + 2 N^2 D a block for ViT, three times that for a step; what is computed again
counts once. Memory is the highest resident memory of two training steps (one where N is 4096 and T is 12) less
that before the model was made: weights, gradients and activations. ``tensors`` is the most that tensors of a step held
at one time, without what the allocator keeps back.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from et.core import EnergyTransformerBlock, descend, precision
from et.runs.record import git_commit

ROOT = Path(__file__).parents[1]
PARTS = ("fp32", "bf16", "compile", "scaling", "memory", "profile", "render")


@dataclass(frozen=True)
class Size:
    """Shape of a case: steps T (blocks of the ViT), batch, tokens N and width D; H = D / 64, Y = 64, M = 4 D."""

    steps: int = 12
    batch: int = 4
    tokens: int = 197
    dim: int = 768

    def operations(self, form: str) -> float:
        """Floating-point operations of a forward pass."""
        attention = 2 if form == "vit" else 3
        of_sample = 12 * self.tokens * self.dim**2 + attention * self.tokens**2 * self.dim
        return 2.0 * self.steps * self.batch * of_sample


# ---------------------------------------------------------------------------------------------------------- the forms


def make_form(form: str, size: Size) -> tuple[torch.nn.Module, Callable[[Tensor], Tensor]]:
    """The module that holds the weights, and the function from tokens to tokens."""
    torch.manual_seed(0)
    if form == "vit":
        vit = timm.models.VisionTransformer(
            num_classes=0, embed_dim=size.dim, depth=size.steps, num_heads=size.dim // 64, global_pool=""
        )
        vit.patch_embed, vit.pos_embed = torch.nn.Identity(), None
        return vit, lambda x: vit.norm(vit.blocks(x))
    block = EnergyTransformerBlock(size.dim, size.dim // 64, 64, 4 * size.dim)
    if form in ("autograd", "func"):
        return block, lambda x: descend_by_autograd(block, x, size.steps, func=form == "func")
    options = {"checkpoint": True} if form == "et_checkpoint" else {}
    run = lambda x: descend(block, x, size.steps, 0.1, **options).x  # noqa: E731
    return block, torch.compile(run, fullgraph=True) if form == "et_compiled" else run


def descend_by_autograd(block: EnergyTransformerBlock, x: Tensor, steps: int, func: bool) -> Tensor:
    """The same descent by automatic differentiation of the energy inside the forward pass, weights cast once."""
    dtype = precision.compute_dtype(x)
    attention, eye = block.attention, torch.eye(x.shape[-2], dtype=torch.bool, device=x.device)
    weights, memories = attention.stacked_weights().to(dtype), block.hopfield.memories.to(dtype)
    beta = attention.beta.to(dtype)[:, None, None]

    def energy(g: Tensor) -> Tensor:
        g = g.to(dtype)
        q, k = (part.transpose(-3, -2) for part in attention.split_heads(F.linear(g, weights)))
        scores = ((q * beta) @ k.mT).masked_fill(eye, -torch.inf)
        partition = (torch.logsumexp(scores, -1) / beta[..., 0]).sum()
        return -partition - 0.5 * F.relu(F.linear(g, memories)).square().sum()

    with precision.no_autocast(x):
        for _ in range(steps):
            g = block.norm(x)
            if func:
                gradient = torch.func.grad(energy)(g)
            else:
                g = g if g.requires_grad else g.requires_grad_()  # inference: the graph lives for this step alone
                with torch.enable_grad():
                    (gradient,) = torch.autograd.grad(energy(g), g, create_graph=x.requires_grad)
            x = x - 0.1 * gradient
    return x


class Case:
    """One form at one size and precision, ready to run."""

    def __init__(self, form: str, size: Size, bf16: bool, training: bool):
        self.module, self.function = make_form(form, size)
        self.form, self.size, self.bf16, self.training = form, size, bf16, training
        self.tokens = torch.randn(size.batch, size.tokens, size.dim, generator=torch.Generator().manual_seed(1))
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-6, fused=True)

    def run(self) -> None:
        self.module.zero_grad()
        x = self.tokens.clone().requires_grad_(self.training)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16), torch.set_grad_enabled(self.training):
            out = self.function(x)
        if self.training:
            out.float().square().mean().backward()

    def measure(self) -> tuple[float, float, float]:
        """Seconds by the clock and of processor time of all threads; and those of the update, by the clock."""
        start, cpu_start = time.perf_counter(), time.process_time()
        self.run()
        seconds, cpu, start = time.perf_counter() - start, time.process_time() - cpu_start, time.perf_counter()
        if self.training:
            self.optimizer.step()
        return seconds, cpu, time.perf_counter() - start


# ----------------------------------------------------------------------------------------------------------- measuring


def side_by_side(forms: list[str], size: Size, bf16: bool, training: bool, rounds: int) -> dict:
    """Each form once a round, in turn; the first round is not counted."""
    cases = [Case(form, size, bf16, training) for form in forms]
    found: dict[str, list[tuple[float, float, float]]] = {form: [] for form in forms}
    for number in range(rounds + 1):
        for case in cases:
            measured = case.measure()
            if number:
                found[case.form].append(measured)
    rows = {}
    for form, measured in found.items():
        seconds, cpu, update = zip(*measured, strict=True)
        operations = size.operations(form) * (3 if training else 1)
        middle = statistics.median(seconds)
        rows[form] = {
            "seconds": middle, "spread": [min(seconds), max(seconds)], "cpu_seconds": statistics.median(cpu),
            "gflops": operations / middle / 1e9, "update_seconds": statistics.median(update),
            "updated_seconds": statistics.median(a + b for a, b in zip(seconds, update, strict=True)),
        }  # fmt: skip
        print(
            f"  {form:<14} {middle:8.3f} s ({min(seconds):.3f} .. {max(seconds):.3f}), {rows[form]['gflops']:.0f} GF/s"
            f", update {rows[form]['update_seconds']:.3f} s",
            flush=True,
        )
    return {"size": asdict(size), "bf16": bf16, "training": training, "rows": rows}


def product_rate(dtype: torch.dtype) -> float:
    """Highest of five rates of this machine's products (788, 768) x (768, 3072), ET-Base's own, in GF/s."""
    left, right = torch.randn(788, 768).to(dtype), torch.randn(3072, 768).to(dtype)
    repeats = 4 if dtype == torch.float32 or precision.CPU_HAS_BFLOAT16 else 1
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(repeats):
            F.linear(left, right)
        rates.append(2 * 788 * 768 * 3072 * repeats / (time.perf_counter() - start) / 1e9)
    return max(rates)


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (highest since it was reset) of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(field + ":")[1].split()[0]) * 1024


def memory_of(form: str, size: Size, steps: int = 2, training: bool = True, bf16: bool = False) -> int:
    """Bytes: highest resident memory of some steps, less that before the model was made."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    case = Case(form, size, bf16, training)
    for _ in range(steps):
        case.run()
    found = resident("VmHWM") - before
    print(f"  {form:<14} {asdict(size)}{', bf16' * bf16}: {found / 2**20:.0f} MiB", flush=True)
    return found


def live_peak(form: str, size: Size) -> int:
    """Bytes: most that tensors of a training step held at one time; what the allocator keeps back is not in it."""
    case = Case(form, size, False, training=True)
    case.run()
    # No gradients when the profile begins and none when it ends: memory that it saw only one end of would count wrong,
    # in this profile or, through an address that is used again, in a later one.
    case.module.zero_grad()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        case.run()
        case.module.zero_grad()
    # The profiler's tables give sums for each operation; the peak needs the allocations and releases one by one.
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = list(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
    print(f"  {form:<14} {asdict(size)}: tensors {max(held) / 2**20:.0f} MiB", flush=True)
    return max(held)


def measure_profile(rounds: int) -> dict:
    """Operations of a training step of three blocks by their own processor time, the ten largest."""
    found = {}
    for form in ("vit", "et"):
        case = Case(form, Size(steps=3), False, training=True)
        case.run()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            for _ in range(rounds):
                case.run()
        events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
        total = sum(event.self_cpu_time_total for event in events)
        found[form] = {"milliseconds": total / rounds / 1e3, "share": {}}
        print(f"  {form}: {total / rounds / 1e3:.0f} ms")
        for event in events[:10]:
            found[form]["share"][event.key] = event.self_cpu_time_total / total
            print(f"    {100 * event.self_cpu_time_total / total:5.1f} %  {event.key} ({event.count // rounds})")
    return found


def measure_precision(bf16: bool, rounds: int) -> dict:
    slow = bf16 and not precision.CPU_HAS_BFLOAT16
    # torch's bfloat16 products on a CPU without them take minutes for a step of ViT-Base: one block, one image.
    size, rounds = (Size(steps=1, batch=1), 2) if slow else (Size(), rounds)
    forms = ["vit", "et", "et_checkpoint", "autograd", "func"]
    rate = product_rate(torch.bfloat16 if bf16 else torch.float32)
    training = side_by_side(forms, size, bf16, True, rounds)
    inference = side_by_side([form for form in forms if form != "et_checkpoint"], size, bf16, False, rounds)
    return {"product_gflops": rate, "native": not slow, "training": training, "inference": inference}


def precisions() -> tuple[bool, ...]:
    """Whether autocast is on, for each precision to measure; bfloat16 only where the processor multiplies it."""
    return (False, True) if precision.CPU_HAS_BFLOAT16 else (False,)


def measure_compiled(rounds: int) -> dict:
    forms, found = ["vit", "et", "et_compiled"], {}
    for bf16 in precisions():
        training, inference = (side_by_side(forms, Size(), bf16, kind, rounds) for kind in (True, False))
        rate = product_rate(torch.bfloat16 if bf16 else torch.float32)
        part = {"product_gflops": rate, "training": training, "inference": inference}
        found |= {"bf16": part} if bf16 else part
    return found


LONGEST = 4096  # tokens
SCALING = {
    "T": [Size(steps=t) for t in (1, 4, 12, 24)],
    "N": [Size(steps=2, batch=1, tokens=n) for n in (196, 512, 1024, 2048, LONGEST)],
    "batch": [Size(steps=2, batch=b) for b in (1, 4, 16)],
    "D": [Size(steps=2, batch=4, dim=d) for d in (192, 384, 768, 1536)],
}


def measure_scaling(rounds: int) -> dict:
    found: dict[str, list[dict]] = {axis: [] for axis in SCALING}
    for axis, sizes in SCALING.items():
        for size in sizes:
            of_precision = []
            for bf16 in precisions():
                run = side_by_side(["vit", "et"], size, bf16, True, min(rounds, 2))
                held = {form: memory_of(form, size, bf16=bf16) for form in ("vit", "et")}
                of_precision.append(run | {"bytes": held})
            first, *other = of_precision
            found[axis].append(first | ({"in_bf16": other[0]} if other else {}))
    return found


def measure_memory(rounds: int) -> dict:
    forms = ("vit", "et", "et_checkpoint", "autograd", "func")
    large = replace(Size(), batch=1, tokens=LONGEST)
    base = {form: memory_of(form, Size()) for form in forms}
    inference = {form: memory_of(form, Size(), training=False) for form in forms if form != "et_checkpoint"}
    base_bf16 = {form: memory_of(form, Size(), bf16=True) for form in forms if len(precisions()) > 1}
    tensors = {form: live_peak(form, Size()) for form in (*forms, "et_compiled")}
    against_steps = {
        steps: {form: live_peak(form, Size(steps=steps)) for form in ("et", "et_checkpoint")}
        for steps in (1, 4, 12, 24)
    }
    at_length = {"size": asdict(large), "et": memory_of("et", large, steps=1)}
    return {
        "base": base,
        "base_bf16": base_bf16,
        "inference": inference,
        "tensors": tensors,
        "against_steps": against_steps,
        "large": at_length,
    }


def environment() -> dict:
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": model[0].split(":")[1].strip() if model else platform.machine(),
        "threads": torch.get_num_threads(), "load": list(os.getloadavg()), "torch": torch.__version__,
        "timm": timm.__version__, "capability": torch.backends.cpu.get_cpu_capability(),
        "bfloat16_products": precision.CPU_HAS_BFLOAT16, "commit": git_commit(ROOT),
        "utc": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "performance.json")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "images" / "performance.png")
    options = parser.parse_args(arguments)
    record = json.loads(options.json.read_text()) if options.json.exists() else {}
    measures = {
        "fp32": lambda rounds: measure_precision(False, rounds), "bf16": lambda rounds: measure_precision(True, rounds),
        "compile": measure_compiled, "scaling": measure_scaling, "memory": measure_memory,
        "profile": measure_profile,
    }  # fmt: skip
    for part in options.parts:
        if part == "render":
            continue
        print(f"{part}:", flush=True)
        started = environment()
        record[part] = {**measures[part](options.rounds), "environment": started, "rounds": options.rounds}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    if "render" in options.parts:
        sys.path.insert(0, str(ROOT))
        from scripts.bench_report import plot, table

        print(table(record))
        plot(record, options.plot)


if __name__ == "__main__":
    main()
