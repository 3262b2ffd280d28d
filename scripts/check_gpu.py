"""Check on a GPU: are the kernels right, how fast is ET beside a ViT, and how near are the machine's limits?

    python scripts/check_gpu.py                   # within eight minutes on one GPU; writes docs/gpu.json
    python scripts/check_gpu.py --parts errors attention
    python scripts/check_gpu.py --cpu-smoke       # every part at a tiny size on the CPU, Triton interpreted

Nothing is downloaded: operands, graphs and images are random. What needs a package that is absent (dgl, hydra, timm,
torch_geometric), or does not fit into memory or into the time, says so in its row.

A row has the median seconds of some runs, the peak memory beyond what was held before, and the least bytes and
operations: operands and results moved once, matrix products without recomputed ones. Its floor is the longer of bytes
at the measured bandwidth and operations at the measured rate of matrix products. The exit status is 1 if an error
exceeds the bound of its dtype or a test fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

if "--cpu-smoke" in sys.argv:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when it is first imported
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products need it

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from et.core import EdgeTopology, sparse  # noqa: E402
from et.core.csr import SortedEdges  # noqa: E402
from et.core.kernels import dense as kernels_dense  # noqa: E402
from et.core.kernels import flex as kernels_flex  # noqa: E402
from et.core.kernels import reference as kernels_reference  # noqa: E402
from et.runs.record import git_commit, versions  # noqa: E402
from scripts.check_gpu_record import HEADER, SMOKE, Check, Missing, Plan, floors, need  # noqa: E402

# Largest error as a part of the largest value: a few roundings of the dtype. The gradient of beta, one sum over all
# pairs whose terms cancel, has the largest.
BOUNDS = {torch.float32: 2e-5, torch.float16: 8e-3, torch.bfloat16: 6.4e-2}
IMAGES, EPOCHS, GLOBAL_BATCH, GPUS = 1_281_167, 100, 768, 8  # the paper's ImageNet training (table 4)


@contextmanager
def deterministic(enabled: bool = True):
    torch.use_deterministic_algorithms(enabled)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def step_of(function: Callable[..., Any], *inputs: Tensor) -> Callable[[], Any]:
    """Forward and backward of ``function`` with fixed cotangents."""
    weights = [torch.randn_like(x) for x in as_tuple(function(*inputs))]
    return lambda: torch.autograd.grad(as_tuple(function(*inputs)), inputs, weights)


def operand(check: Check, dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator(check.plan.device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=check.plan.device).to(dtype).requires_grad_()


def betas(check: Check, heads: int, value: float) -> Tensor:
    return torch.full((heads,), value, device=check.plan.device, requires_grad=True)


# ---------------------------------------------------------------------------------------------------------------- parts


def measure_rates(check: Check) -> None:
    """Bandwidth of a copy, and rates of matrix products."""
    plan = check.plan
    source = torch.zeros(plan.copied, dtype=torch.uint8, device=plan.device)
    target = torch.empty_like(source)
    row = check.add("rates", "copy", "bytes", check.timed, lambda: target.copy_(source), 0, 2 * plan.copied)
    if "fastest" in row:
        check.rates["bytes"] = 2 * plan.copied / row["fastest"]
    for dtype in (torch.bfloat16, torch.float32):
        left = right = operand(check, dtype, plan.product, plan.product).detach()
        name, flops, product = str(dtype)[6:], 2 * plan.product**3, lambda left=left, right=right: left @ right
        row = check.add("rates", "product", name, check.timed, product, flops, 0, name)
        if "fastest" in row:
            check.rates[name] = flops / row["fastest"]


def dense_forms(flex: bool) -> dict[str, Callable[[Tensor, Tensor, bool], Tensor]]:
    """The ways to compute both terms between all pairs; FlexAttention, which compiles each shape, only on request."""
    forms = {"chunked": lambda qk, beta, own=False: kernels_dense.attention(qk, beta, own, store_attention=False)}
    if flex and torch.cuda.is_available():
        forms["flex"] = kernels_flex.attention
    if importlib.util.find_spec("triton"):
        from et.core.kernels import triton_dense

        forms["triton"] = triton_dense.attention
    return forms


def results(function: Callable, inputs: list[Tensor], weights: list[Tensor] | None) -> tuple[list, list[Tensor]]:
    """Outputs and gradients of ``function``, and the cotangents."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    outputs = as_tuple(function(*inputs))
    generator = torch.Generator().manual_seed(2)
    weights = weights or [torch.randn(x.shape, generator=generator).to(x) for x in outputs]
    cotangents = [w.to(x.dtype) for w, x in zip(weights, outputs, strict=True)]
    return [*outputs, *torch.autograd.grad(outputs, inputs, cotangents)], weights


