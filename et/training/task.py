"""What training, evaluation, figures and the command line ask of a task family: :class:`Task`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from et.training import optim as optimizers
from et.utils.errors import UserError
from et.utils.files import replacing


class Task(pl.LightningModule):
    """A network with its loss and its measures.

    A subclass has at least ``training_step`` and ``test_step``, which logs ``test/`` metrics, and a ``validation_step``
    that logs what ``callbacks.monitor`` names. With a ``predict_step`` that returns tensors by name, evaluation also
    writes the predictions of every item. The rest has defaults. What is asked of a class only reads the configuration.

    Its data module is a LightningDataModule whose training loader takes its order from an
    :class:`et.training.sampler.EpochSampler`, lest an interrupted epoch not go on where it stopped. It has two methods
    more:

    - ``describe()``: What the run's record says of the data: at least ``name``, ``variant`` and ``sha256``. The variant
      is ``user data``, or begins so, unless the data are published.
    - ``parts()``, for a task with ``predict_step``: (N,) the part of every predicted item; 0 none, 1 train,
      2 validation, 3 test.

    It may have ``missing()``, messages about absent files; ``counts()``, the sizes that its configuration leaves null;
    and a static method ``location(config)``, the file or folder of a user's own data, by which it is noticed that they
    changed after a run.

    Args:
        network: What is trained.
        optim: Configuration of the optimizer and its schedule.

    Attributes:
        family: Name of the task in records.
        protocols: Values of ``protocol`` that it has.
        precisions: Values of ``trainer.precision`` that it can compute in.
        validation_metrics: Names of what validation logs. If empty, a misspelt ``callbacks.monitor`` is told at the
            first validation, not before.
        main_metrics: Names of the metrics that the terminal shows first.
        repeat_tolerance: Difference of a metric, relative and absolute, that a repetition on another machine may show.
    """

    family: ClassVar[str] = "user"
    protocols: ClassVar[tuple[str, ...]] = ("held_out", "released")
    precisions: ClassVar[tuple[str, ...]] = ("32-true", "16-mixed", "bf16-mixed")
    validation_metrics: ClassVar[tuple[str, ...]] = ()
    main_metrics: ClassVar[tuple[str, ...]] = ()
    repeat_tolerance: ClassVar[float] = 0.0

    def __init__(self, network: nn.Module, optim: DictConfig):
        super().__init__()
        self.network, self.optim = network, optim

    def configure_optimizers(self) -> dict | None:
        return optimizers.configure(self.optim, self, self.trainer)

    @classmethod
    def set_evaluation(cls, cfg: DictConfig, **options: Any) -> None:
        """Change the configuration of a run, in place, as options of its evaluation say.

        Args:
            cfg: Configuration of the run.
            options: ``images`` (a folder of images that take the place of the run's data), ``crop_mode``, ``crop_pct``
                (how they are fitted) and ``mask_seeds`` (masks per image). None leaves a value as the run has it.

        Raises:
            UserError: An option that the task does not have.
        """
        given = [f"{key}=" for key, value in options.items() if value is not None]
        if given:
            raise UserError(f"{', '.join(given)} belongs to image completion; {cfg.name} is not an image experiment")

    @classmethod
    def evaluation_callbacks(cls, data: pl.LightningDataModule, folder: Path, own_items: bool) -> list[pl.Callback]:
        """Callbacks that write what an evaluation leaves in ``folder``; ``own_items``: on a person's own images."""
        return []

    @classmethod
    def predicts(cls) -> bool:
        """True if there are predictions of single items."""
        return is_overridden("predict_step", cls, pl.LightningModule)

    def predictions(self, trainer: pl.Trainer, data: pl.LightningDataModule) -> dict[str, Tensor]:
        """Predictions of all items, in the order of the data, on the CPU, and ``part``: in which part each item is."""
        batches = trainer.predict(self, data)
        found = {name: torch.cat([batch[name].cpu() for batch in batches]) for name in batches[0]}
        return {**found, "part": data.parts()}

    def write_report(self, trainer: pl.Trainer, data: pl.LightningDataModule, folder: Path) -> None:
        """Write what an evaluation leaves beside its metrics: predictions.npz, for a task that predicts."""
        if self.predicts():
            with replacing(folder / "predictions.npz") as fresh:
                np.savez(fresh, **{name: value.numpy() for name, value in self.predictions(trainer, data).items()})

    @classmethod
    def summary(cls, record: Mapping[str, Any]) -> str | None:
        """A sentence about the test metrics of a record for the terminal. If None, it names the main metric."""
        return None

    def trivial_inputs(self, batch: Any) -> Tensor | None:
        """What :meth:`trivial_answers` needs of a validation batch, (n,). If None, the task has no trivial answer."""
        return None

    @classmethod
    def trivial_answers(cls, inputs: Tensor) -> dict[str, tuple[str, float]]:
        """Scores of answers that need no network.

        Args:
            inputs: :meth:`trivial_inputs` of all validation batches, joined.

        Returns:
            What the answer is, and its score, by the name of the ``val/`` metric.
        """
        return {}

    @classmethod
    def draws_figures(cls) -> bool:
        """True if :meth:`draw_figures` is implemented."""
        return cls.draw_figures.__func__ is not Task.draw_figures.__func__

    @classmethod
    def draw_figures(cls, network: nn.Module, data: pl.LightningDataModule, folder: Path) -> dict[str, Any]:
        """Draw the figures of a trained network into ``folder``; the numbers in them.

        Raises:
            UserError: The task has none.
        """
        raise UserError(f"{cls.__name__} has no figures: there are some of image completion and node anomaly detection")

    @classmethod
    def compare_networks(cls, networks: Mapping[str, nn.Module], folder: Path) -> dict[str, Any]:
        """Draw several networks, by their titles, side by side into ``folder``; the numbers in the drawing.

        Raises:
            UserError: The task cannot, or one of the networks has nothing to compare.
        """
        raise UserError("only the position biases of image Energy Transformers are compared")
