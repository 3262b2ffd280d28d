"""What a run says while it trains: a header, a line per validation beside a trivial answer, epochs counted from 1."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar
from rich import get_console
from torch import Tensor

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
        experiments: Folder of recorded results, which the expected time comes from.
    """

    def __init__(
        self,
        experiment: str,
        about: str,
        folder: Path,
        monitor: str | None = None,
        mode: str = "min",
        experiments: Path = EXPERIMENTS,
    ):
        self.experiment, self.about, self.folder, self.monitor, self.mode = experiment, about, folder, monitor, mode
        self.experiments = experiments
        self.trivial = TrivialAnswers()
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
        say(f"  device      {describe_device(trainer)}")
        say(f"  epochs      {epochs}{resumes}")
        say(f"  time        {expected_time(self.experiment, epochs - first, self.experiments)}")
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
        if trainer.is_global_zero and not trainer.sanity_checking:
            self.trivial.see(batch, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metrics = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val/")}
        answers = self.trivial.answers()
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
        if since == self._started:
            self._pace_from = (now, done)
        say(
            f"epoch {done:>{len(str(total))}} of {total}  {name} {metrics[name]:.4f}{beside}  {best}  "
            f"{duration(now - self._started)}" + (f", about {duration(left)} left" if total > done else "")
        )


class TrivialAnswers:
    """Scores on the validation data of the answers that need no network; collected during the first validation.

    Images: every masked patch is a copy of the nearest visible one. Nodes: all are normal, or all are anomalous,
    whichever scores better. Graphs: always the commonest class, or the median of the targets. Class and median are
    those of the validation data, so no constant answer scores better.
    """

    def __init__(self) -> None:
        self._errors: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._answers: dict[str, tuple[str, float]] | None = None

    def see(self, batch: Any, task: Any) -> None:
        """Take in a batch of the first validation; later ones are ignored."""
        if self._answers is not None:
            return
        if isinstance(batch, Mapping) and "masked" in batch:
            self._errors.append(nearest_patch_errors(batch, task.network).cpu())
        elif hasattr(batch, "val"):
            self._targets.append(batch.labels[batch.val].cpu())
            self._answers = node_answers(self._targets[0])
        elif hasattr(batch, "y"):
            self._targets.append(batch.y.cpu())

    def answers(self) -> dict[str, tuple[str, float]]:
        """(what the answer is, its score) by the name of the metric; empty if the family is unknown."""
        if self._answers is None:
            if self._errors:
                error = float(torch.cat(self._errors).mean())
                self._answers = {"val/mse_masked": ("copying the nearest visible patch", error)}
            else:
                self._answers = graph_answers(torch.cat(self._targets)) if self._targets else {}
        return self._answers


def nearest_patch_errors(batch: Mapping[str, Tensor], network: Any) -> Tensor:
    """(B,) mean squared errors on the masked patches when each is a copy of the nearest visible one."""
    from et.inpainting.fill_baselines import nearest_fill
    from et.inpainting.lit import masked_mse
    from et.inpainting.patches import patchify

    target = patchify(batch["image"], network.patch_size)
    return masked_mse(nearest_fill(target, batch["masked"], network.grid), target, batch["masked"])


def node_answers(labels: Tensor) -> dict[str, tuple[str, float]]:
    """Macro-F1 of the better constant answer, and the AUC of any constant one; labels 0 or 1, (n,)."""
    share = float((labels == 1).double().mean())
    normal, anomalous = (1 - share) / (2 - share), share / (1 + share)
    name = "all nodes normal" if normal >= anomalous else "all nodes anomalous"
    return {"val/f1_macro": (name, max(normal, anomalous)), "val/auc": ("chance", 0.5)}


def graph_answers(targets: Tensor) -> dict[str, tuple[str, float]]:
    """Accuracies of the commonest class (int targets), or the mean absolute error of the median (float)."""
    if targets.is_floating_point():
        return {"val/mae": ("a constant", float((targets - targets.median()).abs().mean()))}
    counts = targets.unique(return_counts=True)[1]
    return {
        "val/accuracy": ("the commonest class", float(counts.max() / counts.sum())),
        "val/accuracy_weighted": ("one class for all", 1 / len(counts)),
    }


def describe_device(trainer: Trainer) -> str:
    """What training runs on, for example "cpu, 2 threads" or "2 x NVIDIA A100"."""
    if trainer.strategy.root_device.type == "cuda":
        return f"{trainer.world_size} x {torch.cuda.get_device_name()}"
    processes = f"{trainer.world_size} processes, " if trainer.world_size > 1 else ""
    threads = torch.get_num_threads()
    return f"{trainer.strategy.root_device.type}, {processes}{threads} thread{'s' * (threads != 1)}"


def expected_time(experiment: str, epochs: int, experiments: Path) -> str:
    """How long ``epochs`` epochs took in the recorded runs of an experiment, as a phrase."""
    paces = []
    for file in sorted(experiments.glob("table*/results.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if f'"experiment": "{experiment}"' in line:
                with suppress(ValueError, TypeError, KeyError, ZeroDivisionError):  # a damaged line says nothing
                    record = json.loads(line)
                    paces.append((record["seconds"] / record["epochs"], str(record.get("device", "unknown"))))
    if not paces:
        return "known after the first validation"
    pace, device = statistics.median(seconds for seconds, _ in paces), paces[-1][1]
    return f"about {duration(pace * epochs)} at the pace of recorded runs on {device}"


def duration(seconds: float) -> str:
    """ "45 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def say(text: str) -> None:
    """Print above the progress bar, which shares rich's global console."""
    get_console().print(text, markup=False, highlight=False, soft_wrap=True)
