"""Time and memory of one training step of sparse attention: plain gather and scatter against the fast backends.

    python scripts/bench_sparse.py                      # 11,944 nodes, 8.8 million directed edges (Amazon's size)
    python scripts/bench_sparse.py --size small         # seconds
    python scripts/bench_sparse.py --size tfinance      # 39,357 nodes, 42 million edges, H 3, Y 128; numba only
    python scripts/bench_sparse.py --backends reference torch numba csr dgl compile

What is timed: forward and backward of the update of energy attention as one ET step has it (queries and keys from
normalised tokens, both terms, back through the weights; gradients of tokens and weights). Not timed: making the graph,
sorting its edges (reported apart), compiling (a tiny graph runs first). Each backend runs in a process of its own.
Extra memory is the highest resident memory during the steps less the resident memory before them. A backend that needs
more than ``--memory-limit`` is stopped; all are then measured again on half the edges, until every one fits.

Candidates that lost and live only here: ``csr`` (torch.sparse products), ``dgl`` (its fused kernels) and ``compile``
(torch.compile of the reference).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SIZES = {
    "small": {"nodes": 2_000, "edges": 200_000, "heads": 1, "width": 64, "dim": 64},
    "amazon": {"nodes": 11_944, "edges": 8_800_000, "heads": 1, "width": 64, "dim": 64},
    "tfinance": {"nodes": 39_357, "edges": 42_000_000, "heads": 3, "width": 128, "dim": 128},
}
CANDIDATES = ("csr", "dgl", "compile")
SMALLEST = 10_000  # edges below which halving a graph that does not fit is given up
GIB = 2**30


# ----------------------------------------------------------------------------------------------- one process a backend


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (highest so far) of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status: this benchmark needs Linux")


def random_symmetric_graph(nodes: int, edges: int):
    """(2, E) int32, every edge in both directions; the same for every backend."""
    import torch

    half = torch.randint(0, nodes, (2, edges // 2), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    return torch.cat([half, half.flip(0)], dim=1)


def make_topology(backend: str, edge_index, nodes: int):
    """What EnergyAttention computes with; its orders are made here, so that no step pays for them."""
    from et.core import EdgeTopology

    topology = EdgeTopology(edge_index, nodes, backend=None if backend in CANDIDATES else backend)
    edges = topology.edges
    _ = edges.by_key if backend in ("numba", "csr") else edges.query
    if backend in CANDIDATES:
        attention = {"csr": csr_attention, "dgl": dgl_attention, "compile": compiled_attention}[backend](edges)
        topology.attend = attention
    return topology


def measure(backend: str, size: dict, repeats: int) -> dict:
    """Run the steps of one backend in this process."""
    import torch

    from et.core import EnergyAttention

    def step(topology, tokens) -> float:
        attention.zero_grad()
        tokens.grad = None
        start = time.perf_counter()
        attention.update(tokens, topology).square().sum().backward()
        return time.perf_counter() - start

    torch.manual_seed(0)
    attention = EnergyAttention(size["dim"], size["heads"], size["width"], train_beta=True, init_std=0.1)
    step(make_topology(backend, random_symmetric_graph(50, 500), 50), torch.randn(50, size["dim"], requires_grad=True))

    edge_index = random_symmetric_graph(size["nodes"], size["edges"])
    start = time.perf_counter()
    topology = make_topology(backend, edge_index, size["nodes"])
    prepared = time.perf_counter() - start
    del edge_index
    tokens = torch.randn(size["nodes"], size["dim"], requires_grad=True)

    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    seconds = [step(topology, tokens) for _ in range(repeats)]
    return {
        "seconds": statistics.median(seconds),
        "all_seconds": seconds,
        "extra_memory_bytes": resident("VmHWM") - before,
        "prepare_seconds": prepared,
        "fingerprint": [x.grad.double().norm().item() for x in (tokens, attention.w_query, attention.w_key)],
    }


# ---------------------------------------------------------------------------------------- candidates that did not win


def csr_attention(edges) -> Callable:
    """torch.sparse: sampled products for the scores, CSR times dense for the sums, a head at a time."""
    import torch

    from et.core import sparse
    from et.core.kernels import reference as kernels_reference

    start, query = edges.by_key
    size = (edges.num_nodes, edges.num_nodes)
    orders = {False: (edges.row_start, edges.key.long()), True: (start, query.long())}
    mask = torch.sparse_csr_tensor(*orders[False], torch.zeros(edges.num_edges), size)
    position = edges.key_position.long()

    class Products:
        segment_logsumexp = staticmethod(kernels_reference.segment_logsumexp)

        @staticmethod
        def edge_scores(q, k, edges):
            heads = zip(q.unbind(1), k.unbind(1), strict=True)
            return torch.stack([torch.sparse.sampled_addmm(mask, a, b.T, beta=0.0).values() for a, b in heads], dim=1)

        @staticmethod
        def edge_aggregate(weight, x, edges, to_keys):
            weight = weight[position] if to_keys else weight
            heads = zip(weight.unbind(1), x.unbind(1), strict=True)
            matrices = [(torch.sparse_csr_tensor(*orders[to_keys], w.contiguous(), size), y) for w, y in heads]
            return torch.stack([matrix @ y for matrix, y in matrices], dim=1)

    # torch's own gradients of sparse products drop repeated edges; those of the primitives do not.
    sparse.select_backend = lambda name, tensor: Products
    return lambda q, k, beta: sparse._attention_by_primitives(q.contiguous(), k.contiguous(), beta, edges, None, None)


def dgl_attention(edges) -> Callable:
    """dgl's generalised sampled and sparse products."""
    os.environ.setdefault("DGLBACKEND", "pytorch")
    import dgl

    graph = dgl.graph((edges.key.long(), edges.query.long()), num_nodes=edges.num_nodes)
    graph.create_formats_()
    reverse = dgl.reverse(graph)

    def attention(q, k, beta):
        p = dgl.ops.edge_softmax(graph, dgl.ops.u_dot_v(graph, k, q) * beta[:, None])
        return dgl.ops.u_mul_e_sum(graph, k, p), dgl.ops.u_mul_e_sum(reverse, q, p)

    return attention


