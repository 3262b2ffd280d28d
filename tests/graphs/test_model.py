"""The graph model: the paper's numbers, sparse against dense, independence of batch and node order, energies."""

from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate
from torch.utils._python_dispatch import TorchDispatchMode

from et.graphs.batch import pack
from et.graphs.model import GraphEnergyTransformer
from et.training.optim import centralize

TINY = dict(in_features=3, edge_features=0, num_outputs=2, dim=8, num_heads=3, head_dim=4, num_memories=10)  # noqa: C408
TINY |= {"num_blocks": 2, "num_eigenvectors": 4, "step_size": 0.1, "attention_init_std": 0.3}
RELEASED = {"head_mix": True, "adjacency_bias": True, "layout": "padded", "sink_padding": True}


def tiny(seed=0, **changes) -> GraphEnergyTransformer:
    torch.manual_seed(seed)
    model = GraphEnergyTransformer(**(TINY | changes)).double()
    with torch.no_grad():
        for block in model.blocks:
            block.norm.delta.normal_()
            block.attention.beta.uniform_(0.3, 0.8)
        if model.adjacency.bias is not None:
            model.adjacency.bias.normal_()
    return model.eval()


@pytest.mark.parametrize(
    "experiment, count",
    [
        ("tu_dd", 1_064_834),
        ("zinc", 1_052_409),
        ("zinc_full", 1_052_409),
        ("gnnbench_cifar10", 529_236),
        ("gnnbench_mnist", 528_980),
        # Table 11's own counts, which are of the true numbers of classes.
        ("gnnbench_pattern", 527_936),
        ("gnnbench_cluster", 528_964),
    ],
)
def test_released_parameter_counts(config, experiment, count):
    network = instantiate(config(f"experiment={experiment}", "fidelity=released").model)
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    block = sum(parameter.numel() for parameter in network.blocks[0].parameters()) + network.head_mix[0].numel()
    assert block == 196_608 + 65_536 + 144 + 12 + 129 == 262_429


@pytest.mark.parametrize(
    "changes",
    [{}, {"edge_features": 2}, {"conv": "none"}, {"conv": "random_walk"}, {"readout": "nodes", "steps": 3}],
)
def test_sparse_is_dense(make_graphs, changes):
    batch = make_graphs(edge_features=changes.get("edge_features", 0))
    sparse, padded = tiny(**changes), tiny(layout="padded", **changes)
    padded.load_state_dict(sparse.state_dict())
    assert torch.allclose(sparse(batch), padded(batch), rtol=0, atol=1e-9)
    assert torch.allclose(sparse.energies(batch), padded.energies(batch), rtol=0, atol=1e-9)
    gradients = [
        torch.autograd.grad(model(batch).square().sum(), list(model.parameters())) for model in (sparse, padded)
    ]
    for mine, theirs in zip(*gradients, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-8, atol=1e-9)


def test_padded_batch_is_the_released_code(golden):
    """Against the authors' JAX code on a padded batch of four graphs: adjacency, ahat and logits (float64)."""
    arrays = golden("released_padded")
    state = {name.removeprefix("state."): array for name, array in arrays.items() if name.startswith("state.")}
    model = GraphEnergyTransformer(
        in_features=7, edge_features=4, num_outputs=10, dim=24, num_heads=3, head_dim=8, num_memories=32,
        num_blocks=4, steps=1, step_size=0.1, num_eigenvectors=15, **RELEASED,
    ).double().eval()  # fmt: skip
    model.load_state_dict(state)
    keys = ("sizes", "edge_counts", "x", "edge_index", "edge_attr")
    batch = replace(pack(*(arrays[key] for key in keys), y=torch.zeros(4, dtype=torch.int64)), pe=arrays["pe"])
    _, layout, ahat = model.initial(batch)
    assert torch.equal(layout.features.double(), arrays["adjacency"])
    assert torch.allclose(ahat, arrays["ahat"], rtol=0, atol=1e-10)
    assert torch.allclose(model(batch), arrays["logits"], rtol=0, atol=1e-10)


