from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from et.anomaly.released import ReleasedBlock, draw_dropout_mask
from et.core import EdgeTopology


def symmetric_edges(num_nodes: int, count: int, loops: bool, seed: int = 0) -> Tensor:
    """Distinct undirected edges in both directions, and a loop at every node if asked for."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randint(0, num_nodes, (2, count), generator=generator)
    pairs = pairs[:, pairs[0] != pairs[1]]
    both = torch.unique(torch.cat([pairs, pairs.flip(0)], dim=1), dim=1)
    return torch.cat([both, torch.arange(num_nodes).expand(2, -1)], dim=1) if loops else both


def by_messages(block: ReleasedBlock, x: Tensor, edge_index: Tensor) -> Tensor:
    """What the released code computes, message by message: (N, D) -> (N, D); without dropout."""
    g = F.layer_norm(x, x.shape[-1:], block.norm.weight, block.norm.bias)
    return g + attention_by_messages(block, g, edge_index) + F.relu(g @ block.memories.T) @ block.memories


def attention_by_messages(
    block: ReleasedBlock, g: Tensor, edge_index: Tensor, amplification: Tensor | float = 1.0
) -> Tensor:
    """Both attention terms, (N, D), NaN for a node that receives nothing.

    ``amplification`` (E,) is what the gradient through a score is multiplied with before and after the division by
    beta; it changes no value.
    """
    source, target = edge_index
    num_nodes, heads = len(g), block.num_heads
    out = torch.zeros_like(g)

    def amplify(scores: Tensor) -> Tensor:
        return amplification * scores - ((amplification - 1) * scores).detach()

    def weights(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(amplify(amplify((a[source] * b[target]).sum(-1)) / block.beta).clamp(-5, 5))

    for h in range(heads):
        q, k = g @ block.w_query[h].T, g @ block.w_key[h].T
        weight = weights(k, q)
        z = torch.zeros(num_nodes, dtype=g.dtype).index_add(0, target, weight)
        collected = torch.zeros_like(k).index_add(0, target, weight[:, None] * k[source])
        out = out + (collected / z[:, None]) @ block.w_query[h]
        # The second term is sent the other way: from a node, with its own query and its own sum z.
        weight = weights(q, k) / z[source]
        out = out + torch.zeros_like(q).index_add(0, target, weight[:, None] * q[source]) @ block.w_key[h]
    return out


def attention_by_dgl(block: ReleasedBlock, g: Tensor, edge_index: Tensor) -> Tensor:
    """Both attention terms, (N, D), of one head, with edges addressed by their two ends as in the released code."""
    import dgl
    import dgl.function as fn

    graph = dgl.graph(tuple(edge_index), num_nodes=len(g))
    ends = graph.edges()
    graph.ndata["q"], graph.ndata["k"] = g @ block.w_query[0].T, g @ block.w_key[0].T

    def scores(a: str, b: str) -> None:
        graph.apply_edges(lambda edges: {"w": (edges.src[a] * edges.dst[b]).sum(-1, keepdim=True)}, ends)
        graph.apply_edges(lambda edges: {"w": torch.exp((edges.data["w"] / block.beta).clamp(-5, 5))}, ends)

    scores("k", "q")
    graph.send_and_recv(ends, fn.u_mul_e("k", "w", "m"), fn.sum("m", "collected"))
    graph.send_and_recv(ends, fn.copy_e("w", "m"), fn.sum("m", "z"))
    scores("q", "k")
    graph.send_and_recv(
        ends, lambda edges: {"m": edges.src["q"] * edges.data["w"] / edges.src["z"]}, fn.sum("m", "back")
    )
    to_query = (graph.ndata["collected"] / graph.ndata["z"]) @ block.w_query[0]
    return to_query + graph.ndata["back"] @ block.w_key[0]


@pytest.mark.parametrize("scale", [1.0, 30.0, 150.0])  # at 150 the clamp holds on many edges
def test_values_and_gradients_are_those_of_the_messages(scale):
    torch.manual_seed(0)
    block = ReleasedBlock(6, 2, 5, 10).double().eval()
    with torch.no_grad():
        block.w_query.mul_(scale)
        block.w_key.mul_(scale)
    edge_index = symmetric_edges(12, 30, loops=True)
    x = torch.randn(12, 6, dtype=torch.float64, requires_grad=True)
    probe = torch.randn(12, 6, dtype=torch.float64)
    wanted = [x, *block.parameters()]
    found = block(x, EdgeTopology(edge_index, 12))
    expected = by_messages(block, x, edge_index)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for a, b in zip(
        torch.autograd.grad((found * probe).sum(), wanted),
        torch.autograd.grad((expected * probe).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_repeated_edges_change_the_gradients_of_the_released_code():
    """The gradient through the score of an edge that stands m times: m^2 times for queries and keys, m for beta."""
    pytest.importorskip("dgl")
    torch.manual_seed(0)
    block = ReleasedBlock(6, 1, 5, 10).double().eval()
    with torch.no_grad():
        block.w_query.mul_(30)
        block.w_key.mul_(30)
    pairs = torch.tensor([[0, 1, 2, 3, 4, 1], [1, 2, 3, 4, 0, 3]]).repeat(1, 2)
    pairs[:, 6:] = pairs[:, :6].flip(0)
    count = torch.tensor([1, 2, 3, 1, 2, 1]).repeat(2)
    edge_index, times = pairs.repeat_interleave(count, dim=1), count.repeat_interleave(count).double()
    g, probe = torch.randn(5, 6, dtype=torch.float64, requires_grad=True), torch.randn(5, 6, dtype=torch.float64)
    inputs = [block.w_query, block.w_key, block.beta, g]

    def gradients(out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((out * probe).sum(), inputs)

    theirs, ours = attention_by_dgl(block, g, edge_index), block.attend(g, EdgeTopology(edge_index, 5))
    torch.testing.assert_close(theirs, ours, rtol=1e-10, atol=1e-10)
    amplified = attention_by_messages(block, g, edge_index, times)
    for a, b, plain in zip(gradients(theirs), gradients(amplified), gradients(ours), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
        assert not torch.allclose(a, plain, rtol=1e-2)


def test_the_clamp_matters():
    torch.manual_seed(0)
    block = ReleasedBlock(6, 1, 5, 10).double().eval()
    with torch.no_grad():
        block.w_query.mul_(150)
        block.w_key.mul_(150)
    topology = EdgeTopology(symmetric_edges(12, 30, loops=True), 12)
    g = torch.randn(12, 6, dtype=torch.float64)
    to_query, to_key = topology.attend(
        (g @ block.w_query[0].T)[:, None], (g @ block.w_key[0].T)[:, None], 1 / block.beta.expand(1)
    )
    unclamped = to_query[:, 0] @ block.w_query[0] + to_key[:, 0] @ block.w_key[0]
    assert (block.attend(g, topology) - unclamped).abs().max() > 0.1


def test_initial_values_are_the_released_ones():
    torch.manual_seed(0)
    block = ReleasedBlock(64, 2, 256, 2048)
    assert block.beta.item() == pytest.approx(16)  # divides, so its start is sqrt(Y)
    assert block.w_query.std().item() == pytest.approx(0.01, rel=0.05)
    assert block.memories.abs().max().item() <= 1 / math.sqrt(64)
    assert block.memories.std().item() == pytest.approx(1 / math.sqrt(64 * 3), rel=0.05)
    assert block.norm.weight.shape == (64,) and block.dropout == 0.3


def test_dropout_is_active_in_training_only():
    torch.manual_seed(0)
    block = ReleasedBlock(6, 1, 5, 40)
    x, topology = torch.randn(8, 6), EdgeTopology(symmetric_edges(8, 10, loops=True), 8)
    assert not torch.equal(block(x, topology), block(x, topology))
    block.eval()
    assert torch.equal(block(x, topology), block(x, topology))


@pytest.mark.parametrize("p", [0.1, 0.3, 0.9])
def test_dropout_drops_independently(p):
    torch.manual_seed(0)
    dropped = (~draw_dropout_mask((401, 1000), p, torch.device("cpu"))).float().flatten()
    assert abs(dropped.mean().item() - p) < 4 * math.sqrt(p * (1 - p) / len(dropped))
    for lag in (1, 2, 3, 4, 1000):  # four neighbours come from one random number: they must not know of each other
        together = (dropped[lag:] * dropped[:-lag]).mean().item()
        assert abs(together - p * p) < 5 * math.sqrt(p * p * (1 - p * p) / len(dropped))


def test_dropout_is_reproducible():
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(draw_dropout_mask((7, 3), 0.5, torch.device("cpu")))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_dropout_is_that_of_the_hidden_layer():
    """Update and gradients against dropout by plain operations with the same draw."""
    torch.manual_seed(0)
    block, g = ReleasedBlock(6, 1, 5, 40).double(), torch.randn(8, 6, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    out = block.hopfield_update(g)
    torch.manual_seed(1)
    mask = draw_dropout_mask((8, 40), 0.3, torch.device("cpu")) / (1 - 0.3)
    expected = (torch.relu(g @ block.memories.T) * mask) @ block.memories
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    for found, wanted in zip(
        torch.autograd.grad(out, (g, block.memories), upstream),
        torch.autograd.grad(expected, (g, block.memories), upstream),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


def test_parts_can_be_left_out_but_not_both():
    x, topology = torch.randn(8, 6), EdgeTopology(symmetric_edges(8, 10, loops=True), 8)
    alone = ReleasedBlock(6, 1, 5, 10, use_attention=False).eval()
    changed = x.clone()
    changed[0] = torch.randn(6)
    assert torch.equal(alone(x, topology)[1:], alone(changed, topology)[1:])  # no node sees another
    attention = ReleasedBlock(6, 1, 5, 10, use_hopfield=False).eval()
    g = attention.norm(x)
    torch.testing.assert_close(attention(x, topology), g + attention.attend(g, topology))
    with pytest.raises(ValueError, match="one of the two must stay"):
        ReleasedBlock(6, 1, 5, 10, use_attention=False, use_hopfield=False)
