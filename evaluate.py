"""Score the weights of a run: python evaluate.py run=PATH [images=FOLDER] [key=value ...]."""

from __future__ import annotations

import sys

from et.utils.startup import prepare

if __name__ == "__main__":  # before the imports that take time
    prepare()

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    # Imported late, as in train.py: --help and mistyped overrides answer at once.
    from et.training.cli import run_evaluation

    run_evaluation(cfg)


if __name__ == "__main__":
    from et.training.help import asks_for_help, evaluate_help

    if asks_for_help(sys.argv[1:]):
        print(evaluate_help())
        sys.exit(0)
    from et.training.cli import run_hydra

    run_hydra(main, "evaluate")
