from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch

from et.anomaly.model import AnomalyTransformer
from et.core import EdgeTopology, descend
from tests.anomaly.test_released import attention_by_messages, symmetric_edges
from tests.core.sparse_cases import GRAPHS, random_graph

SIZES = {"in_features": 5, "dim": 8, "num_heads": 2, "head_dim": 6, "num_memories": 10, "steps": 2, "num_nodes": 15}
FIDELITIES = ("paper", "released")


def build(fidelity: str = "paper", seed: int = 0, **changes) -> AnomalyTransformer:
    torch.manual_seed(seed)
    return AnomalyTransformer(**{**SIZES, "fidelity": fidelity, **changes}).double().eval()


def topology(seed: int = 0, loops: bool = False) -> EdgeTopology:
    return EdgeTopology(symmetric_edges(15, 40, loops, seed), 15)


def features(seed: int = 0) -> torch.Tensor:
    return torch.randn(15, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def paper_step(block, x: torch.Tensor, neighbours: list[list[int]]) -> torch.Tensor:
    """Eq. 15-19, node by node and sum by sum."""
    g = block.norm(x)
    w_query, w_key, beta, xi = (
        block.attention.w_query,
        block.attention.w_key,
        block.attention.beta,
        block.hopfield.memories,
    )
    q, k = torch.einsum("hyd,nd->hny", w_query, g), torch.einsum("hyd,nd->hny", w_key, g)
    after = x.clone()
    for h in range(len(beta)):
        weight = {}  # omega_CA of eq. 18: softmax over the neighbours C of A
        for a, around in enumerate(neighbours):
            scores = torch.stack([beta[h] * k[h, c] @ q[h, a] for c in around])
            weight |= {(c, a): w for c, w in zip(around, torch.softmax(scores, 0), strict=True)}
        for a, around in enumerate(neighbours):
            for c in around:
                after[a] = after[a] + w_query[h].T @ k[h, c] * weight[c, a] + w_key[h].T @ q[h, c] * weight[a, c]
    return after + torch.relu(g @ xi.T) @ xi


def test_paper_forward_is_eq_10_to_22():
    model, x = build(), features()
    edges = topology()
    neighbours = [[] for _ in range(15)]
    for key, query in zip(edges.edges.key.tolist(), edges.edges.query.tolist(), strict=True):
        neighbours[query].append(key)
    with torch.no_grad():
        model.dynamics.block.attention.w_query.mul_(20)
        model.dynamics.block.attention.w_key.mul_(20)
        tokens = x @ model.embed.weight.T + model.embed.bias + model.position
        after = tokens
        for _ in range(2):
            after = paper_step(model.dynamics.block, after, neighbours)
        norm = model.dynamics.block.norm
        joined = torch.cat([norm(tokens), norm(after)], dim=1)
        expected = model.head(joined)[:, 0]
        torch.testing.assert_close(model(x, [edges]), expected, rtol=1e-9, atol=1e-9)


def test_several_blocks_descend_one_after_another():
    model, x, edges = build(num_blocks=3), features(), topology()
    tokens = model.tokens(x)
    after = tokens
    for block in model.dynamics.blocks:
        for _ in range(2):
            after = after + block(after, edges)
    joined = torch.cat([model.dynamics.block.norm(tokens), model.dynamics.blocks[-1].norm(after)], dim=1)
    torch.testing.assert_close(model(x, [edges]), model.head(joined)[:, 0])
    torch.testing.assert_close(model.score(x, [edges], chunk_size=4), model(x, [edges]))
    alone = build().state_dict()
    assert build(num_blocks=1).state_dict().keys() == alone.keys()
    with pytest.raises(ValueError, match="num_blocks"):
        build(num_blocks=0)


@pytest.mark.parametrize("parts", [{}, {"use_attention": False}, {"use_hopfield": False}])
def test_the_head_reads_the_energies_of_its_nodes(parts):
    """Before and after the descent. Those of all nodes sum to the energies of the blocks."""
    model, x = build(num_relations=2, num_blocks=2, energy_features=True, **parts).train(), features()
    edges = [topology(), topology(1)]
    tokens = model.tokens(x)
    first, finals = model.dynamics.first(tokens), model.dynamics(tokens, edges)
    for last, along in zip(finals, edges, strict=True):
        columns = model.dynamics.energies(first, last, along)
        assert columns.shape == (15, 2 if parts else 4)
        for block, g, of_block in zip(model.dynamics.blocks, (first, last), columns.chunk(2, dim=1), strict=True):
            torch.testing.assert_close(of_block.sum(), block.energy(g, along))
    normed = model.energies(first, finals, edges)
    torch.testing.assert_close(normed.mean(0), torch.zeros(len(normed[0]), dtype=torch.float64), atol=1e-9, rtol=0)
    assert model(x, edges).shape == (15,)  # moves the running statistics
    model.eval()
    torch.testing.assert_close(model.score(x, edges, chunk_size=4), model(x, edges))
    before = model(x, edges)
    model.head[1].weight.data[:, -len(normed[0]) :] = 0
    assert not torch.equal(model(x, edges), before)


def test_paper_descent_lowers_the_energy():
    model = build()
    tokens = model.tokens(features()).detach()
    energies = descend(model.dynamics.block, tokens, 20, 0.05, topology(), record="energy").energies
    assert (energies.diff() < 1e-9).all()


def test_released_forward_is_its_blocks_and_a_linear_layer():
    model, x = build("released", steps=3), features()
    edges = topology(loops=True)
    tokens = model.embed(x)
    after = model.dynamics.block(model.dynamics.block(tokens, edges), edges)
    after = model.dynamics.last_block(after, edges)
    logits = model.head(torch.cat([tokens, after], dim=1))
    torch.testing.assert_close(model(x, [edges]), logits[:, 1] - logits[:, 0])
    probability = logits.softmax(1)[:, 1]  # the released code's softmax is this model's sigmoid
    torch.testing.assert_close(torch.sigmoid(model(x, [edges])), probability)


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_renaming_the_nodes_renames_the_results(fidelity):
    model, x = build(fidelity), features()
    edge_index = symmetric_edges(15, 40, loops=fidelity == "released")
    order = torch.randperm(15, generator=torch.Generator().manual_seed(3))
    place = torch.empty_like(order)
    place[order] = torch.arange(15)
    moved = model(x[order], [EdgeTopology(place[edge_index], 15)], nodes=order)
    torch.testing.assert_close(moved, model(x, [EdgeTopology(edge_index, 15)])[order])


@pytest.mark.parametrize("fidelity", FIDELITIES)
@pytest.mark.parametrize("steps", [1, 2])
def test_information_travels_one_hop_a_step_each_way(fidelity, steps):
    """On a path, the result of a node depends on nodes at most 2 hops away per step: its neighbours' softmax too."""
    edges = EdgeTopology(torch.tensor([[*range(14), *range(1, 15)], [*range(1, 15), *range(14)]]), 15)
    model, x = build(fidelity, steps=steps), features().requires_grad_()
    grad = torch.autograd.grad(model(x, [edges])[0], x)[0].abs().sum(1)
    assert (grad[: 2 * steps + 1] > 0).all() and (grad[2 * steps + 1 :] == 0).all()


@pytest.mark.parametrize("fidelity", FIDELITIES)
@pytest.mark.parametrize("relations", [1, 2, 3])
@pytest.mark.parametrize("combine", ["max", "concat"])
def test_relations_are_combined(fidelity, relations, combine):
    model, x = build(fidelity, num_relations=relations, combine=combine), features()
    edges = [topology(seed) for seed in range(relations)]
    tokens = model.tokens(x)
    first, finals = model.dynamics.first(tokens), model.dynamics(tokens, edges)
    merged = model.merge(first, finals)
    if relations > 1 and combine == "max":
        expected = torch.stack(finals).max(0).values
        if fidelity == "released":
            expected = torch.maximum(expected, first)  # and nothing beside it
        else:
            expected = torch.cat([first, expected], dim=1)
    else:
        expected = torch.cat([first, *finals], dim=1)
    assert torch.equal(merged, expected)
    assert model(x, edges).shape == (15,)
    with pytest.raises(ValueError, match=f"built for {relations} relations"):
        model(x, [*edges, topology(9)])


# Node 0 has edges in all relations, 6 in the last only, 1 in the first only, 14 in none.
RELATIONS = [
    torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]]),
    torch.tensor([[0, 3, 3, 4, 4, 5], [3, 0, 4, 3, 5, 4]]),
    torch.tensor([[0, 5, 5, 6, 2, 0], [5, 0, 6, 5, 0, 2]]),
]


