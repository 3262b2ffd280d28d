"""Composed configurations for tests."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from et.runs import identity

ROOT = Path(__file__).parents[1]

# The demo made so small that a run takes a second.
TINY = (
    "experiment=demo_inpainting",
    "data.image_size=80",  # 55 windows to evaluate: an odd number
    "data.patch_size=40",
    "data.batch_size=8",
    "data.source.crops_per_epoch=24",
    "data.source.levels=1",
    "data.mask_seeds=1",
    "model.dim=16",
    "model.num_heads=2",
    "model.head_dim=4",
    "model.num_memories=16",
    "model.steps=2",
    "trainer.max_epochs=3",
    "trainer.check_val_every_n_epoch=1",
    "trainer.precision=32-true",
    "trainer.accelerator=cpu",
    "~callbacks.pictures",
)


def compose_config(*overrides: str) -> DictConfig:
    """The configuration that ``python train.py OVERRIDES`` would run."""
    return identity.compose_config(overrides)
