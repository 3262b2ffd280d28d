"""docs/how-to/extending.md runs from top to bottom in an empty folder, with its commands cut to two epochs."""

from __future__ import annotations

import re
import runpy
import shlex
import sys

from hydra.core.global_hydra import GlobalHydra

from et.runs.record import read_result
from tests.configs import ROOT

PAGE = (ROOT / "docs" / "how-to" / "extending.md").read_text()
SHORT = ["trainer.max_epochs=2", "trainer.accelerator=cpu", "callbacks.progress=false"]


def run_command(line: str, monkeypatch) -> None:
    """``python train.py ...`` in this process; the test fails where the command would end with an error."""
    arguments = shlex.split(line.split("train.py ", 1)[1])
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments, *SHORT])
    try:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    except SystemExit as end:
        assert not end.code, line
    finally:
        GlobalHydra.instance().clear()


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ET_RUNS_DIR", "runs")
    monkeypatch.setenv("ET_TRUSTED_TARGETS", "")  # which the page sets
    monkeypatch.syspath_prepend(str(tmp_path))
    blocks = re.findall(r"```(python|sh)\n(.*?)```", PAGE, re.DOTALL)
    commands = 0
    for language, text in blocks:
        if language == "python":
            # Two epochs make another run than the page's command does.
            text = text.replace('data.train_ratio=0.4"', f'data.train_ratio=0.4 {" ".join(SHORT)}"')
            names: dict = {}
            exec(compile(text, "docs/how-to/extending.md", "exec"), names)
            continue
        for line in filter(None, text.splitlines()):
            run_command(line, monkeypatch)
            commands += 1
    assert commands == 9
    records = [read_result(path.parent) for path in tmp_path.rglob("result.json")]
    assert len(records) == 8 + 4 and all(record["dataset"]["variant"] == "user data" for record in records)
    (signals,) = (record for record in records if record["task"] == "signals")
    assert signals["experiment"] == "signals-signals" and 0 <= signals["metrics"]["test/accuracy"] <= 1
    assert (names["tokens"][0] - names["alone"]).abs().max() < 1e-5  # of the page's last example