def compiled_attention(edges) -> Callable:
    """torch.compile of the reference."""
    import torch

    from et.core.kernels import reference as kernels_reference

    compiled = torch.compile(kernels_reference.attention)
    return lambda q, k, beta: compiled(q, k, beta, edges)


# ------------------------------------------------------------------------------------------------------ the comparison


def run_apart(backend: str, size: dict, repeats: int, limit: float) -> dict:
    """:func:`measure` in a fresh process, which is stopped once it holds more than ``limit`` bytes."""
    command = [sys.executable, __file__, "--worker", json.dumps({"backend": backend, "size": size, "repeats": repeats})]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        time.sleep(0.2)
        try:
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            break
        if pages * os.sysconf("SC_PAGE_SIZE") > limit:
            process.kill()
            process.communicate()
            return {"failure": f"needs more than {limit / GIB:.1f} GiB"}
    output, errors = process.communicate()
    if process.returncode:
        if "can't allocate memory" in errors:
            return {"failure": f"needs more than {limit / GIB:.1f} GiB"}
        return {"failure": (errors.strip().splitlines() or [f"exit code {process.returncode}"])[-1][:200]}
    return json.loads(output.splitlines()[-1])


def compare(backends: list[str], size: dict, repeats: int, limit: float) -> dict:
    """Measure every backend at one size; ratios are to the first of them."""
    print(
        f"\n{size['nodes']:,} nodes, {size['edges']:,} directed edges, "
        f"H {size['heads']}, Y {size['width']}, D {size['dim']}; load average {os.getloadavg()[0]:.1f}"
    )
    print(
        f"{'backend':<12}{'s / step':>10}{'of first':>10}{'extra MiB':>12}{'of first':>10}{'sorting s':>11}  gradients"
    )
    results: dict[str, dict] = {}
    for backend in backends:
        result = results[backend] = run_apart(backend, size, repeats, limit)
        if "failure" in result:
            print(f"{backend:<12}  {result['failure']}")
            continue
        first = results[backends[0]]
        if "failure" in first:
            ratios, agreement = ["", ""], ""
        else:
            ratios = []
            for key in ("seconds", "extra_memory_bytes"):
                # A small problem may fit into memory the process already had: no extra memory, no ratio.
                result[f"{key}_ratio"] = result[key] / first[key] if first[key] else None
                ratio = result[f"{key}_ratio"]
                ratios.append(f"1/{1 / ratio:.1f}" if ratio else "-")
            pairs = zip(result["fingerprint"], first["fingerprint"], strict=True)
            result["agrees"] = all(abs(a - b) <= 1e-3 * abs(b) for a, b in pairs)
            agreement = "agree" if result["agrees"] else "DIFFER"
        print(
            f"{backend:<12}{result['seconds']:>10.3f}{ratios[0]:>10}{result['extra_memory_bytes'] / 2**20:>12.0f}"
            f"{ratios[1]:>10}{result['prepare_seconds']:>11.2f}  {agreement}",
            flush=True,
        )
    return results


def environment() -> dict:
    import torch

    model = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "cpu": model[0] if model else platform.processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="amazon")
    parser.add_argument("--edges", type=int, help="directed edges, instead of those of the size")
    parser.add_argument("--backends", nargs="+", help="the first one is compared with (default: reference numba)")
    parser.add_argument("--repeats", type=int, default=3, help="steps; the median is reported")
    parser.add_argument("--memory-limit", type=float, default=18.0, help="GiB a process may hold")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        print(json.dumps(measure(**json.loads(arguments.worker))))
        return
    size = dict(SIZES[arguments.size])
    size["edges"] = arguments.edges or size["edges"]
    backends = arguments.backends or (["numba"] if arguments.size == "tfinance" else ["reference", "numba"])
    runs = []
    while True:
        load = os.getloadavg()[0]
        results = compare(backends, size, arguments.repeats, arguments.memory_limit * GIB)
        runs.append({"size": dict(size), "load_average_before": load, "results": results})
        too_large = [backend for backend, result in results.items() if "more than" in result.get("failure", "")]
        if not too_large:
            break
        if len(too_large) == len(backends) or size["edges"] < 2 * SMALLEST:
            print(f"no comparison: {', '.join(too_large)} did not fit even here")
            break
        size["edges"] //= 2
        print(f"{', '.join(too_large)} did not fit: once more with half the edges")
    if arguments.json:
        arguments.json.write_text(json.dumps({"environment": environment(), "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
