"""Training and scoring of node anomaly detection under the two protocols (paper section 4.1, appendix C.2)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor, nn

from et.anomaly.batch import NodeBatch
from et.anomaly.data import NodeDataModule
from et.anomaly.known_labels import draw_masked, folds, visible_labels
from et.anomaly.metrics import best_threshold, constant_answers, measure
from et.core.precision import at_least_float32
from et.training.task import Task
from et.utils.errors import UserError

MEASURES = ("f1_macro", "auc", "average_precision", "recall_at_k", "threshold")


def weighted_cross_entropy(log_odds: Tensor, labels: Tensor, anomaly_weight: float) -> Tensor:
    """Weighted binary cross-entropy, with weight omega for anomalous nodes (eq. 12 and 22).

    The equations are sums with the wrong sign. The weighted mean is the released code's.

    Args:
        log_odds: Log-odds of an anomaly, (n,), or of an ensemble's M networks, (n, M).
        labels: Labels 0 or 1, (n,).
        anomaly_weight: Weight omega.

    Returns:
        The loss, () in at least float32: for an ensemble the mean of its networks' losses.
    """
    log_odds = at_least_float32(log_odds)  # the sum of the weights is more than float16 can hold
    anomalous = (labels == 1).to(log_odds.dtype)
    if log_odds.dim() == 2:
        anomalous = anomalous[:, None].expand_as(log_odds)
    weight = 1 + (anomaly_weight - 1) * anomalous
    return F.binary_cross_entropy_with_logits(log_odds, anomalous, weight, reduction="sum") / weight.sum()


class AnomalyTask(Task):
    """Trains and scores a network that maps nodes to log-odds of an anomaly.

    ``held_out``: after an epoch, the network in evaluation mode scores the whole graph. Epoch (Lightning's best
    checkpoint) and decision threshold have the best macro-F1 on the validation nodes. The labels of the test nodes are
    read once, at the end.

    ``released``: the scores of an epoch are the logits of its training step, with dropout, the weights before the
    update, and the subgraph of the epoch if it trains on one. The threshold has the best validation macro-F1. The test
    metrics are those of the (first) epoch with the best validation macro-F1.

    ``gadbench``: as ``held_out``, with GADBench's split, loss and metric that chooses the epoch. (GADBench scores a
    network without dropout before the epoch's update instead of after it.)

    A network whose ``takes_known_labels`` is True sees training labels (see :mod:`et.anomaly.known_labels`).

    A network with ``fitted`` and ``fit(features, topologies, labels, train)`` has trees in it. They are fitted when it
    is first called. A checkpoint does not hold them: a resumed or evaluated run fits them again, on the same nodes and
    with the same result.

    Args:
        network: Maps (features (n, F), topologies, node ids (n,)) to log-odds (n,). With known labels, its fourth
            argument is the visible labels (n,).
        optim: Configuration of the optimizer and its schedule.
        protocol: ``held_out``, ``released`` or ``gadbench``.
        balance: Exponent of omega in the loss. 1 gives eq. 12, and 0 gives all nodes the same weight.
        masked_share: Share of the training labels that a step masks and predicts, with known labels.

    Raises:
        UserError: ``protocol`` or ``masked_share`` has no such value. When training starts: a network with trees is
            trained on subgraphs or under ``released``, or one with a position embedding in inductive mode.
    """

    family = "anomaly"
    protocols = (*Task.protocols, "gadbench")
    validation_metrics = tuple(f"val/{name}" for name in MEASURES)
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
        hides_nodes = getattr(self.trainer.datamodule, "inductive", False)
        if hides_nodes and getattr(self.network, "position", None) is not None:
            raise UserError(
                "data.inductive=true hides validation and test nodes from training, so the vectors that a position "
                "embedding has for them are never trained: set model.position_embedding=false"
            )
        if hasattr(self.network, "fitted"):
            if self.trainer.datamodule.sample_ratio is not None:
                raise UserError("this network is fitted once, on the whole graph: set data.sample_ratio=null")
            if self.protocol == "released" and self.automatic_optimization:
                raise UserError(
                    "protocol=released scores a training step, in which the trees have no part: set protocol=held_out"
                )
        # The released scores of an epoch are those of its training step: they cost nothing to look at, and every epoch
        # is a candidate, however seldom the whole graph is scored under `held_out`.
        if self.protocol == "released":
            if any(isinstance(callback, WeightAveraging) for callback in self.trainer.callbacks):
                raise UserError(
                    "protocol=released scores the training steps, in which averaged weights have no part: "
                    "set protocol=held_out, or leave the averaging out (~callbacks.ema)"
                )
            self.trainer.check_val_every_n_epoch = 1

    def log_odds(self, batch: NodeBatch, known: Tensor | None = None) -> Tensor:
        """Log-odds of every node of the batch, (n,). If ``known`` (n,) is None, no label is visible."""
        self._fit_trees(batch)
        inputs = (batch.features, batch.topologies, batch.nodes)
        return self.network(*inputs) if known is None else self.network(*inputs, known)

    def _fit_trees(self, batch: NodeBatch) -> None:
        """Fit the trees of a network, unless it has none or they are: in inductive mode on the training nodes' graph,
        whatever graph ``batch`` is.
        """
        if getattr(self.network, "fitted", True):
            return
        data = None if self._trainer is None else self.trainer.datamodule
        of = data.train_dataloader().dataset[0] if data is not None and data.inductive else batch
        self.network.fit(of.features, of.topologies, of.labels, of.train)

    def training_step(self, batch: NodeBatch, batch_index: int) -> Tensor:
        predicted, known = self.visible_in_training(batch)
        log_odds = self.log_odds(batch, known)
        weight = batch.anomaly_weight**self.balance
        loss = weighted_cross_entropy(log_odds[predicted], batch.labels[predicted], weight)
        if self.trainer.world_size > 1:
            loss = loss * self._share(batch.labels[predicted], weight)
        self.log("train/loss", loss, prog_bar=True, batch_size=1, sync_dist=True)
        if self.protocol == "released":
            self._measure_training_step(log_odds.detach().reshape(len(log_odds), -1).mean(1), batch)
        return loss

    def visible_in_training(self, batch: NodeBatch) -> tuple[Tensor, Tensor | None]:
        """Indices of the nodes that a step predicts, (m,), and the labels of other nodes that it may see, (n,)."""
        if not self.known_labels:
            return batch.train, None
        masked, others = draw_masked(batch.train, self.masked_share)
        return masked, visible_labels(batch.labels, others)

    def _share(self, labels: Tensor, anomaly_weight: float) -> Tensor:
        """Factor that turns the mean of the processes' losses into the weighted mean over the nodes of all."""
        anomalous = (labels == 1).sum()
        weights = (len(labels) - anomalous) + anomaly_weight * anomalous
        return weights / self.all_gather(weights).mean()

    def _measure_training_step(self, log_odds: Tensor, batch: NodeBatch) -> None:
        for part in (batch.val, batch.test):
            anomalous = batch.labels[part] == 1
            if anomalous.all() or not anomalous.any():  # a sampled subgraph may lack a class: it has no measures
                return
        val, threshold = self._measure(log_odds, batch, batch.val)
        self.latest_val.copy_(val)
        if val[0] > self.best_val[0]:
            self.best_val.copy_(val)
            self.best_test.copy_(self._measure(log_odds, batch, batch.test, threshold)[0])

    def _measure(
        self, log_odds: Tensor, batch: NodeBatch, part: Tensor, threshold: float | None = None
    ) -> tuple[Tensor, float]:
        """:data:`MEASURES` of some nodes and the threshold. If ``threshold`` is None, it is chosen on these nodes."""
        # On the CPU: a few numbers for each node, and sums whose order is fixed.
        log_odds, labels = _numbers(log_odds[part]).float().cpu(), batch.labels[part].cpu()
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
            if self.best_val[0] == 0:
                raise UserError(
                    "no training step had nodes of both classes in validation and test part: raise data.sample_ratio"
                )
            self._log_measures("test", self.best_test)
            return
        log_odds = self.score_others(batch)
        _, threshold = self._measure(log_odds, batch, batch.val)
        self._log_measures("test", self._measure(log_odds, batch, batch.test, threshold)[0])

    def predict_step(self, batch: NodeBatch, batch_index: int) -> dict[str, Tensor]:
        """``probability`` and ``label`` of every node in the order of the graph's file, (N,) each."""
        probability, label = torch.empty(len(batch.nodes)), torch.empty(len(batch.nodes), dtype=torch.int64)
        nodes = batch.nodes.cpu()
        probability[nodes] = _numbers(self.score(batch)).float().sigmoid().cpu()
        label[nodes] = batch.labels.cpu()
        return {"probability": probability, "label": label}

    def score(self, batch: NodeBatch) -> Tensor:
        """Log-odds in evaluation mode, (n,). No node's label is part of the input of its own score.

        With known labels, the training nodes are scored in folds, each with the labels of the other folds visible.
        """
        log_odds = self.score_others(batch)
        if self.known_labels:
            for inside, others in folds(batch.train, batch.nodes[batch.train]):
                log_odds[inside] = self._score(batch, visible_labels(batch.labels, others))[inside]
        return log_odds

    def score_others(self, batch: NodeBatch) -> Tensor:
        """Log-odds in evaluation mode with all training labels visible, (n,). Meant for the nodes that do not train."""
        return self._score(batch, visible_labels(batch.labels, batch.train) if self.known_labels else None)

    def _score(self, batch: NodeBatch, known: Tensor | None) -> Tensor:
        """Log-odds, (n,). A network with ``score`` processes a large graph in blocks."""
        in_pieces = getattr(self.network, "score", None)
        if in_pieces is None:
            return self.log_odds(batch, known)
        self._fit_trees(batch)
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


