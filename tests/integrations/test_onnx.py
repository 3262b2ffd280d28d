"""Export: the inpainting model and a graph model as programs of torch.export and in ONNX, with the same numbers."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.export import Dim, export

from et.graphs.model import GraphEnergyTransformer
from et.graphs.positional import laplacian_eigenvectors
from et.inpainting.model import InpaintingET
from et.integrations.onnx import OneGraph


def run_onnx(program, inputs: dict[str, torch.Tensor], path) -> torch.Tensor:
    """What onnxruntime computes from the exported program."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(program, dynamo=True, verbose=False).save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return torch.from_numpy(session.run(None, {name: inputs[name].numpy() for name in names})[0])


def test_inpainting_model(tmp_path):
    torch.manual_seed(0)
    model = InpaintingET(
        image_size=32, patch_size=8, dim=32, num_heads=2, head_dim=16, num_memories=64, steps=4, step_size=0.5
    ).eval()
    with torch.no_grad():
        for parameter in model.block.parameters():
            parameter.mul_(5)  # so that the steps do something
    draw = lambda batch: {"images": torch.randn(batch, 3, 32, 32), "masked": torch.rand(batch, 16) < 0.5}  # noqa: E731
    batch = Dim("batch")
    program = export(model, (), draw(2), dynamic_shapes={"images": {0: batch}, "masked": {0: batch}})
    inputs = draw(3)
    expected = model(**inputs).detach()
    torch.testing.assert_close(program.module()(**inputs).detach(), expected)
    torch.testing.assert_close(run_onnx(program, inputs, tmp_path / "model.onnx"), expected, rtol=0, atol=1e-4)


def random_graph(nodes: int, edges: int) -> dict[str, torch.Tensor]:
    edge_index = torch.randint(0, nodes, (2, edges))
    pe = torch.from_numpy(laplacian_eigenvectors(edge_index.numpy(), nodes, 4))
    return {"x": torch.randn(nodes, 3), "edge_index": edge_index, "pe": pe, "edge_attr": torch.randn(edges, 2)}


@pytest.mark.parametrize("readout", ("cls", "nodes"))
def test_graph_model_for_graphs_of_any_size(readout, tmp_path):
    torch.manual_seed(0)
    model = GraphEnergyTransformer(
        3, 2, 2, readout, dim=8, num_heads=3, head_dim=4, num_memories=10, num_blocks=2, num_eigenvectors=4,
        step_size=0.5, attention_init_std=0.3,
    )  # fmt: skip
    nodes, edges = Dim("nodes", min=2), Dim("edges", min=2)
    sizes = {"x": {0: nodes}, "edge_index": {1: edges}, "pe": {0: nodes + 1}, "edge_attr": {0: edges}}
    program = export(OneGraph(model), (), random_graph(7, 20), dynamic_shapes=sizes)
    graph = random_graph(9, 31)
    expected = OneGraph(model)(**graph).detach()
    assert expected.shape == (1 if readout == "cls" else 9, 2)
    torch.testing.assert_close(program.module()(**graph).detach(), expected, rtol=1e-4, atol=1e-5)
    if readout == "cls":
        torch.testing.assert_close(run_onnx(program, graph, tmp_path / "graph.onnx"), expected, rtol=0, atol=1e-4)


def test_the_padded_layout_is_refused():
    model = GraphEnergyTransformer(3, 0, 2, dim=8, num_heads=1, head_dim=4, num_memories=8, layout="padded")
    with pytest.raises(ValueError, match="layout='sparse'"):
        OneGraph(model)
