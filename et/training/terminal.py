"""What a run says while it trains: a header, a line per validation beside a trivial answer, epochs counted from 1."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar
from rich import get_console
from torch import Tensor

from et.sweeps.report import duration, recorded_runs
from et.training.device import device_name
from et.utils.paths import EXPERIMENTS


class ProgressBar(RichProgressBar):
    """Lightning's bar with epochs counted from 1 and without a version number."""

    def _get_train_description(self, current_epoch: int) -> str:
        of = "" if self.trainer.max_epochs is None else f" of {self.trainer.max_epochs}"
        return f"Epoch {current_epoch + 1}{of}".ljust(len(self.validation_description))

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


class TerminalLog(Callback):
    """Prints a header when training starts and a line that stays after every validation.

    Args:
        experiment: Name of the experiment.
        about: What else the first line says, for example "held_out · paper · seed 0".
        folder: The run's folder.
        monitor: The metric that the lines show. If None, the first ``val/`` metric that has a trivial answer to compare
            with, else the first one.
        mode: ``min`` or ``max``: which values of the metric are better.
        protocol: Protocol of the run, whose recorded runs the expected time comes from.
        experiments: Folder of recorded results.
    """

    def __init__(
        self,
        experiment: str,
        about: str,
        folder: Path,
        monitor: str | None = None,
        mode: str = "min",
        protocol: str = "held_out",
        experiments: Path = EXPERIMENTS,
    ):
        self.experiment, self.about, self.folder, self.monitor, self.mode = experiment, about, folder, monitor, mode
        self.protocol, self.experiments = protocol, experiments
        self._trivial_inputs: list[Tensor] = []
        self._trivial: dict[str, tuple[str, float]] | None = None  # known after the first validation
        self._best: float | None = None
        self._pace_from = (0.0, 0)  # time and epoch; later than the first epoch, which compiles kernels
        self._started = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.monotonic()
        self._pace_from = (self._started, trainer.current_epoch)
        if not trainer.is_global_zero:
            return
        parameters = sum(p.numel() for p in pl_module.network.parameters())
        epochs, first = trainer.max_epochs or 0, trainer.current_epoch
        resumes = f", resumes at epoch {first + 1}" if first else ""
        say(f"\n{self.experiment} · {self.about}")
        say(f"  parameters  {parameters:,}")
        say(f"  device      {device_name(trainer)}")
        say(f"  epochs      {epochs}{resumes}")
        say(f"  time        {expected_time(self.experiment, self.protocol, epochs - first, self.experiments)}")
        say(f"  folder      {self.folder}")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._trivial is None and trainer.is_global_zero and not trainer.sanity_checking:
            inputs = pl_module.trivial_inputs(batch)
            self._trivial_inputs += [] if inputs is None else [inputs.cpu()]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metrics = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val/")}
        if self._trivial is None:
            found = self._trivial_inputs
            self._trivial = pl_module.trivial_answers(torch.cat(found)) if found else {}
        answers = self._trivial
        name = self.monitor or next((name for name in metrics if name in answers), next(iter(metrics), None))
        if name not in metrics:
            return
        better = self._best is None or (
            metrics[name] < self._best if self.mode == "min" else metrics[name] > self._best
        )
        self._best = metrics[name] if better else self._best
        beside = f" ({answers[name][0]}: {answers[name][1]:.4f})" if name in answers else ""
        best = "best so far" if better else f"best {self._best:.4f}"
        done, total = trainer.current_epoch + 1, trainer.max_epochs or 0
        now, (since, before) = time.monotonic(), self._pace_from
        left = (total - done) * (now - since) / max(1, done - before)
        word = "about"
        if since == self._started:
            word, self._pace_from = "at most", (now, done)
        say(
            f"epoch {done:>{len(str(total))}} of {total}  {name} {metrics[name]:.4f}{beside}  {best}  "
            f"{duration(now - self._started)}" + (f", {word} {duration(left)} left" if total > done else "")
        )


def expected_time(experiment: str, protocol: str, epochs: int, experiments: Path) -> str:
    """How long ``epochs`` epochs took in the recorded runs of an experiment under a protocol, as a phrase."""
    past = [run for run in recorded_runs(experiments, experiment).get((experiment, protocol), ()) if run.epoch_seconds]
    if not past:
        return "known after the first validation"
    epoch_seconds = statistics.median(run.epoch_seconds for run in past if run.epoch_seconds)
    return f"about {duration(epoch_seconds * epochs)} at the speed of recorded runs on {past[-1].device}"


def say(text: str) -> None:
    """Print above the progress bar, which shares rich's global console."""
    get_console().print(text, markup=False, highlight=False, soft_wrap=True)