def _numbers(log_odds: Tensor) -> Tensor:
    """``log_odds`` as they are.

    Raises:
        UserError: Some are NaN, which would rank above all others.
    """
    if count := int(log_odds.isnan().sum()):
        raise UserError(
            f"the network scores {count} of {len(log_odds)} nodes NaN: lower optim.optimizer.lr or model.step_size, "
            "set optim.clip_norm, or look for NaN in the data"
        )
    return log_odds


class FittedTask(AnomalyTask):
    """The same protocols for a network that is fitted at once instead of by gradient steps (trees).

    The first training step fits it and ends the training, whatever ``trainer.max_epochs`` is.

    Args:
        network: Has ``fit(features, topologies, labels, train)`` and ``fitted``. With known labels it is fitted with
            all training labels visible. So does it score, if a row of its input does not depend on the node's own
            label: if it has no ``label_hops``, or 1.
        *args, **kwargs: The other arguments of :class:`AnomalyTask`. The optimizer is ignored.
    """

    repeat_tolerance = 1e-6  # neither the order of the nodes nor that of sums matters to trees

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.trainer.check_val_every_n_epoch = 1  # the only epoch

    def configure_optimizers(self) -> None:
        return None

    def visible_in_training(self, batch: NodeBatch) -> tuple[Tensor, Tensor | None]:
        return batch.train, visible_labels(batch.labels, batch.train) if self.known_labels else None

    def score(self, batch: NodeBatch) -> Tensor:
        return self.score_others(batch) if getattr(self.network, "label_hops", 1) == 1 else super().score(batch)

    def training_step(self, batch: NodeBatch, batch_index: int) -> None:
        super().training_step(batch, batch_index)
        self.trainer.should_stop = True  # further epochs would only score the same model again
