"""The cells of a sweep: which there are, and the state that their folders tell."""

from __future__ import annotations

from et.sweeps.cells import Cell, combinations, inspect, needed, read_failure, record_failure, skipped
from et.utils.errors import UserError


def test_combinations_are_those_of_hydras_sweeper():
    assert combinations({"seed": "range(0,2)", "experiment": "a, b"}, ["seed=7", "x=1"]) == [
        ["seed=7", "experiment=a", "x=1"], ["seed=7", "experiment=b", "x=1"],
    ]  # fmt: skip


def test_a_rule_skips_what_all_its_patterns_match():
    rules = [{"experiment": "*_mlp", "protocol": "released"}, {"data.fold": "[1-9]", "protocol": "released"}]
    assert skipped(["experiment=a_mlp", "protocol=released"], rules)
    assert not skipped(["experiment=a_mlp", "protocol=held_out"], rules)
    assert skipped(["experiment=a", "protocol=released", "data.fold=3"], rules)
    assert not skipped(["experiment=a", "protocol=released", "data.fold=0"], rules)
    assert not skipped(["experiment=a", "protocol=released"], rules)


def cell(state: str, experiment: str = "a", seed: int = 0) -> Cell:
    return Cell((f"seed={seed}", f"experiment={experiment}"), experiment, state)


def test_only_what_is_needed_is_launched():
    cells = [
        cell("done", "a", 0),
        cell("done", "a", 1),
        cell("done", "b", 0),
        cell("failed", "b", 1),
        cell("invalid", "c"),
    ]
    assert needed(cells) == {"seed": "1", "experiment": "b"}
    assert needed([cell("done")]) == {}
    assert needed([cell("invalid", "c")]) == {}


def test_the_state_of_a_cell_is_read_from_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ET_RUNS_DIR", str(tmp_path))
    overrides = ["experiment=demo_inpainting", "seed=0"]
    folder = inspect(overrides).folder
    assert inspect(overrides).state == "open"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    assert inspect(overrides).state == "interrupted"
    record_failure(folder, UserError("no data"), overrides)
    assert (inspect(overrides).state, inspect(overrides).message) == ("failed", "UserError: no data")
    (folder / "result.json").write_text('{"half')
    assert inspect(overrides).state == "failed", "half a result is no result"
    assert inspect(["experiment=no_such"]).state == "invalid"
    refused = inspect(["experiment=tu_mutag", "fidelity=released", "model.step_size=0.2"])
    assert refused.state == "failed" and "model.released.step_size counts" in refused.message
    assert needed([refused]), "running it says so again; the other cells of its experiment are not held up"


def test_a_failure_keeps_the_traceback_of_what_is_no_users_error(tmp_path):
    try:
        raise ZeroDivisionError("division by zero")
    except ZeroDivisionError as error:
        record_failure(tmp_path, error, ["a=1"])
    failure = read_failure(tmp_path)
    assert failure["error"] == "ZeroDivisionError" and "test_cells.py" in failure["traceback"]
    assert failure["overrides"] == ["a=1"]
    record_failure(tmp_path, UserError("mend this"), [])
    assert read_failure(tmp_path)["traceback"] == ""


def test_a_failure_that_cannot_be_written_does_not_end_the_sweep(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    record_failure(tmp_path / "file" / "folder", ValueError("x"), [])
    assert "could not write" in capsys.readouterr().out
