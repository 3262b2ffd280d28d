"""What the README shows runs, and what it names is there."""

import re

from tests.configs import ROOT

README = (ROOT / "README.md").read_text()


def test_python_examples_run(capsys):
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})
    assert "torch.Size([2, 50, 64])" in capsys.readouterr().out


def test_links_and_experiments_exist():
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
    for name in re.findall(r"experiment=(\w+)", README):
        assert (ROOT / "conf" / "experiment" / f"{name}.yaml").exists() or name == "NAME", name
    for name in re.findall(r"sweep=(\w+)", README):
        assert (ROOT / "conf" / "sweep" / f"{name}.yaml").exists(), name


def test_make_targets_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE)) <= targets
