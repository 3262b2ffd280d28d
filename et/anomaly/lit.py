"""Training and scoring of node anomaly detection under the two protocols (paper section 4.1, appendix C.2)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from et.anomaly.batch import NodeBatch
from et.anomaly.data import NodeDataModule
from et.anomaly.known_labels import draw_masked, folds, open_labels
from et.anomaly.metrics import best_threshold, constant_answers, measure
from et.core.precision import at_least_float32
from et.training.task import Task
from et.utils.errors import UserError

MEASURES = ("f1_macro", "auc", "average_precision", "recall_at_k", "threshold")


def weighted_cross_entropy(log_odds: Tensor, labels: Tensor, anomaly_weight: float) -> Tensor:
    """Weighted mean of - l log p - (1 - l) log(1 - p), anomalous nodes weighing omega (eq. 12 and 22, which
    are sums and whose sign is amiss; the mean is the released code's).

    Args:
        log_odds, labels: (n,).
        anomaly_weight: omega.
    """
    log_odds = at_least_float32(log_odds)  # the sum of the weights is more than float16 can hold
    anomalous = (labels == 1).to(log_odds.dtype)
    weight = 1 + (anomaly_weight - 1) * anomalous
    return F.binary_cross_entropy_with_logits(log_odds, anomalous, weight, reduction="sum") / weight.sum()


class AnomalyTask(Task):
    """Trains a network that gives nodes log-odds, and scores it.

    ``held_out``: scores come from the network in evaluation mode, after the epoch, on the whole graph. The epoch
    (Lightning's best checkpoint) and the decision threshold are those with the best macro-F1 on the validation nodes;
    the labels of the test nodes are read once, at the end.

    ``released``: the scores of an epoch are the logits of its training step: dropout active, weights before the update,
    and the subgraph of the epoch where it trains on one. Threshold by validation macro-F1; the test numbers are those
    of the epoch with the best validation macro-F1 (the first, in a tie), whatever the weights were later.

    ``gadbench``: as ``held_out``; the split and the measure that chooses the epoch are GADBench's, and so is the loss.
    (GADBench scores a network without dropout before the epoch's update instead of after it.)

    A network whose ``takes_known_labels`` is true sees training labels (see :mod:`et.anomaly.known_labels`).

    Args:
        network: called with (features, topologies, nodes), gives log-odds (n,). With known labels it takes a fourth
            argument, the labels that are open.
        optim: configuration of the optimizer.
        protocol: ``held_out``, ``released`` or ``gadbench``.
        balance: anomalous nodes weigh omega ** balance in the loss; 1: as in eq. 12; 0: all nodes weigh the same.
        masked_share: With known labels, the share of the training labels that each step masks and predicts.
    """

    family = "anomaly"
    protocols = (*Task.protocols, "gadbench")
    main_metrics = ("test/f1_macro", "test/auc", "test/average_precision", "test/recall_at_k")
    repeat_tolerance = 0.05  # the dropout that an order of the nodes draws carries on through the training

    def __init__(
        self,
        network: nn.Module,
        optim: DictConfig,
        protocol: Literal["held_out", "released", "gadbench"] = "held_out",
        balance: float = 1.0,
        masked_share: float = 0.2,
    ):
        super().__init__(network, optim)
        if protocol not in self.protocols:
            raise UserError(f"protocol must be held_out, released or gadbench, not {protocol!r}")
        if not 0 < masked_share < 1:
            raise UserError(f"task.masked_share must lie between 0 and 1, not be {masked_share}")
        self.protocol, self.balance = protocol, balance
        self.known_labels, self.masked_share = getattr(network, "takes_known_labels", False), masked_share
        # Measures of the latest and of the best epoch under `released`, in buffers so that checkpoints keep them.
        for name in ("latest_val", "best_val", "best_test"):
            self.register_buffer(name, torch.zeros(len(MEASURES)))

    def on_fit_start(self) -> None:
        # The released scores of an epoch are those of its training step: they cost nothing to look at, and every epoch
        # is a candidate, however seldom the whole graph is scored under `held_out`.
        if self.protocol == "released":
            self.trainer.check_val_every_n_epoch = 1

    def log_odds(self, batch: NodeBatch, known: Tensor | None = None) -> Tensor:
        """(n,) log-odds of every node of the batch; ``known`` (n,): the labels that are open, if any are."""
        inputs = (batch.features, batch.topologies, batch.nodes)
        return self.network(*inputs) if known is None else self.network(*inputs, known)

    def training_step(self, batch: NodeBatch, batch_index: int) -> Tensor:
        predicted, known = self.open_in_training(batch)
        log_odds = self.log_odds(batch, known)
        weight = batch.anomaly_weight**self.balance
        loss = weighted_cross_entropy(log_odds[predicted], batch.labels[predicted], weight)
        if self.trainer.world_size > 1:
            loss = loss * self._share(batch.labels[predicted], weight)
        self.log("train/loss", loss, prog_bar=True, batch_size=1, sync_dist=True)
        if self.protocol == "released":
            self._measure_training_step(log_odds.detach(), batch)
        return loss

    def open_in_training(self, batch: NodeBatch) -> tuple[Tensor, Tensor | None]:
        """The nodes that a step predicts, (m,), and the labels it may see, (n,): never those of the same nodes."""
        if not self.known_labels:
            return batch.train, None
        masked, others = draw_masked(batch.train, self.masked_share)
        return masked, open_labels(batch.labels, others)

    def _share(self, labels: Tensor, anomaly_weight: float) -> Tensor:
        """What makes the mean over the processes' losses the weighted mean over the nodes of all of them."""
        anomalous = (labels == 1).sum()
        weights = (len(labels) - anomalous) + anomaly_weight * anomalous
        return weights / self.all_gather(weights).mean()

    def _measure_training_step(self, log_odds: Tensor, batch: NodeBatch) -> None:
        val, threshold = self._measure(log_odds, batch, batch.val)
        self.latest_val.copy_(val)
        if val[0] > self.best_val[0]:
            self.best_val.copy_(val)
            self.best_test.copy_(self._measure(log_odds, batch, batch.test, threshold)[0])

    def _measure(
        self, log_odds: Tensor, batch: NodeBatch, part: Tensor, threshold: float | None = None
    ) -> tuple[Tensor, float]:
        """:data:`MEASURES` of a part of the nodes and the threshold, chosen on this part unless given."""
        # On the CPU: a few numbers for each node, and sums whose order is fixed.
        log_odds, labels = log_odds[part].float().cpu(), batch.labels[part].cpu()
        if threshold is None:
            threshold, _ = best_threshold(log_odds.sigmoid(), labels)
        found = {**measure(log_odds, labels, threshold), "threshold": threshold}
        return torch.tensor([found[name] for name in MEASURES]), threshold

    def _log_measures(self, part: str, values: Tensor) -> None:
        for name, value in zip(MEASURES, values.tolist(), strict=True):
            self.log(f"{part}/{name}", value, prog_bar=name == "f1_macro", batch_size=1)

    def validation_step(self, batch: NodeBatch, batch_index: int) -> None:
        if self.protocol == "released":
            self._log_measures("val", self.latest_val)
        else:
            self._log_measures("val", self._measure(self.score_others(batch), batch, batch.val)[0])

    def test_step(self, batch: NodeBatch, batch_index: int) -> None:
        if self.protocol == "released":
            self._log_measures("test", self.best_test)
            return
        log_odds = self.score_others(batch)
        _, threshold = self._measure(log_odds, batch, batch.val)
        self._log_measures("test", self._measure(log_odds, batch, batch.test, threshold)[0])

    def predict_step(self, batch: NodeBatch, batch_index: int) -> dict[str, Tensor]:
        """Probability and label of every node, (N,), in the order of the graph's file, which the batch's is not."""
        probability, label = torch.empty(len(batch.nodes)), torch.empty(len(batch.nodes), dtype=torch.int64)
        nodes = batch.nodes.cpu()
        probability[nodes] = self.score(batch).float().sigmoid().cpu()
        label[nodes] = batch.labels.cpu()
        return {"probability": probability, "label": label}

    def score(self, batch: NodeBatch) -> Tensor:
        """(n,) log-odds in evaluation mode. No node's score depends on its own label.

        With known labels, the training nodes are scored in folds, each with the labels of the other folds open.
        """
        log_odds = self.score_others(batch)
        if self.known_labels:
            for inside, others in folds(batch.train, batch.nodes[batch.train]):
                log_odds[inside] = self._score(batch, open_labels(batch.labels, others))[inside]
        return log_odds

    def score_others(self, batch: NodeBatch) -> Tensor:
        """(n,) log-odds in evaluation mode with all training labels open; meant for the nodes that do not train."""
        return self._score(batch, open_labels(batch.labels, batch.train) if self.known_labels else None)

    def _score(self, batch: NodeBatch, known: Tensor | None) -> Tensor:
        """(n,) log-odds; a network that can, scores a large graph piece by piece."""
        in_pieces = getattr(self.network, "score", None)
        if in_pieces is None:
            return self.log_odds(batch, known)
        inputs = (batch.features, batch.topologies, batch.nodes)
        return in_pieces(*inputs) if known is None else in_pieces(*inputs, known=known)

    @classmethod
    def summary(cls, record: Mapping[str, Any]) -> str | None:
        metrics, data = record["metrics"], record["dataset"]["name"]
        if "test/f1_macro" not in metrics:
            return None
        return f"Macro-F1 {metrics['test/f1_macro']:.1%} and AUC {metrics['test/auc']:.1%} on {data}'s test nodes."

    def trivial_inputs(self, batch: NodeBatch) -> Tensor:
        """Labels of the validation nodes, (n,)."""
        return batch.labels[batch.val]

    @classmethod
    def trivial_answers(cls, inputs: Tensor) -> dict[str, tuple[str, float]]:
        return constant_answers(inputs)

    @classmethod
    def draw_figures(cls, network: nn.Module, data: NodeDataModule, folder: Path) -> dict[str, Any]:
        """Attention between anomalous nodes and energies, see :func:`et.anomaly.figures.draw_figures`."""
        from et.anomaly.figures import draw_figures  # late: matplotlib takes a second

        return draw_figures(network, data, folder)


class FittedTask(AnomalyTask):
    """The same protocols for a network that is fitted in one go instead of by gradient steps (trees).

    The single training step fits it. What it has learnt is not part of a checkpoint; where a run is resumed after that
    step, scoring fits it again, which gives the same.

    Args:
        network: with ``fit(features, topologies, labels, train)`` and ``fitted``. The other arguments are those of
            :class:`AnomalyTask`; the optimizer has nothing to do. With known labels, a row of its input must not
            depend on that node's own label: it is fitted and scores with all training labels open.
    """

    repeat_tolerance = 1e-6  # neither the order of the nodes nor that of sums matters to trees

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def configure_optimizers(self) -> None:
        return None

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.trainer.datamodule.sample_ratio is not None:
            raise UserError("this network is fitted once, on the whole graph: set data.sample_ratio=null")

    def log_odds(self, batch: NodeBatch, known: Tensor | None = None) -> Tensor:
        if not self.network.fitted:
            self.network.fit(batch.features, batch.topologies, batch.labels, batch.train)
        return super().log_odds(batch, known)

    def open_in_training(self, batch: NodeBatch) -> tuple[Tensor, Tensor | None]:
        return batch.train, open_labels(batch.labels, batch.train) if self.known_labels else None

    def score(self, batch: NodeBatch) -> Tensor:
        return self.score_others(batch)

    def training_step(self, batch: NodeBatch, batch_index: int) -> None:
        super().training_step(batch, batch_index)
