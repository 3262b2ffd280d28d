"""One graph in, its outputs out: the graph model as a function of tensors, for torch.export and ONNX."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from et.graphs.batch import GraphBatch
from et.graphs.model import GraphEnergyTransformer


class OneGraph(nn.Module):
    """A trained model, in evaluation, as a function of one graph's tensors.

    docs/how-to/integrations.md exports one.

    Args:
        model: With the sparse layout; its batch of one graph is made here.
    """

    def __init__(self, model: GraphEnergyTransformer):
        super().__init__()
        if model.layout != "sparse":
            raise ValueError("only layout='sparse' can be exported: the padded one asks for the size of each graph")
        self.model = model.eval()

    def forward(self, x: Tensor, edge_index: Tensor, pe: Tensor, edge_attr: Tensor | None = None) -> Tensor:
        """Outputs (1, num_outputs), or (N, num_outputs) with readout from the nodes.

        Args:
            x: Node features, (N, F).
            edge_index: (2, E) int64, row 0 keys and row 1 queries.
            pe: Laplacian eigenvectors of CLS and nodes, (N + 1, k): :func:`laplacian_eigenvectors` of positional.py.
            edge_attr: Edge features, (E, P), where the model has them.
        """
        zero = torch.zeros(1, dtype=torch.int64, device=x.device)
        batch = GraphBatch(
            x, edge_index, edge_attr, y=zero, ptr=torch.cat([zero, zero + x.shape[0]]),
            edge_ptr=torch.cat([zero, zero + edge_index.shape[1]]), pe=pe,
        )  # fmt: skip
        return self.model(batch)
