"""What every model must do: any float dtype, the meta device, initialisation again, inputs without samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import timm
import torch
from torch import Tensor, nn

import et.integrations.timm  # noqa: F401  (registers the model)
from et.anomaly.model import AnomalyTransformer
from et.baselines.bwgnn import BWGNN
from et.core import EdgeTopology
from et.graphs.batch import GraphBatch, pack
from et.graphs.model import GraphEnergyTransformer
from et.inpainting.model import InpaintingET
from et.integrations.pyg import EnergyConv

NODES, SIZES = 20, (5, 8, 3)


def inpainting(**arguments) -> InpaintingET:
    sizes = {
        "image_size": 32,
        "patch_size": 8,
        "dim": 32,
        "num_heads": 2,
        "head_dim": 16,
        "num_memories": 64,
        "steps": 3,
    }
    return InpaintingET(**sizes, **arguments)


def graphs(**arguments) -> GraphEnergyTransformer:
    sizes = {"dim": 32, "num_heads": 4, "head_dim": 8, "num_memories": 16, "num_blocks": 2}
    return GraphEnergyTransformer(7, **({"edge_features": 0, "num_outputs": 2} | sizes | arguments))


def anomaly(**arguments) -> AnomalyTransformer:
    return AnomalyTransformer(6, 16, 2, 8, None, 3, num_nodes=NODES, **arguments)


def classifier(**arguments) -> nn.Module:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "head_dim": 16, "num_memories": 64}
    return timm.create_model("et_base_patch16_224", num_classes=5, depth=2, **sizes, **arguments)


def graph_batch(dtype: torch.dtype, sizes: tuple[int, ...] = SIZES, edge_features: int = 0) -> GraphBatch:
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.cartesian_prod(torch.arange(n), torch.arange(n)).T for n in sizes]
    counts, nodes = torch.tensor([p.shape[1] for p in pairs]), sum(sizes)
    attributes = torch.randn(int(counts.sum()), edge_features, generator=generator) if edge_features else None
    x, y = torch.randn(nodes, 7, generator=generator), torch.zeros(len(sizes), dtype=torch.long)
    batch = pack(torch.tensor(sizes), counts, x, torch.cat(pairs, dim=1), attributes, y)
    pe = torch.randn(nodes + len(sizes), 15, generator=generator)
    batch = replace(batch, edge_index=batch.edge_index.long(), pe=pe)
    return batch._apply(lambda t: t.to(dtype) if t.is_floating_point() else t)


def edges() -> EdgeTopology:
    return EdgeTopology(torch.randint(NODES, (2, 90), generator=torch.Generator().manual_seed(1)), NODES)


def normal(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2)).to(dtype)


@dataclass
class Case:
    build: Callable[[], nn.Module]
    call: Callable[[nn.Module, torch.dtype], Tensor]
    empty: Callable[[nn.Module], Tensor] | None = None


def image_case(build: Callable[[], nn.Module]) -> Case:
    return Case(
        build,
        lambda m, dtype: m(normal(2, 3, 32, 32, dtype=dtype), normal(2, 16, dtype=torch.float32) < 0),
        lambda m: m(torch.randn(0, 3, 32, 32), torch.zeros(0, 16, dtype=torch.bool)),
    )


def graph_case(**arguments) -> Case:
    features = arguments.get("edge_features", 0)
    return Case(lambda: graphs(**arguments), lambda m, dtype: m(graph_batch(dtype, edge_features=features)))


def node_case(build: Callable[[], nn.Module]) -> Case:
    return Case(build, lambda m, dtype: m(normal(NODES, 6, dtype=dtype), [edges()]))


CASES = {
    "inpainting": image_case(inpainting),
    "inpainting_sincos_learned": image_case(
        lambda: inpainting(position_init="sincos", step_schedule="learned", fidelity="released")
    ),
    "timm": Case(
        classifier,
        lambda m, dtype: m(normal(2, 3, 32, 32, dtype=dtype)),
        lambda m: m(torch.randn(0, 3, 32, 32)),
    ),
    "conv": Case(
        lambda: EnergyConv(6, heads=2, head_dim=3, memories=8, steps=2, attention_init_std=0.3),
        lambda m, dtype: m(normal(NODES, 6, dtype=dtype), edges()),
        lambda m: m(torch.randn(0, 6), torch.zeros(2, 0, dtype=torch.long)),
    ),
    "graphs": graph_case(),
    "graphs_mixed": graph_case(head_mix=True, edge_features=2, edge_reconstruction=True, readout="nodes"),
    "graphs_padded": graph_case(layout="padded", head_mix=True, adjacency_bias=True, sink_padding=True),
    "anomaly": node_case(anomaly),
    "anomaly_released": node_case(lambda: anomaly(fidelity="released", position_embedding=True)),
    "bwgnn": node_case(lambda: BWGNN(6)),
}
EVERY = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@EVERY
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float64))
def test_any_dtype_forward_and_backward(case, dtype):
    torch.manual_seed(0)
    model = case.build().to(dtype).eval()
    exact = case.build().double().eval()
    exact.load_state_dict(model.state_dict())  # the same rounded weights
    out, expected = case.call(model, dtype), case.call(exact, torch.float64)
    assert out.dtype == dtype
    assert (out.double() - expected).norm() <= 50 * torch.finfo(dtype).eps * expected.norm()
    out.double().square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.dtype == dtype and parameter.grad.isfinite().all(), name
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained >= {name for name, _ in model.named_parameters() if "edge_decoder" not in name}


@EVERY
def test_reset_parameters_draws_a_new_model(case):
    torch.manual_seed(3)
    expected = case.build().state_dict()
    with torch.device("meta"):
        model = case.build()
    assert all(t.is_meta for t in model.state_dict().values())
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(float("nan"))  # what uninitialised memory may hold
    torch.manual_seed(3)
    model.reset_parameters()
    found = model.state_dict()
    assert not [name for name in expected if not torch.equal(found[name], expected[name])]


@EVERY
def test_weights_are_assigned_to_a_meta_model(case):
    model = case.build().eval()
    with torch.device("meta"):
        other = case.build().eval()
    other.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(case.call(other, torch.float32), case.call(model, torch.float32))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.empty])
def test_inputs_without_samples(name):
    model = CASES[name].build()
    out = CASES[name].empty(model)
    assert out.shape[0] == 0
    out.sum().backward()