def test_forward_is_the_equations_spelled_out_for_one_graph(make_graphs):
    """Eq. 23-27 for a single graph with dense matrices and the energy's gradient by autograd."""
    batch = make_graphs(sizes=(6,))
    model = tiny(steps=2)
    n, heads = 7, TINY["num_heads"]
    adjacency = torch.zeros(n, n, dtype=torch.float64)
    adjacency[0], adjacency[:, 0] = 1, 1
    adjacency[batch.edge_index[1] + 1, batch.edge_index[0] + 1] = 1
    x = torch.cat([model.cls[None], model.encoder(batch.x.double())]) + model.position(batch.pe.double())
    outer = torch.zeros(n + 2, n + 2, dtype=torch.float64)
    outer[1:-1, 1:-1] = x @ x.T
    ahat = torch.zeros(n, n, heads, dtype=torch.float64)
    for a in range(3):
        for b in range(3):
            ahat += outer[a : a + n, b : b + n, None] * model.kernel[:, a, b]
    ahat = ahat * adjacency[..., None] * model.adjacency.weight[:, 0]

    def energy(block, g):
        total = -0.5 * torch.relu(g @ block.hopfield.memories.T).square().sum()
        for h in range(heads):
            q, k = g @ block.attention.w_query[h].T, g @ block.attention.w_key[h].T
            beta = block.attention.beta[h]
            for c in range(n):
                keys = adjacency[c].bool()
                total = total - torch.logsumexp(beta * (k[keys] @ q[c]) * ahat[c, keys, h], 0) / beta
        return total

    for block in model.blocks:
        for _ in range(2):
            g = block.norm(x).detach().requires_grad_()
            x = x - TINY["step_size"] * torch.autograd.grad(energy(block, g), g)[0]
    assert torch.allclose(model(batch)[0], model.head(x[0]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("released", [{}, RELEASED | {"sink_padding": False}])
@pytest.mark.parametrize("conv", ["3x3", "random_walk", "none"])
def test_a_graphs_result_does_not_depend_on_its_batch(make_graphs, conv, released):
    """Nor on its padding, unless padded tokens take part; not even where a bias turns non-edges into edges."""
    graphs, model = make_graphs(), tiny(conv=conv, **released)
    together = model(graphs)
    for number in range(len(graphs)):
        assert torch.allclose(model(graphs.select([number]))[0], together[number], rtol=0, atol=1e-9)
    assert torch.allclose(model(graphs.select([2, 1, 3, 0])), together[[2, 1, 3, 0]], rtol=0, atol=1e-9)


def test_released_results_do_depend_on_the_batch(make_graphs):
    """As the released code's do: padding is made of tokens, and a bias turns non-edges into edges."""
    graphs, model = make_graphs(), tiny(**RELEASED)
    alone = torch.cat([model(graphs.select([number])) for number in range(len(graphs))])
    assert (model(graphs) - alone).abs().max() > 1e-6


class LargestTensor(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that any operation returns, gradients included."""

    numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        found = function(*arguments, **(options or {}))
        for value in found if isinstance(found, tuple | list) else (found,):
            if isinstance(value, torch.Tensor):
                self.numbers = max(self.numbers, value.numel())
        return found


def test_a_step_on_a_graph_of_dd_s_size_has_no_tensor_of_pairs_or_of_edges_times_width():
    """DD's largest graph has 5,748 nodes: all pairs of them would be 33 million numbers a head."""
    nodes = 5748
    around = torch.arange(nodes)
    edges = [torch.stack([around, (around + step) % nodes]) for step in (1, 2, 3, -1, -2, -3)]
    batch = pack(
        torch.tensor([nodes]), torch.tensor([6 * nodes]), torch.randn(nodes, 3), torch.cat(edges, 1), None,
        torch.tensor([1]),
    )  # fmt: skip
    batch = replace(batch, pe=torch.randn(nodes + 1, 4))
    model = tiny(head_dim=32).train().float()
    model(batch)  # makes what is made once
    with LargestTensor() as largest:
        model(batch).square().sum().backward()
    tokens, along = nodes + 1, 6 * nodes + 3 * nodes + 1  # to and from CLS, and each to itself
    heads, width = TINY["num_heads"], 32
    assert largest.numbers <= max(2 * tokens * heads * width, 9 * along)
    assert max(2 * tokens * heads * width, 9 * along) < min(along * heads * width, tokens**2) / 3


def test_node_order_matters_with_the_convolution_of_the_paper_alone(make_graphs):
    graphs = make_graphs()
    permuted = graphs.permute_nodes(torch.Generator().manual_seed(0))
    for conv in ("none", "random_walk"):
        model = tiny(conv=conv)
        assert torch.allclose(model(graphs), model(permuted), rtol=0, atol=1e-10)
    with_it = tiny()
    assert (with_it(graphs) - with_it(permuted)).abs().max() > 1e-4


@pytest.mark.parametrize("layout", ["sparse", "padded"])
def test_random_walk_convolution_of_a_hub_in_half_precision(layout):
    """A sum of ones in bfloat16 stops at 256."""
    leaves = 600
    star = torch.stack([torch.zeros(leaves, dtype=torch.long), torch.arange(1, leaves + 1)])
    counts = torch.tensor([leaves + 1]), torch.tensor([2 * leaves])
    batch = pack(*counts, torch.randn(leaves + 1, 3), torch.cat([star, star.flip(0)], 1), None, torch.tensor([1]))
    batch = replace(batch, pe=torch.randn(leaves + 2, 4))
    exact, rounded = tiny(conv="random_walk", layout=layout).float(), tiny(conv="random_walk", layout=layout).bfloat16()
    rounded.load_state_dict(exact.state_dict())
    ahat, close = exact.initial(batch)[2], rounded.initial(batch)[2]
    assert (close - ahat).abs().max() < 0.05 * ahat.abs().max()


def test_random_walk_convolution_by_its_definition(make_graphs):
    """ahat of every edge from powers of the row-normalised adjacency matrix; CLS and isolated nodes stay."""
    batch, model = make_graphs(), tiny(conv="random_walk")
    x, layout, ahat = model.initial(batch)
    key, query = batch.node_tokens[batch.edge_index]
    walk = torch.zeros(len(x), len(x), dtype=x.dtype).index_put((query, key), torch.tensor(1.0, dtype=x.dtype), True)
    alone = walk.sum(1) == 0
    walk[alone, alone] = 1.0
    walk = walk / walk.sum(1, keepdim=True)
    steps = torch.stack([x, walk @ x, walk @ walk @ x])
    convolution = torch.einsum("acd,bed,hab->ceh", steps, steps, model.kernel)
    edges = layout.edges
    expected = convolution[edges.query, edges.key] * layout.adjacency(x, model.adjacency)
    assert torch.allclose(ahat, expected, rtol=0, atol=1e-10)


def test_energy_falls_within_every_block(make_graphs):
    model = tiny(steps=12, step_size=0.003)
    energies = model.energies(make_graphs())
    assert energies.shape == (2, 13, 4)
    assert (energies.diff(dim=1) < 0).all()


def test_noise_and_sign_flips_are_for_training_only_unless_released(make_graphs):
    graphs = make_graphs()
    model = tiny(noise_std=0.5)
    assert torch.equal(model(graphs), model(graphs))
    model.train()
    assert not torch.equal(model(graphs), model(graphs))
    quiet = tiny(noise_std=0.0).train()
    assert not torch.equal(quiet(graphs), quiet(graphs))  # signs
    released = tiny(noise_std=0.5, noise_in_evaluation=True)
    assert not torch.equal(released(graphs), released(graphs))


def test_fidelity_replaces_what_the_configuration_lists(config):
    paper = instantiate(config("experiment=tu_mutag").model)
    released = instantiate(config("experiment=tu_mutag", "fidelity=released").model)
    assert paper.head_mix is None and paper.adjacency.bias is None and paper.layout == "sparse"
    assert not paper.noise_in_evaluation and paper.head.out_features == 2 and paper.step_size == 0.01
    assert released.head_mix is not None and released.adjacency.bias is not None and released.layout == "padded"
    assert released.noise_in_evaluation and released.sink_padding
    assert released.head.out_features == 10 and released.step_size == 0.1
    with pytest.raises(ValueError, match="fidelity"):
        GraphEnergyTransformer.of_fidelity("exact", **TINY)


@pytest.mark.parametrize("changes", [{}, RELEASED])
def test_edge_features_are_rebuilt_from_ahat(make_graphs, changes):
    graphs = make_graphs(edge_features=2)
    model = tiny(edge_features=2, edge_reconstruction=True, edge_decoder_init_std=None, **changes)
    outputs, errors = model.forward_with_edges(graphs)
    assert torch.equal(outputs, model(graphs)) and errors.shape == (len(graphs),)
    errors.sum().backward()
    assert model.kernel.grad.abs().sum() > 0 and model.edge_decoder.weight.grad.abs().sum() > 0


def test_the_edge_decoder_starts_by_rebuilding_nothing_and_learns(make_graphs):
    graphs = make_graphs(edge_features=2)
    model = tiny(edge_features=2, edge_reconstruction=True)
    errors = model.forward_with_edges(graphs)[1]
    graph = graphs.graph_of_node[graphs.edge_index[1]]
    for number in graph.unique().tolist():
        assert errors[number].item() == pytest.approx(graphs.edge_attr[graph == number].square().mean().item())
    errors.sum().backward()
    assert model.edge_decoder.weight.grad.abs().min() > 0


@pytest.mark.parametrize(
    "changes", [{}, RELEASED, RELEASED | {"flax_layout": True}, {"readout": "nodes"}, {"conv": "none"}]
)
def test_every_parameter_learns_something(make_graphs, changes):
    graphs, model = make_graphs(), tiny(**changes).train()
    model(graphs).square().sum().backward()
    axes = model.centralized_axes()
    for name, parameter in model.named_parameters():
        centralize(parameter.grad, axes.get(name))
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-12]
    assert silent == []


def test_the_released_axes_are_those_of_flax_layers():
    """Kept is a mean for each input of a layer, for each row of the convolution, and none for CLS."""
    model = tiny(flax_layout=True, **RELEASED)
    axes, parameters = model.centralized_axes(), dict(model.named_parameters())
    assert set(axes) <= set(parameters) and tiny().centralized_axes() == {}
    kept = {name: tuple(parameters[name].mean(axis).shape) for name, axis in axes.items()}
    assert kept["encoder.weight"] == (3,) and kept["position.weight"] == (4,)
    assert kept["head.weight"] == kept["blocks.0.hopfield.memories"] == (TINY["dim"],)
    assert kept["kernel"] == (3,) and kept["cls"] == ()


def test_bfloat16_stays_near_float32(make_graphs):
    graphs = make_graphs()
    model = tiny().float()
    exact = model(graphs)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(graphs)
    assert rounded.isfinite().all()
    assert (rounded.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_wrong_options_are_named():
    for changes, message in (
        ({"readout": "mean"}, "readout"),
        ({"conv": "5x5"}, "conv"),
        ({"conv": "random_walk", "layout": "padded", "sink_padding": True}, "random_walk"),
        ({"edge_reconstruction": True}, "edge features"),
    ):
        with pytest.raises(ValueError, match=message):
            GraphEnergyTransformer(**(TINY | changes))
