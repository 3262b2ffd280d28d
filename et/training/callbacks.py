"""What a run does beside training: seed its epochs, keep what it can resume from, time itself, stop on NaN."""

from __future__ import annotations

import errno
import hashlib
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping

from et.runs.checkpoint_files import put_in_place, rotate
from et.training.optim import centralize
from et.utils.errors import UserError
from et.utils.files import write_atomically

AVERAGING_STATE = ("current_model_state", "averaging_state")  # of Lightning's WeightAveraging, to resume from


class SeededEpochs(Callback):
    """Reseeds all generators at the start of every training epoch from (seed, epoch, rank).

    The state of a generator then never has to be saved: a run resumed at an epoch draws what it would have drawn. That
    takes one more thing. A loader's iterator draws a number when it is made, and its processes begin to load; Lightning
    makes a resumed run's before it knows the epoch, so here it is made again.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        words = np.random.SeedSequence((self.seed, trainer.current_epoch, trainer.global_rank)).generate_state(3)
        torch.manual_seed(int(words[0]))
        np.random.seed(int(words[1]))
        random.seed(int(words[2]))
        if trainer.ckpt_path is not None and trainer.fit_loop.is_resuming:
            iter(trainer.fit_loop._data_fetcher)


class FiniteLoss(Callback):
    """Stops the run at the first loss that is not finite, before it reaches the weights."""

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss is {loss.item()} at step {trainer.global_step} (epoch {trainer.current_epoch}): "
                "the weights of the last checkpoint are still good; lower optim.optimizer.lr or model.step_size, "
                "set optim.clip_norm, or look for NaN in the data"
            )


class StoppingEarly(EarlyStopping):
    """Lightning's, which after a restart forgets that it had stopped the run and lets it train on."""

    @property
    def state_key(self) -> str:
        """That of Lightning's, under which older checkpoints have it."""
        return super().state_key.replace(type(self).__qualname__, EarlyStopping.__qualname__, 1)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class CentralizedGradients(Callback):
    """Centralises all gradients before each optimizer step (tables 9 and 10).

    Axes are those of the network's ``centralized_axes()`` by parameter name, where it has that method, else the usual
    ones of :func:`et.training.optim.centralize`.
    """

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        network = pl_module.network
        axes = network.centralized_axes() if hasattr(network, "centralized_axes") else {}
        for name, parameter in network.named_parameters():
            if parameter.grad is not None:
                centralize(parameter.grad, axes.get(name))


class Stopwatch(Callback):
    """Seconds spent in fitting, over all interruptions (``seconds``).

    Where Lightning's own Timer is among the callbacks, ``trainer.max_time`` has no effect.
    """

    def __init__(self) -> None:
        self.seconds, self._since = 0.0, None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.monotonic()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds, self._since = self.elapsed(), None

    def elapsed(self) -> float:
        return self.seconds + (0.0 if self._since is None else time.monotonic() - self._since)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]


