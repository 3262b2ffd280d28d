"""Training and scoring of graph tasks under the two protocols (paper section 5.1, appendix D.3)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from et.core.arguments import check_sizes
from et.graphs.batch import GraphBatch
from et.graphs.data import GraphData
from et.graphs.metrics import Measures, constant_answers, constant_error
from et.graphs.protocol import RELEASED_BATCH, released_accuracy
from et.runs.fingerprint import check_unseen
from et.training.callbacks import KeptScores
from et.training.sampler import rank_and_world
from et.training.task import Task
from et.utils.errors import UserError

SAY_EVERY = 30.0  # seconds of repeated scoring, which no progress bar counts


class GraphTask(Task):
    """Trains and scores a network on graphs.

    Classification logs ``accuracy``, ``loss`` (cross-entropy without smoothing) and, for node tasks,
    ``accuracy_weighted`` (mean recall of the classes, as the PATTERN and CLUSTER baselines report it). Regression logs
    ``mae`` and ``test/mae_constant``, the error of the median of the training targets.

    ``held_out``: validation chooses the epoch, and the test part is read once.

    ``released``: on data without an official split, the network trains on all graphs and is scored after the last
    epoch. ``test/accuracy`` and ``test/accuracy_std`` come from the released 10-fold loop, which never refits
    (:func:`et.graphs.protocol.released_accuracy`). ``test/accuracy_all`` is the accuracy on all (training) graphs. On
    data with an official split, the test part is scored ``repetitions`` times; only noise makes the scores differ.

    Args:
        network: Maps a :class:`GraphBatch` to outputs, (G, outputs) or (N, outputs).
        optim: Configuration of the optimizer and its schedule.
        num_classes: Number of classes, or 1 for a regression.
        protocol: ``held_out`` or ``released``.
        repetitions: Number of scorings under ``released``.
        label_smoothing: Label smoothing of the cross-entropy in training.
        class_weights: If True, weight the cross-entropy by :func:`class_weights` in training.
        edge_loss_weight: Weight of the reconstruction error of the edges in the loss, for a network with
            ``forward_with_edges``. 0 means no reconstruction.
        seed: Seed of the released scoring: repetition r draws folds and noise from ``seed + r``.

    Raises:
        UserError: ``protocol`` has no such value, or ``edge_loss_weight`` does not fit the network.
    """

    family = "graphs"
    validation_metrics = ("val/accuracy", "val/accuracy_weighted", "val/loss", "val/mae")
    main_metrics = (
        "test/accuracy", "test/accuracy_weighted", "test/accuracy_std", "test/accuracy_all", "val/accuracy",
        "test/mae", "test/mae_constant", "val/mae",
    )  # fmt: skip
    repeat_tolerance = 0.15  # two of the 19 graphs of a test fold of MUTAG may change sides

    def __init__(
        self,
        network: nn.Module,
        optim: DictConfig,
        num_classes: int,
        protocol: Literal["held_out", "released"] = "held_out",
        repetitions: int = 100,
        label_smoothing: float = 0.0,
        class_weights: bool = False,
        edge_loss_weight: float = 0.0,
        seed: int = 0,
    ):
        super().__init__(network, optim)
        if protocol not in self.protocols:
            raise UserError(f"protocol must be held_out or released, not {protocol!r}")
        if (edge_loss_weight > 0) != (getattr(network, "edge_decoder", None) is not None):
            raise UserError(
                "model.edge_reconstruction=true and a task.edge_loss_weight above 0 go together: the one has no use "
                "without the other"
            )
        check_sizes(num_classes=num_classes, repetitions=repetitions)
        if not 0 <= label_smoothing < 1 or edge_loss_weight < 0:
            raise UserError(
                f"task.label_smoothing={label_smoothing} must lie between 0 and 1, and "
                f"task.edge_loss_weight={edge_loss_weight} must not be negative"
            )
        self.num_classes = num_classes
        self.protocol, self.repetitions, self.seed = protocol, repetitions, seed
        self.label_smoothing, self.edge_loss_weight = label_smoothing, edge_loss_weight
        self.class_weights = class_weights
        self.val_measures, self.test_measures = Measures(num_classes), Measures(num_classes)
        self.trained_on: str | None = None  # name of the data of ``trainer.fit``

    def setup(self, stage: str) -> None:
        data, readout = self.trainer.datamodule, getattr(self.network, "readout", None)
        if data is not None and stage == "fit":
            self.trained_on = data.name
        elif data is not None and self.trained_on is not None:
            check_unseen(self.trained_on, data.name)
        if data is None and stage == "test" and self.protocol == "released":
            raise UserError("the released protocol needs all graphs: give a datamodule (et.graphs.data.GraphData)")
        classes = getattr(data, "num_classes", self.num_classes)
        if classes != self.num_classes:
            raise UserError(f"task.num_classes={self.num_classes}, but the data have {classes}: leave it out")
        if data is None or readout not in ("cls", "graph", "nodes"):
            return
        level = data.graphs.level
        if (readout == "nodes") != (level == "node"):
            right = "set model.readout=nodes" if level == "node" else "leave model.readout out"
            raise UserError(f"the targets are of {level}s, and the network reads out {readout}: {right}")

    def training_step(self, batch: GraphBatch, batch_index: int) -> Tensor:
        if self.edge_loss_weight > 0:
            outputs, edge_errors = self.network.forward_with_edges(batch)
            edge_loss = edge_errors.float().mean() * self._share(len(batch))
            self.log("train/edge_loss", edge_loss, batch_size=len(batch), sync_dist=True)
            loss = self.loss(outputs, batch.y) * self._share(len(batch.y)) + self.edge_loss_weight * edge_loss
        else:
            loss = self.loss(self.network(batch), batch.y) * self._share(len(batch.y))
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=False, batch_size=len(batch), sync_dist=True)
        return loss

    def _share(self, count: int) -> Tensor | float:
        """Factor that turns the mean of the processes' means into the mean over the samples of all."""
        _, world = rank_and_world()
        if world == 1:
            return 1.0
        own = torch.tensor(float(count), device=self.device)
        return own / self.all_gather(own).mean()

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy with label smoothing and class weights, or the mean absolute error of a regression."""
        if self.num_classes == 1:
            return F.l1_loss(outputs[:, 0].float(), target.float())
        weight = class_weights(target, outputs.shape[1]) if self.class_weights else None
        return F.cross_entropy(outputs.float(), target, weight=weight, label_smoothing=self.label_smoothing)

    def validation_step(self, batch: GraphBatch, batch_index: int) -> None:
        self.val_measures.update(self.network(batch), batch.y)

    def on_validation_epoch_end(self) -> None:
        self._log("val", self.compute_and_reset(self.val_measures))

    def on_test_epoch_start(self) -> None:
        # For noise in evaluation: the same scores whenever the weights are tested.
        torch.manual_seed(self.seed + self._of_this_process())

    def _of_this_process(self) -> int:
        """Offset of a seed that gives each process other noise; 0 in the first."""
        return 1_000_003 * rank_and_world()[0]

    def test_step(self, batch: GraphBatch, batch_index: int) -> None:
        self.test_measures.update(self.network(batch), batch.y)

    def on_predict_epoch_start(self) -> None:
        torch.manual_seed(self.seed)

    def predict_step(self, batch: GraphBatch, batch_index: int) -> dict[str, Tensor]:
        """``output``, (G or N, C) probabilities or the (G, 1) values of a regression, and the ``target`` beside it."""
        output = self.network(batch).float()
        return {"output": output[:, :1] if self.num_classes == 1 else output.softmax(-1), "target": batch.y}

    @classmethod
    def summary(cls, record: Mapping[str, Any]) -> str | None:
        metrics, data = record["metrics"], record["dataset"]["name"]
        if "test/mae" in metrics and "test/mae_constant" in metrics:
            error, constant = metrics["test/mae"], metrics["test/mae_constant"]
            return f"Mean absolute error on {data}: {error:.4f}; a constant answer has {constant:.4f}."
        if "test/accuracy" not in metrics:
            return None
        where = "test data" if record["protocol"] == "held_out" else "the data of the released protocol"
        return f"Accuracy {metrics['test/accuracy']:.1%} on {where} of {data}."

    def trivial_inputs(self, batch: GraphBatch) -> Tensor:
        """Targets, (G,) or (N,)."""
        return batch.y

    @classmethod
    def trivial_answers(cls, inputs: Tensor) -> dict[str, tuple[str, float]]:
        return constant_answers(inputs)

    def on_test_epoch_end(self) -> None:
        found, data = self.compute_and_reset(self.test_measures), self.trainer.datamodule
        if self.num_classes == 1 and data is not None:
            train, test = (data.graphs.select(data.split[part]).y for part in ("train", "test"))
            self.log("test/mae_constant", constant_error(train, test))
        if self.protocol == "held_out" or data is None:
            self._log("test", found)
        elif data.has_official_split:
            self._log_repeated(found, data)
        else:
            self._log_released(found["accuracy"], data)

    def compute_and_reset(self, measures: Measures) -> dict[str, float]:
        """Metrics since the last call, without ``accuracy_weighted`` if the targets are of graphs."""
        found = measures.compute()
        measures.reset()
        if self._level() == "graph":
            found.pop("accuracy_weighted", None)
        return found

    def _level(self) -> str:
        """What has a target each: ``graph`` or ``node``."""
        if self.trainer.datamodule is not None:
            return self.trainer.datamodule.graphs.level
        return "node" if getattr(self.network, "readout", None) == "nodes" else "graph"  # plain loaders were given

    def _log(self, part: str, found: dict[str, float]) -> None:
        for name, value in found.items():
            self.log(f"{part}/{name}", value, prog_bar=True)

    def _log_released(self, plain: float, data: GraphData) -> None:
        """Log the accuracy of the 10-fold loop over all graphs, and the ``plain`` accuracy on them."""

        def correct(numbers: Tensor) -> Tensor:
            batch = data.graphs.select(numbers).to(self.device)
            with self.trainer.precision_plugin.forward_context():
                return self.network(batch).argmax(-1) == batch.y

        varies = self.noisy or getattr(self.network, "layout", "") == "padded"
        if not varies:
            every = torch.cat([correct(part) for part in torch.arange(len(data.graphs)).split(RELEASED_BATCH)])
            correct = every.__getitem__  # a model whose answers never vary need be asked but once

        def score(repetition: int) -> dict[str, float]:
            seed = self.seed + repetition
            with seeded(seed, self.device):
                return {"accuracy": released_accuracy(correct, len(data.graphs), seed)}

        repetitions = 1 if self.trainer.fast_dev_run else self.repetitions
        self._log_mean_and_std(self._scores(score, repetitions, data, keep=varies))
        self.log("test/accuracy_all", plain)

    def _log_repeated(self, first: dict[str, float], data: GraphData) -> None:
        """Log mean and deviation over repeated scorings of the official test part; ``first`` is that of the first."""
        again = Measures(self.num_classes).to(self.device)

        def score(repetition: int) -> dict[str, float]:
            if repetition == 0:
                return first
            with seeded(self.seed + repetition + self._of_this_process(), self.device):
                for batch in data.test_dataloader():
                    batch = batch.to(self.device)
                    with self.trainer.precision_plugin.forward_context():
                        outputs = self.network(batch)
                    again.update(outputs, batch.y)
            return self.compute_and_reset(again)

        # Without noise every repetition is the first: the batches are always the same, and so is their padding.
        varies = self.noisy and not self.trainer.fast_dev_run
        self._log_mean_and_std(self._scores(score, self.repetitions if varies else 1, data, keep=varies))

    def _scores(
        self, score: Callable[[int], dict[str, float]], repetitions: int, data: GraphData, keep: bool
    ) -> list[dict[str, float]]:
        """``score(0) .. score(repetitions - 1)``, of which an interrupted run keeps those that are done if ``keep``.

        Each repetition seeds itself, so the scores are the same whether the run was interrupted or not.
        """
        callbacks = (callback for callback in self.trainer.callbacks if isinstance(callback, KeptScores))
        kept = next(callbacks, None) if keep and not self.trainer.fast_dev_run else None
        if kept is None:
            return [score(repetition) for repetition in self._counted(repetitions)]
        parts = data.batch_size, self.trainer.world_size, self.seed, data.describe()
        key = kept.key(self.network, *parts)
        scores = self.trainer.strategy.broadcast(kept.read(key))[:repetitions]
        for repetition in self._counted(repetitions, first=len(scores)):
            scores.append(score(repetition))
            if self.trainer.is_global_zero:
                kept.write(key, scores)
        return scores

    def _log_mean_and_std(self, scores: list[dict[str, float]]) -> None:
        for name in scores[0]:
            values = torch.tensor([found[name] for found in scores], dtype=torch.float64)
            self.log_dict({f"test/{name}": values.mean().item(), f"test/{name}_std": values.std(unbiased=False).item()})

    @property
    def noisy(self) -> bool:
        """True if the network draws noise in evaluation."""
        return getattr(self.network, "noise_in_evaluation", False)

    def _counted(self, repetitions: int, first: int = 0) -> Iterator[int]:
        """first .. repetitions - 1; beside a progress bar, which does not count them, a line now and then."""
        bar, said = self.trainer.progress_bar_callback, time.monotonic()
        if bar is not None and first > 0:
            bar.print(f"scored {first} of {repetitions} times before the interruption")
        for repetition in range(first, repetitions):
            if bar is not None and time.monotonic() - said > SAY_EVERY:
                bar.print(f"scored {repetition} of {repetitions} times")
                said = time.monotonic()
            yield repetition


def class_weights(target: Tensor, classes: int) -> Tensor:
    """Weight (classes,) of each class: the share of ``target`` (n,) that is of other classes; 0 if the class is absent.

    These are the weights of benchmarking-gnns (Dwivedi et al., 2020) for PATTERN and CLUSTER.
    """
    share = torch.bincount(target, minlength=classes).float() / len(target)
    return (1 - share) * (share > 0)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Context in which torch's generators start from ``seed``, and after which they are as before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
