"""python -m et.results.figures run=PATH | experiment=NAME: the paper's figures of a run, into its folder.

Nothing here reads a model; :mod:`et.runs.figures` does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from et.utils.errors import UserError, unwrapped
from et.utils.startup import tolerate_encoding

USAGE = """python -m et.results.figures run=PATH | experiment=NAME [output=FOLDER] [images=FOLDER]
                             [mask_seeds=N] [compare=PATH,PATH]

run         a run's folder, a folder of runs (the newest one is taken), a converted checkpoint, or
            pretrained: the authors' published weights, on the embedded photographs
experiment  instead of run: the run that train.py experiment=NAME makes without other settings
output      where the figures go; default: PATH/figures
images      photographs to show instead of the run's own (image completion only)
mask_seeds  masks an image for the ranking of worst and best; default: as the run was tested
compare     other runs, whose position biases are drawn beside the run's (figure 7) instead of everything else"""
KEYS = ("run", "experiment", "output", "images", "mask_seeds", "compare")


def parse(arguments: Sequence[str]) -> dict[str, str]:
    """Arguments by name.

    Raises:
        UserError: An argument is not key=value, a key is unknown, or there is not exactly one of run and experiment.
    """
    pairs = [argument.partition("=") for argument in arguments]
    unknown = [key for key, equals, _ in pairs if not equals or key not in KEYS]
    problem = f"unknown: {', '.join(unknown)}" if unknown else "run= is missing, or experiment= comes with it"
    if unknown or sum(key in ("run", "experiment") for key, _, _ in pairs) != 1:
        raise UserError(f"{problem}. Usage: {USAGE}")
    return {key: value for key, _, value in pairs}


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the figures and print their paths."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    try:
        options = parse(arguments)
        from et.runs.figures import compare_positions, draw_run
        from et.runs.loading import output_folder, own_run

        run = Path(options["run"]) if "run" in options else own_run(f"experiment={options['experiment']}")
        output = options.get("output")
        if "compare" in options:
            others = [Path(path) for path in options["compare"].split(",")]
            print(compare_positions([run, *others], Path(output) if output else output_folder(run, "figures")))
        else:
            seeds = int(options["mask_seeds"]) if "mask_seeds" in options else None
            images = Path(options["images"]) if "images" in options else None
            print(draw_run(run, Path(output) if output else None, seeds, images))
    except (UserError, ValueError, OSError) as error:
        print(f"error: {unwrapped(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    tolerate_encoding()
    sys.exit(main())
