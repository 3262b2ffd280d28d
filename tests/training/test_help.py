"""What --help prints."""

from __future__ import annotations

import re

import yaml

from et.runs.experiments import described, files, names
from et.training.help import asks_for_help, evaluate_help, train_help
from et.utils.paths import CONF


def test_every_experiment_that_is_no_variant_has_one_line_in_one_group():
    groups = described()
    listed = [name for experiments in groups.values() for name in experiments]
    assert len(listed) == len(set(listed)) and set(files()) < set(listed) < set(names())
    assert {"yelp_1pct", "tu_mutag", "zinc"} <= set(listed) and "yelp_1pct_gt" not in listed
    assert all(sentence for experiments in groups.values() for sentence in experiments.values())
    lines = train_help().splitlines()
    assert all(sum(line.startswith(f"  {name} ") for line in lines) == 1 for name in listed)
    headings = [line for line in lines if re.match(r"Table \d+: ", line)]
    assert headings == sorted(headings, key=lambda line: int(re.search(r"\d+", line)[0])) and len(headings) >= 4


def test_the_repetition_of_a_run_is_named():
    assert "--from-run" in train_help() and "python -m et.runs.experiments" in train_help()


def test_every_key_of_an_evaluation_is_explained():
    keys = yaml.safe_load((CONF / "evaluate.yaml").read_text()).keys() - {"defaults", "hydra"}
    text = evaluate_help()
    for key in keys:
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {key} ")]
        explained = re.sub(r"\((default \S+|required)\)$", "", line).split(maxsplit=1)
        assert len(explained) == 2, f"{key} has no explanation in conf/evaluate.yaml"


def test_help_is_asked_for_by_its_usual_names():
    assert asks_for_help(["--help"]) and asks_for_help(["experiment=x", "-h"]) and not asks_for_help(["--hydra-help"])
