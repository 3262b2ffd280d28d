"""A signal ends a run after the batch in hand, with its state saved: Ctrl-C, a time limit, a preemption."""

from __future__ import annotations

import random
import signal
import threading
from types import FrameType
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from et.training.callbacks import Checkpoints
from et.utils.errors import Interrupted, UserError
from et.utils.startup import SIGNALS, leave


class StopOnSignal(Callback):
    """On the first signal: finish the batch, save ``last.ckpt``, hand the signal on, and raise
    :class:`et.utils.errors.Interrupted`.

    The processes of a distributed run agree after every batch whether any of them has been told to stop, so they all
    stop at the same one. In the middle of an epoch the checkpoint also holds how many batches there were and the state
    of every process's random generators, so the resumed run computes what an uninterrupted one would have. After an
    epoch's last batch the run stops once validation is over. A second Ctrl-C stops at once, without saving.

    Handing on means calling the handler that was there before. Submitit's handler of USR2 requeues the job.

    Args:
        checkpoints: What saves.
    """

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints
        self.signum: int | None = None
        self.former: dict[int, Any] = {}
        self.batches = 0  # of the interrupted epoch; 0: the run stopped between two
        self.generators: list[dict[str, Any]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Lightning replaces handlers later on, for a way of stopping and requeueing that this class is instead of.
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            self.former = {signum: signal.getsignal(signum) for signum in SIGNALS}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for signum in self.former:
            signal.signal(signum, self._note)
        if self.batches:
            for loader in trainer.fit_loop._combined_loader.flattened:
                loader.sampler.set_epoch(trainer.current_epoch)
                loader.sampler.skip = (trainer.current_epoch, self.batches * loader.batch_size)
            iter(trainer.fit_loop._data_fetcher)  # Lightning made it before it knew where the run goes on

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None and signum == signal.SIGINT:
            leave(signum, frame)
        self.signum = signum

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for signum in self.former:
            signal.signal(signum, self._stop_now)

    def _stop_now(self, signum: int, frame: FrameType | None) -> None:
        # Training is over and saved; nothing of a test is worth waiting for.
        self.signum = signum
        self._stop()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.restore_handlers()

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if self.batches:
            if trainer.global_rank < len(self.generators):
                set_generators(self.generators[trainer.global_rank])
            self.batches, self.generators = 0, []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        progress = trainer.fit_loop.epoch_loop.batch_progress
        # In the middle of an accumulation there are gradients, which no checkpoint holds.
        stepped = progress.current.ready % trainer.accumulate_grad_batches == 0
        if stepped and not progress.is_last_batch and self._told(trainer):
            self.batches, self.generators = progress.current.ready, gathered_generators(trainer.world_size)
            self._save_and_stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._told(trainer):
            self._save_and_stop(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.restore_handlers()
        if self.signum is not None:
            self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.restore_handlers()

    def restore_handlers(self) -> None:
        """Put back the handlers of before training."""
        for signum, handler in self.former.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)

    def _told(self, trainer: Trainer) -> bool:
        if trainer.world_size == 1:
            return self.signum is not None
        told = torch.tensor(self.signum or 0, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
        self.signum = int(told) or None
        return self.signum is not None

    def _save_and_stop(self, trainer: Trainer) -> None:
        try:
            self.checkpoints.save_last(trainer)
        except UserError as error:
            error.stopped_by = self.signum
            raise
        self._stop(trainer)

    def _stop(self, trainer: Trainer | None = None) -> None:
        self.restore_handlers()
        try:
            hand_on(self.former.get(self.signum), self.signum)
        except Exception as error:  # submitit: the job may not be requeued once more. The run has to end all the same.
            print(f"warning: {error}", flush=True)
        finally:
            # Slurm may end a job as soon as one of its processes ends, which must not keep the first from requeueing.
            if trainer is not None:
                trainer.strategy.barrier("stopped")
        raise Interrupted(self.signum)

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches, "generators": self.generators}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches, self.generators = state_dict["batches"], state_dict["generators"]


def hand_on(handler: Any, signum: int) -> None:
    """Call the handler that a signal had before, unless it is Python's or the entry point's, which only end."""
    if callable(handler) and handler not in (leave, signal.default_int_handler):
        handler(signum, None)


def generator_state() -> dict[str, Any]:
    """State of this process's random generators, in types that load with weights_only."""
    _, words, *rest = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": (torch.from_numpy(words.astype(np.int64)), *rest),
        "python": random.getstate(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_generators(state: dict[str, Any]) -> None:
    """Bring this process's random generators into a state of :func:`generator_state`."""
    torch.set_rng_state(state["torch"].cpu())
    words, *rest = state["numpy"]
    np.random.set_state(("MT19937", words.cpu().numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def gathered_generators(world_size: int) -> list[dict[str, Any]]:
    """The states of all processes' generators, by rank."""
    state = generator_state()
    if world_size == 1:
        return [state]
    states: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(states, state)
    return states