def released_finals(model: AnomalyTransformer, x: torch.Tensor, relations: list[torch.Tensor]) -> list[torch.Tensor]:
    """x_T of each relation, where what a node receives overwrites what it received before, in whichever relation."""
    first = model.embed(x)
    received, finals = torch.full_like(first, torch.nan), []
    for edge_index in relations:
        after = first
        for block in model.dynamics.step_blocks:
            g = block.norm(after)
            new = attention_by_messages(block, g, edge_index)
            receives = torch.bincount(edge_index[1], minlength=len(x)) > 0
            received = torch.where(receives[:, None], new, received)
            after = g + received + torch.relu(g @ block.memories.T) @ block.memories
        finals.append(after.nan_to_num())
    return finals


@pytest.mark.parametrize("steps", [1, 2])
def test_released_node_without_edges_keeps_what_the_relation_before_left(steps):
    model, x = build("released", steps=steps, num_relations=3), features()
    with torch.no_grad():
        for block in model.dynamics.step_blocks:
            block.w_query.mul_(30)
            block.w_key.mul_(30)
    topologies = [EdgeTopology(edge_index, 15) for edge_index in RELATIONS]
    tokens = model.embed(x)
    for found, expected in zip(model.dynamics(tokens, topologies), released_finals(model, x, RELATIONS), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    backwards = model.dynamics(tokens, topologies[::-1])[::-1]
    assert not torch.allclose(backwards[1][1], model.dynamics(tokens, topologies)[1][1])  # the order matters
    torch.testing.assert_close(model.score(x, topologies, chunk_size=4), model(x, topologies), rtol=1e-9, atol=1e-9)


def test_released_gradients_reach_the_relation_that_left_an_update():
    """In the last relation node 1 has no edge; its result depends on its neighbours 0 and 2 in the first."""
    model, x = build("released", steps=1, num_relations=3), features().requires_grad_()
    final = model.dynamics(model.embed(x), [EdgeTopology(edge_index, 15) for edge_index in RELATIONS])[2]
    reached = torch.autograd.grad(final[1].sum(), x)[0].abs().sum(1) > 0
    assert reached[:4].all() and not reached[4:].any()  # 3: through the softmax of node 2


def test_released_node_without_edges_in_any_relation_is_zero():
    model = build("released", num_relations=3)
    finals = model.dynamics(model.embed(features()), [EdgeTopology(edge_index, 15) for edge_index in RELATIONS])
    assert all((final[7:] == 0).all() for final in finals)
    assert [int((final.abs().sum(1) > 0).sum()) for final in finals] == [4, 6, 7]


def test_paper_node_without_neighbours_is_moved_by_its_memories_alone():
    edges, model = EdgeTopology(torch.tensor([[0, 1], [1, 0]]), 15), build()
    tokens = model.tokens(features())
    alone = build(use_attention=False)
    alone.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(model.dynamics(tokens, [edges])[0][2:], alone.dynamics(tokens, [edges])[0][2:])


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_without_attention_no_node_sees_another(fidelity):
    model, x = build(fidelity, use_attention=False), features()
    changed = x.clone()
    changed[0] += 1
    difference = (model(changed, [topology()]) - model(x, [topology()])).abs()
    assert difference[0] > 0 and (difference[1:] == 0).all()


def test_position_embedding_follows_fidelity_unless_asked_for():
    assert build("paper").position.shape == (15, 8) and build("released").position is None
    assert build("paper", position_embedding=False).position is None
    assert build("released", position_embedding=True).position is not None
    with pytest.raises(ValueError, match="needs num_nodes"):
        build("paper", num_nodes=None)


def test_a_subgraph_gets_the_positions_of_its_nodes():
    model, x = build(), features()
    nodes = torch.tensor([7, 3])
    torch.testing.assert_close(model.tokens(x[nodes], nodes), model.tokens(x)[nodes])


def test_released_model_for_subgraphs_has_no_initial_token():
    assert build("released", sample_ratio=0.05).head.in_features == 8
    assert build("released").head.in_features == 16
    assert build("paper", sample_ratio=0.05).head[1].in_features == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fidelity": "exact"}, "fidelity must be"),
        ({"combine": "mean"}, "combine must be"),
        ({"fidelity": "released", "steps": 0}, "at least 1 step"),
        ({"use_attention": False, "use_hopfield": False}, "one of the two must stay"),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        AnomalyTransformer(**{**SIZES, **changes})


def test_parameter_counts():
    """D 8, H 2, Y 6, M 10, N 15: written out."""
    block = 2 * 2 * 6 * 8 + 10 * 8
    paper = (5 * 8 + 8) + 15 * 8 + block + 2 + (1 + 8) + (16 * 8 + 8) + (8 + 1)
    released_block = block + 1 + 16
    released = (5 * 8 + 8) + 2 * released_block + (16 * 2 + 2)
    counts = {fidelity: sum(p.numel() for p in build(fidelity).parameters()) for fidelity in FIDELITIES}
    assert counts == {"paper": paper, "released": released}
    one_step = sum(p.numel() for p in build("released", steps=1).parameters())
    assert one_step == released - released_block


def test_memories_as_a_multiple_of_head_dim():
    assert build(num_memories=None, memories_per_dim=3).dynamics.block.hopfield.memories.shape == (18, 8)


@pytest.mark.parametrize(
    ("fidelity", "changes"),
    itertools.product(
        FIDELITIES,
        [{}, {"steps": 3}, {"use_attention": False}, {"use_hopfield": False}, {"num_relations": 2},
         {"num_relations": 2, "combine": "concat"}, {"head_dim": 100}],
    ),
)  # fmt: skip
def test_scoring_in_pieces_is_the_forward_pass(fidelity, changes):
    model, x = build(fidelity, **changes), features()
    edges = [topology(seed) for seed in range(changes.get("num_relations", 1))]
    with torch.no_grad():
        expected = model(x, edges)
    torch.testing.assert_close(model.score(x, edges, chunk_size=4), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.score(x, edges), expected, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("name", ["multigraph", "sparse_directed", "isolated_nodes", "self_loops", "no_edge"])
@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_scoring_in_pieces_takes_any_graph(fidelity, name, backend):
    """Directed and repeated edges, self-loops, nodes without edges; float32 to its rounding, bfloat16 to its own."""
    edge_index, num_nodes = GRAPHS[name]
    edges = [EdgeTopology(edge_index, num_nodes, backend=backend)]
    model = build(fidelity, num_nodes=num_nodes)
    x = torch.randn(num_nodes, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        expected = model(x, edges)
        torch.testing.assert_close(model.score(x, edges, chunk_size=4), expected, rtol=1e-10, atol=1e-10)
        model, x = model.float(), x.float()
        torch.testing.assert_close(model.score(x, edges, chunk_size=4).double(), expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model.score(x, edges, chunk_size=4), model(x, edges).float(), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("num_relations", [1, 2])
@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_scoring_in_pieces_takes_directed_relations(fidelity, num_relations):
    """Some nodes are keys only, some have edges in one relation, some in none."""
    edges = [EdgeTopology(random_graph(8, 9, seed) + 4 * seed, 15) for seed in range(num_relations)]
    assert any((relation.edges.has_edge & (relation.edges.degree == 0)).any() for relation in edges)
    model = build(fidelity, num_relations=num_relations, steps=4)
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        expected = model(features(), edges)
    torch.testing.assert_close(model.score(features(), edges, chunk_size=4), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_a_model_in_half_precision_is_scored_in_pieces(fidelity, dtype):
    """As near to the scores in float64 as its forward pass."""
    model, x = build(fidelity, num_relations=2), features()
    edges = [topology(0), topology(1)]
    with torch.no_grad():
        expected = model(x, edges)
        model, x = model.to(dtype), x.to(dtype)
        scores = model.score(x, edges, chunk_size=4), model(x, edges)
        errors = [(found.double() - expected).norm() for found in scores]
    assert errors[0] <= 2 * errors[1] + 1e-3 * expected.norm()


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_the_topology_chooses_the_backend(fidelity):
    edges = [EdgeTopology(symmetric_edges(15, 40, False), 15, backend="nonsense")]
    for call in (build(fidelity), partial(build(fidelity).score, chunk_size=4)):
        with pytest.raises(ValueError, match="no sparse backend 'nonsense'"):
            call(features(), edges)


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_every_parameter_gets_a_gradient(fidelity):
    model = build(fidelity, num_relations=2).train()
    model(features(), [topology(0, loops=True), topology(1, loops=True)]).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in model.parameters())
