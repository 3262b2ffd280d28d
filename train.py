"""Train, test and record one experiment: python train.py experiment=NAME [key=value ...].

python train.py --from-run PATH [key=value ...] runs a recorded run again and compares the metrics.
"""

from __future__ import annotations

import sys

from et.utils.startup import prepare

if __name__ == "__main__":  # before the imports that take time
    prepare()

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    # Imported late: torch and Lightning take seconds, and --help or a mistyped override should answer at once.
    from et.training.cli import run_training

    return run_training(cfg)


if __name__ == "__main__":
    from et.training.help import asks_for_help, train_help

    if asks_for_help(sys.argv[1:]):
        print(train_help())
        sys.exit(0)
    from et.training.cli import run_hydra

    if sys.argv[1:2] == ["--from-run"]:  # its configuration is the record's: nothing for Hydra to compose
        from et.training.cli import run_repetition

        sys.exit(run_repetition(sys.argv[2:]))
    sys.exit(run_hydra(main))
