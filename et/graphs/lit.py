"""Training and scoring of graph tasks under the two protocols (paper section 5.1, appendix D.3)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from et import optim as optimizers
from et.errors import UserError
from et.graphs.batch import GraphBatch
from et.graphs.protocol import released_accuracy
from et.sampling import rank_and_world


class GraphTask(pl.LightningModule):
    """Trains a network on graphs and scores it.

    Classification logs ``accuracy`` and, for node tasks, ``accuracy_weighted`` (mean over classes of the recall, as
    the PATTERN and CLUSTER baselines report it); regression logs ``mae``.

    ``held_out``: validation chooses the epoch, the test part is read once. ``released``: on data without an official
    split the model is trained on all graphs and scored as it is after the last epoch. Then ``test/accuracy`` and
    ``test/accuracy_std`` come from the released 10-fold loop that never refits
    (:func:`et.graphs.protocol.released_accuracy`), and ``test/accuracy_all`` is the plain accuracy on all (training)
    graphs. On data with an official split the test part is scored ``repetitions`` times, and the scores differ only as
    far as the network's noise in evaluation makes them.

    Args:
        network: called with a :class:`GraphBatch`, gives (G, outputs) or (N, outputs).
        optim: configuration of the optimizer.
        num_classes: 1 for regression.
        protocol: ``held_out`` or ``released``.
        repetitions: of the released scoring.
        label_smoothing: of the cross-entropy in training.
        edge_loss_weight: weight of the edge reconstruction's MSE, for a network with ``forward_with_edges``; 0: none.
        seed: of the released scoring.
    """

    def __init__(
        self,
        network: nn.Module,
        optim: DictConfig,
        num_classes: int,
        protocol: Literal["held_out", "released"] = "held_out",
        repetitions: int = 100,
        label_smoothing: float = 0.0,
        edge_loss_weight: float = 0.0,
        seed: int = 0,
    ):
        super().__init__()
        if protocol not in ("held_out", "released"):
            raise UserError(f"protocol must be held_out or released, not {protocol!r}")
        self.network, self.optim, self.num_classes = network, optim, num_classes
        self.protocol, self.repetitions, self.seed = protocol, repetitions, seed
        self.label_smoothing, self.edge_loss_weight = label_smoothing, edge_loss_weight
        self.tallies: dict[str, Tally] = {}

    def configure_optimizers(self) -> dict:
        return optimizers.configure(self.optim, self, self.trainer)

    def training_step(self, batch: GraphBatch, batch_index: int) -> Tensor:
        if self.edge_loss_weight > 0:
            outputs, rebuilt, features = self.network.forward_with_edges(batch)
            edge_loss = F.mse_loss(rebuilt.float(), features.float()) * self._share(len(features))
            self.log("train/edge_loss", edge_loss, batch_size=len(batch))
            loss = self.loss(outputs, batch.y) * self._share(len(batch.y)) + self.edge_loss_weight * edge_loss
        else:
            loss = self.loss(self.network(batch), batch.y) * self._share(len(batch.y))
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=False, batch_size=len(batch))
        return loss

    def _share(self, count: int) -> Tensor | float:
        """What makes the mean over the processes' means the mean over the samples of all of them."""
        _, world = rank_and_world()
        if world == 1:
            return 1.0
        own = torch.tensor(float(count), device=self.device)
        return own / self.all_gather(own).mean()

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy with label smoothing, or the mean absolute error of a regression."""
        if self.num_classes == 1:
            return F.l1_loss(outputs[:, 0].float(), target.float())
        return F.cross_entropy(outputs.float(), target, label_smoothing=self.label_smoothing)

    def on_validation_epoch_start(self) -> None:
        self.tallies["val"] = Tally(self.num_classes, self.device)

    def validation_step(self, batch: GraphBatch, batch_index: int) -> None:
        self.tallies["val"].add(self.network(batch), batch.y)

    def on_validation_epoch_end(self) -> None:
        self._log_tally("val", self.tallies.pop("val"))

    def on_test_epoch_start(self) -> None:
        torch.manual_seed(self.seed)  # for noise in evaluation: the same scores whenever the weights are tested
        self.tallies["test"] = Tally(self.num_classes, self.device)

    def test_step(self, batch: GraphBatch, batch_index: int) -> None:
        self.tallies["test"].add(self.network(batch), batch.y)

    def on_test_epoch_end(self) -> None:
        tally, data = self.tallies.pop("test"), self.trainer.datamodule
        if self.protocol == "held_out":
            self._log_tally("test", tally)
        elif data.has_official_split:
            self._log_repeated(tally, data)
        else:
            self._log_released(tally, data)

    def _log_tally(self, part: str, tally: Tally) -> None:
        level = self.trainer.datamodule.graphs.level
        for name, value in tally.measures(self.all_gather, level).items():
            self.log(f"{part}/{name}", value, prog_bar=True)

    def _log_released(self, tally: Tally, data) -> None:
        """The 10-fold loop over all graphs, beside the plain accuracy on them."""
        plain = tally.measures(self.all_gather, data.graphs.level)
        repetitions = 1 if self.trainer.fast_dev_run else self.repetitions

        def correct(numbers: Tensor) -> Tensor:
            batch = data.graphs.select(numbers).to(self.device)
            return self.network(batch).argmax(-1) == batch.y

        with seeded(self.seed, self.device):
            mean, std = released_accuracy(correct, len(data.graphs), repetitions, self.seed)
        self.log_dict({"test/accuracy": mean, "test/accuracy_std": std, "test/accuracy_all": plain["accuracy"]})

    def _log_repeated(self, tally: Tally, data) -> None:
        """Mean and deviation over repeated scorings of the official test part, the first of them already done."""
        level = data.graphs.level
        found = [tally.measures(self.all_gather, level)]
        # Without noise in evaluation, or padding, every repetition is the first.
        varies = getattr(self.network, "noise_in_evaluation", False) and not self.trainer.fast_dev_run
        with seeded(self.seed, self.device):
            for _ in range(self.repetitions - 1 if varies else 0):
                again = Tally(self.num_classes, self.device)
                for batch in data.test_dataloader():
                    batch = batch.to(self.device)
                    again.add(self.network(batch), batch.y)
                found.append(again.measures(self.all_gather, level))
        for name in found[0]:
            values = torch.tensor([measures[name] for measures in found], dtype=torch.float64)
            self.log(f"test/{name}", values.mean().item())
            self.log(f"test/{name}_std", values.std(unbiased=False).item())


class Tally:
    """Adds up, batch by batch, what the measures of a part of the data need.

    Args:
        num_classes: 1 for regression.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
        self.num_classes = num_classes
        self.absolute_error = torch.zeros((), dtype=torch.float64, device=device)
        self.count = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.correct = torch.zeros(num_classes, dtype=torch.int64, device=device)

    def add(self, outputs: Tensor, target: Tensor) -> None:
        """outputs (n, outputs), target (n,). A prediction beyond the classes there are is wrong."""
        if self.num_classes == 1:
            self.absolute_error += (outputs[:, 0].double() - target).abs().sum()
            self.count += len(target)
        else:
            self.count += torch.bincount(target, minlength=self.num_classes)
            right = target[outputs.argmax(-1) == target]
            self.correct += torch.bincount(right, minlength=self.num_classes)

    def measures(self, gather, level: str) -> dict[str, float]:
        """The measures over all processes; ``gather`` stacks a tensor over them (Lightning's all_gather)."""

        def total(tensor: Tensor) -> Tensor:
            gathered = gather(tensor)
            return gathered.sum(0) if gathered.dim() > tensor.dim() else gathered

        count, correct = total(self.count).double(), total(self.correct).double()
        if self.num_classes == 1:
            return {"mae": (total(self.absolute_error) / count.sum()).item()}
        found = {"accuracy": (correct.sum() / count.sum()).item()}
        if level == "node":
            present = count > 0
            found["accuracy_weighted"] = (correct[present] / count[present]).mean().item()
        return found


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Context in which torch's generators start from ``seed``, and after which they are as before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
