"""Tables 5 and 8, counted from the data: python -m et.results.statistics [5 8] [--data ROOT].

Writes experiments/tableNN/statistics.json for every data set that is available; other entries are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from et.results import paper
from et.runs.record import git_commit
from et.utils.errors import UserError, exit_on_user_error
from et.utils.files import write_atomically
from et.utils.paths import EXPERIMENTS

if TYPE_CHECKING:
    from et.anomaly.graph import NodeGraph
    from et.graphs.batch import GraphBatch

# TUDataset's names of table 8's data sets where they are not the table's.
TU_NAMES = {"tu_mutagenicity": "Mutagenicity"}
FILE = "statistics.json"


def node_graph_statistics(graph: NodeGraph) -> dict[str, float]:
    """Columns of table 5. Edges are undirected; an edge in several relations counts once."""
    import numpy as np

    from et.anomaly.graph import edge_keys, without_repeats

    keys = np.concatenate([edge_keys(edges, graph.num_nodes) for edges in graph.relations.values()])
    keys.sort()
    keys = without_repeats(keys)
    loops = int((keys // graph.num_nodes == keys % graph.num_nodes).sum())
    return {
        "nodes": graph.num_nodes,
        "edges": (len(keys) - loops) // 2 + loops,
        "anomaly": float((graph.labels == 1).float().mean()),
        "features": graph.features.shape[1],
    }


def graph_set_statistics(graphs: GraphBatch) -> dict[str, float]:
    """Columns of table 8. Edges are undirected (listed in both directions); features are those that the model reads."""
    return {
        "graphs": len(graphs),
        "avg_nodes": graphs.num_nodes / len(graphs),
        "avg_edges": graphs.num_edges / 2 / len(graphs),
        "node_attr": graphs.x.shape[1],
        "classes": len(graphs.y.unique()),
    }


def count(number: int, condition: str, root: Path) -> dict[str, Any]:
    """Statistics of one data set of table 5 or 8, with its variant and hash.

    Raises:
        UserError: The data set is missing or damaged.
    """
    if number == 5:
        from et.anomaly.sources import load_graph

        graph = load_graph(condition, root)
        dataset = {"name": condition, "variant": graph.variant, "sha256": graph.sha256()}
        metrics = node_graph_statistics(graph)
    else:
        from et.graphs.tu import load_tu

        name = TU_NAMES.get(condition, condition.removeprefix("tu_").upper())
        source = load_tu(name, root)
        dataset = {"name": name, "variant": source.variant, "sha256": source.sha256}
        metrics = graph_set_statistics(source.graphs)
    return {"dataset": dataset, "metrics": metrics, "git_commit": git_commit()}


def read_statistics(folder: Path) -> dict[str, dict[str, Any]]:
    """Counted statistics by condition; empty if the file is missing or damaged."""
    try:
        return json.loads((folder / FILE).read_text())
    except (OSError, ValueError):
        return {}


def main(arguments: Sequence[str] | None = None) -> int:
    """Count what tables 5 and 8 print."""
    parser = argparse.ArgumentParser(prog="python -m et.results.statistics", description=main.__doc__)
    parser.add_argument("tables", nargs="*", type=int, metavar="{5,8}", help="default: both")
    parser.add_argument("--data", type=Path, default=os.environ.get("ET_DATA_DIR", "data"), help="the data root")
    parser.add_argument("--experiments", type=Path, default=EXPERIMENTS, help="where tableNN/ folders are")
    options = parser.parse_args(arguments)
    if set(options.tables) - {5, 8}:
        parser.error("the tables of statistics are 5 and 8")
    for number in options.tables or (5, 8):
        folder = options.experiments / f"table{number:02d}"
        counted = read_statistics(folder)
        for condition in paper.load(number).conditions:
            try:
                counted[condition.name] = count(number, condition.name, Path(options.data))
                print(f"table {number}: counted {condition.name}")
            except UserError as error:
                print(f"table {number}: {condition.name} is not here: {error}")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FILE, json.dumps(counted, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main))
