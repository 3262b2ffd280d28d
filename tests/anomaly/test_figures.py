import json

import pytest
import torch
from PIL import Image

from et.anomaly.figures import (
    FinalState,
    attention_share,
    draw_neighbours,
    figure_summary,
    final_state,
    neighbour_attention,
)
from et.anomaly.model import AnomalyTransformer
from et.core import EdgeTopology, EnergyTransformerBlock
from et.runs.figures import draw_run
from et.runs.loading import load_run
from et.training.run import train
from et.utils.errors import UserError


def test_attention_on_neighbours_is_the_softmax_that_the_update_mixes_keys_with():
    torch.manual_seed(0)
    block = EnergyTransformerBlock(8, 2, 4, 12, attention_init_std=0.5)
    topology = EdgeTopology(torch.tensor([[0, 1, 2, 3, 1], [1, 2, 1, 1, 0]]), 4)
    g = torch.randn(4, 8)
    weights = neighbour_attention(block, g, topology)
    query, key = topology.edges.query.long(), topology.edges.key.long()
    torch.testing.assert_close(torch.zeros(4, 2).index_add_(0, query, weights)[:3], torch.ones(3, 2))
    q, k = (torch.einsum("hyd,nd->nhy", w, g) for w in (block.attention.w_query, block.attention.w_key))
    mixed = torch.zeros(4, 2, 4).index_add_(0, query, weights[..., None] * k[key])
    torch.testing.assert_close(mixed, topology.attend(q, k, block.attention.beta)[0])
    chosen = torch.tensor([True, False, False, True])
    share = attention_share(weights[:, 0], chosen, topology)
    assert share[1].item() == pytest.approx(weights[(query == 1) & chosen[key], 0].sum().item())


def test_figures_of_a_run(small_config):
    run = train(
        small_config("demo_anomaly", "trainer.max_epochs=30", "model.head_dim=8", "model.num_memories=16")
    ).folder
    output = draw_run(run)
    numbers = json.loads((output / "figures.json").read_text())
    for name in ("neighbours.png", "energies.png"):
        with Image.open(output / name) as image:
            assert min(image.size) > 200
    share = numbers["attention_on_anomalous"]
    # The graph is made so that anomalous nodes mostly have each other as neighbours.
    assert share["anomalous"]["neighbours"] > share["benign"]["neighbours"]
    assert share["anomalous"]["attention"] > share["benign"]["attention"]
    assert len(numbers["energy"]) == 3 and "total" in numbers["energy"]
    network = load_run(run)[1]
    assert isinstance(network, AnomalyTransformer) and not network.training


@pytest.mark.parametrize("suffix", ["encoded_labels", "encoded_blend_labels"])
def test_figures_of_a_run_that_reads_labels(small_config, suffix):
    sizes = ["trainer.max_epochs=2", "model.dim=8", "model.head_dim=8", "data.num_features=null"]
    output = draw_run(train(small_config(f"amazon_upu_gadbench_{suffix}", *sizes)).folder)
    assert "total" in json.loads((output / "figures.json").read_text())["energy"]


def test_the_energies_of_nodes_that_show_their_own_label_are_not_measured(graph):
    """A training node's energy may follow its label; the others' are chance here."""
    labels, topology = graph.labels, EdgeTopology(graph.relations["first"], graph.num_nodes)
    others = labels.index_fill(0, torch.arange(0, 200, 2), -1)
    energy = torch.where(others < 0, -labels.float(), torch.zeros(200))
    state = FinalState(None, torch.ones(topology.num_edges), {"total": energy})
    assert figure_summary(state, labels, topology)["energy"]["total"]["auc_of_low_energy"] > 0.6
    found = figure_summary(state, labels, topology, others)["energy"]["total"]
    assert found["anomalous"] == found["benign"] == 0


def test_figures_name_nodes_as_the_file_does(graph, tmp_path, monkeypatch):
    """The same panels whatever the order in which a batch has the nodes."""
    from matplotlib.axes import Axes

    titles: list[str] = []
    monkeypatch.setattr(Axes, "set", lambda axis, **given: titles.append(given["title"]))
    found = []
    for nodes in (torch.arange(200), torch.randperm(200, generator=torch.Generator().manual_seed(0))):
        topology = EdgeTopology(nodes.argsort()[graph.relations["first"]], 200)
        state = FinalState(torch.ones(topology.num_edges), torch.ones(topology.num_edges), {})
        titles.clear()
        draw_neighbours(state, graph.labels[nodes], topology, nodes, tmp_path / "neighbours.png")
        found.append(list(titles))
    assert found[0] == found[1] and len(found[0]) == 6
    for title in found[0]:
        kind, node = title.split()[0], int(title.split()[2].rstrip(","))
        assert graph.labels[node] == (kind == "anomalous")


def test_energy_by_module_adds_up_and_is_ranked_by_its_auc(graph):
    labels = graph.labels
    topology = EdgeTopology(graph.relations["first"], graph.num_nodes)
    network = AnomalyTransformer(5, 8, 2, 4, 16, 2, position_embedding=False)

    class Batch:
        features, nodes, topologies = graph.features, torch.arange(graph.num_nodes), (topology,)

    state = final_state(network, Batch)
    torch.testing.assert_close(state.energies["total"], state.energies["attention"] + state.energies["Hopfield"])
    total = -state.energies["total"]
    pairs = total[labels == 1][:, None] > total[labels == 0][None]
    found = figure_summary(state, labels, topology)["energy"]["total"]["auc_of_low_energy"]
    assert found == pytest.approx(pairs.float().mean().item(), abs=1e-3)


def test_a_baseline_has_no_energy(small_config):
    run = train(small_config("demo_anomaly_mlp", "trainer.max_epochs=1")).folder
    with pytest.raises(UserError, match="energy to draw"):
        draw_run(run)
