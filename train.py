"""Train, test and record one experiment: python train.py experiment=NAME [key=value ...]."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    # Imported late: torch and Lightning take seconds, and --help or a mistyped override should answer at once.
    from et.cli import run_training

    return run_training(cfg)


if __name__ == "__main__":
    sys.exit(main())
