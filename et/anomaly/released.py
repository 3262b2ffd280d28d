"""One step of the authors' released anomaly code, where it departs from the paper's equations."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from et.core import EdgeTopology
from et.core.arguments import check_sizes
from et.core.hopfield import relu_response
from et.core.sparse import attention

CLAMP = 5.0


class ReleasedBlock(nn.Module):
    """x -> g + attention(g) + Hopfield(g) with g = LayerNorm(x), as in the released code.

    Differences from eq. 15-19: the residual is the *normalised* token; the layer norm has a gain for every element; one
    trained scalar beta, shared by the heads, *divides* the scores and starts at sqrt(Y); the exponent is clamped to
    [-5, 5], so that an edge never outweighs another by more than exp(10) and no gradient passes where it is clamped;
    the Hopfield network has dropout on its hidden layer.

    Both terms of eq. 17 are computed explicitly, from weights w_CB = exp(clamp(K_B . Q_C / beta)) normalised by their
    sum z_C over C's edges: first sum_B W^Q K_B w_CB / z_C, then, by messages from each node A along its edges to its
    neighbours, sum_A W^K Q_A w_AB / z_A. On an undirected graph the edges out of A are the reverse of those into A, so
    the weights of the second term are the transpose of those of the first. Gradients pass through both terms and
    through z. Neither term is the gradient of an energy if the clamp is active.

    The gradients are those of the formula. The released code addresses an edge by its two ends, and dgl then counts the
    gradient through the scores of an edge of multiplicity m, m^2 times too often for queries, keys and tokens, and m
    times for beta. Without repeated edges the two agree.

    Args:
        dim: Token dimension D.
        num_heads, head_dim: Number of heads H, and their dimension Y.
        num_memories: Number of memories M of the Hopfield network (paper: K).
        dropout: Dropout probability of the Hopfield network's hidden layer.
        use_attention, use_hopfield: If False, leave the module out (table 13).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int,
        num_memories: int,
        dropout: float = 0.3,
        use_attention: bool = True,
        use_hopfield: bool = True,
    ):
        super().__init__()
        if not (use_attention or use_hopfield):
            raise ValueError("a block needs attention, a Hopfield network, or both: one of the two must stay")
        check_sizes(dim=dim, num_heads=num_heads, head_dim=head_dim, num_memories=num_memories)
        self.num_heads, self.head_dim, self.dropout = num_heads, head_dim, dropout
        self.norm = nn.LayerNorm(dim)
        self.w_query = self.w_key = self.beta = self.memories = None
        if use_attention:
            self.w_query = nn.Parameter(torch.empty(num_heads, head_dim, dim))
            self.w_key = nn.Parameter(torch.empty(num_heads, head_dim, dim))
            self.beta = nn.Parameter(torch.empty(()))
        if use_hopfield:
            self.memories = nn.Parameter(torch.empty(num_memories, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise all parameters again."""
        self.norm.reset_parameters()
        if self.w_query is not None:
            nn.init.normal_(self.w_query, std=0.01)
            nn.init.normal_(self.w_key, std=0.01)
            nn.init.constant_(self.beta, math.sqrt(self.head_dim))
        if self.memories is not None:
            bound = 1 / math.sqrt(self.memories.shape[1])
            nn.init.uniform_(self.memories, -bound, bound)

    def forward(self, x: Tensor, topology: EdgeTopology) -> Tensor:
        """One step: (N, D) -> (N, D)."""
        return self.step(x, topology)[0]

    def step(self, x: Tensor, topology: EdgeTopology, carried: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """One step along one of several relations.

        Args:
            x: Tokens, (N, D).
            topology: Edges of the relation.
            carried: Attention updates of the earlier relations, (N, D). A node without an edge takes its update from
                here. If None, that update is 0.

        Returns:
            Tokens after the step and the attention updates that were used, (N, D) each; None without attention.
        """
        g = self.norm(x)
        out = g
        if self.w_query is not None:
            update = self.attend(g, topology)
            carried = update if carried is None else torch.where(topology.edges.has_edge[:, None], update, carried)
            out = out + carried
        if self.memories is not None:
            out = out + self.hopfield_update(g)
        return out, carried

    def attend(self, g: Tensor, topology: EdgeTopology) -> Tensor:
        """Both attention terms, (N, D)."""
        w_query, w_key = self.w_query.flatten(0, 1), self.w_key.flatten(0, 1)
        q = F.linear(g, w_query).unflatten(-1, (self.num_heads, self.head_dim))
        k = F.linear(g, w_key).unflatten(-1, (self.num_heads, self.head_dim))
        to_query, to_key = attention(q, k, self.betas(), topology.edges, CLAMP, topology.backend)
        return to_query.flatten(-2) @ w_query + to_key.flatten(-2) @ w_key

    def betas(self) -> Tensor:
        """Inverse temperature of each head, (H,)."""
        return (1 / self.beta).expand(self.num_heads)

    def hopfield_update(self, g: Tensor) -> Tensor:
        """Update of the Hopfield network, (N, D)."""
        if not (self.training and self.dropout > 0):
            return relu_response(g, self.memories)
        kept = draw_dropout_mask((len(g), len(self.memories)), self.dropout, g.device)
        return relu_response(g, self.memories, kept=kept) / (1 - self.dropout)


def draw_dropout_mask(shape: tuple[int, int], p: float, device: torch.device) -> Tensor:
    """Dropout mask at rate p, ``shape`` bool, with p rounded to a multiple of 2^-16.

    On the CPU torch draws Bernoulli numbers one by one, which takes a sixth of a training step here. Splitting each
    number of the same generator into four pieces of 16 bits takes half of that time.
    """
    if device.type != "cpu":
        return torch.rand(shape, device=device) >= p
    size = math.prod(shape)
    bits = torch.empty(size // 4 + 1, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return bits[:size].view(shape) >= round(p * 2**16) - 2**15
