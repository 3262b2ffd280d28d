import json

import pytest
import torch
from PIL import Image

from et.anomaly.figures import look, neighbour_attention, numbers_of, share_of
from et.anomaly.model import AnomalyTransformer
from et.core import EdgeTopology, EnergyTransformerBlock
from et.errors import UserError
from et.figures import draw_run, load_run
from et.training import train


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
    torch.testing.assert_close(mixed, topology.mix(q, k, block.attention.beta)[0])
    chosen = torch.tensor([True, False, False, True])
    share = share_of(weights[:, 0], chosen, topology)
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
    assert all(0 <= share[kind]["attention"] <= 1 for kind in share)
    assert all(0 <= energy["auc_of_low_energy"] <= 1 for energy in numbers["energy"].values())
    network = load_run(run)[1]
    assert isinstance(network, AnomalyTransformer) and not network.training


def test_energy_by_module_adds_up_and_is_ranked_by_its_auc(graph):
    labels = graph.labels
    topology = EdgeTopology(graph.relations["first"], graph.num_nodes)
    network = AnomalyTransformer(5, 8, 2, 4, 16, 2, position_embedding=False)

    class Batch:
        features, nodes, topologies = graph.features, torch.arange(graph.num_nodes), (topology,)

    seen = look(network, Batch)
    torch.testing.assert_close(seen.energies["total"], seen.energies["attention"] + seen.energies["Hopfield"])
    total = -seen.energies["total"]
    pairs = total[labels == 1][:, None] > total[labels == 0][None]
    found = numbers_of(seen, labels, topology)["energy"]["total"]["auc_of_low_energy"]
    assert found == pytest.approx(pairs.float().mean().item(), abs=1e-3)


def test_a_baseline_has_no_energy(small_config):
    run = train(small_config("demo_anomaly_mlp", "trainer.max_epochs=1")).folder
    with pytest.raises(UserError, match="energy to draw"):
        draw_run(run)
