"""Time of one step of scoring a large graph: tokens gathered once for all heads, against queries and keys of each head.

    python scripts/make_synthetic_graph.py graph --nodes 722633 --edges 9138188  # an eighth of T-Social
    python scripts/bench_scoring.py graph                                         # H 3, Y 128, one thread

Both run in turn in one process, so that other load disturbs both. ``projected`` lives only here: it gathers queries and
keys, one head and 64 components at a time. Seconds are of processor time. The result is appended to --json, a list.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from et.anomaly.graph import reverse_cuthill_mckee_order
from et.anomaly.model import AnomalyTransformer
from et.anomaly.scoring import CHUNK, Step, chunks, take_step
from et.core import EdgeTopology
from et.core.sparse import edge_aggregate, edge_scores, segment_softmax
from et.runs.record import git_commit, machine
from et.utils.files import write_atomically

SLICE = 64  # of the Y components of queries and keys


def read_graph(folder: Path) -> tuple[Tensor, EdgeTopology]:
    """Features (N, F) and edges of a folder by make_synthetic_graph.py, in the order that the data module gives."""
    features = torch.from_numpy(np.load(folder / "node_features.npy"))
    edges = torch.from_numpy(np.load(folder / "edges.npy")).T
    edge_index = torch.cat([edges, edges.flip(0)], dim=1)
    order = reverse_cuthill_mckee_order([edge_index], len(features))
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    return features[order], EdgeTopology(place[edge_index], len(features))


def project(g: Tensor, weight: Tensor) -> Tensor:
    """Queries or keys of all nodes: g (N, D), weight (y, D) -> (N, 1, y)."""
    return torch.cat([g[part] @ weight.T for part in chunks(len(g), CHUNK)])[:, None]


def projected_step(step: Step, x: Tensor, topology: EdgeTopology) -> Tensor:
    """:func:`take_step` with every head's queries and keys gathered."""
    g = torch.cat([step.norm(x[part]) for part in chunks(len(x), CHUNK)])
    after = torch.cat([x[part] + step.step_size * step.hopfield(g[part]) for part in chunks(len(x), CHUNK)])
    edges = topology.edges
    for w_query, w_key, beta in zip(step.w_query, step.w_key, step.beta, strict=True):
        slices = list(zip(w_query.split(SLICE), w_key.split(SLICE), strict=True))
        scores = sum(edge_scores(project(g, query), project(g, key), edges) for query, key in slices)
        weights = segment_softmax(scores * beta, edges)
        for query, key in slices:
            for source, back, to_keys in ((key, query, False), (query, key, True)):
                collected = edge_aggregate(weights, project(g, source), edges, to_keys)[:, 0]
                for part in chunks(len(g), CHUNK):
                    after[part] += step.step_size * (collected[part] @ back)
    return after


@torch.no_grad()
def measure(folder: Path, heads: int, width: int, rounds: int) -> dict:
    """Processor seconds of each round and the largest difference of the tokens, relative to the largest update."""
    torch.manual_seed(0)
    features, topology = read_graph(folder)
    _ = topology.edges.by_key, topology.edges.key_position
    model = AnomalyTransformer(features.shape[1], width, heads, width, 2 * width, 1, position_embedding=False).eval()
    for matrix in (p for p in model.parameters() if p.dim() > 1):
        matrix.mul_(3)  # attention that is far from uniform
    x = torch.cat([model.tokens(features[part]) for part in chunks(len(features), CHUNK)])
    (step,) = model.dynamics.as_steps()
    small = EdgeTopology(torch.randint(0, 50, (2, 500)), 50)
    found: dict = {"nodes": len(x), "edges": topology.num_edges, "threads": torch.get_num_threads()}
    forms: dict[str, Callable[[Step, Tensor, EdgeTopology], Tensor]]
    forms = {"gathered_once": take_step, "projected": projected_step}
    for number in range(rounds + 1):  # the first, on a tiny graph, compiles the kernels
        after = []
        for name, form in forms.items():
            start = time.process_time()
            after.append(form(step, x[:50], small) if number == 0 else form(step, x, topology))
            if number:
                found.setdefault(name, []).append(time.process_time() - start)
                print(f"round {number}: {name:<14} {found[name][-1]:8.2f} s", flush=True)
    difference = (after[0] - after[1]).abs().max() / (after[1] - x).abs().max()
    return {**found, "ratio": sum(found["projected"]) / sum(found["gathered_once"]), "difference": float(difference)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a graph by make_synthetic_graph.py, as a folder")
    parser.add_argument("--heads", type=int, default=3, help="H")
    parser.add_argument("--width", type=int, default=128, help="Y and D")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file of records; default: only print")
    options = vars(parser.parse_args(argv))
    torch.set_num_threads(options.pop("threads"))
    file = options.pop("json")
    about = {"git_commit": git_commit(), "machine": machine(torch.get_num_threads()), "heads": options["heads"]}
    record = {**about, "width": options["width"], **measure(**options)}
    print(json.dumps(record))
    if file is not None:
        known = json.loads(file.read_text()) if file.exists() else []
        write_atomically(file, json.dumps([*known, record], indent=1) + "\n")


if __name__ == "__main__":
    main()