class Checkpoints(Checkpoint):
    """Keeps ``last.ckpt`` (to resume from), ``previous.ckpt`` (should last be damaged) and ``best.ckpt``.

    A checkpoint is written beside its place and moved there, so a file under its own name is always whole; its digest
    lies beside it (:mod:`et.runs.checkpoint_files`). The state remembers the ``val/`` metrics of the best epoch and of
    the last one, and which run it is of and on which data.
    Lightning's ModelCheckpoint has no ``previous.ckpt``, knows nothing of run ids, and ends in a traceback where the
    disk is full.

    Args:
        folder: Where the files go.
        monitor: Logged metric that names the best epoch. If None, there is no best.
        mode: ``min`` or ``max``.
        every_n_epochs: How often ``last.ckpt`` is renewed; always after an epoch that is the best so far, lest it
            remember another best epoch than ``best.ckpt`` is of, and at the end.
        identity: The run's id, kept in every checkpoint.
        tie_break: Logged metric whose smaller value decides between epochs with the same ``monitor``. If None, the
            first of them is the best.
    """

    def __init__(
        self,
        folder: Path,
        monitor: str | None,
        mode: str = "min",
        every_n_epochs: int = 1,
        identity: str | None = None,
        tie_break: str | None = None,
    ):
        if mode not in ("min", "max"):
            raise UserError(f"callbacks.mode must be 'min' or 'max', not {mode!r}")
        self.folder, self.monitor, self.mode, self.every_n_epochs = Path(folder), monitor, mode, every_n_epochs
        self.tie_break, self.identity = tie_break, identity
        self.best_epoch, self.best_step, self.best_metrics = None, None, {}
        self.latest: tuple[int, dict[str, float]] = (0, {})  # the last validation's step and metrics
        self.data_sha256: str | None = None
        self._improved = False  # whether this epoch is the best so far
        self._saved_at: int | None = None  # the step of last.ckpt

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and hasattr(trainer.datamodule, "describe"):  # which has been set up already
            self.data_sha256 = trainer.datamodule.describe().get("sha256")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        # Saving takes all processes, so they must agree; each may have computed its own, equal up to rounding.
        metrics = trainer.strategy.broadcast(metrics)
        self.latest = trainer.global_step, metrics
        for key, name in (("monitor", self.monitor), ("tie_break", self.tie_break)):
            if name is not None and name not in metrics:
                raise UserError(f"callbacks.{key} is {name!r}, but validation logs {', '.join(sorted(metrics))}")
        if self.best_epoch is None or self._rank(metrics) < self._rank(self.best_metrics):
            self.best_epoch, self.best_metrics, self._improved = trainer.current_epoch, metrics, True
            self.best_step = trainer.global_step
            self._save(trainer, "best.ckpt", weights_only=True)

    def _rank(self, metrics: dict[str, float]) -> tuple[float, ...]:
        """What orders epochs, the best first."""
        value = metrics[self.monitor] if self.mode == "min" else -metrics[self.monitor]
        return (value,) if self.tie_break is None else (value, metrics[self.tie_break])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        finished = trainer.current_epoch + 1
        if self._improved or finished % self.every_n_epochs == 0 or finished == trainer.max_epochs:
            self.save_last(trainer)
        self._improved = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._saved_at:  # max_steps or max_time ended it between two that are saved
            self.save_last(trainer)

    def save_last(self, trainer: Trainer) -> None:
        """Renew ``last.ckpt``; every process of a distributed run calls this."""
        self._save(trainer, "last.ckpt")
        self._saved_at = trainer.global_step

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        before, now = checkpoint.get("data_sha256"), self.data_sha256
        if trainer.state.fn == "fit" and before is not None and now is not None and before != now:
            raise UserError(
                f"the data have changed since {trainer.ckpt_path} was written (their hash was {before[:12]}, it is "
                f"{now[:12]}): put the old files back to resume, or set force=true to start over on the new ones"
            )

    def _save(self, trainer: Trainer, name: str, weights_only: bool = False) -> None:
        if trainer.fast_dev_run:
            return
        path, fresh = self.folder / name, self.folder / f".{name}.new"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Not trainer.save_checkpoint: it asks no callback what to add to weights alone, and best.ckpt must say
            # which run it is of.
            content = trainer._checkpoint_connector.dump_checkpoint(weights_only)
            if weights_only:  # what other callbacks make of the weights, such as their moving average
                for callback in trainer.callbacks:
                    callback.on_save_checkpoint(trainer, trainer.lightning_module, content)
                content = {key: value for key, value in content.items() if key not in AVERAGING_STATE}
            content |= {"run_id": self.identity, "data_sha256": self.data_sha256}
            trainer.strategy.save_checkpoint(content, fresh)
            trainer.strategy.barrier("checkpoint saved")
            if trainer.is_global_zero:
                if name == "last.ckpt" and path.exists():
                    rotate(path, self.folder / "previous.ckpt")
                put_in_place(fresh, path)
        except (OSError, UserError) as error:
            fresh.unlink(missing_ok=True)
            reason = "the disk is full" if getattr(error, "errno", None) == errno.ENOSPC else str(error)
            raise UserError(
                f"cannot write {path}: {reason}. The checkpoint before it is untouched; "
                "make room (or set paths.runs) and start the same command again: it resumes"
            ) from error

    def metrics_at(self, step: int) -> dict[str, float]:
        """The ``val/`` metrics of the weights at ``step``; none where these were not validated."""
        validated, metrics = self.latest
        return metrics if validated == step else {}

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_epoch": self.best_epoch, "best_step": self.best_step, "best_metrics": self.best_metrics,
            "latest": self.latest,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_epoch, self.best_metrics = state_dict["best_epoch"], state_dict["best_metrics"]
        self.best_step = state_dict.get("best_step")
        self.latest = state_dict.get("latest", (0, {}))


class KeptScores(Callback):
    """Keeps the scores of a repeated test in a file, so that an interrupted test continues where it stopped.

    The file holds the scores and a key. Scores under another key (other weights, other data) are ignored. The file is
    JSON: reading it executes nothing.

    Args:
        path: The file.
        identity: Id of the configuration, part of every key.
    """

    def __init__(self, path: Path, identity: str):
        self.path, self.identity = path, identity

    def key(self, module: torch.nn.Module, *parts: Any) -> str:
        """SHA-256 over the id, the weights and buffers of ``module``, and ``parts``, which json can write."""
        digest = hashlib.sha256(json.dumps([self.identity, *parts], sort_keys=True).encode())
        for name, value in module.state_dict().items():
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def read(self, key: str) -> list[dict[str, float]]:
        """The scores kept under ``key``, one dictionary per repetition; empty if none are, or the file is damaged."""
        try:
            found = json.loads(self.path.read_text())
            if found["key"] != key:
                return []
            return [{name: float(value) for name, value in score.items()} for score in found["scores"]]
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return []

    def write(self, key: str, scores: list[dict[str, float]]) -> None:
        """Replace the file's content."""
        write_atomically(self.path, json.dumps({"key": key, "scores": scores}) + "\n")

    def forget(self) -> None:
        """Remove the file: the scores have been recorded."""
        self.path.unlink(missing_ok=True)
