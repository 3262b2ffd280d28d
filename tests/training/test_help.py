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
    assert {"Table 12: ", "Table 13: "} <= {re.match(r"Table \d+: ", line)[0] for line in headings}


def test_no_sentence_of_an_experiment_is_cut_off():
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        comments = [line for line in path.read_text().splitlines() if line.startswith("#") and "@package" not in line]
        ends = re.search(r"[.;](\s|$)", comments[0]) or len(comments) == 1
        assert ends or comments[1].startswith("# ("), f"the first line of {path.name} is no sentence"


def test_experiments_of_a_tables_sweep_are_under_its_heading():
    blocks = {block.split(":")[0]: block for block in train_help().split("\n\n")}
    for number in (12, 13):
        params = yaml.safe_load((CONF / "sweep" / f"table{number}.yaml").read_text())["hydra"]["sweeper"]["params"]
        block = blocks[f"Table {number}"]
        bases = re.search(r"^  NAME: (.*)$", block, re.MULTILINE)[1].split(", ")
        suffixes = re.findall(r"^  NAME_(\w+) ", block, re.MULTILINE)
        listed = {f"{base}_{suffix}" for base in bases for suffix in suffixes}
        assert listed == set(re.findall(r"\w+", params["experiment"])) - set(described()["Table 1"])
        assert not any(f"NAME_{suffix}" in blocks["Table 1"] for suffix in suffixes)


def test_the_repetition_of_a_run_is_named():
    assert "--from-run" in train_help() and "python -m et.runs.experiments" in train_help()


def test_every_key_of_an_evaluation_is_explained():
    keys = yaml.safe_load((CONF / "evaluate.yaml").read_text()).keys() - {"defaults", "hydra"}
    text = evaluate_help()
    for key in keys:
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {key} ")]
        explained = re.sub(r"\((default \S+|required)\)$", "", line).split(maxsplit=1)
        assert len(explained) == 2, f"{key} has no explanation in conf/evaluate.yaml"


def test_the_page_on_configuration_shows_every_key_of_an_evaluation():
    lines = (CONF / "evaluate.yaml").read_text().splitlines()
    page = (CONF.parent / "docs" / "reference" / "configuration.md").read_text()
    first, last = re.search(r'"conf/evaluate\.yaml:(\d+):(\d+)"', page).groups()
    shown = yaml.safe_load("\n".join(lines[int(first) - 1 : int(last)]))
    assert shown.keys() == yaml.safe_load("\n".join(lines)).keys() - {"defaults", "hydra"}


def test_help_is_asked_for_by_its_usual_names():
    assert asks_for_help(["--help"]) and asks_for_help(["experiment=x", "-h"]) and not asks_for_help(["--hydra-help"])