def measure_error(function: Callable, reference: Callable, inputs: list[Tensor], fixed_blocks: bool) -> dict:
    """Largest error against ``reference`` in float64, as a part of each result's largest value (of 1 at least)."""
    with deterministic(fixed_blocks):
        found, weights = results(function, inputs, None)
    exact, _ = results(reference, [x.double() for x in inputs], weights)
    parts = [(x - y).abs().max() / y.abs().max().clamp(min=1) for x, y in zip(found, exact, strict=True)]
    error = max(part.item() for part in parts)
    dtype, bound = inputs[0].dtype, BOUNDS[inputs[0].dtype]
    return {"dtype": str(dtype)[6:], "error": error, "bound": bound, "ok": error <= bound}


def measure_errors(check: Check) -> None:
    """Every kernel in every dtype, with the block sizes of deterministic runs: tuning each would take minutes."""
    plan = check.plan

    def compare(case: str, form: str, function: Callable, reference: Callable, inputs: list[Tensor]) -> None:
        case = f"{case}, {str(inputs[0].dtype)[6:]}"
        check.add("errors", case, form, measure_error, function, reference, inputs, form == "triton")

    leaf = torch.arange(2, plan.leaves + 2)  # of a hub, 1; nodes 0 and the last have no edges; some edges are repeated
    star = torch.stack([leaf, torch.ones_like(leaf)])
    edge_index = torch.cat([star, star.flip(0), star[:, : plan.leaves // 2]], dim=1).to(plan.device)
    edges = SortedEdges.from_edge_index(edge_index, plan.leaves + 3)
    for dtype in BOUNDS:
        for n in plan.tokens:
            for own in (False, True):
                qk = operand(check, dtype, 2, n, 2, plan.heads, plan.width)
                for form, run in dense_forms(n == plan.tokens[-1] and not own).items():
                    pair = [lambda a, b, f=f, own=own: f(a, b, own) for f in (run, kernels_dense.plain_attention)]
                    case = f"all pairs, N {n}{', self-attention' * own}"
                    compare(case, form, *pair, [qk, betas(check, plan.heads, 0.2)])
        q, k = (operand(check, dtype, edges.num_nodes, 2, plan.width, seed=seed) for seed in (0, 1))
        for form in ("triton", "torch"):
            pair = (
                lambda q, k, beta, form=form: sparse.attention(q, k, beta, edges, backend=form),
                lambda q, k, beta: kernels_reference.attention(q, k, beta, edges),
            )
            compare("edges: a hub, empty rows", form, *pair, [q, k, betas(check, 2, 0.2)])


def measure_attention(check: Check) -> None:
    """Attention alone, forward and backward, against the fused attention of a ViT."""
    plan, (heads, width) = check.plan, (check.plan.heads, check.plan.width)
    for batch, n in plan.lengths:
        case, product = f"batch {batch}, N {n}", 2 * batch * heads * n * n * width
        moved = 12 * batch * n * heads * width * 2  # forward 4 tensors, backward 8; two bytes a number

        def measure(function: Callable, flops: float, inputs: list[Tensor], moved: float = moved) -> dict:
            return check.timed(step_of(function, *inputs), flops, moved)

        vit = [operand(check, torch.bfloat16, batch, heads, n, width, seed=seed) for seed in range(3)]
        check.add("attention", case, "SDPA, one term", measure, F.scaled_dot_product_attention, 6 * product, vit)
        inputs = [operand(check, torch.bfloat16, batch, n, 2, heads, width), betas(check, heads, width**-0.5)]
        for form, function in dense_forms(True).items():
            check.add("attention", case, f"ET, {form}", measure, function, 9 * product, inputs)


def random_graph(nodes: int, edges: int, hubs: bool, device: str) -> Tensor:
    """Random symmetric graph, (2, E); with ``hubs`` the degrees follow a power law."""
    place = torch.rand(2, edges // 2, generator=torch.Generator(device).manual_seed(0), device=device)
    half = ((place**3 if hubs else place) * nodes).int().clamp_(max=nodes - 1)
    return torch.cat([half, half.flip(0)], dim=1)


def edge_attention(form: str, graph: Tensor, edges: SortedEdges) -> Callable:
    """Both terms along edges: PyG's softmax and scatter, dgl's kernels, or a backend of et.core.sparse."""
    if form == "dgl":
        need("dgl")
        from scripts.bench_sparse import dgl_attention

        return dgl_attention(edges)
    if form != "PyG":
        return lambda q, k, beta: sparse.attention(q, k, beta, edges, backend=form)
    need("torch_geometric")
    from torch_geometric.utils import scatter, softmax

    key, query = graph.long()

    def attention(q: Tensor, k: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        p = softmax((q[query] * k[key]).sum(-1) * beta, query, num_nodes=len(q))[..., None]
        return scatter(p * k[key], query, 0, len(q)), scatter(p * q[query], key, 0, len(q))

    return attention


def measure_edges(check: Check) -> None:
    """Both terms along edges, forward and backward."""
    forms = [("triton", torch.bfloat16), ("triton", torch.float32), ("torch", torch.float32)]
    forms += [("PyG", torch.float32), ("dgl", torch.float32)]
    for name, nodes, count, heads, width in check.plan.graphs:
        case, built = f"{name}: {nodes:,} nodes, {count:,} edges, H {heads}, Y {width}", []

        def build(name=name, nodes=nodes, count=count, built=built) -> dict:
            start, graph = time.perf_counter(), random_graph(nodes, count, "hubs" in name, check.plan.device)
            built += [graph, EdgeTopology(graph, nodes).edges]
            found = {"largest_degree": int(built[1].degree.max())}  # waits for the device
            return found | {
                "summary": f"{time.perf_counter() - start:.2f} s, degrees up to {found['largest_degree']:,}"
            }

        def measure(form: str, dtype: torch.dtype, built=built, heads=heads, width=width) -> dict:
            graph, edges = built
            q, k = (operand(check, dtype, edges.num_nodes, heads, width, seed=seed) for seed in (0, 1))
            run = step_of(edge_attention(form, graph, edges), q, k, betas(check, heads, width**-0.5))
            vectors = edges.num_edges * heads * width  # numbers that are gathered at one end of all edges
            moved = 10 * q.numel() * q.element_size() + 16 * edges.num_edges + 32 * edges.num_nodes
            found = check.timed(run, 30 * vectors, moved, "float32")
            return found | {"gathered_bytes": 6 * vectors * q.element_size()}

        check.add("edges", case, "making and sorting the edges", build)
        for form, dtype in forms if built else ():
            check.add("edges", case, f"{form}, {str(dtype)[6:]}", measure, form, dtype)
        built.clear()


def block_step(check: Check, form: str, batch: int, training: bool, compiled: bool = False) -> dict:
    """Blocks of a ViT or steps of an ET, tokens to tokens, under autocast to bfloat16."""
    need("timm")
    from scripts.bench import Size, make_form

    plan = check.plan
    size = Size(plan.steps, batch, (plan.image // 16) ** 2 + 1, plan.dim)
    module, function = make_form(form, size)
    module.to(plan.device)
    tokens = torch.randn(batch, size.tokens, size.dim, device=plan.device, requires_grad=training)
    function = torch.compile(function, backend=plan.compiler) if compiled else function

    def run() -> None:
        module.zero_grad()
        with torch.autocast(plan.device, torch.bfloat16), torch.set_grad_enabled(training):
            out = function(tokens)
        if training:
            out.float().square().mean().backward()

    operations = size.operations("vit" if form == "vit" else "et") * (3 if training else 1)
    return check.timed(run, operations) | {"samples": batch}


def measure_steps(check: Check) -> None:
    """ViT-Base and ET-Base, and ET by autograd of its energy."""
    for batch in check.plan.batches:
        for training, kind in ((True, "forward and backward"), (False, "inference")):
            for form in ("vit", "et", "autograd"):
                check.add("step", f"batch {batch}, {kind}", form, block_step, check, form, batch, training)
        with deterministic():
            case = f"batch {batch}, forward and backward"
            check.add("step", case, "et, deterministic", block_step, check, "et", batch, True)


def recipe_step(check: Check, fused: bool, compiled: bool = False) -> dict:
    """One GPU's part of a training step of table 4 on random images, and the hours of the whole training."""
    from et.inpainting.model import InpaintingET
    from et.inpainting.patches import patchify

    plan, batch = check.plan, min(GLOBAL_BATCH // GPUS, max(check.plan.batches))
    model = InpaintingET(
        plan.image, dim=plan.dim, num_heads=plan.dim // 64, num_memories=4 * plan.dim, steps=plan.steps
    )
    model.to(plan.device)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-4, betas=(0.9, 0.99), weight_decay=0.05, fused=fused)
    images = torch.randn(batch, 3, plan.image, plan.image, device=plan.device)
    masked = torch.rand(batch, model.num_patches, device=plan.device) < 0.5
    target = patchify(images, model.patch_size)
    forward = torch.compile(model, backend=plan.compiler) if compiled else model

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(plan.device, torch.bfloat16):
            prediction = forward(images, masked)
        (prediction.float() - target).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    found = check.timed(run)
    return found | {"samples": batch, "hours": EPOCHS * IMAGES / (batch * GPUS) * found["seconds"] / 3600}


def measure_recipe(check: Check) -> None:
    for fused in (False, True):
        check.add("recipe", "table 4, one GPU of 8", f"AdamW{', fused' * fused}", recipe_step, check, fused)


def data_set_epoch(check: Check, graphs: int, nodes: int, edges: int, features: int, classes: int) -> dict:
    """An epoch of table 9's model on random graphs, in batches of 32."""
    need("hydra")  # et.utils.errors imports it
    from et.graphs.batch import pack
    from et.graphs.model import GraphEnergyTransformer

    half = torch.randint(nodes, (2, graphs, edges // 2))
    index = torch.cat([half, half.flip(0)], dim=2).flatten(1)
    x, y = torch.randn(graphs * nodes, features), torch.randint(classes, (graphs,))
    packed = pack(torch.full((graphs,), nodes), torch.full((graphs,), edges), x, index, None, y)
    packed = replace(packed, pe=torch.randn(packed.num_nodes + graphs, 15))
    batches = [packed.select(part).to(check.plan.device) for part in torch.arange(graphs).split(32)]
    model = GraphEnergyTransformer(features, 0, classes).to(check.plan.device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    def run() -> None:
        for batch in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(batch), batch.y).backward()
            optimizer.step()

    return check.timed(run) | {"samples": graphs}


def measure_data_sets(check: Check) -> None:
    for name, *sizes in check.plan.data_sets:
        check.add("graphs", f"{name}'s size, an epoch", "sparse, AdamW", data_set_epoch, check, *sizes)


def run_tests(check: Check) -> dict:
    """The tests that are marked cuda; without the root's conftest, which needs hydra."""
    need("pytest")
    if not check.gpu:
        raise Missing("needs a GPU")
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-m", "cuda", "-p", "no:cacheprovider"]
    files = sorted(str(path) for path in (ROOT / "tests" / "core" / "kernels").glob("test_*.py"))
    left = check.deadline - time.monotonic()
    done = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True, timeout=left)
    return {"ok": done.returncode == 0, "summary": (done.stdout.strip().splitlines() or [done.stderr[-200:]])[-1]}


def measure_tests(check: Check) -> None:
    check.add("tests", "marked cuda", "pytest", run_tests, check)


def measure_compiled(check: Check) -> None:
    """torch.compile of the training steps; compiling is not timed, but takes the most of this part's time."""
    batch = check.plan.batches[0]
    for form in ("et", "vit"):
        case = f"batch {batch}, forward and backward"
        check.add("step", case, f"{form}, torch.compile", block_step, check, form, batch, True, True)
    check.add("recipe", "table 4, one GPU of 8", "AdamW, fused, torch.compile", recipe_step, check, True, True)


PARTS: dict[str, Callable[[Check], None]] = {
    "rates": measure_rates, "errors": measure_errors, "attention": measure_attention, "steps": measure_steps,
    "recipe": measure_recipe, "edges": measure_edges, "graphs": measure_data_sets, "tests": measure_tests,
    "compiled": measure_compiled,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--cpu-smoke", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--json", type=Path, help="record of all rows; docs/gpu.json unless --cpu-smoke")
    options = parser.parse_args(arguments)
    if not (options.cpu_smoke or torch.cuda.is_available()):
        parser.error("there is no GPU here: --cpu-smoke runs every part at a tiny size on the CPU")
    check, start = Check(SMOKE if options.cpu_smoke else Plan()), time.monotonic()
    print(HEADER)
    for part in options.parts:
        PARTS[part](check)
    path = options.json or (None if options.cpu_smoke else ROOT / "docs" / "gpu.json")
    if path:
        record = {"environment": environment(check.gpu), "rates": check.rates, "seconds": time.monotonic() - start}
        rows = [row | floors(row, check.rates) for row in check.rows]
        path.write_text(json.dumps(record | {"rows": rows}, indent=1) + "\n")
    return int(any(row.get("ok") is False for row in check.rows))


def environment(gpu: bool) -> dict:
    found = {"commit": git_commit(ROOT), "versions": versions(), "command": " ".join(sys.argv)}
    found["triton"] = __import__("triton").__version__ if importlib.util.find_spec("triton") else "absent"
    if gpu:
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "memory": properties.total_memory, "cuda": torch.version.cuda}
    return found


if __name__ == "__main__":
    sys.exit(main())
