"""The commands of an installed package: et-train, et-evaluate, et-complete, et-tables.

Nothing here imports more than the standard library before a command runs: signals are handled from the first moment
on, ``--help`` answers at once, and a missing library is told in a sentence.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from et.utils.startup import drop_output, prepare

EXTRA = "energy-transformer[all]"


def train() -> None:
    """Train, test and record an experiment, or run a recorded run again (``--from-run PATH``)."""
    _run(_train)


def evaluate() -> None:
    """Score the weights of a run."""
    _run(_evaluate)


def complete() -> None:
    """Complete photographs with an image model."""

    def run() -> int:
        from et.inpainting.complete import main

        return main()

    _run(run)


def tables() -> None:
    """Render the paper's tables beside the measured numbers."""

    def run() -> int:
        from et.results.tables import main

        return main()

    _run(run)


def _train() -> Any:
    from et.training.help import asks_for_help, train_help

    if asks_for_help(sys.argv[1:]):
        print(train_help())
        return 0
    if sys.argv[1:2] == ["--from-run"]:  # its configuration is the record's: nothing for Hydra to compose
        from et.training.cli import run_repetition

        return run_repetition(sys.argv[2:])
    return _compose_and_call("train", _train_config)


def _evaluate() -> Any:
    from et.training.help import asks_for_help, evaluate_help

    if asks_for_help(sys.argv[1:]):
        print(evaluate_help())
        return 0
    return _compose_and_call("evaluate", _evaluate_config)


def _train_config(cfg: Any) -> float | None:
    # Imported late: torch and Lightning take seconds, and --help or a mistyped override should answer at once.
    from et.training.cli import run_training

    return run_training(cfg)


def _evaluate_config(cfg: Any) -> None:
    from et.training.cli import run_evaluation

    run_evaluation(cfg)


def _compose_and_call(config_name: str, task: Callable[[Any], Any]) -> None:
    """Call ``task`` with the configuration that ``config_name`` and the command line compose."""
    import hydra

    from et.training.cli import run_hydra
    from et.utils.paths import CONF

    run_hydra(hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(task), config_name)


def _run(command: Callable[[], Any]) -> None:
    """Run ``command`` and leave with its exit status; a library that is not installed is told in a sentence."""
    prepare()
    try:
        status = command()
        sys.stdout.flush()
    except BrokenPipeError as error:
        status = drop_output(error)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "et":
            raise
        status = f"error: {missing(error.name)}"
    sys.exit(status)


def missing(module: str) -> str:
    """What to do where ``module`` cannot be imported, in a sentence.

    Args:
        module: Name of the module, ``hydra`` or ``hydra.core``.
    """
    from et.utils.paths import IN_CHECKOUT

    package = module.partition(".")[0]
    if IN_CHECKOUT:
        advice = "activate the project's environment (. .venv/bin/activate), or pip install -e '.[all]'"
    else:
        advice = f"pip install '{EXTRA}'"
    return f"{package} is not installed for {sys.executable}: {advice}"
