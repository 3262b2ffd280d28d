"""The spread of a trained model's score over orders of the nodes."""

import json

import pytest
import torch

from et.graphs.node_order import main, score_by_order
from et.graphs.positional import with_eigenvectors
from et.training.run import train
from et.utils.errors import UserError

SMALL = ["model.dim=16", "model.num_heads=2", "model.head_dim=4", "model.num_memories=8", "trainer.max_epochs=2"]


@pytest.fixture
def run(config, tmp_path, make_tu):
    make_tu(tmp_path / "data")

    def build(*overrides):
        return train(
            config(
                "experiment=tu_mutag", f"paths.data={tmp_path}/data", "data.name=TOY", "data.num_features=3",
                "data.num_edge_features=2", "data.folds=5", *SMALL, *overrides,
            )
        )  # fmt: skip

    return build


def test_without_convolution_there_is_no_spread(run):
    outcome = run("model.conv=none")
    found = score_by_order(outcome.task.network, outcome.data, orders=4)
    assert found["std"] == 0 and found["mean"] == found["given_order"]
    assert found["given_order"] == pytest.approx(outcome.record["metrics"]["test/accuracy"])


def test_recomputed_eigenvectors_are_those_of_the_reordered_graph(run):
    """The spread that is left without a convolution is that of the solver's signs and bases."""
    outcome = run("model.conv=none")
    found = score_by_order(outcome.task.network, outcome.data, orders=2, recompute=True)
    assert found["eigenvectors"] == "recomputed" and found["given_order"] == outcome.record["metrics"]["test/accuracy"]
    graphs = outcome.data.graphs
    permuted = graphs.permute_nodes(torch.Generator().manual_seed(0))
    recomputed = with_eigenvectors(permuted, outcome.data.num_eigenvectors, progress=False)
    assert not torch.allclose(recomputed.pe, permuted.pe) and torch.equal(recomputed.x, permuted.x)
    network = outcome.task.network.eval()
    given = network(graphs)
    assert (given - network(permuted)).abs().max() < 1e-5 < (given - network(recomputed)).abs().max()


def test_with_convolution_the_outputs_differ_and_the_script_writes_them_down(run, capsys):
    outcome = run()
    batch = outcome.data.graphs
    network = outcome.task.network.eval()
    permuted = batch.permute_nodes(torch.Generator().manual_seed(0))
    assert (network(batch) - network(permuted)).abs().max() > 1e-6
    main([f"run={outcome.folder}", "orders=3"])
    record = json.loads((outcome.folder / "node_order.json").read_text())
    assert record["orders"] == 3 and record["min"] <= record["mean"] <= record["max"]
    assert json.loads(capsys.readouterr().out) == record


def test_usage_and_missing_runs_are_told(tmp_path):
    for arguments in ([], ["run=x", "nosuch=1"], ["run"]):
        with pytest.raises(UserError, match="usage"):
            main(arguments)
    for orders in ("0", "x", "-1", "2.5", ""):
        with pytest.raises(UserError, match=f"orders={orders}: it says how many"):
            main([f"run={tmp_path}/none", f"orders={orders}"])
    with pytest.raises(UserError, match="kept or recomputed"):
        main([f"run={tmp_path}/none", "eigenvectors=new"])
    with pytest.raises(UserError, match="no such file or folder"):
        main([f"run={tmp_path}/none"])
