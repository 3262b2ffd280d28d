"""How much a trained model's score depends on the order in which the nodes of a graph are numbered.

The convolution of eq. 24 runs over positions in the file; those of conv=random_walk and conv=none do not. What is left
of the dependence is in the eigenvectors: for another order a solver returns other signs, and other bases of repeated
eigenvalues. eigenvectors=kept gives each node its entries again, eigenvectors=recomputed asks the solver.

    python -m et.graphs.node_order run=runs/tu_mutag/<run_id> [orders=20] [eigenvectors=recomputed]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from et.graphs.data import GraphData
from et.graphs.lit import GraphTask, seeded
from et.graphs.metrics import Measures
from et.graphs.positional import with_eigenvectors
from et.utils.errors import UserError, exit_on_user_error
from et.utils.files import write_atomically


@torch.no_grad()
def score_by_order(
    network: nn.Module, data: GraphData, orders: int, seed: int = 0, recompute: bool = False
) -> dict[str, Any]:
    """Score the test graphs with their nodes in the order of the data and in random orders.

    A network with noise in evaluation uses the same seed for every order.

    Args:
        network: The network; left in evaluation mode.
        data: The data module, set up.
        orders: Number of random orders.
        seed: Seed of the orders and of the noise.
        recompute: Compute the eigenvectors of the reordered graphs. If False, they are permuted with their nodes, and
            only the network's own dependence on the order changes the score.
    """
    network.eval()
    generator = torch.Generator().manual_seed(seed)
    graphs = data.graphs.select(data.split["test"])

    def score(shuffle: bool) -> float:
        measures = Measures(data.num_classes)
        with seeded(seed, torch.device("cpu")):
            for numbers in torch.arange(len(graphs)).split(data.batch_size):
                batch = graphs.select(numbers)
                if shuffle:
                    batch = batch.permute_nodes(generator)
                if shuffle and recompute:
                    batch = with_eigenvectors(batch, data.num_eigenvectors, progress=False)
                measures.update(network(batch), batch.y)
        return measures.compute()["mae" if data.num_classes == 1 else "accuracy"]

    given, found = score(False), torch.tensor([score(True) for _ in range(orders)], dtype=torch.float64)
    return {
        "measure": "mae" if data.num_classes == 1 else "accuracy",
        "graphs": len(graphs),
        "eigenvectors": "recomputed" if recompute else "kept",
        "given_order": given,
        "orders": orders,
        "mean": found.mean().item(),
        "std": found.std(unbiased=False).item(),
        "min": found.min().item(),
        "max": found.max().item(),
    }


def main(arguments: list[str]) -> None:
    """Print the spread of a run's score and write it to node_order.json in the run's folder, or beside a checkpoint.

    Raises:
        UserError: There is no such run, the run is not of graphs, or ``orders`` is not a number.
    """
    from hydra.utils import instantiate

    from et.runs.loading import load_run, task_class

    if arguments in (["--help"], ["-h"]):
        return print(__doc__)
    options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if (
        "run" not in options
        or set(options) - {"run", "orders", "checkpoint", "eigenvectors"}
        or len(options) != len(arguments)
    ):
        raise UserError(
            "usage: python -m et.graphs.node_order run=PATH [orders=20] [eigenvectors=kept|recomputed] "
            "[checkpoint=best|last]"
        )
    orders = options.get("orders", "20")
    if not orders.isdecimal() or int(orders) == 0:
        raise UserError(f"orders={orders}: it says how many random orders to try, a whole number from 1 on")
    eigenvectors = options.get("eigenvectors", "kept")
    if eigenvectors not in ("kept", "recomputed"):
        raise UserError(f"eigenvectors={eigenvectors}: it must be kept or recomputed")
    cfg, network = load_run(Path(options["run"]), options.get("checkpoint"))
    if not issubclass(task_class(cfg), GraphTask):
        raise UserError(f"{options['run']} is a run of {cfg.name}, which is not about graphs")
    data = instantiate(cfg.data)
    data.setup()
    record = {
        "run": options["run"],
        **score_by_order(network, data, int(orders), recompute=eigenvectors == "recomputed"),
    }
    print(json.dumps(record, indent=2))
    run = Path(options["run"])
    target = run / "node_order.json" if run.is_dir() else run.with_name(f"{run.stem}_node_order.json")
    write_atomically(target, json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    exit_on_user_error(lambda: main(sys.argv[1:]))
