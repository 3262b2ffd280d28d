"""What the README shows runs, and what it says is on record."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from et.runs import experiments
from tests.configs import ROOT

README = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
# Installation and the demo take minutes and a network: checked below without being run.
LONG = re.compile(r"pip install|make demo|python3\S* -m venv|\. \.venv/bin/activate")


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of the tracked and new files with an environment in .venv: this one, by links."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in listed.stdout.decode().splitlines():
        if (ROOT / name).is_file() and not name.startswith(".venv"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    environment = folder / ".venv"
    environment.mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (environment / name).symlink_to(Path(sys.prefix) / name)
    (environment / ".ready").touch()
    return folder


def run_in(clone: Path, *command: str) -> subprocess.CompletedProcess:
    """A command in the copy, with the environment of the copy activated as the README says."""
    environment = {k: v for k, v in os.environ.items() if k not in ("ET_DATA_DIR", "ET_RUNS_DIR")}
    environment |= {"PYTHONPATH": str(clone), "PATH": f"{sysconfig.get_path('scripts')}:{environment['PATH']}"}
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=550)


# Each line in a process of its own, forked from one that has imported the libraries, which takes as long as a run.
RUN_EACH = """
import os, runpy, shlex, sys
import pandas, pytorch_lightning, sklearn

lines = sys.argv[1:]
for line in lines:
    print(f"$ {line}", flush=True)
    if child := os.fork():
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            sys.exit(f"{line}: ended with {status}")
        continue
    program, *arguments = shlex.split(line, comments=True)
    assert program == "python"
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(sys.argv[0], run_name="__main__")
    break
"""


@pytest.mark.slow
def test_commands_run_as_printed(clone):
    first, *others = sorted((line for line in COMMANDS if not LONG.search(line)), key=lambda line: "--help" not in line)
    for command in (["bash", "-c", first], ["python", "-c", RUN_EACH, *others]):
        done = run_in(clone, *command)
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n$ ") == len(others) - 1 and "test/" in done.stdout


def test_the_demo_and_the_installation_are_what_the_project_has(clone):
    assert sum(bool(LONG.search(line)) for line in COMMANDS) == 4 and len(COMMANDS) > 6
    demo = subprocess.run(["make", "--dry-run", "demo"], cwd=clone, capture_output=True, text=True)
    assert demo.returncode == 0 and "train.py experiment=demo_inpainting" in demo.stdout
    assert "pip install" not in demo.stdout  # the environment is ready
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for named in re.findall(r"'\.\[([\w,]+)\]'", README):
        assert set(named.split(",")) <= set(extras)


def test_make_finds_a_python_and_says_which(tmp_path):
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy2(ROOT / name, tmp_path / name)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "python3.13").symlink_to(sys.executable)  # the only Python there is, under a name that is not tried first
    for name in ("bash", "sh", "date", "expand", "grep", "sed", "touch", "make"):
        (tools / name).symlink_to(shutil.which(name))

    def dry_run(**variables: str) -> subprocess.CompletedProcess:
        command = ["make", "--dry-run", "setup", *(f"{k}={v}" for k, v in variables.items())]
        return subprocess.run(command, cwd=tmp_path, env={"PATH": str(tools)}, capture_output=True, text=True)

    assert "\npython3.13 -m venv .venv\n" in dry_run().stdout
    (tools / "python3.13").unlink()
    nothing = dry_run()
    assert nothing.returncode and "No Python 3.11 or newer" in nothing.stderr


def test_python_examples_run(capsys):
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert examples
    for example in examples:
        promised = re.findall(r"# (torch\.Size\(.*?\))", example)
        exec(compile(example, "README.md", "exec"), {})
        assert capsys.readouterr().out.splitlines() == promised


def test_results_at_a_glance_are_on_record():
    found = [row for path in sorted(ROOT.glob("experiments/table*/table.csv")) for row in csv.DictReader(path.open())]
    rows = [row for row in found if row.get("mean")]
    section = README[README.index("## Results at a glance") : README.index("## The layer")]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line][2:]
    assert len(table) >= 7
    for name, _, paper, linked, baseline, n in table:
        ours = re.sub(r"\[(.*)\]\(.*\)", r"\1", linked)
        values = {_rounded(row) for row in rows if row["n"] == n}
        assert ours in values, (name, ours)
        assert re.search(r"[\d.]+(?: ± [\d.]+)?$", baseline)[0] in values, (name, baseline)
        if paper:
            ours_on = [row for row in rows if row["n"] == n and _rounded(row) == ours]
            assert any(_is_papers(row, paper, found) for row in ours_on), (name, paper)
    for value in re.findall(r"[\d.]+ ± [\d.]+", section):
        assert any(_rounded(row) == value for row in rows), value


def _is_papers(ours: dict[str, str], paper: str, rows: list[dict[str, str]]) -> bool:
    """Whether the paper has this number for the same model on these data, or on those that a variant stands for."""
    same = [row for row in rows if all(row[key] == ours[key] for key in ("table", "metric", "method"))]
    return any(row["paper_mean"] == paper and ours["experiment"].startswith(row["experiment"]) for row in same)


def _rounded(row: dict[str, str]) -> str:
    """Mean and standard deviation of a row of a table.csv as the tables print them; errors of one run without."""
    digits = 3 if row["metric"] in ("mse", "mae") else 1
    mean = f"{float(row['mean']):.{digits}f}"
    shown = row["deviation"] and (digits == 1 or row["n"] != "1")
    return f"{mean} ± {float(row['deviation']):.{digits}f}" if shown else mean


def test_links_and_experiments_exist():
    for name in re.findall(r"experiment=(\w+)", README):
        assert name in experiments.names() or name == "NAME", name
    for name in re.findall(r"sweep=(\w+)", README):
        assert (ROOT / "conf" / "sweep" / f"{name}.yaml").exists(), name


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    shown = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in shown}


def test_relative_links_and_their_anchors_exist():
    count = 0
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("experiments/**/*.md")]:
        text = page.read_text()
        links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
        for link in (link for link in links if not re.match(r"\w+:", link)):
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), (page.name, link)
            assert not anchor or anchor in anchors(target.read_text()), (page.name, link)
            count += 1
    assert count > 200


def test_make_targets_exist():
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in ("README.md", "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))):
        named = set(re.findall(r"(?:^|`)make ([\w-]+)", (ROOT / page).read_text(), re.MULTILINE))
        assert named <= targets, (page, named - targets)
