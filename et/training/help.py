"""What ``python train.py --help`` and ``python evaluate.py --help`` print; imports neither torch nor Hydra."""

from __future__ import annotations

import re
from collections.abc import Sequence

from et.results import paper
from et.runs.experiments import described, variants_of
from et.utils.paths import CONF

TRAIN = """python train.py experiment=NAME [key=value ...]
python train.py --from-run PATH [key=value ...]
python train.py --multirun sweep=tableNN [key=value ...]

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
Every key of an experiment: python train.py experiment=NAME --cfg job. Hydra's own options: --hydra-help."""

EVALUATE = """python evaluate.py run=PATH [key=value ...]

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
    for group, experiments in described().items():
        lines += ["", _heading(group)]
        width = max(map(len, experiments))
        for name, sentence in experiments.items():
            sentence = sentence.removeprefix(f"{group}, ")
            lines.append(f"  {name:{width}}  {sentence}")
        suffixes = dict.fromkeys(suffix for name in experiments for suffix in variants_of(name))
        if suffixes:
            lines.append(f"  variants: {', '.join(f'NAME_{suffix}' for suffix in suffixes)}")
    return "\n".join(lines)


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
