"""The package: its wheel, its commands, and what its metadata promise."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.util import find_spec

import pytest

import et
from et import commands
from et.utils import paths
from tests.configs import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Import names that differ from the distribution's; yaml, PIL and the launcher come with another dependency.
DISTRIBUTIONS = {
    "sklearn": "scikit-learn", "skimage": "scikit-image", "hydra": "hydra-core", "yaml": "hydra-core",
    "omegaconf": "hydra-core", "PIL": "scikit-image", "lightning_fabric": "pytorch-lightning",
    "submitit": "hydra-submitit-launcher", "fastapi": "gradio",
    "uvicorn": "gradio", "xgboost": "xgboost-cpu", "hydra_plugins": "hydra-submitit-launcher", "triton": "torch",
}  # fmt: skip


def declared(*extras: str) -> set[str]:
    """Names of the distributions that the package needs with ``extras``."""
    found = {re.match(r"[\w-]+", requirement)[0] for requirement in PROJECT["dependencies"]}
    for extra in extras:
        for requirement in PROJECT["optional-dependencies"][extra]:
            nested = re.match(r"energy-transformer\[(.+)\]", requirement)
            found |= declared(*nested[1].split(",")) if nested else {re.match(r"[\w-]+", requirement)[0]}
    return found


def imported(folder: str) -> set[str]:
    """Distributions, other than this one, whose modules the files of ``folder`` import."""
    names: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module)
    modules = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"et"}
    return {DISTRIBUTIONS.get(module, module.replace("_", "-")) for module in modules}


def test_the_core_needs_what_the_package_needs_and_numba():
    assert declared() == {"torch", "numpy"}
    assert imported("et/core") <= declared("numba")


def test_everything_imported_is_declared():
    assert imported("et") | imported("hydra_plugins") <= declared("all", "app")


@pytest.mark.parametrize("name", sorted(PROJECT["scripts"]))
def test_commands_exist_and_import_nothing_heavy(name):
    module, _, function = PROJECT["scripts"][name].partition(":")
    assert callable(getattr(import_module(module), function))
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
    top = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert top - {"__future__", "collections.abc", "typing"} == {"et.utils.startup"}


def test_a_missing_library_is_told_in_a_sentence(capsys, monkeypatch):
    monkeypatch.setattr(commands, "prepare", lambda: None)

    def command():
        raise ModuleNotFoundError("No module named 'hydra'", name="hydra")

    with pytest.raises(SystemExit) as left:
        commands._run(command)
    assert re.fullmatch(
        r"error: hydra is not installed for \S+: activate .*pip install -e '\.\[all\]'", left.value.code
    )

    def broken():
        raise ModuleNotFoundError("No module named 'et.nothing'", name="et.nothing")

    with pytest.raises(ModuleNotFoundError):
        commands._run(broken)


# Experiments that do not exist: the plan of others imports torch.
@pytest.mark.parametrize("arguments", ("--help", "--multirun sweep=table16 experiment=neither,nor sweep.dry_run=true"))
def test_a_reader_that_leaves_is_no_error(arguments):
    """``train.py --help | head`` prints no traceback, even if the reader reads nothing."""
    command = f"{sys.executable} {ROOT / 'train.py'} {arguments} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=100)
    assert done.stderr == ""


def test_a_pipe_to_a_process_that_breaks_is_an_error(monkeypatch):
    monkeypatch.setattr(commands, "prepare", lambda: None)

    def command():
        read, write = os.pipe()
        os.close(read)
        try:
            os.write(write, b"request")
        finally:
            os.close(write)

    with pytest.raises(BrokenPipeError):
        commands._run(command)


def test_complete_is_there_or_its_module_is_not():
    assert find_spec("et.inpainting.complete") is None or callable(import_module("et.inpainting.complete").main)


def test_messages_name_the_commands_that_are_installed(monkeypatch):
    """No text but docstrings says ``python train.py``, which a wheel does not have."""
    assert paths.command("train") == "python train.py"
    monkeypatch.setattr(paths, "IN_CHECKOUT", False)
    assert paths.command("train") == "et-train"
    for path in (ROOT / "et").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        documented = [n for n in nodes if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
        docstrings = {id(n.body[0].value) for n in documented if n.body and isinstance(n.body[0], ast.Expr)}
        texts = [n for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        for text in (n.value for n in texts if id(n) not in docstrings):
            assert not re.search(r"python (train|evaluate|complete)\.py", text), (path, text)


def test_version_is_the_same_everywhere():
    assert f"## [{et.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {et.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert PROJECT["dynamic"] == ["version"]


@pytest.mark.slow
def test_the_wheel_works_from_another_folder():
    pytest.importorskip("hatchling")
    done = subprocess.run(
        [ROOT / "scripts" / "try_wheel.sh", sys.executable], capture_output=True, text=True, timeout=550
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("the wheel works\n")


def test_an_integration_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.layers", None)
    monkeypatch.delitem(sys.modules, "et.integrations.timm", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"needs timm: pip install 'energy-transformer\[timm\]'"):
        import_module("et.integrations.timm")
