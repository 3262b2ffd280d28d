"""What ``python train.py --help`` and ``python evaluate.py --help`` print; imports neither torch nor Hydra."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from et.results import paper
from et.runs.experiments import described, in_order, tables_of_variants, variants_of
from et.utils.paths import CONF, command

TRAIN = f"""{command("train")} experiment=NAME [key=value ...]
{command("train")} --from-run PATH [key=value ...]
{command("train")} --multirun sweep=tableNN [key=value ...]

The first form trains, tests and records one experiment. The same command resumes an interrupted run and skips a
finished one. --from-run repeats a recorded run (a folder or its result.json) and compares the metrics. --multirun runs
what is missing of a table; with sweep.dry_run=true it only lists it.

Keys that most runs use:
  seed=0                   seed of weights, data order and splits
  protocol=held_out        held_out: no choice uses test data | released: as the authors' code evaluates
  fidelity=paper           paper: the model as the paper describes it | released: as the authors' code computes it
  trainer.max_epochs=100   number of epochs
  trainer.accelerator=auto auto | cpu | gpu
  data.fold=0              graph classification: which of the ten folds is tested
  force=true               start again from the beginning, even if the run is finished
Every key of an experiment: {command("train")} experiment=NAME --cfg job. Hydra's own options: --hydra-help."""

EVALUATE = f"""{command("evaluate")} run=PATH [key=value ...]

Scores the weights of a finished run, or of a converted checkpoint, again. Prints the metrics and writes evaluation.json
and, for images, pictures.

Keys:"""


def asks_for_help(arguments: Sequence[str]) -> bool:
    """True if ``--help`` or ``-h`` is among the arguments."""
    return any(argument in ("--help", "-h") for argument in arguments)


def train_help() -> str:
    """The usage of train.py and all experiments, grouped by table with a line each."""
    lines = [TRAIN, "", "Experiments. Most have variants with another model or one change (NAME_gt, NAME_no_hopfield)."]
    lines.append("All names: python -m et.runs.experiments")
    groups, composed = described(), tables_of_variants()
    for group in in_order([*groups, *composed]):
        lines += ["", _heading(group)]
        lines += _variants(*composed[group]) if group in composed else _experiments(group, groups[group])
    return "\n".join(lines)


def _experiments(group: str, experiments: Mapping[str, str]) -> list[str]:
    """A line for each experiment of a group, and one with the suffixes of their variants."""
    width = max(map(len, experiments))
    lines = [f"  {name:{width}}  {_sentence(text, group)}" for name, text in experiments.items()]
    elsewhere = {f"{name}_{s}" for texts, names in tables_of_variants().values() for name in names for s in texts}
    of = dict.fromkeys(s for name in experiments for s in variants_of(name) if f"{name}_{s}" not in elsewhere)
    return [*lines, f"  variants: {', '.join(f'NAME_{suffix}' for suffix in of)}"] if of else lines


def _sentence(text: str, group: str) -> str:
    """``text`` without the name of its group in front."""
    rest = text.removeprefix(f"{group}, ")
    return text if rest == text else rest[0].upper() + rest[1:]


def _variants(suffixes: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """A line for each variant of a table, and one with the experiments that have them."""
    width = max(map(len, suffixes)) + len("NAME_")
    return [*(f"  {f'NAME_{s}':{width}}  {text}" for s, text in suffixes.items()), f"  NAME: {', '.join(names)}"]


def _heading(group: str) -> str:
    number = re.fullmatch(r"Table (\d+)", group)
    return f"{group}: {paper.load(int(number[1])).title}" if number else group


def evaluate_help() -> str:
    """The usage of evaluate.py with every key, its default and the comment beside it in conf/evaluate.yaml."""
    found = []
    for line in (CONF / "evaluate.yaml").read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"(\w+): (\S+)(?: # (.*))?", line)
        if match:
            found.append((match[1], "required" if match[2] == "???" else f"default {match[2]}", match[3] or ""))
    width = max(len(key) for key, _, _ in found)
    return "\n".join(
        [EVALUATE, *(f"  {key:{width}}  {text}{' ' if text else ''}({default})" for key, default, text in found)]
    )
