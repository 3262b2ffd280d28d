"""Keys of a configuration outside the sections that name a class, and what classes do not say of their arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NODE = "node"  # marks a key whose value is a class to instantiate


@dataclass(frozen=True)
class Section:
    """The keys of a section that names no class.

    Attributes:
        keys: What each key is: a Section, :data:`NODE`, a tuple of its possible values, or None for any value.
        nodes: If True, further keys may be added that hold classes to instantiate.
    """

    keys: Mapping[str, Any] = field(default_factory=dict)
    nodes: bool = False


PROTOCOLS, FIDELITIES = ("held_out", "released", "gadbench"), ("paper", "released")
TOP = Section(
    {
        "name": None,
        "seed": None,
        "fidelity": FIDELITIES,
        "protocol": PROTOCOLS,
        "checkpoint": ("best", "last", "current"),  # current: another word for last, in recorded runs
        "deterministic": (True, False, "warn"),
        "force": (True, False),
        "tags": None,
        "by_fidelity": None,  # what experiments interpolate from, as from the next; config_check holds its keys equal
        "precision_by_fidelity": Section(dict.fromkeys(FIDELITIES)),
        "paths": Section({"data": None, "runs": None}),
        "data": NODE,
        "model": NODE,
        "task": NODE,
        "trainer": NODE,
        "optim": Section(
            {
                "optimizer": NODE,
                "schedule": {
                    "constant": Section({"name": None}),
                    "cosine": Section({"name": None}),
                    "warmup_cosine": Section({"name": None, "warmup_epochs": None, "start_lr": None, "end_lr": None}),
                },
                "clip_norm": None,
                "centralize_gradients": (True, False),
            }
        ),
        "callbacks": Section(
            {
                "monitor": None,
                "mode": ("min", "max"),
                "monitor_by_protocol": Section(dict.fromkeys(PROTOCOLS)),  # what monitor interpolates from
                "tie_break": None,
                "patience": None,
                "save_every_n_epochs": None,
                "progress": (True, False),
                "pictures": Section(nodes=True),  # one class, or several by name
            },
            nodes=True,
        ),
        "logger": Section(nodes=True),
        "sweep": Section(
            {
                "name": None,
                "dry_run": (True, False),
                "detach": (True, False),
                "skip": None,
                "fidelity": Section(dict.fromkeys(PROTOCOLS, FIDELITIES)),
            }
        ),
    }
)

# Values of arguments whose annotation does not say them.
CHOICES: Mapping[tuple[str, str], tuple[Any, ...]] = {
    ("pytorch_lightning.Trainer", "accelerator"): ("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    ("pytorch_lightning.Trainer", "gradient_clip_algorithm"): (None, "norm", "value"),
}
# What takes the arguments that a class does not name itself.
HANDED_ON = {"et.training.loggers.SteppedWandbLogger": ("pytorch_lightning.loggers.WandbLogger", "wandb.init")}
# Arguments that the run itself gives, by section and by class.
GIVEN: Mapping[str, tuple[str, ...]] = {
    "task": ("network", "optim"),
    "optim.optimizer": ("params",),
    "et.training.loggers.SteppedWandbLogger": ("run", "id", "resume"),
    "et.training.loggers.RunTensorBoardLogger": ("run", "save_dir", "name", "version"),
}
# Keys that every run reads.
REQUIRED = (
    "seed", "checkpoint", "paths.runs", "paths.data", "optim.optimizer", "optim.schedule", "callbacks.monitor",
    "callbacks.mode", "callbacks.save_every_n_epochs", "callbacks.progress", "trainer.accelerator", "trainer.devices",
    "trainer.num_nodes", "trainer.strategy", "trainer.precision",
)  # fmt: skip
# Keys that there were, and what to write instead.
REPLACED = {"logger.extra": "choose loggers by name, such as logger=tensorboard or logger=[tensorboard,wandb]"}
