"""python -m et.results.figures run=PATH: the paper's figures of a run, into its folder.

Nothing here reads a model; :mod:`et.figures` does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from et.errors import UserError

USAGE = """python -m et.results.figures run=PATH [output=FOLDER] [mask_seeds=N] [compare=PATH,PATH]

run         a run's folder, a folder of runs (the newest one is taken) or a converted checkpoint
output      where the figures go; default: PATH/figures
mask_seeds  masks an image for the ranking of worst and best; default: as the run was tested
compare     other runs, whose position biases are drawn beside the run's (figure 7) instead of everything else"""
KEYS = ("run", "output", "mask_seeds", "compare")


def parse(arguments: Sequence[str]) -> dict[str, str]:
    """The arguments by name.

    Raises:
        UserError: one that is not key=value, an unknown key, or no run.
    """
    pairs = [argument.partition("=") for argument in arguments]
    unknown = [key for key, equals, _ in pairs if not equals or key not in KEYS]
    if unknown or "run" not in {key for key, _, _ in pairs}:
        raise UserError((f"unknown: {', '.join(unknown)}. " if unknown else "run= is missing. ") + f"Usage: {USAGE}")
    return {key: value for key, _, value in pairs}


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, and print where."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    try:
        options = parse(arguments)
        from et.figures import compare_positions, draw_run

        run, output = Path(options["run"]), options.get("output")
        if "compare" in options:
            others = [Path(path) for path in options["compare"].split(",")]
            print(compare_positions([run, *others], Path(output) if output else run / "figures"))
        else:
            seeds = int(options["mask_seeds"]) if "mask_seeds" in options else None
            print(draw_run(run, Path(output) if output else None, seeds))
    except (UserError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
